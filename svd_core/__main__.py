"""`python -m svd_core`: see `svd_core.cli`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
