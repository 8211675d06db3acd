"""A Kubernetes cluster to test and demonstrate on, brought up and taken down by one command."""
