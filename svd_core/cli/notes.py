"""Notes to the user on stderr."""

from __future__ import annotations

import sys

from ..errors import printable


def note(text: str) -> None:
    """Print a note as one line, whatever the text contains."""
    sys.stderr.write(f"note: {printable(text)}\n")
