"""The aggregated API `evidence.chaperone.dev/v1alpha1`: sessions and commands, read-only, for kubectl and auditors."""
