"""`python -m svd_core`: see `svd_core.cli`."""

import os
import signal
import sys

from .cli import BY_SIGNAL, main

if __name__ == "__main__":
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt but Python's own end
    if code > BY_SIGNAL:
        sys.stderr.flush()
        os._exit(code)  # Python would end with the signal's status if it came while a library ran `exec`
    raise SystemExit(code)
