"""`python -m svd_core`: see `svd_core.cli`."""

import os
import signal
import sys

from .cli import BY_SIGNAL, main

if __name__ == "__main__":
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only Python's own shutdown is left to interrupt
    if code > BY_SIGNAL:
        sys.stderr.flush()
        os._exit(code)  # Python would exit with the signal's status if it arrived during a library's `exec`
    raise SystemExit(code)
