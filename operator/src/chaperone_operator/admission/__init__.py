"""Admission: which pods are agents, what is injected into them, and what is refused because it could not be fenced."""
