"""`python -m training`; see `cli`."""

from training.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
