"""Complete sampling for `benchmarks.forward`: the same noise, picture, levels and guidance in each project's loop.

Conditioning is given as encoder outputs, and latents are compared before decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from svd_core.conditioning import Conditioning
from svd_core.config import LATENT_SCALE, PIXELS_PER_LATENT, UNetConfig
from svd_core.sampling import GuidedDenoiser, edm_sigmas, linear_guidance, noisy_start, sample_euler
from svd_core.sampling.denoise import Network
from svd_core.sinusoid import sinusoid

from .peers import Weights, import_comfyui
from .unet_peers import Diffusers, Ours, comfyui_settings

FPS, BUCKET, AUGMENTATION = 7, 127, 0.02
IDS = (float(FPS - 1), float(BUCKET), AUGMENTATION)
GUIDANCE = (1.0, 2.5)

Sample = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Shot:
    """Inputs of one sampling: noise (T, 4, h, w) unit normal, context (1, 1, D), first (1, 4, h, w) unscaled, steps."""

    noise: Tensor
    context: Tensor
    first: Tensor
    steps: int

    @classmethod
    def random(cls, config: UNetConfig, size: tuple[int, int, int], steps: int) -> Shot:
        generator = torch.Generator().manual_seed(1)
        shapes = ((size[0], 4, *size[1:]), (1, 1, config.context_dim), (1, 4, *size[1:]))
        return cls(*(torch.randn(shape, generator=generator) for shape in shapes), steps)

    @property
    def frames(self) -> int:
        return len(self.noise)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return PIXELS_PER_LATENT * self.noise.shape[2], PIXELS_PER_LATENT * self.noise.shape[3]


def ours(config: UNetConfig, weights: Weights, shot: Shot, dtype: torch.dtype) -> Sample:
    """`StableVideo.sample` without its inference mode, which hides the dispatched operations."""
    return sampling_of(Ours.build(config, weights, dtype).unet, config, shot, dtype)


def sampling_of(network: Network, config: UNetConfig, shot: Shot, dtype: torch.dtype) -> Sample:
    """Our loop around a network that computes in `dtype`."""
    vector = sinusoid(torch.tensor([IDS]), config.vector_dim // 3).flatten(1)
    guidance = linear_guidance(shot.frames, *GUIDANCE)
    denoise = GuidedDenoiser(network, Conditioning(shot.context, shot.first, vector), guidance, dtype=dtype)
    sigmas = edm_sigmas(shot.steps)
    return lambda: sample_euler(denoise, noisy_start(shot.noise, sigmas), sigmas)


def network_of_diffusers(unet: nn.Module) -> Network:
    """diffusers' UNet with our loop's call signature, in the dtype of its inputs."""

    def network(x: Tensor, c_noise: Tensor, context: Tensor, _vector: Tensor, num_frames: int) -> Tensor:
        clips, first = x.unflatten(0, (-1, num_frames)), slice(None, None, num_frames)
        ids = torch.tensor([IDS]).expand(len(clips), -1)
        return unet(clips, c_noise[first], context[first], ids, return_dict=False)[0].flatten(0, 1)

    return network


def diffusers(config: UNetConfig, weights: Weights, shot: Shot, dtype: torch.dtype) -> Sample:
    """diffusers' pipeline, with its encoders replaced by their outputs."""
    from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline

    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        steps_offset=1,
    )
    unet = Diffusers.build(config, weights, dtype).unet
    pipeline = StableVideoDiffusionPipeline(None, None, unet, scheduler, None)
    pipeline.vae = SimpleNamespace(dtype=dtype)
    pipeline._encode_image = lambda *_: _after_zeros(shot.context.to(dtype))
    pipeline._encode_vae_image = lambda *_, **__: _after_zeros(shot.first.to(dtype))
    pipeline.set_progress_bar_config(disable=True)
    height, width = shot.size
    call = {
        "image": torch.zeros(1, 3, height, width),
        "height": height,
        "width": width,
        "num_frames": shot.frames,
        "num_inference_steps": shot.steps,
        "min_guidance_scale": GUIDANCE[0],
        "max_guidance_scale": GUIDANCE[1],
        "fps": FPS,
        "motion_bucket_id": BUCKET,
        "noise_aug_strength": AUGMENTATION,
        "output_type": "latent",
        "return_dict": False,
    }
    return lambda: pipeline(latents=shot.noise[None].to(dtype), **call)[0]


def _after_zeros(given: Tensor) -> Tensor:
    """A zero (unconditional) row, followed by the conditional one."""
    return torch.cat([torch.zeros_like(given), given])


def comfyui(config: UNetConfig, weights: Weights, shot: Shot, dtype: torch.dtype) -> Sample:
    """ComfyUI's SVD model, its guider with the guidance of its node Video Linear CFG, and its Euler sampler."""
    import_comfyui()
    import comfy.model_base
    import comfy.model_patcher
    import comfy.samplers
    import comfy.supported_models
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance

    settings = comfy.supported_models.SVD_img2vid(comfyui_settings(config))
    settings.unet_config["num_head_channels"] = config.head_channels  # ComfyUI always sets 64
    settings.set_inference_dtype(dtype, None)
    cpu = torch.device("cpu")
    model = comfy.model_base.SVD_img2vid(settings, device=cpu)
    model.diffusion_model.load_state_dict(dict(weights), strict=True, assign=True)
    model.embedder = comfy.model_base.Timestep(config.vector_dim // 3)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    guider = comfy.samplers.CFGGuider(VideoLinearCFGGuidance().patch(patcher, GUIDANCE[0])[0])
    micro = {"fps": FPS, "motion_bucket_id": BUCKET, "augmentation_level": AUGMENTATION}
    positive = [[shot.context, {**micro, "concat_latent_image": shot.first}]]
    zeros = (torch.zeros_like(shot.context), torch.zeros_like(shot.first))
    negative = [[zeros[0], {**micro, "concat_latent_image": zeros[1]}]]
    guider.set_conds(positive, negative)
    guider.set_cfg(GUIDANCE[1])
    sampler, sigmas = comfy.samplers.sampler_object("euler"), edm_sigmas(shot.steps)

    def sample() -> Tensor:
        start = torch.zeros_like(shot.noise)
        return LATENT_SCALE * guider.sample(shot.noise, start, sampler, sigmas, disable_pbar=True, seed=0)

    return sample


SAMPLERS = {"ours": ours, "diffusers": diffusers, "ComfyUI": comfyui}
