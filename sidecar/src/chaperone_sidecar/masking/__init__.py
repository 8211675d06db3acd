"""Masking: what of an answer the client may see. Nothing here imports RE2 but `engine.py` and what stands on it."""
