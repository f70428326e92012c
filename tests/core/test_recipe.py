"""A recipe survives its JSON exactly, and nothing that is not one gets in."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from recipes import a_recipe

from svd_core import __version__
from svd_core.config import VARIANTS
from svd_core.errors import InputError
from svd_core.motion import CameraMove, ObjectMove
from svd_core.recipe import FRAME_FILES, Recipe, RecordedControls, Source, Versions, sha256_of
from svd_core.settings import Settings
from svd_core.strict_json import MAX_CHARACTERS, MAX_ITEMS


def changed(path, value):
    """The JSON of a recipe with one field, such as "settings.frames", set to a value."""
    data = json.loads(a_recipe().to_json())
    *parents, name = path.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    place[name] = value
    return json.dumps(data)


def without(name):
    data = json.loads(a_recipe().to_json())
    del data[name]
    return json.dumps(data)


def test_a_recipe_survives_its_json():
    text = a_recipe().to_json()
    assert text.isascii()
    assert "\n" not in text
    assert Recipe.from_json(text) == a_recipe()
    assert Recipe.from_json(text).to_json() == text


def test_every_setting_survives():
    every = Settings(
        frames=3,
        steps=2,
        width=128,
        height=64,
        fit="pad",
        background=(1, 2, 3),
        fps=9,
        motion_bucket=33,
        augmentation=0.1,
        min_guidance=1.25,
        max_guidance=1 / 3,
        guidance_curve="trapezoid",
        guidance_points=((0.0, 1.0), (0.5, 2.5)),
        guidance_interval=(0.1, 100.0),
        schedule="align_your_steps",
        sigmas=(80.0, 0.1, 0.0),
        sampler="heun",
        churn=0.7,
        seed=2**64 - 1,
        reuse=0.15,
    )
    assert all(getattr(every, field.name) != field.default for field in dataclasses.fields(Settings))
    recipe = dataclasses.replace(a_recipe(), settings=every)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_every_control_survives():
    source = Source("Fotos/Ende.png", "2c" * 32)
    every = RecordedControls(
        brush=source,
        end=source,
        continued=source,
        feather=0,
        loop=True,
        sequential=True,
        window=14,
        fused=True,
        overlap=3,
        colour_hold=0.5,
        unstick=1 / 3,
        motion_bucket=((0.0, 1.0), (0.1, 255.0)),
        augmentation=((0.5, 0.1),),
        camera=CameraMove(pan_x=-0.25, pan_y=0.1, zoom=1 / 3, roll=-7.5, ease=True),
        depth=source,
        drag=source,
        drag_move=ObjectMove(right=0.5, down=-1 / 3, scale=0.25, turn=-45, ease=True),
    )
    assert all(getattr(every, field.name) != field.default for field in dataclasses.fields(RecordedControls))
    recipe = dataclasses.replace(a_recipe(), controls=every)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_recipe_from_before_there_were_controls_has_none():
    assert Recipe.from_json(without("controls")) == a_recipe()
    assert a_recipe().controls == RecordedControls()
    assert Recipe.from_json(changed("controls", {"loop": True})).controls == RecordedControls(loop=True)


def test_a_window_of_the_variant_s_own_length_is_filled_in():
    own, chosen, none = (RecordedControls(window=window).for_variant(VARIANTS["svd"]) for window in (0, 5, None))
    assert (own.window, chosen.window, none.window) == (14, 5, None)


def test_numbers_of_numpy_and_torch_are_stored_as_pythons_own():
    given = Settings(
        frames=np.int64(3),
        seed=torch.tensor(5),
        fps=np.int32(7),
        augmentation=torch.tensor(0.5),
        max_guidance=np.float32(2),
        sigmas=torch.tensor([4.0, 2.0, 0.0]),
        guidance_points=np.array([[0.0, 1.0], [1.0, 2.0]]),
        background=[np.uint8(255)] * 3,
    ).for_variant(VARIANTS["svd"])
    recipe = dataclasses.replace(a_recipe(), settings=given)
    assert Recipe.from_json(recipe.to_json()).settings == given
    assert (given.frames, given.seed, given.sigmas) == (3, 5, (4.0, 2.0, 0.0))
    assert type(given.seed) is int and type(given.augmentation) is float


def test_versions_are_those_at_hand():
    here = Versions.here()
    assert here.svd_core == __version__
    assert "absent" not in dataclasses.asdict(here).values()
    assert a_recipe().versions == here
    assert here.differences(here) == ""
    old = dataclasses.replace(here, torch="1.0", numpy="1.1")
    assert old.differences(here) == f"torch 1.0 -> {here.torch}, numpy 1.1 -> {here.numpy}"


def test_whole_numbers_may_stand_for_floats():
    assert Recipe.from_json(changed("settings.min_guidance", 1)).settings.min_guidance == 1.0
    assert type(Recipe.from_json(changed("settings.min_guidance", 1)).settings.min_guidance) is float


def test_a_setting_that_a_recipe_does_not_know_has_its_default():
    data = json.loads(a_recipe().to_json())
    del data["settings"]["churn"]
    assert Recipe.from_json(json.dumps(data)) == a_recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed("surprise", 1), "recipe has an unknown field 'surprise'"),
        (changed("settings.__class__", "os"), "recipe.settings has an unknown field '__class__'"),
        (changed("settings", [1]), r"recipe\.settings is '\[1\]': needed an object"),
        (changed("settings", None), r"recipe\.settings is 'None': needed an object"),
        (changed("settings.frames", "4"), r"recipe\.settings\.frames is '4': needed a modest int"),
        (changed("settings.frames", 4.0), r"recipe\.settings\.frames is '4\.0': needed a modest int"),
        (changed("settings.frames", True), r"recipe\.settings\.frames is 'True': needed a modest int"),
        (changed("settings.frames", 0), "frames 0 is outside"),
        (changed("settings.frames", 100_000), "frames 100000 is outside"),
        (changed("settings.steps", -1), "steps -1 is outside"),
        (changed("settings.width", 10**9), "width 1000000000 is outside"),
        (changed("settings.seed", 10**400), r"recipe\.settings\.seed is '10000"),
        (changed("settings.churn", 10**400), r"recipe\.settings\.churn is '10000"),
        (changed("settings.churn", float("nan")), r"recipe\.settings\.churn is 'nan': needed a modest float"),
        (changed("settings.churn", float("inf")), r"recipe\.settings\.churn is 'inf': needed a modest float"),
        (changed("settings.fit", "zoom"), r"recipe\.settings\.fit is 'zoom': needed one of crop, pad, stretch"),
        (changed("settings.background", [1, 2]), r"background is '\[1, 2\]': needed a list of 3"),
        (changed("settings.background", "#fff"), "background is '#fff': needed a list of 3"),
        (
            changed("settings.guidance_points", [[0, 1, 2]]),
            r"guidance_points\[0\] is '\[0, 1, 2\]': needed a list of 2",
        ),
        (changed("sigmas", [0.0] * (MAX_ITEMS + 1)), f"sigmas is .*: needed a list of at most {MAX_ITEMS}"),
        (changed("sigmas", 700), "sigmas is '700': needed a list"),
        (changed("playback_fps", 0), "playback fps 0 is outside 1 to"),
        (changed("playback_fps", 10**6), "playback fps 1000000 is outside 1 to"),
        (changed("dtype", "int4"), "dtype is 'int4': needed one of float32, bfloat16, float16"),
        (changed("device", "x" * 10_000), "device is 'xxxx.*': needed a modest str"),
        (changed("threads", 0), "threads 0 is outside 1 to"),
        (changed("threads", 10**6), "threads 1000000 is outside 1 to"),
        (without("threads"), "recipe lacks threads"),
        (changed("image.sha256", "cafe"), r"recipe\.image\.sha256 is not 64 hexadecimal digits"),
        (changed("checkpoint", {"path": "x"}), r"recipe\.checkpoint lacks sha256"),
        (changed("controls", None), "recipe.controls is 'None': needed an object"),
        (changed("controls.surprise", 1), "recipe.controls has an unknown field 'surprise'"),
        (changed("controls.loop", 1), "recipe.controls.loop is '1': needed a modest bool"),
        (changed("controls.window", "3"), "recipe.controls.window is '3': needed a modest int"),
        (changed("controls.window", 10**400), "recipe.controls.window is '10000"),
        (changed("controls.unstick", float("nan")), "recipe.controls.unstick is 'nan': needed a modest float"),
        (changed("controls.motion_bucket", [[0, 1, 2]]), r"motion_bucket\[0\] is '\[0, 1, 2\]': needed a list of 2"),
        (changed("controls.augmentation", [[0, 1]] * (MAX_ITEMS + 1)), f"needed a list of at most {MAX_ITEMS}"),
        (changed("controls.end", "end.png"), "recipe.controls.end is 'end.png': needed an object"),
        (changed("controls.brush", {"path": "x"}), "recipe.controls.brush lacks sha256"),
        (
            changed("controls.continued", {"path": "x", "sha256": "AB" * 32}),
            "recipe.continued.sha256 is not 64 hexadecimal digits",
        ),
        (changed("format", 2), "format is '2': needed one of 1"),
        (changed("format", True), "format is 'True': needed one of 1"),
        ("{}", "recipe lacks checkpoint"),
        ("[]", r"recipe is '\[\]': needed an object"),
        ("", "recipe is not JSON"),
        ("{" * 20_000, "recipe is not JSON"),
        ("[" * 200_000, "recipe is not JSON"),
        ("9" * 10_000, "recipe is not JSON|recipe is '999"),
        ('{"format": 1, "format": 1}', "a field twice among format"),
        (" " * (MAX_CHARACTERS + 1), f"longer than {MAX_CHARACTERS} characters"),
        ("__import__('os').system('true')", "recipe is not JSON"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as refused:
        Recipe.from_json(text)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_source_is_known_by_the_hash_of_its_bytes(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"weights" * 10**6)
    expected = hashlib.sha256(b"weights" * 10**6).hexdigest()
    assert Source.of(tmp_path / "a.bin") == Source(str(tmp_path / "a.bin"), expected)


def folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def test_a_folder_is_known_by_the_names_and_bytes_of_its_weights_and_configs(tmp_path):
    files = {"unet/a.safetensors": b"12", "unet/config.json": b"{}", "model_index.json": b"[]"}
    plain = sha256_of(folder(tmp_path / "plain", files))
    assert sha256_of(folder(tmp_path / "reversed", dict(reversed(files.items())))) == plain
    others = {**files, "README.md": b"hi", ".cache/x.json": b"when it came"}
    assert sha256_of(folder(tmp_path / "others", others)) == plain
    for name, change in (
        ("renamed", {"unet/b.safetensors": b"12", "unet/config.json": b"{}", "model_index.json": b"[]"}),
        ("changed", {**files, "unet/a.safetensors": b"21"}),
        ("moved", {**files, "unet/a.safetensors": b"1", "unet/config.json": b"2{}"}),
        ("more", {**files, "vae/a.safetensors": b""}),
        ("swallowed", {"model_index.json": b"[]unet/a.safetensors\0\x0012unet/config.json\0\0{}"}),
    ):
        assert sha256_of(folder(tmp_path / name, change)) != plain


def test_a_folder_of_frames_is_known_by_its_pngs(tmp_path):
    files = {"0.png": b"12", "1.PNG": b"34"}
    plain = sha256_of(folder(tmp_path / "plain", files), FRAME_FILES)
    others = {**files, "a.json": b"{}", "w.safetensors": b"", "._0.png": b"as macOS leaves them"}
    assert sha256_of(folder(tmp_path / "others", others), FRAME_FILES) == plain
    for name, change in (("changed", {"1.PNG": b"43"}), ("more", {"2.png": b""})):
        assert sha256_of(folder(tmp_path / name, {**files, **change}), FRAME_FILES) != plain


def test_a_source_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read .*: check the path"):
        Source.of(tmp_path / "none.safetensors")
