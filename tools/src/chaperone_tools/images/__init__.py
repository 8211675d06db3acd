"""Container images of the product and of its tests, built from this checkout and cached by their inputs."""
