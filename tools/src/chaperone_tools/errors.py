"""The one error of these tools: `ToolsError`, a sentence for the person at the terminal that names the next step."""

from __future__ import annotations


class ToolsError(Exception):
    """A command cannot do what it was asked; the message says why and what to do."""
