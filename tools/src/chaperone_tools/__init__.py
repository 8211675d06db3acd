"""Test cluster and image builds of the Chaperone project; not shipped."""
