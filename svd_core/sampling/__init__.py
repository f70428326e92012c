"""Sampling: schedules, preconditioning, guidance and samplers. Imports no model."""

from .denoise import Denoiser as Denoiser
from .denoise import Network as Network
from .denoise import Scaling as Scaling
from .denoise import v_scaling as v_scaling
from .guidance import GuidanceInterval as GuidanceInterval
from .guidance import GuidedDenoiser as GuidedDenoiser
from .guidance import constant_guidance as constant_guidance
from .guidance import curve_guidance as curve_guidance
from .guidance import linear_guidance as linear_guidance
from .guidance import trapezoid_guidance as trapezoid_guidance
from .guidance import triangle_guidance as triangle_guidance
from .memory import SteppingDown as SteppingDown
from .samplers import SAMPLERS as SAMPLERS
from .samplers import Sampler as Sampler
from .samplers import sample_dpmpp_2m as sample_dpmpp_2m
from .samplers import sample_dpmpp_2m_sde as sample_dpmpp_2m_sde
from .samplers import sample_euler as sample_euler
from .samplers import sample_euler_ancestral as sample_euler_ancestral
from .samplers import sample_heun as sample_heun
from .samplers import sample_lcm as sample_lcm
from .samplers import seeded_noise as seeded_noise
from .schedule import align_your_steps_sigmas as align_your_steps_sigmas
from .schedule import cut_sigmas as cut_sigmas
from .schedule import edm_sigmas as edm_sigmas
from .schedule import noisy_start as noisy_start
from .schedule import sigmas_from_list as sigmas_from_list
