"""The photographs inside the scikit-image package that are free to use: public domain, CC0 or, by its own notes,
without known restrictions. None is downloaded. Those kept for held-out scenes are never trained on."""

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
    """A function of `skimage.data` -> (h, w, 3) uint8; grey pictures get three equal channels. Read-only.

    Raises InputError where scikit-image is missing, because without it the same seed would be another scene.
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
