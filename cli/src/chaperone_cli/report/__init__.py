"""`chaperone report`: a package of controls and evidence for auditors of SOC 2, and its check, offline."""
