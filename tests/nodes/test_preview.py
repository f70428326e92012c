"""The preview that ComfyUI's server sends while sampling moves, and costs next to nothing."""

import asyncio
import json
import struct
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

FRAMES, STEPS = 4, 5


@pytest.fixture
def preview(part):
    return part("nodes.bridge.preview")


@pytest.fixture
def clock(preview, monkeypatch) -> SimpleNamespace:
    """Time as the preview sees it, which passes only when told to."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(preview, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


@pytest.fixture
def method(monkeypatch):
    """Choose what `--preview-method` says."""
    from comfy.cli_args import LatentPreviewMethod, args

    def choose(name: str) -> None:
        monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.from_string(name))

    choose("latent2rgb")
    return choose


@pytest.fixture
def sent(pack, monkeypatch) -> list:
    """What reaches ComfyUI's progress hook: (value, total, preview)."""
    import comfy.utils

    calls = []
    hook = lambda value, total, preview, node_id=None: calls.append((value, total, preview))  # noqa: E731
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return calls


@pytest.fixture
def callback(preview, loaded, method, sent):
    return lambda num_frames=FRAMES: preview.ProgressCallback(loaded.model, STEPS, num_frames)


def moving_light(clips: int = 1) -> torch.Tensor:
    """(clips * FRAMES, 4, 8, 16): a light that moves to the right, frame by frame, each clip in a row of its own."""
    x0 = torch.full((clips * FRAMES, 4, 8, 16), -2.0)
    for frame in range(len(x0)):
        x0[frame, :, :, 4 * (frame % FRAMES) : 4 * (frame % FRAMES) + 4] = 2.0
    return x0


def served(image, method: str) -> list[bytes]:
    """The bytes that ComfyUI's server puts on the wire for this preview."""
    from server import PromptServer

    wire = []

    async def send_bytes(event, data, sid=None) -> None:
        wire.append(bytes(data))

    stand_in = SimpleNamespace(send_bytes=send_bytes)
    asyncio.run(getattr(PromptServer, method)(stand_in, image))
    return wire


def frames_of(data: bytes) -> list[np.ndarray]:
    with Image.open(BytesIO(data)) as picture:
        assert picture.format == "PNG"
        frames = []
        for index in range(picture.n_frames):
            picture.seek(index)
            frames.append(np.asarray(picture.convert("RGB")).astype(int))
        return frames


def brightest(frame: np.ndarray, parts: int = FRAMES) -> int:
    """Which of so many columns is brightest."""
    columns = frame.sum((0, 2)).reshape(parts, -1).sum(1)
    return int(columns.argmax())


def test_the_server_sends_every_frame_in_order(callback, sent, clock):
    callback()(0, moving_light(), None, STEPS)
    [(value, total, image)] = sent
    assert (value, total) == (1, STEPS)
    [wire] = served(image, "send_image")
    assert struct.unpack(">I", wire[:4]) == (2,)  # PNG
    frames = frames_of(wire[4:])
    assert [brightest(frame) for frame in frames] == [0, 1, 2, 3]


def test_the_newer_message_with_metadata_carries_the_same(callback, sent, clock):
    callback()(0, moving_light(), None, STEPS)
    [wire] = served(sent[0][2], "send_image_with_metadata")
    [length] = struct.unpack(">I", wire[:4])
    assert json.loads(wire[4 : 4 + length])["image_type"] == "image/png"
    assert len(frames_of(wire[4 + length :])) == FRAMES


def test_frames_fill_the_preview_size_and_loop_at_a_watchable_speed(callback, sent, clock):
    import latent_preview

    callback()(0, moving_light(), None, STEPS)
    with Image.open(BytesIO(served(sent[0][2], "send_image")[0][4:])) as picture:
        assert max(picture.size) == latent_preview.MAX_PREVIEW_RESOLUTION
        assert picture.size[0] == 2 * picture.size[1]
        assert picture.info["loop"] == 0
        assert 60 <= picture.info["duration"] <= 200


def test_clips_of_a_batch_play_side_by_side(callback, sent, clock):
    callback()(0, moving_light(2), None, STEPS)
    frames = frames_of(served(sent[0][2], "send_image")[0][4:])
    assert len(frames) == FRAMES
    for index, frame in enumerate(frames):
        left, right = np.split(frame, 2, axis=1)
        assert brightest(left) == brightest(right) == index


def test_the_picture_is_one_for_whoever_treats_it_as_one(callback, sent, clock):
    callback()(0, moving_light(), None, STEPS)
    picture = sent[0][2][1]
    assert isinstance(picture, Image.Image)
    assert brightest(np.asarray(picture.convert("RGB")).astype(int)) == 0
    assert picture.resize((8, 8)).size == (8, 8)


def test_the_next_preview_plays_on_where_this_one_has_got_to(callback, sent, clock, preview):
    progress = callback()
    progress(0, moving_light(), None, STEPS)
    clock.seconds += 2 / preview.FRAMES_PER_SECOND + preview.PAUSE
    progress(1, moving_light(), None, STEPS)
    passed = int((2 / preview.FRAMES_PER_SECOND + preview.PAUSE) * preview.FRAMES_PER_SECOND)
    frames = frames_of(served(sent[1][2], "send_image")[0][4:])
    assert [brightest(frame) for frame in frames] == [(passed + i) % FRAMES for i in range(FRAMES)]


def test_previews_pause_and_progress_does_not(callback, sent, clock, preview):
    progress = callback()
    for step in range(3):
        progress(step, moving_light(), None, STEPS)
        clock.seconds += 0.6 * preview.PAUSE
    assert [image is not None for _, _, image in sent] == [
        True,
        True,
    ]  # ComfyUI's bar leaves out steps that come too fast
    progress(STEPS - 1, moving_light(), None, STEPS)
    assert sent[-1][:2] == (STEPS, STEPS)


def test_a_slow_previewer_gets_little_of_the_time(callback, sent, clock, preview):
    progress = callback()
    native = progress.previewer.decode_latent_to_preview

    def slow(x0):
        clock.seconds += 1.0
        return native(x0)

    progress.previewer.decode_latent_to_preview = slow
    for step in range(100):
        before = clock.seconds
        progress(step, moving_light(), None, 100)
        clock.seconds += 1.0
        assert clock.seconds - before in (1.0, 1.0 + FRAMES)
    shown = sum(image is not None for _, _, image in sent)
    assert FRAMES * shown <= 0.1 * (clock.seconds - 100)
    assert shown > 1


def test_none_means_none(method, callback, sent, clock):
    method("none")
    callback()(0, moving_light(), None, STEPS)
    assert [image for _, _, image in sent] == [None]


def test_another_packs_previewer_is_left_to_its_own_way(callback, sent, clock):
    import latent_preview

    class Theirs(latent_preview.LatentPreviewer):
        def decode_latent_to_preview_image(self, preview_format, x0):
            return preview_format, "theirs", tuple(x0.shape)

    progress = callback()
    progress.previewer = Theirs()
    progress(0, moving_light(), None, STEPS)
    assert sent[0][2] == ("JPEG", "theirs", (FRAMES, 4, 8, 16))


def test_cancel_is_noticed_whatever_the_hook_does(callback, sent, clock):
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        callback()(0, moving_light(), None, STEPS)
    assert sent == []


def test_the_sampler_shows_it(call, loaded, pictures, method, sent):
    positive, negative, latent = call(
        "StableVideoConditioning", clip_vision=loaded.clip_vision, vae=loaded.vae, image=pictures[:1]
    )
    call("StableVideoSampler", model=loaded.model, positive=positive, negative=negative, latent=latent)
    assert [(value, total) for value, total, _ in sent] == [(1, 2), (2, 2)]
    assert len(frames_of(served(sent[0][2], "send_image")[0][4:])) == 3
