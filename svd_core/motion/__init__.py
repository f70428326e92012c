"""Control over what moves, where and for how long: denoiser wrappers that combine with any sampler and each other.

Each takes a `ClipDenoiser` and is one itself. Nest several in this order, innermost first: `Between`, `LongTake`,
`Brushed`. None imports a model.
"""

from ..moves import CameraMove as CameraMove
from ..moves import ObjectMove as ObjectMove
from .between import Between as Between
from .between import sample_sequential as sample_sequential
from .brush import MAX_FEATHER as MAX_FEATHER
from .brush import Brush as Brush
from .brush import Brushed as Brushed
from .brush import composite as composite
from .camera import camera_view as camera_view
from .camera import check_depth as check_depth
from .camera import filmed as filmed
from .curves import PerFrame as PerFrame
from .curves import check_curves as check_curves
from .curves import curve_values as curve_values
from .curves import with_curves as with_curves
from .denoiser import ClipDenoiser as ClipDenoiser
from .denoiser import Wrap as Wrap
from .drag import check_painted as check_painted
from .drag import drag_view as drag_view
from .drag import dragged as dragged
from .loop import require_loop as require_loop
from .loop import seam_score as seam_score
from .turns import sample_in_turns as sample_in_turns
from .unstick import Unstuck as Unstuck
from .unstick import analytic_start as analytic_start
from .unstick import lowered_sigmas as lowered_sigmas
from .unstick import unstuck as unstuck
from .views import view_latents as view_latents
from .windows import LongTake as LongTake
from .windows import Part as Part
from .windows import Statistics as Statistics
from .windows import Windows as Windows
from .windows import hold_colours as hold_colours
