"""A table on a terminal that is redrawn in place."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

_UP_AND_CLEAR = "\033[{}F\033[J"


class LiveTable:
    """Rows on stderr that replace the previous ones; draws nothing if stderr is not a terminal."""

    def __init__(self) -> None:
        self._drawn = 0
        self.live = sys.stderr is not None and sys.stderr.isatty()

    def draw(self, rows: Sequence[str]) -> None:
        """Draw each row on its own line, cut to the terminal's width."""
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.clear()
            sys.stderr.write("".join(f"{row[:width]}\n" for row in rows))
            sys.stderr.flush()
            self._drawn = len(rows)

    def clear(self) -> None:
        """Remove the rows, so that other text can be written."""
        if self._drawn:
            sys.stderr.write(_UP_AND_CLEAR.format(self._drawn))
            sys.stderr.flush()
            self._drawn = 0
