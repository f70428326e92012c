"""The pack as ComfyUI loads it, in this process, and a checkpoint small enough to run in it."""

from __future__ import annotations

import asyncio
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from synthetic import official_tensors, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
NODE_ID = "7"


@pytest.fixture(scope="session")
def pack(comfy) -> ModuleType:
    """The pack's root module, loaded from the repository by ComfyUI's own custom-node loader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ComfyUI's and its libraries' own
        importlib.import_module(
            "utils.extra_config"
        )  # first, as in ComfyUI's main: `nodes` puts another utils on the path
        import nodes

        assert asyncio.run(nodes.load_custom_node(str(ROOT))), "ComfyUI could not load the pack, see the log"
    return sys.modules[str(ROOT).replace(".", "_x_")]


@pytest.fixture(scope="session")
def classes(pack) -> list[type]:
    """Every node of the pack, in the order it lists them."""

    async def listed() -> list[type]:
        return await (await pack.comfy_entrypoint()).get_node_list()

    return asyncio.run(listed())


@pytest.fixture(scope="session")
def part(pack) -> Callable[[str], ModuleType]:
    """A module of the loaded pack by its place in it, such as `nodes.sampling`."""
    return lambda name: sys.modules[f"{pack.__name__}.{name}"]


@pytest.fixture(scope="session")
def call(pack) -> Callable[..., Any]:
    """Run one of our nodes as ComfyUI does, with defaults for what is not given: `call("StableVideoSigmas", steps=5)`.

    Returns its output, or all of them where there are several. `on_page` gives it a place in ComfyUI's page, where
    `shown` sees what it says.
    """
    import nodes

    def run(node_id: str, *, on_page: bool = False, **inputs: Any) -> Any:
        node = nodes.NODE_CLASS_MAPPINGS[node_id]
        widgets = node.define_schema().inputs
        defaults = {each.id: each.default for each in widgets if getattr(each, "default", None) is not None}
        clone = node.PREPARE_CLASS_CLONE(None)
        clone.hidden.unique_id = NODE_ID if on_page else None
        with torch.inference_mode():
            outputs = clone.execute(**(defaults | inputs)).args
        return outputs[0] if len(outputs) == 1 else outputs

    return run


@pytest.fixture
def shown(pack, monkeypatch) -> list[str]:
    """The texts that nodes called with `on_page` show, through a stand-in for ComfyUI's server."""
    from server import PromptServer

    texts = []

    class Server:
        def send_progress_text(self, text: str, node: str) -> None:
            assert node == NODE_ID
            texts.append(text)

    monkeypatch.setattr(PromptServer, "instance", Server(), raising=False)
    return texts


@pytest.fixture(scope="session")
def input_error(part) -> type[Exception]:
    """The pack's InputError; the one that tests import from `svd_core` is another class."""
    return part("svd_core.errors").InputError


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A single file of random weights, of a model so small that a clip takes a fraction of a second.

    Stored in float32, so that ComfyUI computes in it, but holding numbers that half precision holds: on the CPU it
    keeps image encoders in that.
    """
    rounded = {key: tensor.half().float() for key, tensor in official_tensors().items()}
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", extra=rounded)


@pytest.fixture(scope="session")
def loaded(part, checkpoint):
    """MODEL, CLIP_VISION and VAE of it: `.model`, `.clip_vision`, `.vae`."""
    return part("nodes.bridge.loader").load(checkpoint)


@pytest.fixture(scope="session")
def reference(checkpoint):
    """The same checkpoint as svd_core runs it, without ComfyUI."""
    import svd_core

    return svd_core.load_checkpoint(checkpoint)


@pytest.fixture(scope="session")
def pictures() -> torch.Tensor:
    """Two pictures (2, 64, 128, 3)."""
    return torch.rand(2, 64, 128, 3, generator=torch.Generator().manual_seed(1))
