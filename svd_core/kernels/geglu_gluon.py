"""Gluon form of `geglu` for devices of compute capability 9: persistent, one warp loads while two groups of warps
multiply, so that one group's polynomial and stores run under the other's products.

Who waits for whom. A step is BLOCK_K channels of one tile; all three parties go through the same steps in the same
order. The loader waits only for memory that groups give back after earlier steps; a group waits only for what the
loader sends for this step. Use u of a slot is step // stages, and the last bit of u is the phase to wait for; a slot
is filled again only when both groups gave it back, so no phase is passed unseen. Where tokens stay in memory, the same
holds of their parts, with the turn for u. Group 1 moreover begins a tile only when group 0 has done `lead` steps of it.
Group 0 gets there on lead + 1 slots, which group 1 then has not used: lead < stages. And it must not get there again in
the next tile before group 1 has looked: that would take steps + lead + 1 slots, more than there are stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .geglu_triton import below

below = gluon.jit(below.fn)
BLOCK_K = gl.constexpr(64)
BAND = gl.constexpr(8)


@dataclass(frozen=True, slots=True)
class Tile:
    """Two groups of `group_m` rows, `half` columns of the result, in steps of BLOCK_K channels, `stages` of which are
    under way. `resident`: a group's tokens stay in shared memory while the program walks over all columns."""

    group_m: int
    half: int
    steps: int
    stages: int
    resident: bool
    lead: int
    biased: bool


@gluon.jit
def tile_at(i, rows, hidden, TILE: gl.constexpr):
    """Row and column of tiles, and turn: of this program's tile i. Resident: all tiles of a row of tiles follow each
    other, each row of tiles is a turn. Else: bands of rows of tiles, as in `geglu_triton`."""
    tiles_n = hidden // TILE.half
    if TILE.resident:
        turn = i // tiles_n
        return gl.program_id(0) + turn * gl.num_programs(0), i % tiles_n, turn
    tile = gl.program_id(0) + i * gl.num_programs(0)
    band = tile // (BAND * tiles_n)
    high = min(gl.cdiv(rows, 2 * TILE.group_m) - band * BAND, BAND)
    inside = tile % (BAND * tiles_n)
    return band * BAND + inside % high, inside // high, 0


@gluon.jit
def tiles_here(rows, hidden, TILE: gl.constexpr):
    """How many tiles are this program's."""
    tiles_m, tiles_n = gl.cdiv(rows, 2 * TILE.group_m), hidden // TILE.half
    first, programs = gl.program_id(0), gl.num_programs(0)
    if TILE.resident:
        return gl.cdiv(tiles_m - first, programs) * tiles_n
    return gl.cdiv(tiles_m * tiles_n - first, programs)


@gluon.jit
def load(descs, buffers, bars, sizes, TILE: gl.constexpr):
    """Sends tokens and weights of every step to shared memory."""
    x_desc, w_desc = descs
    x_parts, w_parts = buffers
    full, empty, x_full, x_empty, _ = bars
    rows, hidden = sizes
    steps: gl.constexpr = TILE.steps
    step = 0
    for i in range(tiles_here(rows, hidden, TILE)):
        m, n, turn = tile_at(i, rows, hidden, TILE)
        for k in range(steps):
            slot = step % TILE.stages
            mbarrier.wait(empty.index(slot), (step // TILE.stages & 1) ^ 1)
            if TILE.resident:
                if n == 0:
                    for group in gl.static_range(2):
                        part = 2 * k + group
                        mbarrier.wait(x_empty.index(part), (turn & 1) ^ 1)
                        mbarrier.expect(x_full.index(part), x_desc.block_type.nbytes)
                        at = [(2 * m + group) * TILE.group_m, k * BLOCK_K]
                        tma.async_copy_global_to_shared(x_desc, at, x_full.index(part), x_parts.index(part))
                mbarrier.expect(full.index(slot), 2 * w_desc.block_type.nbytes)
            else:
                mbarrier.expect(full.index(slot), 2 * (x_desc.block_type.nbytes + w_desc.block_type.nbytes))
                for group in gl.static_range(2):
                    at, part = [(2 * m + group) * TILE.group_m, k * BLOCK_K], 2 * slot + group
                    tma.async_copy_global_to_shared(x_desc, at, full.index(slot), x_parts.index(part))
            for half in gl.static_range(2):
                at, part = [(n * TILE.half + half * hidden) // 32, 0, 0, 0, k * BLOCK_K], 2 * slot + half
                tma.async_copy_global_to_shared(w_desc, at, full.index(slot), w_parts.index(part))
            step += 1


@gluon.jit
def multiply(bias, out, buffers, bars, sizes, GROUP: gl.constexpr, TILE: gl.constexpr):
    """A group's rows of every tile: products, gating, result."""
    x_parts, w_tiles = buffers
    full, empty, x_full, x_empty, lead = bars
    rows, hidden = sizes
    group_m: gl.constexpr = TILE.group_m
    sums: gl.constexpr = 2 * TILE.half
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, sums, 16])
    steps: gl.constexpr = TILE.steps
    step = 0
    for i in range(tiles_here(rows, hidden, TILE)):
        m, n, turn = tile_at(i, rows, hidden, TILE)
        last = n == hidden // TILE.half - 1
        if GROUP == 1:
            mbarrier.wait(lead, i & 1)
        total = gl.zeros([group_m, sums], gl.float32, layout)
        for k in range(steps):
            slot = step % TILE.stages
            part = 2 * k + GROUP if TILE.resident else 2 * slot + GROUP
            if TILE.resident:
                mbarrier.wait(x_full.index(part), turn & 1)
            mbarrier.wait(full.index(slot), step // TILE.stages & 1)
            w = w_tiles.index(slot).permute((1, 0))
            total = warpgroup_mma(x_parts.index(part), w, total, is_async=True)
            total = warpgroup_mma_wait(1, deps=(total,))  # the step before is done, this one is under way
            give_back(empty, x_empty, step - 1, k - 1, k > 0, last, GROUP, TILE)
            if GROUP == 0:
                mbarrier.arrive(lead, pred=k == TILE.lead)
            step += 1
        total = warpgroup_mma_wait(0, deps=(total,))
        give_back(empty, x_empty, step - 1, TILE.steps - 1, True, last, GROUP, TILE)
        finish(total, bias, out, (2 * m + GROUP) * TILE.group_m, n * TILE.half, rows, hidden, TILE)


@gluon.jit
def give_back(empty, x_empty, step, k, done, last, GROUP: gl.constexpr, TILE: gl.constexpr):
    """If `done`, the memory of a step, number k of its tile; tokens that stay only after the last tile of the turn."""
    mbarrier.arrive(empty.index((step + TILE.stages) % TILE.stages), pred=done)
    if TILE.resident:
        mbarrier.arrive(x_empty.index(2 * max(k, 0) + GROUP), pred=last & done)


@gluon.jit
def finish(total, bias, out, row, column, rows, hidden, TILE: gl.constexpr):
    """Gates and stores what was summed. A thread holds the same columns of both halves, and as the weights' rows were
    spread on their way to shared memory, eight neighbours of every 32: 16 bytes of the result."""
    group_m: gl.constexpr = TILE.group_m
    half: gl.constexpr = TILE.half
    total = total.reshape([group_m, 2, half // 32, 4, 4, 2]).permute((0, 2, 4, 3, 5, 1))
    value, gate = total.reshape([group_m, half, 2]).split()
    neighbours: gl.constexpr = neighbours_in_threads(group_m, half)
    value, gate = gl.convert_layout(value, neighbours), gl.convert_layout(gate, neighbours)
    n = column + gl.arange(0, half, gl.SliceLayout(0, neighbours))
    if TILE.biased:
        value += gl.load(bias + n).to(gl.float32)[None, :]
        gate += gl.load(bias + hidden + n).to(gl.float32)[None, :]
    m = row + gl.arange(0, group_m, gl.SliceLayout(1, neighbours))
    result = (value * (gate * below(gate))).to(out.dtype.element_ty)
    gl.store(out + m.to(gl.int64)[:, None] * hidden + n[None, :], result, mask=(m < rows)[:, None])


@gluon.constexpr_function
def neighbours_in_threads(rows, columns):
    """The layout in which the parted sums lie anyway, with a thread's registers named in the order of columns, so that
    stores see that they are neighbours: no value moves."""
    registers = [[0, 1], [0, 2], [0, 4], [8, 0]]
    registers += [[0, 32 << bit] for bit in range((columns // 32).bit_length() - 1)]
    registers += [[64 << bit, 0] for bit in range((rows // 64).bit_length() - 1)]
    lanes = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[16, 0], [32, 0]], [], [rows, columns])


@gluon.jit
def barriers(count: gl.constexpr, arrivals: gl.constexpr):
    """So many in a row, each for so many arrivals in a phase."""
    bars = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(count):
        mbarrier.init(bars.index(place), count=arrivals)
    return bars


@gluon.jit
def geglu_kernel(x_desc, w_desc, bias, out, rows, hidden, TILE: gl.constexpr):
    """Tiles of 2 * group_m rows and half columns of out (rows, hidden), shared out among programs."""
    dtype: gl.constexpr = x_desc.dtype
    stages: gl.constexpr = TILE.stages
    half: gl.constexpr = TILE.half
    parts: gl.constexpr = 2 * TILE.steps if TILE.resident else 2 * stages
    x_parts = gl.allocate_shared_memory(dtype, [parts, TILE.group_m, BLOCK_K], x_desc.layout)
    w_tiles = gl.allocate_shared_memory(dtype, [stages, 2 * half, BLOCK_K], x_desc.layout)
    w_parts = w_tiles._reinterpret(dtype, [2 * stages, half // 32, 4, 4, 2, BLOCK_K], w_desc.layout)
    lead = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(lead, count=1)
    bars = barriers(stages, 1), barriers(stages, 2), barriers(parts, 1), barriers(parts, 1), lead
    fence_async_shared()
    sizes = rows, hidden
    gl.warp_specialize(
        [
            (multiply, (bias, out, (x_parts, w_tiles), bars, sizes, 0, TILE)),
            (multiply, (bias, out, (x_parts, w_tiles), bars, sizes, 1, TILE)),
            (load, ((x_desc, w_desc), (x_parts, w_parts), bars, sizes, TILE)),
        ],
        [4, 1],
        [240, 24],
    )


SHARED = 227 * 2**10 - 2**10
"""Bytes for tiles: what a block may have, less room for barriers."""


def misfit(tokens: Tensor, weight: Tensor, tile: Tile) -> str:
    """Why a tile does not take these arguments, or ""."""
    width, hidden = weight.shape[1], weight.shape[0] // 2
    if tokens.element_size() != 2:
        return f"{tokens.dtype} is not of 16 bits"
    if width % 64 or hidden % tile.half:
        return f"{width} channels or {hidden} hidden ones are no multiples of 64 and {tile.half}"
    if (tokens.data_ptr() | weight.data_ptr()) % 16:
        return "tokens or weight do not begin at a multiple of 16 bytes"
    if not tile.lead < min(tile.stages, tile.steps) or tile.steps + tile.lead + 1 <= tile.stages:
        return f"{tile.steps} steps of 64 channels are too few for {tile.stages} stages and a lead of {tile.lead}"
    parts = tile.steps if tile.resident else tile.stages
    shared = 2 * 64 * (2 * tile.group_m * parts + 2 * tile.half * tile.stages)
    return f"{shared} bytes of shared memory, of {SHARED}" if shared > SHARED else ""


def descriptors(tokens: Tensor, weight: Tensor, group_m: int, half: int) -> tuple[TensorDescriptor, TensorDescriptor]:
    """Tokens (rows, C) as they lie. Of every 32 rows of the weight, row 8 q + 2 b + e comes to place 8 b + 2 q + e, so
    that a product leaves columns 8 q to 8 q + 7 with one thread, number q of the four that share a row."""
    width = weight.shape[1]
    rows = tokens.numel() // width
    plain, spread = (gl.NVMMASharedLayout(128, 16, rank) for rank in (2, 5))
    shape, strides = [weight.shape[0] // 32, 4, 4, 2, width], [32 * width, 2 * width, 8 * width, width, 1]
    x_desc = TensorDescriptor(tokens, [rows, width], [width, 1], [group_m, 64], plain)
    return x_desc, TensorDescriptor(weight, shape, strides, [half // 32, 4, 4, 2, 64], spread)


def launch(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    group_m: int,
    half: int,
    stages: int = 4,
    resident: bool = False,
    lead: int = 2,
) -> Tensor:
    """As `geglu.reference`; ValueError for what the tile does not take. Each sum runs over the channels in order."""
    width, hidden = weight.shape[1], weight.shape[0] // 2
    tile = Tile(group_m, half, width // 64, stages, resident, lead, bias is not None)
    if wrong := misfit(tokens, weight, tile):
        raise ValueError(wrong)
    rows = tokens.numel() // width
    out = tokens.new_empty((*tokens.shape[:-1], hidden))
    tiles = triton.cdiv(rows, 2 * group_m) * (1 if resident else hidden // half)
    programs = min(tiles, torch.cuda.get_device_properties(tokens.device).multi_processor_count)
    x_desc, w_desc = descriptors(tokens, weight, group_m, half)
    tensors = x_desc, w_desc, weight if bias is None else bias, out
    geglu_kernel[(programs,)](*tensors, rows, hidden, TILE=tile, num_warps=4, maxnreg=168)
    return out


TILES = {
    "256x64, tokens stay": partial(launch, group_m=128, half=64, resident=True),
    "128x64, tokens stay": partial(launch, group_m=64, half=64, resident=True),
    "128x128, two groups": partial(launch, group_m=64, half=128),
    "256x64, two groups": partial(launch, group_m=128, half=64),
}
"""Candidates for the probe: of 16 bits, on devices of compute capability 9. Accumulators are twice as wide."""
