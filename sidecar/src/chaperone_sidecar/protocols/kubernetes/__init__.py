"""The Kubernetes API: requests, watches, logs and exec."""
