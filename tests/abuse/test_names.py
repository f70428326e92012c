"""Names that lead elsewhere: up and out of a folder, through links, to pipes and devices. None is written through, and
none is read but what the user named."""

import json
import os
import struct
import zlib
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import a_recipe
from safetensors.torch import save_file

from svd_core.checkpoint import inspect_checkpoint, open_source
from svd_core.cli import UNUSABLE, main
from svd_core.cli.batch import _tasks
from svd_core.demo import DEMO_MODEL
from svd_core.errors import CheckpointError, InputError, OutputError
from svd_core.media import load_image, read_recipe, write_clip
from svd_core.recipe import Recipe, Source
from tools.samples import write_checkpoint
from training.checkpoint import save_tensors
from training.data import open_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")

FRAMES = np.linspace(0, 1, 3 * 64 * 64 * 3, dtype=np.float32).reshape(3, 64, 64, 3)
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile '{}'\n"


@pytest.fixture
def outside(tmp_path):
    """A folder beside the one in use, with a file that nobody may change."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "kept.gif").write_bytes(b"keep me")
    return folder


@pytest.fixture
def output(tmp_path):
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


def is_kept(outside):
    return {path.name: path.read_bytes() for path in outside.iterdir()} == {"kept.gif": b"keep me"}


# Outputs


@pytest.mark.parametrize("target", ["kept.gif", "new.gif"])
def test_an_output_that_is_a_link_is_replaced_and_not_followed(outside, output, target):
    (output / "clip.gif").symlink_to(outside / target)
    write_clip(FRAMES, output / "clip.gif", 7)
    assert is_kept(outside)
    assert not (output / "clip.gif").is_symlink() and (output / "clip.gif").read_bytes().startswith(b"GIF")


def test_a_state_that_is_a_link_is_replaced_and_not_followed(outside, output):
    (output / "a.safetensors").symlink_to(outside / "kept.gif")
    save_tensors(output / "a.safetensors", {"a": torch.zeros(1)}, {})
    assert is_kept(outside) and not (output / "a.safetensors").is_symlink()


def test_frames_are_not_written_through_a_link(outside, output):
    (output / "frames").symlink_to(outside)
    with pytest.raises(OutputError, match="is not empty"):
        write_clip(FRAMES, f"{output}/frames/", 7)
    assert is_kept(outside)


@pytest.mark.parametrize("name", ["../outside/kept.gif", "link/kept.gif", "sub/../../outside/kept.gif"])
def test_a_picture_is_not_overwritten_by_another_name_of_it(tmp_path, outside, output, capsys, name):
    Image.new("RGB", (64, 64)).save(outside / "kept.gif")
    (output / "link").symlink_to(outside)
    (output / "sub").mkdir()
    before = (outside / "kept.gif").read_bytes()
    places = ["--checkpoint", f"{tmp_path}/absent", "--output", f"{output}/{name}"]
    assert main(["animate", f"{outside}/kept.gif", *places]) == UNUSABLE
    assert "would overwrite" in capsys.readouterr().err
    assert (outside / "kept.gif").read_bytes() == before


def test_a_scratch_file_is_not_made_where_anybody_could_lay_a_link(output, monkeypatch):
    """Its folder has a name that cannot be known before, and only its owner may enter."""
    made = []
    real = os.replace

    def watched(source, target):
        made.append((Path(source).parent.name, Path(source).parent.stat().st_mode & 0o777))
        real(source, target)

    monkeypatch.setattr(os, "replace", watched)
    for _ in range(2):
        write_clip(FRAMES, output / "clip.gif", 7)
    assert made[0][0] != made[1][0] and {mode for _, mode in made} == {0o700}


# Recipes


@pytest.mark.parametrize("place", ["image", "checkpoint"])
@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../../../etc/passwd", "/dev/zero", "/proc/self/environ", "~/.netrc"]
)
def test_a_recipe_that_names_other_files_learns_nothing_of_them(tmp_path, capsys, place, path):
    Image.new("RGB", (64, 64)).save(tmp_path / "still.png")
    text = replace(a_recipe(), **{place: Source(path, "0a" * 32)}).to_json()
    (tmp_path / "recipe.json").write_text(text)
    other = ["--checkpoint", str(DEMO_MODEL)] if place == "image" else [f"{tmp_path}/still.png", "--ignore-hash"]
    argv = ["animate", *other, "--recipe", f"{tmp_path}/recipe.json", "--output", f"{tmp_path}/clip.gif"]
    assert path in text and main(argv) == UNUSABLE
    line = capsys.readouterr().err.splitlines()[-1]
    assert path in line and "root:" not in line and "HOME=" not in line
    assert sorted(each.name for each in tmp_path.iterdir()) == ["recipe.json", "still.png"]


@pytest.mark.parametrize("text", ["\\u0000", "still.png\\u0000.gif", "\\ud800"])
def test_a_recipe_with_a_name_that_no_file_has_is_refused(text):
    whole = a_recipe().to_json()
    with pytest.raises(InputError, match=r"recipe\.checkpoint\.path is .*: needed a modest str"):
        Recipe.from_json(whole.replace(a_recipe().checkpoint.path, text))


def test_names_in_a_recipe_cannot_steer_the_terminal(tmp_path, capsys):
    text = a_recipe().to_json().replace("cat.png", "\\u001b[2J\\u001b]0;owned\\u0007\\ncat.png")
    (tmp_path / "recipe.json").write_text(text.replace('"torch":"', '"torch":"\\u001b[31m'))
    assert main(["animate", "--recipe", f"{tmp_path}/recipe.json", "--output", f"{tmp_path}/clip.gif"]) == UNUSABLE
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2, "a note on versions and the error"
    assert all(line.isprintable() for line in said.splitlines()) and r"\x1b[2J" in said


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm"])
@pytest.mark.parametrize("content", [PLAYLIST, CONCAT])
def test_a_movie_that_is_a_playlist_is_not_followed(tmp_path, outside, name, content):
    """FFmpeg would open what it names, files and addresses alike, were it left to guess."""
    lure = outside / "lure.mp4"
    os.mkfifo(lure)  # to open it would never return
    (tmp_path / name).write_bytes(content.replace(b"{}", str(lure).encode()))
    with pytest.raises(InputError, match="is not a readable"):
        read_recipe(tmp_path / name)
    with pytest.raises(InputError, match=f"0 of 1 clips in .* can be used, 1 needed: .*{name} cannot be read"):
        open_folder(alone(tmp_path / name), frames=1)


def alone(path):
    """The file in a folder of its own."""
    folder = path.parent / "clips"
    folder.mkdir()
    path.rename(folder / path.name)
    return folder


# Checkpoints


def diffusers_folder(path):
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("image_encoder", "model"),
    ):
        (path / part).mkdir(parents=True)
        save_file({"a": torch.zeros(1)}, path / part / f"{stem}.safetensors")
    return path


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "image_encoder/model.safetensors"])
def test_a_pipe_in_the_place_of_weights_is_not_opened(tmp_path, part):
    folder = diffusers_folder(tmp_path / "model")
    (folder / part).unlink()
    os.mkfifo(folder / part)
    with pytest.raises(CheckpointError, match=r"holds no complete \.safetensors weights"):
        open_source(folder)


@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "vae/diffusion_pytorch_model.safetensors.index.json"]
)
def test_a_pipe_in_the_place_of_a_table_is_not_opened(tmp_path, name):
    folder = diffusers_folder(tmp_path / "model")
    os.mkfifo(folder / name)
    if name == "model_index.json":
        (folder / "vae").rename(folder / "other")
        with pytest.raises(CheckpointError, match=r"is not a diffusers folder .* vae missing"):
            open_source(folder)
    else:
        assert len(open_source(folder)) == 3


def test_links_in_a_models_folder_are_followed_as_download_caches_need(tmp_path):
    folder = diffusers_folder(tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "blob")
    weights.symlink_to(tmp_path / "blob")
    assert len(open_source(folder)) == 3


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to(path), lambda path: path.symlink_to("/dev/zero")]
)
def test_what_is_no_file_is_neither_picture_nor_checkpoint_nor_recipe(tmp_path, make):
    for name, read, error in (
        ("a.png", load_image, InputError),
        ("a.safetensors", open_source, CheckpointError),
        ("a.json", read_recipe, InputError),
    ):
        make(tmp_path / name)
        there = (tmp_path / name).exists()  # a link to itself leads to nothing
        with pytest.raises(error, match="is not a regular file" if there else "does not exist"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("9" * 5000, "names a tensor with 5"),
        ("model.diffusion_model.input_blocks." + "9" * 900 + ".0.op.weight", "not a model we know"),
        ("vae/" + "x" * 996, "not a model we know"),
    ],
    ids=["long", "number", "unknown"],
)
def test_a_tensor_with_an_endless_name_is_refused(tmp_path, name, message):
    header = f'{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}'.encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CheckpointError, match=message) as refused:
        inspect_checkpoint(path)
    assert len(str(refused.value)) < 1000


# Batches


def listed(tmp_path, *lines):
    (tmp_path / "list.txt").write_bytes(b"\n".join(lines))
    return Namespace(pictures=str(tmp_path / "list.txt"), output=str(tmp_path / "output"))


def test_clips_of_a_batch_lie_in_its_folder_wherever_the_pictures_are(tmp_path):
    lines = (b"../../etc/passwd.png", b"/abs/olute.png", b"a/../../b.png", b"..", b"c\\..\\d.png")
    tasks = _tasks(listed(tmp_path, *lines))
    assert len(tasks) == len(lines)
    assert {task.output.parent for task in tasks} == {tmp_path / "output"}
    assert all(os.sep not in task.output.name and task.output.name not in ("", "..") for task in tasks)


@pytest.mark.parametrize(("line", "message"), [(b"\xff\xfe.png", "cannot be read"), (b"a\0b.png", "holds zero bytes")])
def test_a_list_that_is_no_text_is_refused(tmp_path, line, message):
    with pytest.raises(InputError, match=f"list.txt {message}.*: give a list in UTF-8, one picture a line"):
        _tasks(listed(tmp_path, line))


# Datasets


def test_a_dataset_of_pipes_loops_and_devices_is_skipped(tmp_path):
    write_clip(FRAMES, tmp_path / "good.gif", 7)
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.webm").symlink_to(tmp_path / "loop.webm")
    (tmp_path / "device.gif").symlink_to("/dev/zero")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "pngs").mkdir()
    os.mkfifo(tmp_path / "pngs" / "frame.png")
    clips = open_folder(tmp_path, frames=2)
    assert [file.path.name for file in clips.files] == ["good.gif"] and clips.skipped == ()


def test_a_picture_too_large_to_unpack_is_skipped_by_name(tmp_path):
    """A bomb of some bytes that says it has 900 million pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    (tmp_path / "bomb").mkdir()
    (tmp_path / "bomb" / "frame.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + bytes(4))
    write_clip(FRAMES, tmp_path / "good.gif", 7)
    clips = open_folder(tmp_path, frames=1)
    assert [(skipped.path.name, "cannot be read" in skipped.reason) for skipped in clips.skipped] == [("bomb", True)]


def test_a_model_of_thousands_of_layers_is_refused_before_it_is_built(tmp_path):
    path = write_checkpoint(tmp_path / "whole.safetensors")
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        table, body = json.loads(file.read(length)), file.read()
    stem = "model.diffusion_model.middle_block.1.transformer_blocks"
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [len(body), len(body)]}
    header = json.dumps(table | {f"{stem}.{number}.x": nothing for number in range(3000)}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    with pytest.raises(CheckpointError, match=r"numbers 300[01] layers under .*: at most 256 can be meant"):
        inspect_checkpoint(path)
