"""Stable Video Diffusion in plain PyTorch: a still in, a clip out."""

__version__ = "0.1.0"
