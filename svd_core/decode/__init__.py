"""Exact decoding of long clips in little memory: how (`stream.py`) and with how much (`plan.py`)."""
