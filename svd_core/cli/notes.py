"""Sentences beside the result, on stderr."""

from __future__ import annotations

import sys

from ..errors import printable


def note(text: str) -> None:
    """One line, whatever a file put into the text."""
    sys.stderr.write(f"note: {printable(text)}\n")
