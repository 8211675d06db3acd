"""Broker: gives gateways certificates, configuration, policy and short leases of credentials; README.md tells more."""
