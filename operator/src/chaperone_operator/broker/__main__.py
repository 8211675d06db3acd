"""`python -m chaperone_operator.broker`."""

from chaperone_operator.broker.main import main

main()
