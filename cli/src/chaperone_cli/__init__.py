"""The command line of Chaperone: chaperone and kubectl-chaperone."""

import sys

from chaperone_cli import compiled

if sys.argv[1:2] == ["dev"]:
    compiled.prefer()  # before anything of the gateway is imported
