"""`svd_core`'s networks as native MODEL, VAE and CLIP_VISION: the only package that touches ComfyUI's internals."""
