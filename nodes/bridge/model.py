"""`svd_core`'s video UNet as a native MODEL.

Our network is wrapped in ComfyUI's own SVD model class and built with its `operations`, so offloading, LoRA, fp8,
merging, saving and every patch work as on the native model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...svd_core.device_memory import leaner_if_full
from ...svd_core.errors import InputError
from ...svd_core.model.backend import Backend
from ...svd_core.model.layout import laid_out
from ...svd_core.model.unet import VideoUNet
from ...svd_core.planning import sample_bytes
from .attention import host_attention, host_frames
from .hooks import HostHooks
from .weights import host_weights

if TYPE_CHECKING:
    from torch import Tensor

    from ...svd_core.config import UNetConfig


WORKSPACE = 1.25
"""Factor on the counted activations for the memory that libraries allocate in addition."""

REUSE = "stable_video_reuse"
"""Key in `transformer_options` of a run's `FeatureReuse`, if any."""

LEANER = (0.0, 0.5, 1.0)
"""Shares of the weights to move off the device on successive out-of-memory errors; the first attempt only empties the
allocator's cache."""


class HostedUNet(VideoUNet):
    """Our UNet behind the call signature of ComfyUI's diffusion models."""

    def __init__(
        self,
        *,
        svd_config: UNetConfig,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        operations: Any,
        **_native: Any,
    ) -> None:
        """`_native` takes the rest of ComfyUI's model config, which other nodes read."""
        backend = Backend(operations, host_attention, dtype, device, frames=host_frames, weights=host_weights)
        super().__init__(svd_config, backend=backend)
        self.dtype = dtype

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor,
        control: dict[str, list] | None = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        """`VideoUNet.forward` with ComfyUI's signature and wrappers; `extra` holds `num_video_frames`."""
        options = {} if transformer_options is None else transformer_options
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._run, self, wrappers)
        return executor.execute(x, timesteps, context, y, control, options, **extra)

    def _run(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor,
        control: dict[str, list] | None = None,
        transformer_options: dict[str, Any] | None = None,
        num_video_frames: int | None = None,
        **_extra: Any,
    ) -> Tensor:
        call = {
            "x": x,
            "timesteps": timesteps,
            "context": context,
            "y": y,
            "model_channels": self.config.model_channels,
        }
        hooks = HostHooks({} if transformer_options is None else transformer_options, control, call)
        frames = clip_length(x.shape[0], num_video_frames, hooks.options)
        # No reuse with patches or ControlNets: they may change features, or count the blocks that run.
        reuse = None if control or hooks.patches or hooks.replacements else hooks.options.get(REUSE)
        return VideoUNet.forward(self, x, timesteps, context, y, frames, hooks, reuse)


def clip_length(rows: int, num_video_frames: int | None, options: Mapping[str, Any]) -> int:
    """Number of frames of one clip in a batch of `rows`.

    Context windows may add an anchor frame to a window without updating `num_video_frames`; then the batch holds one
    clip for each conditioning that ComfyUI joined in it.
    """
    if num_video_frames and rows % num_video_frames == 0:
        return num_video_frames
    return rows // len(options.get("cond_or_uncond") or (0,))


class StableVideoModel(comfy.model_base.SVD_img2vid):
    """ComfyUI's SVD model around our network, with support for batches of clips."""

    def __init__(self, model_config: comfy.supported_models.SVD_img2vid, device: torch.device | None = None) -> None:
        edm = comfy.model_base.ModelType.V_PREDICTION_EDM
        comfy.model_base.BaseModel.__init__(self, model_config, edm, device=device, unet_model=HostedUNet)
        self.embedder = comfy.model_base.Timestep(model_config.unet_config["adm_in_channels"] // 3)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Native conditioning that may also set the length of one clip; ComfyUI treats a batch as one clip."""
        require_numbers(kwargs)
        require_rows(kwargs)
        conds = super().extra_conds(**kwargs)
        if "num_video_frames" in kwargs:
            conds["num_video_frames"] = comfy.conds.CONDConstant(kwargs["num_video_frames"])
        return conds

    def memory_required(self, input_shape: Sequence[int], cond_shapes: Mapping[str, Any] | None = None) -> float:
        """Bytes of activations for latents (N, 4, h, w), from which ComfyUI decides how many weights fit in addition.
        Counted, because its own estimate is several times higher and would keep weights off the device needlessly."""
        native = super().memory_required(input_shape, cond_shapes or {})
        management = comfy.model_management
        fused = management.xformers_enabled() or management.pytorch_attention_flash_attention()
        if not fused or len(input_shape) != 4:
            return native
        frames, _, height, width = input_shape
        config, dtype = self.model_config.unet_config["svd_config"], self.get_dtype_inference()
        counted = sample_bytes(config, (frames, height, width), dtype, joint=False, streamed=False)
        return min(native, WORKSPACE * counted)

    def apply_model(self, *args: Any, **kwargs: Any) -> Tensor:
        """ComfyUI's method, retried with fewer weights on the device when memory runs out: no step is lost, and the
        result is the same."""
        apply = super().apply_model

        def with_room(share: float | None) -> Tensor:
            if share is not None:
                make_room(self.current_patcher, share)
            return apply(*args, **kwargs)

        return leaner_if_full(with_room, (None, *LEANER))


def require_numbers(conditioning: Mapping[str, Any]) -> None:
    """Raise InputError if fps, motion bucket or augmentation in the conditioning is not a number."""
    for name in ("fps", "motion_bucket_id", "augmentation_level"):
        value = conditioning.get(name, 0)
        if not isinstance(value, Real | torch.Tensor):
            raise InputError(
                f"the conditioning's {name} is {value!r}, which is no number: connect Stable Video Conditioning"
            )


def require_rows(conditioning: Mapping[str, Any]) -> None:
    """Raise InputError if the conditioning shows each frame a picture of its own, as for several clips or a moving
    camera, and the run has another number of frames: ComfyUI would spread the pictures over it."""
    shown, noise = (conditioning.get(name) for name in ("concat_latent_image", "noise"))
    if "num_video_frames" in conditioning and shown is not None and len(shown) not in (1, len(noise)):
        raise InputError(
            f"the conditioning shows {len(shown)} frames and the latent holds {len(noise)}: take both from the same "
            "nodes, without one that cuts or repeats the latent between"
        )


def make_room(patcher: comfy.model_patcher.ModelPatcher | None, share: float) -> None:
    """Move a share of a model's weights off its device with ComfyUI's offloading, then empty the allocator's cache."""
    if patcher is not None and share and patcher.load_device != patcher.offload_device:
        patcher.partially_unload(patcher.offload_device, int(share * patcher.loaded_size()))
    comfy.model_management.soft_empty_cache()


def native_config(config: UNetConfig, shapes: Mapping[str, Any]) -> comfy.supported_models.SVD_img2vid:
    """ComfyUI's config for this model, detected from `shapes` (name -> anything with a shape)."""
    detected = comfy.model_detection.detect_unet_config(dict(shapes), "")
    model_config = comfy.supported_models.SVD_img2vid(detected)
    model_config.unet_config |= {"num_head_channels": config.head_channels, "svd_config": config}
    return model_config


def model_patcher(
    config: UNetConfig, weights: Mapping[str, Tensor], *, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """A native MODEL from weights under official names without prefix; ComfyUI chooses dtype and devices."""
    management = comfy.model_management
    model_config = native_config(config, weights)
    parameters = sum(tensor.numel() for tensor in weights.values())
    load_device = management.get_torch_device()
    supported = list(model_config.supported_inference_dtypes)
    stored = next(iter(weights.values())).dtype
    dtype = management.unet_dtype(model_params=parameters, supported_dtypes=supported, weight_dtype=stored)
    manual_cast = management.unet_manual_cast(dtype, load_device, supported)
    model_config.set_inference_dtype(dtype, manual_cast)
    model = StableVideoModel(model_config, device=management.unet_inital_load_device(parameters, dtype))
    for parameter in model.diffusion_model.parameters() if load_device.type == "cpu" else ():
        parameter.data = laid_out(parameter.data)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=load_device, offload_device=management.unet_offload_device())
    model.load_model_weights(dict(weights), "", assign=patcher.is_dynamic())
    return patcher
