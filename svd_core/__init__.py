"""Stable Video Diffusion in plain PyTorch: a still in, a clip out.

Read in the order data flows: `checkpoint/`, `conditioning.py`, `model/`, `sampling/`, `decode/`, joined in
`pipeline.py`.
"""

__version__ = "0.1.0"

from .checkpoint import inspect_checkpoint as inspect_checkpoint
from .conditioning import Conditioning as Conditioning
from .conditioning import MicroConditioning as MicroConditioning
from .config import VARIANTS as VARIANTS
from .config import ModelConfig as ModelConfig
from .errors import CheckpointError as CheckpointError
from .errors import InputError as InputError
from .errors import OutputError as OutputError
from .errors import StableVideoError as StableVideoError
from .pipeline import Clip as Clip
from .pipeline import Progress as Progress
from .pipeline import StableVideo as StableVideo
from .pipeline import load_checkpoint as load_checkpoint
from .sampling import align_your_steps_sigmas as align_your_steps_sigmas
from .sampling import edm_sigmas as edm_sigmas
from .sampling import linear_guidance as linear_guidance
from .settings import Settings as Settings
