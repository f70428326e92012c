"""A recipe to put into files."""

from svd_core.recipe import Recipe, Source
from svd_core.settings import Settings


def a_recipe() -> Recipe:
    return Recipe(
        settings=Settings(frames=4, steps=2, width=128, height=64, min_guidance=1.0, max_guidance=2.5, seed=2**63),
        playback_fps=7,
        sigmas=(700.0, 0.0020000000949949026, 0.0),
        checkpoint=Source("models/svd.safetensors", "0a" * 32),
        image=Source("Fotos/Ümit's cat.png", "1b" * 32),
        device="cpu",
        dtype="float32",
        threads=1,
    )
