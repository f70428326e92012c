"""Sweep: every combination once, in its place, checked before the first is rendered."""

import json

import numpy as np
import pytest
from moving import pan

from svd_core.errors import InputError
from svd_core.measure import SWEPT, Axis, sweep
from svd_core.measure.grid import tile_of
from svd_core.measure.sweep import check_choice
from svd_core.settings import Settings

BUCKETS, SEEDS = Axis.parse("motion_bucket", "40, 120 200"), Axis.parse("seed", "1 2")


def render(choice):
    """Moves as the bucket says; the seed shifts the light."""
    return np.clip(pan(choice.get("motion_bucket", 0) / 100) + 0.05 * choice.get("seed", 0), 0, 1)


def test_words_become_values_of_the_settings_kind():
    assert BUCKETS.values == (40, 120, 200)
    assert Axis.parse("augmentation", "0,0.02, .5").values == (0.0, 0.02, 0.5)
    assert Axis.parse("schedule", "edm align_your_steps").values == ("edm", "align_your_steps")


def test_everything_that_can_be_swept_is_a_setting():
    assert set(SWEPT) <= set(Settings.__dataclass_fields__)


def test_x_runs_along_a_row_and_y_down():
    seen = []

    def recorded(choice):
        seen.append(dict(choice))
        return render(choice)

    swept = sweep(recorded, BUCKETS, SEEDS)
    wanted = [{"seed": seed, "motion_bucket": bucket} for seed in (1, 2) for bucket in (40, 120, 200)]
    assert seen == wanted == [dict(choice) for choice, _ in swept.cells]
    motions = np.array([measured.motion.mean() for _, measured in swept.cells]).reshape(2, 3)
    assert (np.diff(motions, axis=1) > 0.3).all()


def test_the_grid_shows_every_clip_in_its_place():
    swept = sweep(render, BUCKETS, SEEDS)
    tiles = [tile_of(render(choice)).astype(np.float32) / 255 for choice, _ in swept.cells]
    height, width = tiles[0].shape[1:3]
    places = [place(swept.frames, tile) for tile in tiles]
    rows, columns = np.array(places).reshape(2, 3, 2).transpose(2, 0, 1)
    assert (np.diff(columns, axis=1) >= width).all()
    assert (np.diff(rows, axis=0) >= height).all()
    assert (np.ptp(rows, axis=1) == 0).all()
    assert np.array_equal(swept.image, swept.frames[-1])
    assert swept.frames.shape[0] == 4
    assert not any(side % 2 for side in swept.frames.shape[1:3])


def place(sheet, tile):
    """Top and left of a tile in the sheet."""
    height, width = tile.shape[1:3]
    for y, x in np.argwhere((sheet[0, : 1 - height, : 1 - width] == tile[0, 0, 0]).all(axis=-1)):
        if np.array_equal(sheet[:, y : y + height, x : x + width], tile):
            return y, x
    raise AssertionError("a clip is missing from the grid")


def test_one_setting_makes_one_row():
    swept = sweep(render, BUCKETS)
    assert [dict(choice) for choice, _ in swept.cells] == [{"motion_bucket": bucket} for bucket in (40, 120, 200)]
    assert swept.image.shape[1] > 3 * 208


def test_report_and_json_name_every_cell():
    swept = sweep(render, BUCKETS, SEEDS)
    lines = swept.report().splitlines()[1:]
    assert len(lines) == 6
    assert lines[1].startswith("seed 1, motion_bucket 120 ")
    told = json.loads(swept.to_json())
    assert told["cells"][4]["settings"] == {"seed": 2, "motion_bucket": 120}
    assert told["cells"][4]["numbers"]["pan x"] == pytest.approx(1.2, abs=0.05)


def test_a_cell_that_stops_ends_the_sweep():
    rendered = []

    def stopping(choice):
        rendered.append(choice)
        if len(rendered) == 2:
            raise KeyboardInterrupt
        return render(choice)

    with pytest.raises(KeyboardInterrupt):
        sweep(stopping, BUCKETS, SEEDS)
    assert len(rendered) == 2
    told = []
    sweep(render, SEEDS, callback=lambda choice, measured: told.append((dict(choice), len(measured.motion))))
    assert told == [({"seed": 1}, 3), ({"seed": 2}, 3)]


@pytest.mark.parametrize(
    ("setting", "text", "message"),
    [
        ("tempo", "1", "setting 'tempo' cannot be swept: choose one of motion_bucket, fps"),
        ("fps", "", "0 values of fps are outside 1 to 16: list some with commas"),
        ("fps", "7 8 7", "fps 7 is listed twice"),
        ("fps", "7, 8.5", "'8.5' in the values of fps is not a whole number"),
        ("augmentation", "much", "'much' in the values of augmentation is not a number"),
    ],
)
def test_a_bad_axis_is_refused(setting, text, message):
    with pytest.raises(InputError, match=message):
        Axis.parse(setting, text)


def test_two_axes_of_one_setting_and_too_many_cells_are_refused():
    with pytest.raises(InputError, match="seed is on both axes"):
        sweep(pytest.fail, SEEDS, SEEDS)
    many = Axis("seed", tuple(range(13)))
    with pytest.raises(InputError, match="13 by 5 values make 65 clips, at most 64"):
        sweep(pytest.fail, many, Axis("fps", (5, 6, 7, 8, 9)))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"motion_bucket": 2000}, "motion bucket 2000 is outside 0 to 1023"),
        ({"steps": 0}, "steps 0 is outside 1"),
        ({"augmentation": -1.0}, "augmentation -1.0 is outside"),
        ({"schedule": "fast"}, "schedule 'fast' is not known"),
        ({"sampler": "fast"}, "sampler 'fast' is not known"),
    ],
)
def test_a_value_out_of_range_is_named_before_the_first_clip(choice, message):
    [(setting, value)] = choice.items()
    good = {"motion_bucket": 100, "steps": 2, "augmentation": 0.0, "schedule": "edm", "sampler": "euler"}[setting]
    with pytest.raises(InputError, match=message):
        sweep(pytest.fail, Axis(setting, (good, value)))
    check_choice({setting: good})
