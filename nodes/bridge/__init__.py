"""The only rooms that know ComfyUI's internals: `svd_core`'s networks as native MODEL, VAE and CLIP_VISION."""
