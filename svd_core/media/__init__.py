"""Reading pictures and writing clips: everything between files or arrays and the model's tensors."""

from .fitting import Fitted, crop_report, default_size, fit_image, round_size
from .metadata import read_recipe
from .pictures import as_image, load_image
from .video import check_output, check_target, write_clip
from .whole import replacing

__all__ = [
    "Fitted",
    "as_image",
    "check_output",
    "check_target",
    "crop_report",
    "default_size",
    "fit_image",
    "load_image",
    "read_recipe",
    "replacing",
    "round_size",
    "write_clip",
]
