"""Text on a terminal. What comes out of evidence was chosen by others and may hold control sequences."""

from __future__ import annotations

import sys

import click


def printable(text: str) -> str:
    """The text on one line, with what a terminal could obey replaced."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def say(text: str, *, err: bool = False) -> None:
    """Print one line, whatever the text holds."""
    click.echo(printable(text), err=err)


def progress(text: str) -> None:
    """Show how far a long work is, where somebody watches; the empty text takes it away."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{printable(text)}")
        sys.stderr.flush()
