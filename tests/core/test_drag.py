"""Drag: where a painted thing is in each frame, what stays where it was, and that nothing else changes."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from defaults import other_defaults
from recipes import a_recipe
from synthetic import write_checkpoint

from svd_core import Controls, load_checkpoint
from svd_core.errors import InputError
from svd_core.motion import CameraMove, ObjectMove, camera_view, check_painted, drag_view, dragged, filmed, view_latents
from svd_core.recipe import Recipe, RecordedControls, Source
from svd_core.sampling import edm_sigmas, linear_guidance
from svd_core.settings import Settings
from svd_core.shot import Shot

WIDE, TALL, SQUARE, ODD = (64, 128), (160, 64), (96, 96), (72, 104)
"""Heights and widths of pictures."""

AROUND = 2
"""Pixels around what is painted that are filled too."""

# A picture with a thing in it. Places are complex numbers, x + iy in pixels from the left upper corner, y down.


def places_of(height, width):
    """(H, W): the centre of each pixel."""
    return (np.arange(width) + 0.5)[None, :] + 1j * (np.arange(height) + 0.5)[:, None]


def behind(points, size):
    """What is around the thing, smooth: (H, W)."""
    right, down = points.real / size[1], points.imag / size[0]
    return 0.4 * np.cos(2 * np.pi * right) + 0.3 * np.sin(np.pi * down)


def texture(points):
    """What is on the thing, at any point of the picture that it was cut from."""
    return 0.5 * np.cos(points.real / 9) * np.sin(points.imag / 7)


def inside(points, box, margin=0.0):
    """Whether points are within left, top, right and bottom, by more than a margin."""
    left, top, right, bottom = box
    across = (points.real > left + margin) & (points.real < right - margin)
    return across & (points.imag > top + margin) & (points.imag < bottom - margin)


def scene(size, box):
    """The still (1, 3, H, W) and the mask (H, W) of the thing in a box; in channel 2 the thing is 1, all else -1."""
    points = places_of(*size)
    painted = inside(points, box)
    channels = [np.where(painted, texture(points), behind(points, size)), np.where(painted, -0.7, 0.2)]
    still = np.stack([*channels, np.where(painted, 1.0, -1.0)])[None].astype(np.float32)
    return torch.from_numpy(still), torch.from_numpy(painted.astype(np.float32))


def middle(box):
    left, top, right, bottom = box
    return complex(left + right, top + bottom) / 2


def shown_points(move, share, size, box):
    """The point of the still that each pixel shows where it shows the thing. Written anew: the thing grows and turns
    clockwise about its middle, which is carried along."""
    way = share * (move.right * size[1] + 1j * move.down * size[0])
    grown = move.scale**share * np.exp(1j * math.radians(move.turn) * share)
    return (places_of(*size) - middle(box) - way) / grown + middle(box)


def drawn_moves(count):
    generator = np.random.default_rng(5)
    ways = generator.uniform((-1, -1, -1, -360), (1, 1, 1, 360), (count, 4)) * (0.6, 0.6, 1, 1)
    return [ObjectMove(right, down, 4**closer, turn) for right, down, closer, turn in ways.tolist()]


PLAIN_MOVES = [
    ObjectMove(right=0.3),
    ObjectMove(right=-0.25),
    ObjectMove(down=0.4),
    ObjectMove(down=-0.2),
    ObjectMove(scale=2.0),
    ObjectMove(scale=0.5),
    ObjectMove(turn=90.0),
    ObjectMove(turn=-30.0),
    ObjectMove(1.0, -1.0, 4.0, 360.0),
    ObjectMove(-1.0, 1.0, 0.25, -360.0),
]


def boxes_of(height, width):
    """Things inside the picture, at an edge, and in a corner."""
    return [
        (width // 4, height // 4, width // 2, height // 4 + 16),
        (0, height // 2 - 8, 18, height // 2 + 8),
        (width - 20, height - 22, width, height),
        (width // 2 - 7, 0, width // 2 + 9, 20),
    ]


def check_view(seen, still, size, box, points):
    """Each pixel of a view that shows the thing, what was behind it, or what has always been there."""
    arrived, near = inside(points, box, 2.0), inside(points, box, -2.0)
    left = inside(places_of(*size), box, -AROUND)
    error = np.abs(seen[0, 0].numpy() - texture(points))[arrived]
    assert error.size == 0 or error.max() < 0.03
    assert (np.abs(seen[0, 2].numpy() - 1)[arrived] < 1e-4).all()
    assert (np.abs(seen[0, 1].numpy() + 0.7)[arrived] < 1e-4).all()
    assert np.array_equal(seen[0].numpy()[:, ~near & ~left], still[0].numpy()[:, ~near & ~left])
    assert (np.abs(seen[0, 2].numpy() + 1)[~near] < 1e-5).all(), "the thing, where it is not"
    assert (np.abs(seen[0, 1].numpy() - 0.2)[~near] < 1e-5).all()


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("size", [WIDE, TALL, SQUARE, ODD])
def test_each_pixel_shows_the_thing_where_it_has_come_to_and_else_what_was_there(size, place):
    """Which also says that nothing is mirrored in from beyond an edge, and that pixels far from both keep their
    bits."""
    box = boxes_of(*size)[place]
    still, mask = scene(size, box)
    before = still.clone(), mask.clone()
    for move, share in itertools.product([*PLAIN_MOVES, *drawn_moves(8)], (0.3, 1.0)):
        check_view(drag_view(move, still, mask, share), still, size, box, shown_points(move, share, size, box))
    assert torch.equal(still, before[0]) and torch.equal(mask, before[1])


def centre_and_area(seen):
    """Middle of what is the thing, in pixels from the left upper corner, and how many pixels it covers."""
    weight = (seen[0, 2].numpy().astype(np.float64) + 1) / 2
    centre = (weight * places_of(*weight.shape)).sum() / weight.sum()
    return (centre.real, centre.imag), weight.sum()


@pytest.mark.parametrize(
    ("move", "share", "expected", "area"),
    [
        (ObjectMove(right=0.25), 1.0, (30 + 32, 24), 256),
        (ObjectMove(right=-0.125), 0.5, (30 - 8, 24), 256),
        (ObjectMove(down=0.25), 1.0, (30, 24 + 16), 256),
        (ObjectMove(down=-0.25), 0.5, (30, 24 - 8), 256),
        (ObjectMove(scale=1.5), 1.0, (30, 24), 576),
        (ObjectMove(scale=0.25), 0.5, (30, 24), 64),
        (ObjectMove(turn=45.0), 1.0, (30, 24), 256),
        (ObjectMove(turn=-200.0), 0.7, (30, 24), 256),
        (ObjectMove(0.5, 0.25, 2.0, 30.0), 0.5, (30 + 32, 24 + 8), 512),
        (ObjectMove(-0.1, -0.1, 0.5, 90.0), 1.0, (30 - 12.8, 24 - 6.4), 64),
    ],
)
def test_a_square_s_middle_goes_where_it_is_sent(move, share, expected, area):
    """By hand, in a picture of 128x64: its sides are 16 and its middle is at (30, 24)."""
    seen = drag_view(move, *scene(WIDE, (22, 16, 38, 32)), share)
    centre, covered = centre_and_area(seen)
    assert centre == pytest.approx(expected, abs=0.3)
    assert covered == pytest.approx(area, rel=0.12)


@pytest.mark.parametrize(("turn", "tip"), [(90, (40, 40)), (-90, (40, 10)), (180, (25, 25)), (360, (55, 25))])
def test_it_turns_clockwise_about_the_middle_of_its_paint(turn, tip):
    """A bar from (25, 22) to (55, 28) around (40, 25): after a quarter of a turn what was at its right is below."""
    still, mask = scene(WIDE, (25, 22, 55, 28))
    still[0, 0] = -1
    still[0, 0, 22:28, 49:55] = 1
    seen = drag_view(ObjectMove(turn=turn), still, mask, 1.0)
    light = (seen[0, 0].numpy().clip(-1, 1) + 1) * (seen[0, 2].numpy() > 0)
    found = (light * places_of(*WIDE)).sum() / light.sum()
    assert (found.real, found.imag) == pytest.approx(
        (tip[0] + 3 * np.sign(40 - tip[0]), tip[1] + 3 * np.sign(25 - tip[1])), abs=0.3
    )


def test_its_middle_is_that_of_its_paint_and_not_of_its_bounds():
    """An L of three squares: its middle is a third of the way along each arm, and stays there while it grows."""
    still, mask = scene(SQUARE, (0, 0, 0, 0))
    for top, left in ((32, 32), (44, 32), (44, 44)):
        mask[top : top + 12, left : left + 12] = 1
    still[0, 2] = 2 * mask - 1
    for move in (ObjectMove(scale=1.5), ObjectMove(turn=180), ObjectMove(turn=77, scale=0.7)):
        centre, _ = centre_and_area(drag_view(move, still, mask, 1.0))
        assert centre == pytest.approx((42, 46), abs=0.2)


@pytest.mark.parametrize(
    "move", [ObjectMove(right=1), ObjectMove(right=-1), ObjectMove(down=1), ObjectMove(down=-1), ObjectMove(1, 1)]
)
def test_what_has_left_the_picture_is_gone_and_comes_in_nowhere(move):
    for box in boxes_of(*WIDE):
        seen = drag_view(move, *scene(WIDE, box), 1.0)
        assert (seen[0, 2] + 1).abs().max() < 1e-5


def test_what_is_cut_by_an_edge_ends_there_when_it_comes_in():
    """The picture does not know more of it. Its other side is not mirrored to where it was cut."""
    still, mask = scene(WIDE, (0, 20, 16, 36))
    seen = drag_view(ObjectMove(right=0.25), still, mask, 1.0)
    assert (seen[0, 2, 22:34, 34:46] - 1).abs().max() < 1e-4
    assert (seen[0, 2, :, :30] + 1).abs().max() < 1e-5 and (seen[0, 2, :, 50:] + 1).abs().max() < 1e-5


def test_a_whole_number_of_pixels_away_its_bits_are_the_same():
    still, mask = scene(WIDE, (22, 16, 38, 32))
    seen = drag_view(ObjectMove(right=0.25, down=0.125), still, mask, 1.0)
    torch.testing.assert_close(seen[..., 24:40, 54:70], still[..., 16:32, 22:38], rtol=0, atol=1e-5)
    assert (seen[0, 2, :, :53] < 0).all() and (seen[0, 2, :23] < 0).all()


# What it leaves behind


def test_one_colour_around_it_fills_its_place():
    still = torch.full((1, 3, *ODD), 0.3)
    mask = torch.zeros(ODD)
    mask[10:60, 20:70], still[..., 10:60, 20:70] = 1, -0.9
    left = drag_view(ObjectMove(right=1), still, mask, 1.0)
    torch.testing.assert_close(left, torch.full_like(left, 0.3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [WIDE, TALL, ODD, (64, 256), (576, 64)])
@pytest.mark.parametrize("side", [np.s_[:, :0.5], np.s_[:, 0.5:], np.s_[:0.5], np.s_[0.5:], np.s_[0.2:0.8, 0.1:0.9]])
def test_large_things_too_are_replaced_by_what_is_around_them(size, side):
    """Also those that reach from edge to edge, of pictures far from square."""
    parts = side if isinstance(side, tuple) else (side,)
    cells = [
        slice(*(None if end is None else round(end * length) for end in (part.start, part.stop)))
        for part, length in zip(parts, size, strict=False)
    ]
    still, mask = torch.full((1, 3, *size), 0.5), torch.zeros(size)
    mask[tuple(cells)] = 1
    still[..., mask > 0] = -1
    left = drag_view(ObjectMove(1, 1), still, mask, 1.0)
    torch.testing.assert_close(left, torch.full_like(left, 0.5), rtol=0, atol=1e-5)


def test_a_slope_goes_on_through_its_place():
    """Within the range of what is around, and near to it."""
    slope = torch.linspace(-0.8, 0.8, 128).expand(1, 3, 64, 128).contiguous()
    still, mask = slope.clone(), torch.zeros(WIDE)
    mask[20:36, 50:70], still[..., 20:36, 50:70] = 1, 1
    left = drag_view(ObjectMove(down=1), still, mask, 1.0)
    hole = left[..., 18:38, 48:72]
    assert hole.min() >= slope[..., 46].min() - 0.02 and hole.max() <= slope[..., 74].max() + 0.02
    assert (left - slope).abs().max() < 0.2
    assert (left[..., 1:] - left[..., :-1]).abs().max() < 0.15, "no edge is left"


def test_soft_edges_beside_the_paint_do_not_stay_behind():
    """A thing's outline is smeared over some pixels, of which the paint leaves out the outermost."""
    still, mask = torch.full((1, 3, *WIDE), -1.0), torch.zeros(WIDE)
    still[..., 18:38, 48:72], still[..., 20:36, 50:70], mask[20:36, 50:70] = 0.5, 1, 1
    left = drag_view(ObjectMove(down=1), still, mask, 1.0)
    assert left.max() < -0.99


@pytest.mark.parametrize("paint", [1.0, 1e-6])
def test_a_picture_painted_all_over_and_one_painted_pixel_give_numbers_in_range(paint):
    generator = torch.Generator().manual_seed(0)
    still = torch.where(torch.rand(1, 3, *ODD, generator=generator) > 0.5, 1.0, -1.0)
    dot = torch.zeros(ODD)
    dot[0, -1] = paint
    for mask, move in itertools.product((torch.full(ODD, paint), dot), [*PLAIN_MOVES, *drawn_moves(4)]):
        seen = drag_view(move, still, mask, 0.6)
        assert seen.isfinite().all() and seen.abs().max() <= 1, "bicubic filters overshoot"


def test_grey_paint_is_half_transparent():
    still, mask = scene(WIDE, (22, 16, 38, 32))
    whole, half = (drag_view(ObjectMove(right=0.25), still, mask * paint, 1.0) for paint in (1.0, 0.5))
    left = drag_view(ObjectMove(right=1), still, mask, 1.0)
    torch.testing.assert_close(half, (whole + left) / 2, rtol=0, atol=1e-5)
    assert (half[0, 2, 18:30, 56:68].abs() < 1e-4).all()
    assert (half[0, 2, 16:32, 22:38] + 1).abs().max() < 1e-5, "what leaves is filled whatever its grey"


# All frames


def test_frames_are_spaced_evenly_or_start_and_end_gently():
    still, mask = scene(WIDE, (12, 16, 28, 32))
    for ease, ways in ((False, (0, 16, 32, 48, 64)), (True, (0, 10, 32, 54, 64))):
        views = dragged(still, mask, ObjectMove(right=0.5, ease=ease), 5)
        assert [centre_and_area(view[None])[0][0] - 20 for view in views] == pytest.approx(ways, abs=0.1)
    grown = [centre_and_area(view[None])[1] for view in dragged(still, mask, ObjectMove(scale=2.0), 5)]
    factors = [after / before for before, after in itertools.pairwise(grown)]
    assert factors == pytest.approx([2**0.5] * 4, rel=0.08)


@pytest.mark.parametrize("ease", [False, True])
def test_the_first_frame_and_what_does_not_move_keep_their_bits(ease):
    still, mask = scene(WIDE, (22, 16, 38, 32))
    assert torch.equal(dragged(still, mask, ObjectMove(0.3, 0.1, 2, 30, ease), 3)[:1], still)
    assert torch.equal(dragged(still, mask, ObjectMove(ease=ease), 3), still.expand(3, -1, -1, -1))
    assert torch.equal(dragged(still, mask, ObjectMove(0.3, ease=ease), 1), still)


def test_a_thing_in_pictures_that_move_themselves_is_cut_from_each():
    generator = torch.Generator().manual_seed(1)
    pictures, (_, mask) = torch.rand(4, 3, *WIDE, generator=generator), scene(WIDE, (22, 16, 38, 32))
    move = ObjectMove(0.3, -0.1, 1.4, 20)
    expected = [drag_view(move, picture, mask, share / 3) for share, picture in enumerate(pictures.split(1)) if share]
    assert torch.equal(dragged(pictures, mask, move, 4), torch.cat([pictures[:1], *expected]))
    assert torch.equal(dragged(pictures, mask, ObjectMove(), 4), pictures)
    for frames in (3, 5):
        with pytest.raises(InputError, match=f"^4 pictures for {frames} frames: give one, or one for each frame$"):
            dragged(pictures, mask, move, frames)


def test_torchs_default_device_and_dtype_change_nothing():
    still, mask = scene(ODD, (22, 16, 38, 32))
    expected = dragged(still, mask, ObjectMove(0.3, -0.1, 1.4, 20), 3)
    with other_defaults():
        again = dragged(still, mask, ObjectMove(0.3, -0.1, 1.4, 20), 3)
    assert torch.equal(again, expected)


# What is refused

ASKED = {"right": (-1, 1), "down": (-1, 1), "scale": (0.25, 4), "turn": (-360, 360)}
NO_NUMBERS = (math.nan, math.inf, -math.inf, "1", "", None, [0.5], 1j, True, {}, b"1", np.array([0.5]), 10**400)


@pytest.mark.parametrize("name", ASKED)
def test_what_is_no_number_in_range_is_refused_for_a_drag(name):
    low, high = ASKED[name]
    beyond = (low - 1e-6, high + 1e-6, -1e308, 1e308, np.nextafter(high, math.inf), torch.tensor(math.nan))
    for value in (*NO_NUMBERS, *beyond, *(() if low < 0 else (0, -1))):
        with pytest.raises(InputError, match=f"^drag {name} .{{0,60}} is no number from {low:g} to {high:g}: ") as no:
            ObjectMove(**{name: value})
        assert "\n" not in str(no.value)
    for value in (low, high, 1, np.float32(0.5), torch.tensor(0.5)):
        kept = getattr(ObjectMove(**{name: value}), name)
        assert type(kept) is float and kept == float(value)


@pytest.mark.parametrize("ease", [1, 0, "true", None, math.nan])
def test_ease_of_a_drag_that_is_not_true_or_false_is_refused(ease):
    with pytest.raises(InputError, match=r"^ease .* is not true or false: true starts and ends gently$"):
        ObjectMove(ease=ease)


def test_a_thing_that_does_not_move_is_known():
    assert not ObjectMove().moves and not ObjectMove(ease=True).moves and not ObjectMove(-0.0, 0, 1, -0.0).moves
    assert all(ObjectMove(**{name: 0.5}).moves for name in ASKED)


MASKS = [
    (np.ones((64, 64)), "the drag's mask is 64x64 and the clip 128x64: paint it on the fitted picture"),
    (np.ones((128, 64)), "the drag's mask is 64x128 and the clip 128x64"),
    (np.ones((1, 64, 128)), "the drag's mask is 128x64x1 and the clip 128x64"),
    (np.ones((4, 64, 128)), "the drag's mask is 128x64x4 and the clip 128x64"),
    (np.ones((64, 128, 3)), "the drag's mask is 3x128x64 and the clip"),
    (np.float32(1), "the drag's mask is .* and the clip 128x64"),
    (np.full((64, 128), 255), "the drag's mask holds values outside 0 to 1: 1 is what moves"),
    (np.full((64, 128), -1e-6), "the drag's mask holds values outside 0 to 1"),
    (np.full((64, 128), math.nan), "the drag's mask holds values outside 0 to 1"),
    (np.full((64, 128), math.inf), "the drag's mask holds values outside 0 to 1"),
    (np.zeros((64, 128)), "nothing is painted in the drag's mask: paint what moves in white"),
    (np.zeros((0, 0)), "the drag's mask is 0x0 and the clip 128x64"),
]


@pytest.mark.parametrize(("mask", "message"), MASKS)
def test_a_mask_that_does_not_fit_is_refused(mask, message):
    still, move = scene(WIDE, (22, 16, 38, 32))[0], ObjectMove(0.2)
    for given in (move, ObjectMove()):
        with pytest.raises(InputError, match=message):
            dragged(still, torch.as_tensor(mask), given, 3)
    with pytest.raises(InputError, match=f"^the drag's mask is of class {type(mask).__name__} and no tensor: give one"):
        dragged(still, mask, move, 3)
    with pytest.raises(InputError, match="of class NoneType and no tensor"):
        check_painted(None, 64, 128)


def test_what_is_no_move_and_no_number_of_frames_is_refused():
    still, mask = scene(WIDE, (22, 16, 38, 32))
    for move in (None, "right", (0.2, 0), {"right": 0.2}, CameraMove(0.2), ObjectMove):
        with pytest.raises(InputError, match=r"^drag .* is no ObjectMove: give one$"):
            dragged(still, mask, move, 3)
    for frames in (0, -1, 2.5, "3", None, True):
        with pytest.raises(InputError, match=r"^pictures for .* frames: give a whole number of 1 or more$"):
            dragged(still, mask, ObjectMove(0.2), frames)


@pytest.mark.parametrize("mask", [torch.uint8, torch.bool, torch.float16, torch.float64])
def test_a_mask_of_any_kind_of_number_is_the_same_mask(mask):
    still, painted = scene(WIDE, (22, 16, 38, 32))
    expected = dragged(still, painted, ObjectMove(0.2), 2)
    assert torch.equal(dragged(still, painted.to(mask), ObjectMove(0.2), 2), expected)


# The latents that a clip is shown


class Encoder:
    """Pixels -> latents by averages over cells; counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, pixels):
        self.calls += 1
        cells = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([cells, cells.sum(1, keepdim=True)], dim=1)


def test_what_augmentation_added_is_in_every_view_and_the_first_is_the_conditionings_own():
    still, mask = scene(WIDE, (22, 16, 38, 32))
    added = 0.5 * torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(2))
    first, encode, move = Encoder()(still) + added, Encoder(), ObjectMove(0.3, 0.1, 1.5, 20)
    latents = view_latents(first, dragged(still, mask, move, 4), encode)[0]
    assert encode.calls == 4 and torch.equal(latents[:1], first)
    for latent, share in zip(latents[1:], (1 / 3, 2 / 3, 1), strict=True):
        torch.testing.assert_close(latent[None], Encoder()(drag_view(move, still, mask, share)) + added)
    unmoved = view_latents(first, dragged(still, mask, ObjectMove(), 4), encode)[0]
    assert encode.calls == 4 and torch.equal(unmoved, first.expand(4, -1, -1, -1))


# Whole renders

GIVEN = Settings(frames=4, steps=1, width=128, height=64, seed=5)
MOVE, CAMERA = ObjectMove(0.3, -0.1, 1.4, 20), CameraMove(0.2, -0.1, 1.3, 8)


@pytest.fixture(scope="module")
def svd(tmp_path_factory):
    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors"))


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).random((64, 128, 3), np.float32)


@pytest.fixture(scope="module")
def painted():
    mask = np.zeros((64, 128), np.float32)
    mask[20:44, 30:70] = 1
    return mask


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


def test_a_drag_costs_an_encode_for_each_frame_and_no_model_call(render, painted):
    plain, rows, encoded = render()
    for camera in (None, CAMERA, CameraMove()):
        clip, moved_rows, moved_encoded = render(drag=painted, drag_move=MOVE, camera=camera)
        assert (encoded, moved_encoded) == (1, 1 + GIVEN.frames)
        assert rows == moved_rows == [2 * GIVEN.frames]
        assert (clip.frames != plain.frames).mean() > 0.9 and np.isfinite(clip.frames).all()


@pytest.mark.parametrize("more", [{}, {"unstick": 0.5, "motion_bucket": [(0, 10), (1, 250)]}])
def test_a_drag_that_does_not_move_changes_no_bit(render, painted, more):
    plain, _, encoded = render(**more)
    for camera in (None, CameraMove()):
        clip, _, same = render(**more, drag=painted, drag_move=ObjectMove(ease=True), camera=camera)
        assert torch.equal(clip.latents, plain.latents) and (clip.frames == plain.frames).all()
        assert same == encoded
    single = dataclasses.replace(GIVEN, frames=1)
    alone = render(single, drag=painted, drag_move=MOVE)[0]
    assert (alone.frames == render(single)[0].frames).all()


@pytest.mark.parametrize("camera", [None, CAMERA])
def test_a_render_is_its_stages_with_the_drag_before_the_camera(svd, picture, painted, render, camera):
    generator = torch.Generator().manual_seed(GIVEN.seed)
    pixels, mask = torch.from_numpy(picture).permute(2, 0, 1)[None] * 2 - 1, torch.from_numpy(painted)
    on_still = torch.randn(pixels.shape, generator=generator)
    noise = torch.randn(4, 4, 8, 16, generator=generator)
    cond = svd.condition(pixels, augmentation=0.2, noise=on_still)
    with torch.no_grad():
        seen = [drag_view(MOVE, pixels, mask, share / 3) for share in (1, 2, 3)]
        if camera:
            seen = [camera_view(camera, view, share / 3) for share, view in enumerate(seen, start=1)]
        views = [cond.first, *(svd.vae.encode(view) + (cond.first - svd.vae.encode(pixels)) for view in seen)]
    shown = dataclasses.replace(cond, first=torch.stack(views, dim=1))
    clip, *_ = render(dataclasses.replace(GIVEN, augmentation=0.2), drag=painted, drag_move=MOVE, camera=camera)
    guidance = linear_guidance(4, clip.settings.min_guidance, clip.settings.max_guidance)
    expected = svd.sample(noise, shown, edm_sigmas(1), guidance)
    torch.testing.assert_close(clip.latents, expected, rtol=1e-4, atol=1e-4)


def test_a_camera_after_a_drag_is_not_a_drag_after_a_camera(picture, painted):
    pixels, mask = torch.from_numpy(picture).permute(2, 0, 1)[None] * 2 - 1, torch.from_numpy(painted)
    shown = filmed(dragged(pixels, mask, MOVE, 3), CAMERA, 3)
    assert (shown - dragged(filmed(pixels, CAMERA, 3), mask, MOVE, 3)).abs().mean() > 0.01


@pytest.mark.parametrize(
    "more",
    [
        {"unstick": 0.5},
        {"motion_bucket": [(0, 10), (1, 250)]},
        {"augmentation": [0, 0.1, 0.2, 0.3]},
        {"camera": CAMERA},
    ],
)
def test_other_controls_go_with_a_drag_and_both_act(render, painted, more):
    clip, rows, _ = render(drag=painted, drag_move=MOVE, **more)
    assert rows == [2 * GIVEN.frames]
    assert not torch.equal(clip.latents, render(drag=painted, drag_move=MOVE)[0].latents)
    assert not torch.equal(clip.latents, render(**more)[0].latents)


def test_the_same_seed_gives_the_same_clip_and_split_guidance_the_same_up_to_rounding(render, painted):
    asked = {"drag": painted, "drag_move": MOVE}
    clip = render(**asked)[0]
    render(drag=1 - painted, drag_move=ObjectMove(-0.5))
    assert (render(**asked)[0].frames == clip.frames).all()
    apart = render(how={"joint": False, "chunk": 1}, **asked)[0]
    torch.testing.assert_close(apart.latents, clip.latents, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"loop": True}, "a drag changes its picture, and an end would hold the clip to it: choose one of them"),
        ({"end": np.zeros((64, 128, 3))}, "and an end would hold the clip to it"),
        ({"window": 3}, "a drag changes its picture, and windows would hold the clip to it"),
        ({"window": 0}, "and windows would hold the clip to it"),
        ({"brush": np.ones((64, 128))}, "a drag changes its picture, and a brush would hold the clip to it"),
        ({"depth": np.ones((64, 128))}, "a depth map is about how the camera passes things, and there is none"),
        ({"depth": np.ones((64, 128)), "camera": CAMERA}, "a depth map says where things are, and a drag moves one of"),
        ({"camera": CAMERA, "loop": True}, "a camera leaves its picture, and an end would hold"),
    ],
)
def test_what_does_not_go_with_a_drag_is_refused(painted, more, message):
    for move in (MOVE, ObjectMove()):
        with pytest.raises(InputError, match=message) as refused:
            Controls(drag=painted, drag_move=move, **more)
        assert "\n" not in str(refused.value)


def test_half_a_drag_and_what_is_no_move_are_refused_among_the_controls(painted):
    for half in ({"drag": painted}, {"drag_move": MOVE}, {"drag": painted, "camera": CAMERA}):
        with pytest.raises(
            InputError, match=r"^a drag takes the mask of a thing and where it goes: give both drag and"
        ):
            Controls(**half)
    for move in (0.2, "right", (0.2, 0), {"right": 0.2}, ObjectMove, True, CAMERA):
        with pytest.raises(InputError, match=r"^drag_move .* is no ObjectMove: give one$"):
            Controls(drag=painted, drag_move=move)
    with pytest.raises(InputError, match=r"^camera .* is no CameraMove: give one$"):
        Controls(camera=MOVE)


@pytest.mark.parametrize(
    ("mask", "message"),
    [*MASKS, ([[0.5], [0.5, 0.5]], "the drag's mask is no array"), ("mask.png", "the drag's mask is no array")],
)
def test_a_mask_that_does_not_fit_is_refused_before_anything_runs(svd, picture, monkeypatch, mask, message):
    monkeypatch.setattr(svd.vae, "encode", lambda *_, **__: pytest.fail("encoded"))
    for move in (MOVE, ObjectMove()):
        with pytest.raises(InputError, match=message):
            Shot.of(svd.config.variant, picture, GIVEN, Controls(drag=mask, drag_move=move))


# Recipes


@pytest.fixture
def recipe():
    controls = RecordedControls(drag=Source("mask.png", "0a" * 32), drag_move=MOVE, camera=CAMERA)
    return dataclasses.replace(a_recipe(), controls=controls)


def test_a_recipe_keeps_any_drag(recipe):
    for move in [*drawn_moves(20), *PLAIN_MOVES, ObjectMove(np.float32(0.1), 0, 1, torch.tensor(3.5), ease=True)]:
        kept = dataclasses.replace(recipe, controls=dataclasses.replace(recipe.controls, drag_move=move))
        assert Recipe.from_json(kept.to_json()) == kept
    assert recipe.controls.files == {"drag": Source("mask.png", "0a" * 32)}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("drag_move", {"scale": 0}, "drag scale 0.0 is no number from 0.25 to 4"),
        ("drag_move", {"right": 2}, "drag right 2.0 is no number from -1 to 1"),
        ("drag_move", {"down": "0.2"}, "recipe.controls.drag_move.down is '0.2': needed a modest float"),
        ("drag_move", {"turn": None}, "recipe.controls.drag_move.turn is 'None': needed"),
        ("drag_move", {"turn": True}, "recipe.controls.drag_move.turn is 'True': needed"),
        ("drag_move", {"right": 1e400}, "recipe.controls.drag_move.right|not JSON"),
        ("drag_move", {"ease": 1}, "recipe.controls.drag_move.ease is '1': needed a modest bool"),
        ("drag_move", {"pan_x": 0.1}, "recipe.controls.drag_move has an unknown field 'pan_x'"),
        ("drag_move", [0.2, 0], "recipe.controls.drag_move is .*: needed an object"),
        ("drag_move", 5, "recipe.controls.drag_move is '5': needed an object"),
        ("drag", "mask.png", "recipe.controls.drag is 'mask.png': needed an object"),
        ("drag", {"path": "mask.png"}, "recipe.controls.drag lacks sha256"),
        ("drag", {"path": "mask.png", "sha256": "AB" * 32}, "recipe.drag.sha256 is not 64 hexadecimal digits"),
        ("drag", [[0, 1]], "recipe.controls.drag is .*: needed an object"),
    ],
)
def test_a_damaged_drag_in_a_recipe_is_refused(recipe, name, value, message):
    data = json.loads(recipe.to_json())
    data["controls"][name] = value
    with pytest.raises(InputError, match=message) as refused:
        Recipe.from_json(json.dumps(data))
    assert "\n" not in str(refused.value)


def test_older_recipes_have_no_drag_and_fields_that_are_left_out_stand_still(recipe):
    data = json.loads(recipe.to_json())
    data["controls"]["drag_move"] = {"right": 0.5}
    assert Recipe.from_json(json.dumps(data)).controls.drag_move == ObjectMove(right=0.5)
    del data["controls"]["drag"], data["controls"]["drag_move"]
    older = Recipe.from_json(json.dumps(data)).controls
    assert older == RecordedControls(camera=CAMERA) and older.drag is None and older.drag_move is None
