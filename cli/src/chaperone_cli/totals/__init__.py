"""`chaperone totals`: what a back end counted by itself, held against what is recorded."""
