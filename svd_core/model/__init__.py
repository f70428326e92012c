"""The networks, under the official parameter names. Read `unet.py`, `vae_networks.py` and `clip_vision.py` top down."""
