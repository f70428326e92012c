"""The photographs in the scikit-image package that are free to use: public domain, CC0 or, by its own notes, without
known restrictions. None is downloaded. Those of held-out scenes are never trained on."""

from __future__ import annotations

import importlib
from functools import cache

import numpy as np

from svd_core.errors import InputError

TRAIN_PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "chelsea",
    "coins",
    "grass",
    "hubble_deep_field",
    "immunohistochemistry",
    "rocket",
)
HELD_OUT_PHOTOGRAPHS = ("camera", "coffee", "gravel")


@cache
def photograph(name: str) -> np.ndarray:
    """Picture of the `skimage.data` function `name` -> (h, w, 3) uint8, read-only; grey ones get three equal channels.

    Raises InputError if scikit-image is missing, because a substitute would change the scene of a seed.
    """
    try:
        data = importlib.import_module("skimage.data")
    except ImportError as error:
        raise InputError(
            "the photographs of the synthetic world are in scikit-image, which is not installed; "
            "the training half needs it: pip install scikit-image"
        ) from error
    picture = getattr(data, name)()
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=-1)
    picture.flags.writeable = False
    return picture
