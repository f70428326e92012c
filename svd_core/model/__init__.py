"""The networks, under the official parameter names. Read `unet.py`, `vae.py` and `clip_vision.py` top down."""
