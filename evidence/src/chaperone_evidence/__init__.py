"""Records, hash chain, signed heads, bundle and offline verification of Chaperone."""
