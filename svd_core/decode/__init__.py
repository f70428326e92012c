"""Exact decoding of long clips in little memory: frames in bands (`frames.py`), clips in strips (`stream.py`), where
activations stay (`places.py`) and how much that takes (`plan.py`)."""
