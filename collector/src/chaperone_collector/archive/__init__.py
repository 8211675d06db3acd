"""The log's second copy, in a bucket where nobody can delete it."""
