"""The command line of Chaperone: chaperone and kubectl-chaperone."""
