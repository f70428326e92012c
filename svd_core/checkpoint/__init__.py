"""Loading checkpoints of several formats into modules. Read `formats`, `detect`, `inventory`, `load` in this order."""

from .detect import Detection, detect
from .formats import open_source
from .inspect import Inspection, inspect_checkpoint
from .inventory import inventory
from .load import Checkpoint, LoadedModules, load_modules, open_checkpoint

__all__ = [
    "Checkpoint",
    "Detection",
    "Inspection",
    "LoadedModules",
    "detect",
    "inspect_checkpoint",
    "inventory",
    "load_modules",
    "open_checkpoint",
    "open_source",
]
