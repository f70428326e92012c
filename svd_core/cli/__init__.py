"""The command line: `python -m svd_core animate | inspect | decode`.

Exit codes: 0 done, 2 something given cannot be used (one line on stderr says what), 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..errors import StableVideoError
from .flags import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `argv` is without the program's name; None takes the process's own."""
    try:
        args = parser().parse_args(argv)
        args.run(args)
    except StableVideoError as error:
        return _stop(f"error: {' '.join(str(error).splitlines())}", 2)
    except KeyboardInterrupt:
        return _stop("interrupted: the clip was not written", 130)
    return 0


def _stop(line: str, code: int) -> int:
    sys.stderr.write(f"{line}\n")
    return code
