"""Fused operations: a torch reference for each, Triton kernels next to it, and one place that chooses between them.

Each operation is a function of tensors. Its `reference` is the plain torch expression: documentation, test oracle, and
what runs wherever a kernel does not. Importing this package imports no Triton; a kernel's module is imported when a
CUDA device first needs it.
"""

from .blend import blend as blend
from .choice import Operation as Operation
from .choice import choices as choices
from .choice import report as report
from .doubled import doubled as doubled
from .doubled import smoothed_by_corner as smoothed_by_corner
from .fp8_linear import FP8 as FP8
from .fp8_linear import fp8_linear as fp8_linear
from .fp8_linear import in_fp8 as in_fp8
from .frame_attention import frame_attention as frame_attention
from .frame_conv import frame_conv as frame_conv
from .geglu import gated as gated
from .geglu import geglu as geglu
from .gradients import needs_gradient as needs_gradient
from .group_norm import group_norm as group_norm
from .group_norm import group_norm_silu as group_norm_silu
from .group_norm import spread as spread
from .layer_norm import add_layer_norm as add_layer_norm
from .linear_add import linear_add as linear_add
from .split_norm import SPLIT_ROWS as SPLIT_ROWS
from .split_norm import Spans as Spans
from .split_norm import affine_silu as affine_silu
from .split_norm import merged_affine as merged_affine
from .split_norm import owed_moments as owed_moments
from .split_norm import owed_sum as owed_sum
from .split_norm import split_moments as split_moments
