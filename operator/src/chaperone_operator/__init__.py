"""Admission, reconciliation, policy compiler and credential broker of Chaperone."""
