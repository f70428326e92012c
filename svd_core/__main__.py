"""`python -m svd_core`: see `svd_core.cli`."""

import signal

from .cli import main

if __name__ == "__main__":
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt but Python's own end
    raise SystemExit(code)
