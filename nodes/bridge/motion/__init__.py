"""Methods of `svd_core.motion` on a native MODEL, for every sampler and guider of ComfyUI."""
