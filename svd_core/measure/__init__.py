"""Measurements of a clip's pixels: motion, flicker, drift, seam, sharpness. Imports no model."""

from .flow import flow_magnitude as flow_magnitude
from .flow import optical_flow as optical_flow
from .likeness import likeness as likeness
from .likeness import psnr as psnr
from .meter import Measured as Measured
from .meter import measure as measure
from .meter import seam as seam
from .plot import plot_measured as plot_measured
from .scout import WISHES as WISHES
from .scout import Scouted as Scouted
from .scout import Trial as Trial
from .scout import Wish as Wish
from .scout import scout as scout
from .scout import seeds_from as seeds_from
from .sweep import SWEPT as SWEPT
from .sweep import Axis as Axis
from .sweep import Swept as Swept
from .sweep import sweep as sweep
