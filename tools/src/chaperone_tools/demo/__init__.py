"""`chaperone-demo`."""
