"""`torch.compile` takes our blocks and the whole UNet in one graph, and keeps that graph from step to step."""

from dataclasses import replace

import pytest
import torch
from test_unet import SMALL, inputs
from weights import randomise

from svd_core.model.backend import TORCH
from svd_core.model.resblock import VideoResBlock
from svd_core.model.step import NO_HOOKS, StepContext
from svd_core.model.transformer import SpatialVideoTransformer
from svd_core.model.unet import VideoUNet

SHALLOW = replace(SMALL, channel_mult=(1, 2), res_blocks=1, attention=(True, False))
FRAMES, CHANNELS, HEIGHT, WIDTH = 3, 32, 6, 10
STEPS = 3


class Counting:
    """A compiler that runs the captured graph as it is and counts how many it was given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, _example):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def compiler():
    torch.compiler.reset()
    yield Counting()
    torch.compiler.reset()


def step(level: float) -> StepContext:
    generator = torch.Generator().manual_seed(int(level))
    emb = torch.randn(FRAMES, SMALL.embedding_dim, generator=generator)
    return StepContext(emb, torch.randn(FRAMES, 1, SMALL.context_dim, generator=generator), FRAMES, NO_HOOKS)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            lambda: VideoResBlock(CHANNELS, 2 * CHANNELS, SMALL.embedding_dim, backend=TORCH), id="residual block"
        ),
        pytest.param(
            lambda: SpatialVideoTransformer(CHANNELS, SMALL.context_dim, SMALL.head_channels, 1, backend=TORCH),
            id="transformer",
        ),
    ],
)
@torch.no_grad()
def test_a_block_is_one_graph_for_all_steps(compiler, block):
    block = randomise(block()).requires_grad_(False)
    compiled = torch.compile(block, backend=compiler, fullgraph=True)
    for level in range(STEPS):
        images = torch.randn(FRAMES, CHANNELS, HEIGHT, WIDTH).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(compiled(images.clone(), step(level)), block(images, step(level)))
    assert compiler.graphs == 1


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [None, True])
def test_the_unet_is_one_graph_for_all_noise_levels(compiler, dynamic):
    """Sizes that are symbols included."""
    unet = randomise(VideoUNet(SHALLOW)).requires_grad_(False)
    compiled = torch.compile(unet, backend=compiler, fullgraph=True, dynamic=dynamic)
    given = inputs(SHALLOW, 1, FRAMES, 8, 16)
    for level in range(STEPS):
        given = {**given, "x": given["x"] + level, "c_noise": torch.full((FRAMES,), float(level))}
        torch.testing.assert_close(compiled(**given), unet(**given), rtol=1e-4, atol=1e-4)
    assert compiler.graphs == 1
