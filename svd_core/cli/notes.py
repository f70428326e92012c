"""Notes to the user on stderr, and what to say where stdout takes no more."""

from __future__ import annotations

import sys

from ..errors import OutputError, printable


def note(text: str) -> None:
    """Print a note as one line, whatever the text contains."""
    sys.stderr.write(f"note: {printable(text)}\n")


def no_output(error: OSError) -> OutputError:
    """What to raise where standard output takes no more; a reader that has gone (BrokenPipeError) is no error."""
    why = (error.strerror or type(error).__name__).lower()
    return OutputError(f"standard output cannot be written ({why}): send it to a file or a terminal")
