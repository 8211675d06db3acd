"""Stores the records of all gateways and serves them as a Kubernetes API."""
