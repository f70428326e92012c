"""Camera: where each view shows a point of the still, what the network is shown, and that nothing else changes."""

import dataclasses
import itertools
import json
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_clips import conditioning
from recipes import a_recipe
from synthetic import write_checkpoint

from svd_core import Controls, load_checkpoint
from svd_core.conditioning import Conditioning, MicroConditioning
from svd_core.config import LATENT_SCALE
from svd_core.errors import InputError
from svd_core.motion import CameraMove, camera_view, check_depth, filmed, view_latents, with_curves
from svd_core.recipe import Recipe, RecordedControls, Source
from svd_core.sampling import GuidedDenoiser, constant_guidance, edm_sigmas, linear_guidance
from svd_core.sampling.denoise import check_size
from svd_core.settings import Settings

WIDE, TALL, SQUARE = (64, 128), (160, 64), (96, 96)
"""Heights and widths of pictures."""

# Geometry: a view pixel and the still's point that it shows are complex numbers, x + iy from the middle, y down


def pixels_of(height, width):
    """(H, W): the centre of each pixel."""
    x, y = (np.arange(side) + 0.5 - side / 2 for side in (width, height))
    return x[None, :] + 1j * y[:, None]


def pan_of(move, height, width):
    return move.pan_x * width + 1j * move.pan_y * height


def shown_points(move, share, height, width):
    """Written anew: turned clockwise, brought closer, carried along."""
    turned = pixels_of(height, width) * np.exp(1j * math.radians(move.roll) * share)
    return turned / move.zoom**share + share * pan_of(move, height, width)


def waves(points, height, width):
    """A picture (H, W), which beyond its edges is its own mirror image, at any points."""
    right, down = (points.real + width / 2) / width, (points.imag + height / 2) / height
    across, along = np.cos(np.pi * right), np.cos(np.pi * down)
    return 0.3 * across + 0.4 * np.cos(2 * np.pi * down) * across - 0.2 * along


def as_still(values):
    """(H, W) -> (1, 3, H, W); the channels differ."""
    values = torch.from_numpy(np.asarray(values, np.float32))
    return torch.stack([values, -values, values / 2])[None]


def drawn_moves(count):
    generator = np.random.default_rng(7)
    ways = generator.uniform((-1, -1, -1, -180), (1, 1, 1, 180), (count, 4)).tolist()
    return [CameraMove(x, y, 4**closer, roll) for x, y, closer, roll in ways]


PLAIN_MOVES = [
    CameraMove(pan_x=0.3),
    CameraMove(pan_x=-1.0),
    CameraMove(pan_y=0.25),
    CameraMove(pan_y=-0.6),
    CameraMove(zoom=1.5),
    CameraMove(zoom=0.25),
    CameraMove(zoom=4.0),
    CameraMove(roll=30.0),
    CameraMove(roll=-90.0),
    CameraMove(roll=180.0),
]


@pytest.mark.parametrize("size", [WIDE, TALL, SQUARE])
def test_each_pixel_of_a_view_is_the_point_that_the_camera_is_over(size):
    still = as_still(waves(pixels_of(*size), *size))
    for move, share in itertools.product([*PLAIN_MOVES, *drawn_moves(12)], (0.3, 1.0)):
        expected = as_still(waves(shown_points(move, share, *size), *size))
        error = (camera_view(move, still, share) - expected).abs().max().item()
        assert error < 0.02, (move, share, error)


def test_beyond_the_edges_the_picture_is_mirrored():
    values = np.random.default_rng(0).uniform(-1, 1, (8, 16))
    seen = camera_view(CameraMove(pan_x=0.5, pan_y=-0.25), as_still(values), 1.0)[0, 0].numpy()
    mirrored = np.pad(values, ((2, 2), (0, 8)), mode="symmetric")[0:8, 8:24]
    np.testing.assert_allclose(seen, mirrored, atol=1e-5)


def blob(height, width, right, down, radius=3.0):
    """A bright spot on black, `right` and `down` of the middle."""
    return np.exp(-(np.abs(pixels_of(height, width) - (right + 1j * down)) ** 2) / (2 * radius**2))


def place_of(seen, near=(0, 0), reach=math.inf):
    """Where a view's bright spot is, pixels right and down of the middle. Mirrored ones beside the picture are seen
    too, so only what lies within `reach` of where it should be is looked at."""
    light = seen[0, 0].numpy().clip(0).astype(np.float64)
    points = pixels_of(*light.shape)
    light[np.abs(points - complex(*near)) > reach] = 0
    assert light.max() > 0.7, "there is none"
    centre = (light * points).sum() / light.sum()
    return centre.real, centre.imag


@pytest.mark.parametrize(
    ("move", "share", "expected"),
    [
        (CameraMove(pan_x=0.25), 1.0, (20 - 32, 10)),
        (CameraMove(pan_x=-0.25), 0.5, (20 + 16, 10)),
        (CameraMove(pan_y=0.25), 1.0, (20, 10 - 16)),
        (CameraMove(pan_y=-0.125), 1.0, (20, 10 + 8)),
        (CameraMove(zoom=2.0), 1.0, (40, 20)),
        (CameraMove(zoom=4.0), 0.5, (40, 20)),
        (CameraMove(zoom=0.5), 1.0, (10, 5)),
        (CameraMove(roll=90.0), 1.0, (10, -20)),
        (CameraMove(roll=-180.0), 0.5, (-10, 20)),
        (CameraMove(pan_x=0.1, pan_y=0.1, zoom=2.0), 1.0, (2 * (20 - 12.8), 2 * (10 - 6.4))),
        (CameraMove(pan_x=0.125, zoom=2.0, roll=90.0), 1.0, (20, -2 * (20 - 16))),
    ],
)
def test_a_bright_spot_goes_the_other_way_than_the_camera(move, share, expected):
    """By hand, in a picture of 128x64. A camera that rolls clockwise sees what was right of the middle above it."""
    seen = camera_view(move, as_still(blob(*WIDE, 20, 10, radius=2)), share)
    assert place_of(seen, expected, reach=10) == pytest.approx(expected, abs=0.3)


def test_a_view_from_the_start_is_the_still_and_none_leaves_its_range():
    still = torch.rand(1, 3, 24, 40) * 2 - 1
    sharp = torch.where(still > 0, 1.0, -1.0)
    for move in drawn_moves(8):
        torch.testing.assert_close(camera_view(move, still, 0.0), still, rtol=0, atol=1e-5)
        assert camera_view(move, sharp, 0.7).abs().max() <= 1, "bicubic filters overshoot"


def test_the_camera_goes_evenly_or_starts_and_ends_gently():
    assert CameraMove().progress(5) == [0, 0.25, 0.5, 0.75, 1]
    assert CameraMove(ease=True).progress(5) == pytest.approx([0, 0.15625, 0.5, 0.84375, 1])
    assert CameraMove().progress(1) == CameraMove(ease=True).progress(1) == [0]
    for frames in (2, 3, 14, 25, 1024):
        way = CameraMove(ease=True).progress(frames)
        assert (way[0], way[-1], len(way)) == (0, 1, frames)
        assert all(before < after for before, after in itertools.pairwise(way))
        assert way[1] <= 1 / (frames - 1)


def test_zoom_grows_by_the_same_factor_in_each_frame():
    move, still = CameraMove(zoom=4.0), as_still(blob(*WIDE, 10, 5))
    rights = [place_of(camera_view(move, still, share))[0] for share in move.progress(5)]
    factors = [after / before for before, after in itertools.pairwise(rights)]
    assert factors == pytest.approx([2**0.5] * 4, rel=0.03)


# Depth


@pytest.mark.parametrize("move", [CameraMove(pan_x=0.3, pan_y=-0.1), CameraMove(zoom=2.0, roll=20.0)])
def test_a_depth_of_a_half_everywhere_changes_nothing(move):
    still = as_still(waves(pixels_of(*WIDE), *WIDE))
    torch.testing.assert_close(
        camera_view(move, still, 1.0, torch.full(WIDE, 0.5)), camera_view(move, still, 1.0), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(("nearness", "factor"), [(1.0, 1.6), (0.5, 1.0), (0.0, 0.4)])
def test_near_things_pass_faster_and_far_ones_slower(nearness, factor):
    depth = torch.full(WIDE, nearness)
    pan, closer = (CameraMove(pan_x=0.125, pan_y=-0.125), CameraMove(zoom=1.25))
    still = as_still(blob(*WIDE, 8, 5))
    assert place_of(camera_view(pan, still, 1.0, depth)) == pytest.approx((8 - 16 * factor, 5 + 8 * factor), abs=0.3)
    scale = 1.25**factor
    assert place_of(camera_view(closer, still, 1.0, depth)) == pytest.approx((8 * scale, 5 * scale), abs=0.3)


def test_turning_moves_near_and_far_alike():
    still = as_still(blob(*WIDE, 20, 10))
    for nearness in (0.0, 1.0):
        seen = camera_view(CameraMove(roll=90.0), still, 1.0, torch.full(WIDE, nearness))
        assert place_of(seen, (10, -20), reach=10) == pytest.approx((10, -20), abs=0.3)


def test_a_thing_moves_by_the_depth_that_is_painted_on_it():
    """And not by that of the pixel where it arrives: near on the left half, far on the right one."""
    depth = torch.zeros(WIDE)
    depth[:, :64] = 1
    move = CameraMove(pan_x=-0.1)
    for right, factor in ((-24, 1.6), (24, 0.4)):
        seen = camera_view(move, as_still(blob(*WIDE, right, 0)), 1.0, depth)
        assert place_of(seen)[0] == pytest.approx(right + 12.8 * factor, abs=0.5)


def test_a_slope_is_solved_exactly():
    """Where a view pixel shows s, its place is s less the way of what is at s; checked at every s of a smooth map."""
    points = pixels_of(*WIDE)
    depth = 0.5 + 0.3 * np.cos(np.pi * (points.real + 64) / 128)
    move = CameraMove(pan_x=0.3, pan_y=0.05)
    seen = camera_view(move, as_still(waves(points, *WIDE)), 1.0, torch.from_numpy(depth))[0, 0].numpy()
    arrived = points - (1 + 0.6 * (2 * depth - 1)) * pan_of(move, *WIDE)
    inside = (np.abs(arrived.real) < 60) & (np.abs(arrived.imag) < 28)
    across, down = (arrived.real + 63.5)[inside], (arrived.imag + 31.5)[inside]
    left, top = np.floor(across).astype(int), np.floor(down).astype(int)
    over, under = across - left, down - top
    rows = [seen[top + below, left] * (1 - over) + seen[top + below, left + 1] * over for below in (0, 1)]
    found = rows[0] * (1 - under) + rows[1] * under
    np.testing.assert_allclose(found, waves(points, *WIDE)[inside], atol=0.01)


def test_what_hides_and_what_comes_out_is_filled_with_numbers():
    generator = torch.Generator().manual_seed(3)
    still = torch.rand(1, 3, 32, 48, generator=generator) * 2 - 1
    maps = [torch.rand(32, 48, generator=generator), (torch.rand(32, 48, generator=generator) > 0.5).float()]
    stripes = torch.zeros(32, 48)
    stripes[:, 20:28] = 1
    for depth, move in itertools.product([*maps, stripes], [CameraMove(1, -1, 4, 180), CameraMove(-1, 1, 0.25, -77)]):
        for share in (0.1, 1.0):
            seen = camera_view(move, still, share, depth)
            assert seen.isfinite().all() and seen.abs().max() <= 1


# What is no camera and no depth

ASKED = {"pan_x": (-1, 1), "pan_y": (-1, 1), "zoom": (0.25, 4), "roll": (-180, 180)}
NO_NUMBERS = (math.nan, math.inf, -math.inf, "1", "", None, [0.5], (0.5,), 1j, True, False, {}, np.str_("1"), b"1")
NO_NUMBERS = (*NO_NUMBERS, np.array([0.5]), np.complex128(1), np.array("1"), 10**400, -(10**400), np.float32("nan"))


@pytest.mark.parametrize("name", ASKED)
def test_what_is_no_number_in_range_is_refused_for_a_camera(name):
    low, high = ASKED[name]
    beyond = (low - 1e-6, high + 1e-6, -1e308, 1e308, low - 1, high + 1, np.nextafter(high, math.inf))
    for value in (*NO_NUMBERS, *beyond, torch.tensor(math.nan), torch.tensor([0.5]), *(() if low < 0 else (0, -1))):
        with pytest.raises(InputError, match=f"^camera {name} .{{0,60}} is no number from {low:g} to {high:g}: ") as no:
            CameraMove(**{name: value})
        assert "\n" not in str(no.value)


@pytest.mark.parametrize("name", ASKED)
def test_any_kind_of_number_in_range_is_kept_as_a_float(name):
    low, high = ASKED[name]
    given = (low, high, 1, np.float32(0.5), np.int64(1), np.array(0.5), torch.tensor(0.5), Fraction(1, 2))
    for value in given:
        kept = getattr(CameraMove(**{name: value}), name)
        assert type(kept) is float and kept == float(value)
    for value in np.random.default_rng(0).uniform(low, high, 50).tolist():
        assert getattr(CameraMove(**{name: value}), name) == value


@pytest.mark.parametrize("ease", [1, 0, "true", None, [], math.nan])
def test_ease_that_is_not_true_or_false_is_refused(ease):
    with pytest.raises(InputError, match=r"^ease .* is not true or false: true starts and ends gently$"):
        CameraMove(ease=ease)


def test_a_camera_that_does_not_move_is_known():
    assert not CameraMove().moves and not CameraMove(ease=True).moves and not CameraMove(-0.0, 0, 1, -0.0).moves
    assert all(CameraMove(**{name: 0.5}).moves for name in ASKED)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (torch.zeros(64, 64), "the depth map is 64x64 and the clip 128x64: make it from the fitted picture"),
        (torch.zeros(128, 64), "the depth map is 64x128 and the clip 128x64"),
        (torch.zeros(2, 64, 128), "2 depth maps for 1 pictures: give the depth of each picture"),
        (torch.zeros(64, 128, 3), "the depth map is 3x128x64"),
        (torch.tensor(0.5), "the depth map is .* and the clip 128x64"),
        (torch.full((64, 128), 1.01), "holds values outside 0 to 1: 1 is near, 0 is far"),
        (torch.full((64, 128), -1e-6), "holds values outside 0 to 1"),
        (torch.full((64, 128), math.nan), "holds values outside 0 to 1"),
        (torch.full((64, 128), math.inf), "holds values outside 0 to 1"),
        (np.zeros((64, 128), np.float32), "is of class ndarray and no tensor: give one of shape"),
        ([[0.5]], "is of class list and no tensor"),
    ],
)
def test_a_depth_that_does_not_fit_is_refused(depth, message):
    with pytest.raises(InputError, match=message):
        check_depth(depth, 1, 64, 128)


# The latents that a clip is shown


class Encoder:
    """Pixels -> latents by averages over cells; counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, pixels):
        self.calls += 1
        cells = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([cells, cells.sum(1, keepdim=True)], dim=1)


def shown(first, still, move, frames, encode, depth=None):
    return view_latents(first, filmed(still, move, frames, depth), encode)


def conditioned(size, level=0.0):
    """A still, what an augmentation of this level added to its latent, and that latent."""
    still = as_still(waves(pixels_of(*size), *size))
    added = level * torch.randn(1, 4, size[0] // 8, size[1] // 8)
    return still, added, Encoder()(still) + added


@pytest.mark.parametrize("level", [0.0, 0.5])
@pytest.mark.parametrize("depth", [None, torch.linspace(0, 1, 128).expand(64, 128)])
def test_a_clip_is_shown_its_own_latent_first_and_then_each_view_with_what_augmentation_added(level, depth):
    still, added, first = conditioned(WIDE, level)
    move, encode = CameraMove(0.2, -0.1, 1.2, 5, ease=True), Encoder()
    views = shown(first, still, move, 5, encode, depth)
    assert views.shape == (1, 5, 4, 8, 16)
    assert torch.equal(views[:, 0], first)
    assert encode.calls == 5
    for view, share in zip(views[0], move.progress(5), strict=True):
        torch.testing.assert_close(
            view[None], Encoder()(camera_view(move, still, share, depth)) + added, rtol=0, atol=1e-4
        )
    assert all((after - before).abs().max() > 1e-3 for before, after in itertools.pairwise(views[0]))


@pytest.mark.parametrize(("move", "frames"), [(CameraMove(), 5), (CameraMove(ease=True), 5), (CameraMove(0.5), 1)])
def test_a_camera_that_does_not_move_encodes_nothing(move, frames):
    still, _, first = conditioned(WIDE, 0.3)
    encode = Encoder()
    views = shown(first, still, move, frames, encode)
    assert encode.calls == 0
    assert torch.equal(views, first[:, None].expand(-1, frames, -1, -1, -1))


@pytest.mark.parametrize("frames", [0, -1, 2.5, "3", None, True])
def test_a_camera_over_no_number_of_frames_is_refused(frames):
    still, _, first = conditioned(WIDE)
    with pytest.raises(InputError, match=r"^pictures for .* frames: give a whole number of 1 or more$"):
        shown(first, still, CameraMove(0.2), frames, Encoder())


def test_another_still_and_what_is_no_camera_are_refused():
    still, _, first = conditioned(WIDE)
    for other in (SQUARE, TALL, (64, 64)):
        for move in (CameraMove(), CameraMove(0.2)):
            with pytest.raises(InputError, match="and its conditioning for 128x64 pixels: give the still that was"):
                shown(first, torch.zeros(1, 3, *other), move, 3, Encoder())
    for move in (None, "pan", (0.2, 0), {"pan_x": 0.2}):
        with pytest.raises(InputError, match="is no CameraMove: give one"):
            shown(first, still, move, 3, Encoder())


# What the network is told

FRAMES = 3


def panned(clips=1, frames=FRAMES):
    """Conditioning whose stills say their clip and frame."""
    plain = conditioning(clips=clips)
    own = torch.arange(clips * frames, dtype=torch.float32).view(clips, frames, 1, 1, 1) + 1
    return dataclasses.replace(plain, first=own.expand(-1, -1, 4, 2, 4).clone(), context=plain.context + 1)


class Watching:
    """A network that keeps what it was told; its result depends on it."""

    def __init__(self):
        self.seen = []

    def __call__(self, x, c_noise, context, vector, num_frames):
        self.seen.append(SimpleNamespace(first=x[:, 4:], context=context, vector=vector))
        return torch.tanh(x[:, :4] + x[:, 4:] + context.sum() / 100)


@pytest.mark.parametrize("clips", [1, 2])
def test_each_frame_is_shown_its_own_still_and_the_other_branch_none(clips):
    told = {}
    for joint in (True, False):
        network = Watching()
        guided = GuidedDenoiser(network, panned(clips), constant_guidance(FRAMES, 2.0), joint=joint)
        told[joint] = (guided(torch.zeros(clips * FRAMES, 4, 2, 4), 1.0), network.seen)
    (joint,), (without, given) = told[True][1], told[False][1]
    shown = torch.arange(clips * FRAMES)[:, None, None, None].expand(-1, 4, 2, 4) + 1.0
    assert torch.equal(given.first, shown)
    assert not without.first.any() and not without.context.any()
    assert torch.equal(joint.first, torch.cat([torch.zeros_like(shown), shown]))


def test_guidance_in_two_processes_is_told_the_same_as_in_one():
    class Half:
        def __init__(self, guides):
            self.guides = guides

        def exchange(self, mine):
            results[self.guides] = mine
            return mine, mine

    results, x = {}, torch.randn(FRAMES, 4, 2, 4)
    network = Watching()
    for guides in (False, True):
        GuidedDenoiser(network, panned(), constant_guidance(FRAMES, 2.0), split=Half(guides))(x, 1.0)
    alone = Watching()
    expected = GuidedDenoiser(alone, panned(), constant_guidance(FRAMES, 2.0), joint=False)(x, 1.0)
    torch.testing.assert_close(torch.lerp(results[False], results[True], 2.0), expected)
    for there, here in zip(network.seen, alone.seen, strict=True):
        assert torch.equal(there.first, here.first)


def test_rows_are_added_and_moved_with_their_frames_and_other_lengths_are_refused():
    both = panned().unconditional().followed_by(panned())
    assert both.first.shape == (2, FRAMES, 4, 2, 4) and not both.first[0].any() and both.rows == 2
    assert both.to(dtype=torch.float64).first.dtype == torch.float64
    with pytest.raises(InputError, match="views of the still for 3 frames and a clip of 4: give one for each frame"):
        panned().repeat_frames(4)
    with pytest.raises(InputError, match="give context"):
        dataclasses.replace(panned(), first=torch.zeros(1, 1, FRAMES, 4, 2, 4))
    with pytest.raises(InputError, match=r"whose latent is \(1, 3, 4, 2, 4\): give \(N, 4, 2, 4\)"):
        check_size(torch.zeros(3, 4, 4, 4), panned())


def test_curves_and_views_go_together():
    network, plain = Watching(), panned()
    vector = MicroConditioning(7, 127, 0.02).vector(48)
    curved = with_curves(Conditioning(plain.context, plain.first, vector), torch.tensor([0.0, 100.0, 255.0]), None)
    GuidedDenoiser(network, curved, constant_guidance(FRAMES, 1.0))(torch.zeros(FRAMES, 4, 2, 4), 1.0)
    (told,) = network.seen
    wanted = [MicroConditioning(7, bucket, 0.02).vector(48)[0] for bucket in (0, 100, 255)]
    torch.testing.assert_close(told.vector, torch.stack(wanted))
    assert torch.equal(told.first, plain.first[0])


# Whole renders

GIVEN = Settings(frames=4, steps=1, width=128, height=64, seed=5)
MOVE = CameraMove(0.2, -0.1, 1.3, 8)


@pytest.fixture(scope="module")
def svd(tmp_path_factory):
    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors"))


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).random((64, 128, 3), np.float32)


@pytest.fixture
def render(svd, picture, monkeypatch):
    """The clip, the rows of each pass through the network, and the number of pictures encoded."""

    def run(settings=GIVEN, how=None, **controls):
        rows, encoded, encode = [], [], svd.vae.encode
        monkeypatch.setattr(svd.vae, "encode", lambda *args, **more: encoded.append(1) or encode(*args, **more))
        hook = svd.unet.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
        try:
            return svd.render(picture, settings, Controls(**controls), **(how or {})), rows, len(encoded)
        finally:
            hook.remove()
            monkeypatch.setattr(svd.vae, "encode", encode)

    return run


def test_a_moving_camera_costs_an_encode_for_each_frame_and_no_model_call(render):
    plain, rows, encoded = render()
    clip, moved_rows, moved_encoded = render(dataclasses.replace(GIVEN, steps=2), camera=MOVE)
    assert (encoded, moved_encoded) == (1, 1 + GIVEN.frames)
    assert (rows, moved_rows) == ([2 * GIVEN.frames], [2 * GIVEN.frames] * 2)
    assert (clip.frames != plain.frames).mean() > 0.9
    assert np.isfinite(clip.frames).all()


@pytest.fixture(scope="module")
def moved(svd, picture):
    """The clip of the moving camera alone."""
    return svd.render(picture, GIVEN, Controls(camera=MOVE))


@pytest.mark.parametrize("more", [{}, {"unstick": 0.5, "motion_bucket": [(0, 10), (1, 250)]}])
def test_a_camera_that_does_not_move_changes_no_bit(render, more):
    plain, _, encoded = render(**more)
    clip, _, same = render(**more, camera=CameraMove(ease=True), depth=np.zeros((64, 128), np.float32))
    assert torch.equal(clip.latents, plain.latents) and (clip.frames == plain.frames).all()
    assert same == encoded


def test_a_render_is_its_stages(svd, picture, render):
    """As in the test of the same for a clip without controls; the views are made here, one by one."""
    generator = torch.Generator().manual_seed(GIVEN.seed)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] * 2 - 1
    on_still = torch.randn(pixels.shape, generator=generator)
    noise = torch.randn(4, 4, 8, 16, generator=generator)
    depth = np.linspace(0, 1, 128, dtype=np.float32)[None].repeat(64, axis=0)
    cond = svd.condition(pixels, augmentation=0.2, noise=on_still)
    with torch.no_grad():
        seen = [camera_view(MOVE, pixels, share / 3, torch.from_numpy(depth)) for share in (1, 2, 3)]
        views = [cond.first, *(svd.vae.encode(view) + (cond.first - svd.vae.encode(pixels)) for view in seen)]
    shown = dataclasses.replace(cond, first=torch.stack(views, dim=1))
    clip, *_ = render(dataclasses.replace(GIVEN, augmentation=0.2), camera=MOVE, depth=depth)
    guidance = linear_guidance(4, clip.settings.min_guidance, clip.settings.max_guidance)
    expected = svd.sample(noise, shown, edm_sigmas(1), guidance)
    torch.testing.assert_close(clip.latents, expected, rtol=1e-4, atol=1e-4)


def test_what_the_network_is_shown_first_is_the_conditionings_own(svd, picture):
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] * 2 - 1
    cond = svd.condition(pixels, augmentation=0.3, seed=2)
    views = filmed(pixels, MOVE, 4)
    told = svd.with_views(cond, views)
    assert torch.equal(told.first[:, 0], cond.first)
    assert torch.equal(told.context, cond.context) and torch.equal(told.vector, cond.vector)
    assert not told.first.requires_grad
    assert torch.equal(svd.with_views(cond, views, budget=2**23).first, told.first)


def test_joint_and_separate_guidance_agree(render, moved):
    apart, *_ = render(how={"joint": False, "chunk": 1}, camera=MOVE)
    torch.testing.assert_close(apart.latents, moved.latents, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "more", [{"unstick": 0.5}, {"motion_bucket": [(0, 10), (1, 250)]}, {"augmentation": [0, 0.1, 0.2, 0.3]}]
)
def test_other_controls_go_with_a_camera_and_both_act(render, moved, more):
    clip, rows, _ = render(camera=MOVE, **more)
    assert rows == [2 * GIVEN.frames]
    assert not torch.equal(clip.latents, moved.latents)
    assert not torch.equal(clip.latents, render(**more)[0].latents)


def test_the_same_seed_gives_the_same_clip_whatever_was_made_between(render, moved):
    render(camera=CameraMove(-0.5), unstick=1.0)
    assert (render(camera=MOVE)[0].frames == moved.frames).all()


def test_one_frame_is_the_still_s_own(render):
    single = dataclasses.replace(GIVEN, frames=1)
    assert (render(single, camera=MOVE)[0].frames == render(single)[0].frames).all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"loop": True}, "a camera leaves its picture, and an end would hold the clip to it: choose one of them"),
        ({"end": np.zeros((64, 128, 3))}, "and an end would hold the clip to it"),
        ({"window": 3}, "and windows would hold the clip to it"),
        ({"window": 0}, "and windows would hold the clip to it"),
        ({"brush": np.ones((64, 128))}, "and a brush would hold the clip to it"),
    ],
)
def test_what_holds_the_clip_to_its_picture_is_refused_beside_a_camera(more, message):
    for move in (MOVE, CameraMove()):
        with pytest.raises(InputError, match=message):
            Controls(camera=move, **more)


@pytest.mark.parametrize("camera", [0.2, "pan", (0.2, 0), {"pan_x": 0.2}, CameraMove, True])
def test_what_is_no_camera_is_refused_among_the_controls(camera):
    with pytest.raises(InputError, match=r"^camera .* is no CameraMove: give one$"):
        Controls(camera=camera)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (np.zeros((32, 32)), "the depth map is 32x32 and the clip 128x64: make it from the fitted picture"),
        (np.zeros((4, 64, 128)), "4 depth maps for 1 pictures: give the depth of each picture"),
        (np.full((64, 128), 255), "the depth map holds values outside 0 to 1"),
        (np.full((64, 128), np.nan), "the depth map holds values outside 0 to 1"),
        ([[0.5], [0.5, 0.5]], "the depth map is no array"),
        ("depth.png", "the depth map is no array"),
    ],
)
def test_a_depth_that_does_not_fit_is_refused_before_anything_is_encoded(svd, picture, monkeypatch, depth, message):
    monkeypatch.setattr(svd.vae, "encode", lambda *_, **__: pytest.fail("encoded"))
    with pytest.raises(InputError, match=message):
        svd.render(picture, GIVEN, Controls(camera=MOVE, depth=depth))
    with pytest.raises(InputError, match="a depth map is about how the camera passes things, and there is none"):
        Controls(depth=depth)


def test_what_with_views_cannot_take_is_refused(svd):
    views = torch.zeros(2, 3, 64, 128)
    cond, two = svd.condition(views[:1]), svd.condition(views)
    told = svd.with_views(cond, views)
    for other, pictures in ((two, views), (told, views), (cond, views[0])):
        with pytest.raises(InputError, match=r"give views .*, and what `condition` gave for one still"):
            svd.with_views(other, pictures)
    for pictures, message in (
        (torch.zeros(2, 3, 64, 64), "the still is 64x64 and its conditioning for 128x64"),
        (torch.full((2, 3, 64, 128), math.nan), "NaN or infinity in views"),
        (None, "views of class NoneType"),
    ):
        with pytest.raises(InputError, match=message):
            svd.with_views(cond, pictures)
    with pytest.raises(InputError, match="views of the still for 2 frames and a clip of 3"):
        svd.sample(torch.zeros(3, 4, 8, 16), told, torch.tensor([1.0, 0.0]), torch.full((3,), 2.0))


# Recipes


def recipe_with(recipe, camera):
    data = json.loads(recipe.to_json())
    data["controls"]["camera"] = camera
    return json.dumps(data)


@pytest.fixture
def recipe():
    controls = RecordedControls(camera=MOVE, depth=Source("depth.png", "0a" * 32))
    return dataclasses.replace(a_recipe(), controls=controls)


def test_a_recipe_keeps_any_camera(recipe):
    for move in [*drawn_moves(20), *PLAIN_MOVES, CameraMove(np.float32(0.1), 0, 1, torch.tensor(3.5), ease=True)]:
        kept = dataclasses.replace(recipe, controls=dataclasses.replace(recipe.controls, camera=move))
        assert Recipe.from_json(kept.to_json()) == kept


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ({"zoom": 0}, "camera zoom 0.0 is no number from 0.25 to 4"),
        ({"zoom": -1.5}, "camera zoom -1.5 is no number"),
        ({"pan_x": 2}, "camera pan_x 2.0 is no number from -1 to 1"),
        ({"pan_y": "0.2"}, "recipe.controls.camera.pan_y is '0.2': needed a modest float"),
        ({"roll": None}, "recipe.controls.camera.roll is 'None': needed"),
        ({"roll": True}, "recipe.controls.camera.roll is 'True': needed"),
        ({"pan_x": 1e400}, "recipe.controls.camera.pan_x|not JSON"),
        ({"ease": 1}, "recipe.controls.camera.ease is '1': needed a modest bool"),
        ({"tilt": 1}, "recipe.controls.camera has an unknown field 'tilt'"),
        ("right", "recipe.controls.camera is 'right': needed an object"),
        ([0.2, 0], "recipe.controls.camera is .*: needed an object"),
        (5, "recipe.controls.camera is '5': needed an object"),
    ],
)
def test_a_damaged_camera_in_a_recipe_is_refused(recipe, camera, message):
    with pytest.raises(InputError, match=message) as refused:
        Recipe.from_json(recipe_with(recipe, camera))
    assert "\n" not in str(refused.value)


def test_fields_that_are_left_out_stand_still_and_older_recipes_have_no_camera(recipe):
    assert Recipe.from_json(recipe_with(recipe, {"pan_x": 0.5})).controls.camera == CameraMove(pan_x=0.5)
    assert Recipe.from_json(recipe_with(recipe, {})).controls.camera == CameraMove()
    data = json.loads(recipe.to_json())
    del data["controls"]["camera"], data["controls"]["depth"]
    older = Recipe.from_json(json.dumps(data)).controls
    assert older.camera is None and older.depth is None and older == RecordedControls()
    data["controls"]["depth"] = {"path": "depth.png", "sha256": "no"}
    with pytest.raises(InputError, match=r"recipe\.depth\.sha256 is not 64 hexadecimal digits"):
        Recipe.from_json(json.dumps(data))


def test_scales_are_those_of_the_model():
    """A still's latent is unscaled in conditioning, and so are its views."""
    still, _, first = conditioned(WIDE)
    views = shown(first, still, CameraMove(0.1), 3, Encoder())
    assert views[0].std().item() == pytest.approx(first.std().item(), rel=0.2) != LATENT_SCALE
