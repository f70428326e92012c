"""Seed Scout: it ranks by what is measured, costs what it says, and stops when told to; on made-up clips and on the
demo model's whole pipeline at a tiny size."""

import json

import numpy as np
import pytest
from moving import disc, pan
from synthetic import write_checkpoint

import svd_core
from svd_core.errors import InputError
from svd_core.measure import WISHES, Trial, Wish, scout, seeds_from
from svd_core.measure.grid import Cell, Labels, draw_grid, tile_of
from svd_core.measure.scout import MAX_TRIES

STILL = pan(0.0)[0]

CLIPS = {7: pan(0.2), 8: disc(3.0), 9: pan(1.5), 10: pan(1.5) * np.linspace(1, 0.3, 4)[:, None, None, None]}
"""Seeds that hardly move, move the subject, move the camera, and move it while the light goes out."""


def scouted(wish="most motion", **given):
    return scout(CLIPS.__getitem__, tuple(CLIPS), STILL, WISHES[wish], **given)


@pytest.mark.parametrize(
    ("wish", "best", "worst"),
    [("most motion", 9, 7), ("subject motion", 8, 10), ("camera motion", 9, 8), ("calm", 7, 10)],
)
def test_the_best_seed_is_the_one_that_was_wished_for(wish, best, worst):
    found = scouted(wish)
    order = [trial.seed for trial in found.trials]
    assert found.chosen == order[0] == best
    assert order[-1] == worst
    scores = [WISHES[wish].score(trial) for trial in found.trials]
    assert scores == sorted(scores, reverse=True)


def test_what_loses_the_picture_ranks_below_the_same_motion_that_keeps_it():
    order = [trial.seed for trial in scouted("most motion").trials]
    assert order.index(9) < order.index(10)
    order = [trial.seed for trial in scouted("closest to the picture").trials]
    assert order.index(9) < order.index(10) == 3


def test_equal_scores_keep_the_order_of_the_seeds():
    found = scout(lambda seed: pan(1.0), (5, 3, 4), STILL, WISHES["most motion"])
    assert [trial.seed for trial in found.trials] == [5, 3, 4]


def test_quality_is_within_its_bounds_and_falls_with_blur_and_unlikeness():
    def quality(sharpness, likeness):
        return Trial(0, 1.0, 1.0, 1.0, sharpness, likeness).quality

    assert quality(1.0, 60.0) == pytest.approx(0.999)
    assert quality(2.0, 60.0) == quality(1.0, 60.0), "noise is no quality"
    assert quality(0.5, 20.0) == pytest.approx(0.45)
    assert quality(1.0, 0.0) == 0
    assert quality(0.0, 60.0) == 0


def test_report_json_and_sheet_show_every_seed_in_order():
    found = scouted()
    lines = found.report().splitlines()
    assert [line.split()[-1] for line in lines[2:-1]] == [str(trial.seed) for trial in found.trials]
    told = json.loads(found.to_json())
    assert told["chosen"] == found.chosen
    assert [each["seed"] for each in told["trials"]] == [trial.seed for trial in found.trials]
    assert told["trials"][0]["score"] == found.wish.score(found.trials[0])
    tiles = [tile_of(CLIPS[trial.seed]).astype(np.float32) / 255 for trial in found.trials]
    for tile in tiles:
        assert shows(found.sheet, tile), "a seed is missing from the sheet"
    assert found.sheet.dtype == np.float32
    assert not any(side % 2 for side in found.sheet.shape[1:3]), "movies need even sides"


def shows(sheet, tile):
    """Whether a tile lies somewhere on the sheet, playing."""
    height, width = tile.shape[1:3]
    places = np.argwhere((sheet[0, : 1 - height, : 1 - width] == tile[0, 0, 0]).all(axis=-1))
    return any(np.array_equal(sheet[:, y : y + height, x : x + width], tile) for y, x in places)


def test_each_seed_is_rendered_once_and_told_once_in_order():
    rendered, told = [], []

    def render(seed):
        rendered.append(seed)
        return CLIPS[seed]

    scout(render, (9, 7), STILL, WISHES["calm"], callback=lambda trial: told.append(trial.seed))
    assert rendered == told == [9, 7]


@pytest.mark.parametrize("where", ["render", "told"])
def test_it_stops_where_it_is_told_to(where):
    class Cancelled(Exception):
        pass

    rendered = []

    def render(seed):
        rendered.append(seed)
        if where == "render" and seed == 8:
            raise Cancelled
        return CLIPS[seed]

    def told(trial):
        if where == "told" and trial.seed == 8:
            raise Cancelled

    with pytest.raises(Cancelled):
        scout(render, (7, 8, 9), STILL, WISHES["calm"], callback=told)
    assert rendered == [7, 8]


def test_seeds_follow_one_another_and_come_round():
    assert seeds_from(5, 3) == (5, 6, 7)
    assert seeds_from(2**64 - 1, 3) == (2**64 - 1, 0, 1)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((), f"0 seeds to try are outside 1 to {MAX_TRIES}: 8 are usual"),
        (tuple(range(MAX_TRIES + 1)), "65 seeds to try"),
        ((1, 2, 1), "seed 1 is listed twice"),
    ],
)
def test_bad_seeds_are_refused_before_anything_is_rendered(seeds, message):
    with pytest.raises(InputError, match=message):
        scout(pytest.fail, seeds, STILL, WISHES["calm"])


def test_a_still_of_another_size_is_refused():
    with pytest.raises(InputError, match="give the still at the size of the clip"):
        scout(CLIPS.__getitem__, (7,), STILL[:32], WISHES["calm"])


# On a whole pipeline


@pytest.fixture(scope="module")
def svd(tmp_path_factory):
    return svd_core.load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors"))


def test_it_costs_the_steps_of_its_cheap_clips_and_nothing_else(svd):
    calls = []
    hook = svd.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        found = scout(
            lambda seed: svd.animate(STILL, width=128, height=64, seed=seed, steps=3, schedule="align_your_steps"),
            seeds_from(1, 4),
            STILL,
            WISHES["most motion"],
        )
    finally:
        hook.remove()
    assert len(calls) == 4 * 3, "one pass a step, for both guidance branches share it at this size"
    assert found.sheet.shape[0] == 3
    assert len({trial.motion for trial in found.trials}) == 4


# The sheet's own rules


def test_long_words_are_made_to_fit_and_nothing_crosses_into_the_next_cell():
    tile = np.full((2, 162, 288, 3), 128, np.uint8)
    words = "seed 18446744073709551615 and a story that is far too long for the place that there is for it " * 3
    plain = draw_grid([[Cell(tile, ("", "")), Cell(tile, ("", ""))]], Labels(""))
    full = draw_grid([[Cell(tile, (words, words)), Cell(tile, ("", ""))]], Labels(words))
    changed = np.argwhere((plain != full).any(axis=(0, 3)))
    caption = changed[changed[:, 0] > 34 + 162]
    assert len(caption)
    assert caption[:, 1].max() < 10 + 288
    assert changed[:, 0].max() < full.shape[1] - 1
    assert changed[:, 1].max() < full.shape[2] - 1


def test_tiles_of_several_shapes_are_refused():
    one, other = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((3, 8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="all of one size and length"):
        draw_grid([[Cell(one, ()), Cell(other, ())]], Labels(""))


@pytest.mark.parametrize("size", [(64, 128), (576, 1024), (1024, 576), (40, 300)])
def test_tiles_keep_the_clips_shape_and_are_wide_enough_to_write_below(size):
    tile = tile_of(np.zeros((1, *size, 3), np.float32))
    height, width = tile.shape[1:3]
    assert width >= 208
    assert width / height == pytest.approx(size[1] / size[0], rel=0.03)


def test_a_wish_may_be_your_own():
    wish = Wish("least likeness", lambda trial: -trial.likeness)
    found = scout(CLIPS.__getitem__, (9, 10), STILL, wish)
    assert found.chosen == 10
    assert "least likeness" in found.report()
