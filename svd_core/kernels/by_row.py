"""A 3x3 convolution by Winograd's minimal filtering along each row: half of the products, in float32.

Winograd 1980, "Arithmetic Complexity of Computations"; Lavin and Gray 2016 for networks, who do it along both axes.
Here four columns of a result come of six columns of an image: six sums of those columns, six convolutions of one column
each, and sums of what they give. Points 0, +-5/8, +-3/2 and infinity, which are short in binary and lose few digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch
from torch import Tensor, nn

STEP = 4
"""Columns of a result that are worked out together."""

NEAR, FAR = 5 / 8, 3 / 2
POINTS = (0.0, NEAR, -NEAR, FAR, -FAR)

PART_VALUES = 2**21
"""Values of an image, about, that a thread works on at a time: what comes of them stays in a processor's caches."""

PART_PIXELS = 2**11
"""Pixels of a part, at least, where there are enough for all threads: a convolution's library turns all weights for
each."""

SUMMED_VALUES = 2**15
"""Values of a weight's channel sums, about, that are worked out at a time, for the caches' sake."""


def reference(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """images (N, C, H, W), weight (O, C, 3, 3), bias (O,) or None -> (N, O, H, W), zeros beyond the edges."""
    return nn.functional.conv2d(images, weight, bias, padding=1)


def convolved_by_row(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`reference` in 4.5 products for its nine; the result has channels last. Records no gradients.

    Each thread works on parts of its own: steps are short, and threads that share them would wait for each other after
    every one. The weights' sums, twice their memory, are made anew in each call. Inside, channels lie first: oneDNN
    sums those in shorter chains. Class: rounding; 0.35 to 0.7 times the error of a convolution with channels last."""
    number, _, height, width = images.shape
    sums = weight_sums(weight)
    pixels = images.movedim(1, -1)
    result = images.new_empty((number, height, width, len(weight)))

    @torch.inference_mode()
    def work_out(some: slice, rows: slice) -> None:
        made = _pixels(_columns(_seen(pixels[some], rows), sums, bias))
        high = rows.stop - rows.start
        for index, own in enumerate(result[some]):
            own[rows] = made[index * (high + 1) :][:high, :width]

    threads = torch.get_num_threads()
    list(_mapped(threads)(work_out, *zip(*_parts(pixels.shape, threads), strict=True)))
    return result.movedim(-1, 1)


def _mapped(threads: int) -> Callable[..., Iterator[None]]:
    return map if threads == 1 else _workers(threads).map


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    """Threads each of which runs torch's operations alone."""
    ready = Barrier(threads + 1, timeout=60)

    def begin() -> None:
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, "by_row", begin)
    for _ in range(threads):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(threads)  # torch hands the last number that any thread set to all threads that come
    return pool


def weight_sums(weight: Tensor) -> list[Tensor]:
    """(O, C, 3, 3) -> six of (O, C, 3, 1): at each point the value of the polynomial whose coefficients are a row of
    the weight, over the product of the point's distances from the others; at infinity its last coefficient."""
    outputs, channels, height, _ = weight.shape
    values = [[point**power / _distances(point) for power in range(3)] for point in POINTS]
    matrix = weight.new_tensor([*values, [0, 0, 1]])
    sums = [weight.new_empty((outputs, channels, height, 1)) for _ in matrix]
    size = max(1, SUMMED_VALUES // channels)
    for first in range(0, outputs, size):
        some = weight[first : first + size].contiguous()
        made = matrix @ some.view(-1, 3).t()
        for whole, part in zip(sums, made, strict=True):
            whole[first : first + size] = part.view(len(some), channels, height, 1)
    return sums


def _distances(point: float) -> float:
    product = 1.0
    for other in POINTS:
        product *= point - other if other != point else 1
    return product


def _parts(shape: Sequence[int], threads: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of (N, H, W, C) that are worked on together: several whole images or some rows of one."""
    number, height, width, channels = shape
    share = -(-number * height * width // threads)
    pixels = min(share, max(PART_VALUES // channels, PART_PIXELS))
    images = max(1, pixels // (height * width))
    rows = height if images > 1 else -(-height // max(1, round(height * width / pixels)))
    for first in range(0, number, images):
        for top in range(0, height, rows):
            yield slice(first, min(first + images, number)), slice(top, min(top + rows, height))


def _seen(pixels: Tensor, rows: slice) -> list[Tensor]:
    """(N, H, W, C) -> six of (C, R, W/4): the columns 4i - 1 to 4i + 4 of these rows of all images, one under the
    other, with a row before, between and behind them, which is zeros where it is no image's."""
    number, height, width, channels = pixels.shape
    steps, high = -(-width // STEP), rows.stop - rows.start
    padded = pixels.new_zeros((number * (high + 1) + 1, STEP * (steps + 1), channels))
    whole = padded[1:].unflatten(0, (number, high + 1))
    whole[:, :high, 1 : width + 1] = pixels[:, rows]
    if rows.start > 0:
        padded[0, 1 : width + 1] = pixels[0, rows.start - 1]
    if rows.stop < height:
        padded[-1, 1 : width + 1] = pixels[0, rows.stop]
    planes = padded.view(-1, STEP * channels).t().contiguous()  # torch is quick at turning a matrix, not at more
    planes = planes.view(STEP, channels, len(padded), steps + 1)
    return [*planes[..., :steps], *planes[:2, ..., 1:]]


def _columns(seen: Sequence[Tensor], sums: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """Six of (C, R + 2, W/4) -> (4, O, R, W/4): the columns 4i to 4i + 3 of the result."""
    zero, infinity, (near, near_apart), (far, far_apart) = _products(seen, sums)
    made = zero.new_empty((STEP, *zero.shape))
    torch.add(zero.add_(near), far, out=made[0])
    torch.add(torch.mul(near_apart, NEAR, out=zero), far_apart, alpha=FAR, out=made[1])
    torch.add(near.mul_(NEAR**2), far, alpha=FAR**2, out=made[2])
    torch.add(infinity.add_(near_apart, alpha=NEAR**3), far_apart, alpha=FAR**3, out=made[3])
    return made if bias is None else made.add_(bias[:, None, None])


def _products(seen: Sequence[Tensor], sums: Sequence[Tensor]) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
    """At zero and at infinity; then the sum and the difference of those at a point and its opposite."""
    first, second, third, fourth, fifth, sixth = seen
    both, each = NEAR**2 + FAR**2, NEAR**2 * FAR**2
    yield _product(torch.add(fifth, third, alpha=-both).add_(first, alpha=each), sums[0])
    yield _product(torch.add(sixth, fourth, alpha=-both).add_(second, alpha=each), sums[5])
    for point, other, place in ((NEAR, FAR, 1), (FAR, NEAR, 3)):
        even = torch.add(fifth, third, alpha=-(other**2))
        odd = torch.add(fourth, second, alpha=-(other**2))
        one = _product(torch.add(even, odd, alpha=point), sums[place])
        opposite = _product(even.sub_(odd, alpha=point), sums[place + 1])
        yield one + opposite, one.sub_(opposite)


def _product(planes: Tensor, weight: Tensor) -> Tensor:
    """(C, R + 2, S), (O, C, 3, 1) -> (O, R, S)."""
    return nn.functional.conv2d(planes[None], weight)[0]


def _pixels(columns: Tensor) -> Tensor:
    """(4, O, R, S) -> (R, 4S, O)."""
    _, outputs, rows, steps = columns.shape
    return columns.view(STEP * outputs, -1).t().contiguous().view(rows, STEP * steps, outputs)
