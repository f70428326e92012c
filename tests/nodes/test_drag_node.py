"""Stable Video Drag in the real ComfyUI: what it shows the model, alone and in a row with others and a camera."""

import importlib
import itertools

import pytest
import torch
from native_pair import native_trio
from torch import Tensor
from weights import relative

from svd_core.motion import CameraMove, ObjectMove, dragged, filmed, view_latents

FRAMES, SEED = 5, 11
HEIGHT, WIDTH = 64, 128
WAY = {"right": 0.25, "down": -0.1, "scale": 1.3, "turn": 20.0}
OTHER_WAY = {"right": -0.2, "down": 0.15, "scale": 0.8, "turn": -90.0}
FILM = {"pan_x": 0.2, "pan_y": -0.1, "zoom": 1.2, "roll": 5.0}
MOVE, OTHER_MOVE, CAMERA = ObjectMove(**WAY), ObjectMove(**OTHER_WAY), CameraMove(**FILM)


def painted(top, left, height=24, width=30, paint=1.0):
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, top : top + height, left : left + width] = paint
    return mask


THING, OTHER_THING = painted(20, 16), painted(30, 90, 20, 20, paint=0.75)


@pytest.fixture(scope="module")
def native(pack, checkpoint):
    from comfy.model_base import Timestep

    trio = native_trio(pack, checkpoint)
    trio.model.model.embedder = Timestep(16)
    return trio


@pytest.fixture(scope="module")
def condition(call, loaded):
    def run(image: Tensor, **inputs) -> tuple:
        given = {"clip_vision": loaded.clip_vision, "vae": loaded.vae, "image": image, "frames": FRAMES}
        return call("StableVideoConditioning", **(given | inputs))

    return run


@pytest.fixture(scope="module")
def conds(condition, pictures):
    return condition(pictures[:1])


@pytest.fixture(scope="module")
def shows(call, loaded, conds, pictures):
    """positive and views of one of both nodes, for the first picture."""

    def run(node: str, positive=None, **inputs) -> tuple[list, Tensor]:
        given = {"positive": positive or conds[0], "vae": loaded.vae, "latent": conds[2], "image": pictures[:1]}
        return call(f"StableVideo{node}", **(given | inputs))

    return run


@pytest.fixture(scope="module")
def drag(shows):
    return lambda positive=None, **inputs: shows("Drag", positive, **({"mask": THING} | WAY | inputs))


@pytest.fixture(scope="module")
def moved(drag):
    return drag()[0]


@pytest.fixture
def sample(call, loaded, conds):
    def run(positive=None, **inputs) -> Tensor:
        given = {"model": loaded.model, "positive": positive or conds[0], "negative": conds[1], "latent": conds[2]}
        return call("StableVideoSampler", **({**given, "seed": SEED, "steps": 2} | inputs))["samples"]

    return run


def ksampled(model, conds, latent, steps=2) -> Tensor:
    """Through ComfyUI's own KSampler and guider."""
    sampler_node = importlib.import_module("nodes").KSampler()
    with torch.inference_mode():
        given = {"model": model, "positive": conds[0], "negative": conds[1], "latent_image": latent}
        how = {"seed": SEED, "steps": steps, "cfg": 2.0, "sampler_name": "euler", "scheduler": "karras"}
        return sampler_node.sample(**given, **how)[0]["samples"]


def native_conditioning(loaded, picture) -> tuple:
    module = importlib.import_module("comfy_extras.nodes_video_model")
    with torch.inference_mode():
        return module.SVD_img2vid_Conditioning().encode(
            loaded.clip_vision, picture.clone(), loaded.vae, WIDTH, HEIGHT, FRAMES, 127, 7, 0.0
        )


def latents_of(positive) -> Tensor:
    """The latents (T, 4, h, w) of the first entry."""
    return positive[0][1]["concat_latent_image"]


def pixels_of(images) -> Tensor:
    return images.movedim(-1, 1) * 2 - 1


@pytest.fixture(scope="module")
def check(loaded, conds):
    """Compare what a node gave with views (T, 3, H, W) that the core made."""

    def run(given: tuple[list, Tensor], views: Tensor) -> None:
        first = latents_of(conds[0])
        with torch.inference_mode():
            expected = view_latents(first, views, lambda view: loaded.vae.encode((view.movedim(1, -1) + 1) / 2))[0]
        positive, images = given
        torch.testing.assert_close(images, (views.movedim(1, -1) + 1) / 2, rtol=0, atol=1e-5)
        torch.testing.assert_close(latents_of(positive), expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(latents_of(positive)[:1], first)

    return run


# What it makes


@pytest.mark.parametrize("ease", [False, True])
def test_it_is_the_cores_drag(drag, check, pictures, ease):
    move = ObjectMove(**WAY, ease=ease)
    check(drag(ease=ease), dragged(pixels_of(pictures[:1]), THING[0], move, FRAMES))
    check(drag(ease=ease, mask=THING[0]), dragged(pixels_of(pictures[:1]), THING[0], move, FRAMES))


def test_views_are_pictures_and_the_first_is_the_fitted_one(drag, pictures):
    sharp = (pictures[:1] > 0.5).float()
    for picture in (pictures[:1], sharp):
        views = drag(image=picture)[1]
        assert views.shape == (FRAMES, HEIGHT, WIDTH, 3) and views.dtype == torch.float32
        assert views.min() >= 0 and views.max() <= 1, "bicubic filters overshoot"
        torch.testing.assert_close(views[:1], picture, rtol=0, atol=1e-6)
        assert all(relative(after, before) > 1e-2 for before, after in itertools.pairwise(views))


def test_two_things_and_a_camera_in_a_row_are_the_cores_composition(drag, shows, check, pictures):
    """Each takes positive of the conditioning, and as its image the views of the one before."""
    first = drag()
    second = drag(image=first[1], mask=OTHER_THING, **OTHER_WAY)
    third = shows("Camera", image=second[1], **FILM)
    one = dragged(pixels_of(pictures[:1]), THING[0], MOVE, FRAMES)
    both = dragged(one, OTHER_THING[0], OTHER_MOVE, FRAMES)
    check(first, one)
    check(second, both)
    check(third, filmed(both, CAMERA, FRAMES))
    assert min(relative(third[1], each[1]) for each in (first, second)) > 1e-2


def test_a_camera_may_come_first(drag, shows, check, pictures):
    turned = drag(image=shows("Camera", **FILM)[1])
    check(turned, dragged(filmed(pixels_of(pictures[:1]), CAMERA, FRAMES), THING[0], MOVE, FRAMES))


def test_a_row_in_which_only_one_moves_is_that_one(drag, shows, check, pictures):
    still = {"right": 0.0, "down": 0.0, "scale": 1.0, "turn": 0.0}
    row = drag(image=drag(**still)[1])
    check(row, dragged(pixels_of(pictures[:1]), THING[0], MOVE, FRAMES))
    check(drag(image=row[1], **still), dragged(pixels_of(pictures[:1]), THING[0], MOVE, FRAMES))


def test_what_augmentation_added_is_added_to_every_view_of_a_row(drag, shows, condition, pictures):
    noisy = condition(pictures[:1], augmentation=0.5, seed=3)[0]
    plain = condition(pictures[:1], augmentation=0.0)[0]
    added = latents_of(noisy) - latents_of(plain)
    assert added.abs().mean() > 0.05
    views = drag(noisy)[1]
    pairs = [(drag(noisy), drag(plain))]
    pairs.append((shows("Camera", noisy, image=views, **FILM), shows("Camera", plain, image=views, **FILM)))
    for with_noise, without in pairs:
        difference = latents_of(with_noise[0]) - latents_of(without[0])
        torch.testing.assert_close(difference, added.expand(FRAMES, -1, -1, -1))


def test_all_else_in_positive_is_kept_and_nothing_given_is_changed(drag, conds, pictures):
    images, mask = pictures[:1].clone(), THING.clone()
    (context, held), (before, own) = drag(image=images, mask=mask)[0][0], conds[0][0]
    assert context is before and len(latents_of(conds[0])) == 1
    assert held.keys() == own.keys()
    assert all(held[name] == own[name] for name in own if name != "concat_latent_image")
    assert torch.equal(images, pictures[:1]) and torch.equal(mask, THING)


def test_what_does_not_move_changes_no_bit_and_encodes_nothing(drag, shows, sample, loaded, monkeypatch):
    still = {"right": 0.0, "down": 0.0, "scale": 1.0, "turn": 0.0}
    with monkeypatch.context() as patched:
        patched.setattr(loaded.vae, "encode", lambda *_: pytest.fail("encoded"))
        positive, views = drag(**still, ease=True)
        again, _ = shows("Camera", image=drag(image=views, **still)[1])
    assert torch.equal(sample(positive), sample())
    assert torch.equal(sample(again), sample())


def test_one_encode_for_each_frame(drag, loaded, monkeypatch):
    encoded, encode = [], loaded.vae.encode
    monkeypatch.setattr(loaded.vae, "encode", lambda pixels: encoded.append(pixels.shape) or encode(pixels))
    drag()
    assert encoded == [(1, HEIGHT, WIDTH, 3)] * FRAMES


def test_a_clip_of_one_frame_is_the_still(drag, condition, pictures):
    positive, _, latent = condition(pictures[:1], frames=1)
    made, views = drag(positive, latent=latent)
    assert torch.equal(latents_of(made), latents_of(positive)) and len(views) == 1


def test_it_can_be_cancelled_between_encodes_and_before_each_view(drag, loaded, part, monkeypatch):
    import comfy.model_management as management

    def cancelling(done, work):
        def run(*args):
            done.append(1)
            if len(done) == 2:
                management.interrupt_current_processing()
            return work(*args)

        return run

    module = part("svd_core.motion.drag")
    for place, name in ((loaded.vae, "encode"), (module, "drag_view")):
        done = []
        with monkeypatch.context() as patched:
            patched.setattr(place, name, cancelling(done, getattr(place, name)))
            with pytest.raises(management.InterruptProcessingException):
                drag()
        assert len(done) == 2
    assert len(latents_of(drag()[0])) == FRAMES, "and the next run is whole"


# Sampling


def test_the_native_model_and_samplers_make_the_same(moved, sample, conds, loaded, native):
    ours = ksampled(loaded.model, (moved, conds[1]), conds[2])
    assert relative(ksampled(native.model, (moved, conds[1]), conds[2]), ours) < 1e-3
    weights = {"min_guidance": 1.0, "max_guidance": 2.0}
    assert relative(sample(moved, model=native.model, **weights), sample(moved, **weights)) < 1e-3
    assert relative(ours, ksampled(loaded.model, conds, conds[2])) > 1e-3


def test_native_conditioning_is_dragged_too(drag, sample, loaded, pictures):
    positive, negative, latent = native_conditioning(loaded, pictures[:1])
    made = drag(positive, latent=latent)[0]
    assert torch.equal(latents_of(made)[:1], latents_of(positive).float())
    assert sample(made, negative=negative, latent=latent).isfinite().all()


def test_it_is_the_cores_clip_of_a_drag_and_a_camera(drag, shows, sample, reference, pictures, condition):
    """From the picture on, in ComfyUI and without it."""
    from svd_core.sampling import edm_sigmas, linear_guidance

    positive, negative, latent = condition(pictures[:1], augmentation=0.0)
    made = shows("Camera", positive, image=drag()[1], **FILM)[0]
    pixels = pixels_of(pictures[:1])
    views = filmed(dragged(pixels, THING[0], MOVE, FRAMES), CAMERA, FRAMES)
    cond = reference.with_views(reference.condition(pixels, augmentation=0.0), views)
    noise = torch.randn(FRAMES, 4, 8, 16, generator=torch.Generator().manual_seed(SEED))
    wanted = reference.sample(noise, cond, edm_sigmas(2), linear_guidance(FRAMES, 1.0, 2.0)) / 0.18215
    given = {"negative": negative, "latent": latent, "min_guidance": 1.0, "max_guidance": 2.0}
    assert relative(sample(made, **given), wanted) < 1e-3


def test_one_model_runs_with_and_without_a_drag_in_any_order(moved, sample):
    plain, dragged_clip = sample(), sample(moved)
    assert torch.equal(sample(), plain) and torch.equal(sample(moved), dragged_clip)
    assert relative(dragged_clip, plain) > 1e-3


# What does not fit


def test_positive_of_another_such_node_is_refused_and_told_the_way(drag, shows, moved, input_error):
    for node, more in (("Drag", {"mask": THING}), ("Camera", {})):
        with pytest.raises(input_error, match=r"positive shows 5 pictures: .* follow each other by views and image"):
            shows(node, moved, **more)


def test_wrong_numbers_and_sizes_of_pictures_are_named(drag, pictures, input_error):
    for count in (2, 4, 6):
        images = torch.rand(count, HEIGHT, WIDTH, 3)
        with pytest.raises(input_error, match=rf"^{count} pictures of 128x64 for 5 frames of 128x64: connect the one"):
            drag(image=images)
    with pytest.raises(input_error, match=r"5 pictures of 64x64 for 5 frames of 128x64: .* or views of a node of this"):
        drag(image=torch.rand(5, 64, 64, 3))
    with pytest.raises(input_error, match="the picture has 1 channels, needed 3"):
        drag(image=pictures[:1, ..., :1])
    with pytest.raises(input_error, match="the picture holds NaN or infinity"):
        drag(image=pictures[:1] * float("nan"))


def test_other_clips_and_lengths_are_refused(drag, condition, pictures, conds, input_error):
    positive, _, latent = condition(pictures)
    with pytest.raises(input_error, match="the latent holds 2 clips: control one at a time, from one picture"):
        drag(positive, latent=latent)
    with pytest.raises(input_error, match="positive shows several pictures: move what it shows before conditionings"):
        drag(conds[0] + condition(pictures[1:])[0])
    with pytest.raises(input_error, match="the latent is for a clip of 3 frames and positive for 5: take both from"):
        drag(latent=condition(pictures[:1], frames=3)[2])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 64, 64), "the drag's mask is 64x64 and the clip 128x64: paint it on the fitted picture"),
        (torch.ones(1, 128, 64), "the drag's mask is 64x128 and the clip 128x64"),
        (torch.ones(2, HEIGHT, WIDTH), "2 masks for one thing: connect one, where the thing is in the picture"),
        (torch.ones(FRAMES, HEIGHT, WIDTH), "5 masks for one thing"),
        (torch.full((1, HEIGHT, WIDTH), 1.5), "the drag's mask holds values outside 0 to 1: 1 is what moves"),
        (torch.full((1, HEIGHT, WIDTH), float("nan")), "the drag's mask holds values outside 0 to 1"),
        (torch.zeros(1, HEIGHT, WIDTH), "nothing is painted in the drag's mask: paint what moves in white"),
        (torch.zeros(0, HEIGHT, WIDTH), "mask is of shape .*, needed masks of shape"),
        (torch.ones(1, HEIGHT, WIDTH, 3), "mask is of shape .*, needed masks of shape"),
        (torch.ones(1, HEIGHT, WIDTH, dtype=torch.int64), "mask is of shape .* and int64, needed masks of shape"),
        (None, "mask holds nothing: connect it to a node that gives one"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(drag, loaded, monkeypatch, mask, message, input_error):
    monkeypatch.setattr(loaded.vae, "encode", lambda *_: pytest.fail("encoded"))
    still = {"right": 0.0, "down": 0.0, "scale": 1.0, "turn": 0.0}
    for way in ({}, still):
        with pytest.raises(input_error, match=message):
            drag(mask=mask, **way)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("right", -1, 1), ("down", -1, 1), ("scale", 0.25, 4), ("turn", -360, 360)]
)
def test_numbers_out_of_range_over_a_link_are_refused(drag, name, low, high, input_error):
    for value in (low - 0.01, high + 0.01, float("nan"), float("inf"), "1", [0.5], 1j):
        with pytest.raises(input_error, match=f"^{name} is .*, needed a number from {low:g} to {high:g}: change it"):
            drag(**{name: value})
    with pytest.raises(input_error, match=r"^ease .* is not true or false"):
        drag(ease="yes")


@pytest.mark.parametrize("change", [("LatentFromBatch", "frombatch", (1, 3)), ("RepeatLatentBatch", "repeat", (2,))])
def test_latents_cut_or_repeated_after_a_drag_are_refused_by_every_sampler(
    moved, conds, sample, loaded, change, input_error
):
    node, work, how = change
    latent = getattr(getattr(importlib.import_module("nodes"), node)(), work)(conds[2], *how)[0]
    with pytest.raises(input_error, match="the latent holds"):
        sample(moved, latent=latent)
    with pytest.raises(input_error, match=r"the conditioning shows 5 frames and the latent holds (3|10): take both"):
        ksampled(loaded.model, (moved, conds[1]), latent)


# Beside the other nodes

HELD = "the clip to its picture, and Stable Video Camera or Drag moves that: use only one of them"


@pytest.fixture
def holding(call, loaded, conds, condition, pictures):
    """The MODEL and LATENT of a node that holds a clip to its picture."""
    end = condition(pictures[1:])[0]
    base = {"model": loaded.model, "latent": conds[2]}
    nodes = {
        "Loop": ("StableVideoLoop", {}),
        "Loop in turns": ("StableVideoLoop", {"method": "in turns"}),
        "In-Between": ("StableVideoInBetween", {"end": end}),
        "In-Between in turns": ("StableVideoInBetween", {"end": end, "method": "in turns"}),
        "Brush": ("StableVideoMotionBrush", {"vae": loaded.vae, "image": pictures[:1], "mask": THING}),
    }
    return lambda name: call(nodes[name][0], **base, **nodes[name][1])


@pytest.mark.parametrize("name", ["Loop", "Loop in turns", "In-Between", "In-Between in turns", "Brush"])
def test_what_holds_the_clip_to_its_picture_is_refused_with_a_drag(
    holding, drag, moved, conds, sample, name, input_error
):
    model, latent = holding(name)
    for positive in (moved, drag(latent=latent)[0], conds[0] + moved):
        with pytest.raises(input_error, match=HELD):
            sample(positive, model=model, latent=latent)
        with pytest.raises(input_error, match=HELD):
            ksampled(model, (positive, conds[1]), latent)
    assert sample(model=model, latent=latent, steps=1).isfinite().all(), "and without one it runs"


@pytest.mark.parametrize("way", [{}, {"method": "fusion", "overlap": 2}])
def test_a_long_take_is_refused_with_a_drag(call, loaded, conds, drag, moved, sample, way, input_error):
    given = {"model": loaded.model, "positive": conds[0], "negative": conds[1], "latent": conds[2]}
    model, positive, negative, latent = call("StableVideoLongTake", **given, frames=8, window=5, **way)
    after = drag(positive, latent=latent)[0]
    assert len(latents_of(after)) == 8
    with pytest.raises(input_error, match=HELD):
        sample(after, model=model, negative=negative, latent=latent)
    with pytest.raises(input_error, match=HELD):
        ksampled(model, (after, negative), latent)
    model, before, negative, latent = call(
        "StableVideoLongTake", **{**given, "positive": moved}, frames=8, window=5, **way
    )
    with pytest.raises(input_error, match="the conditioning holds 5 pictures for 1 clips of 8 frames: take both from"):
        sample(before, model=model, negative=negative, latent=latent)


def test_curves_unstick_and_seed_scout_go_with_a_drag(call, loaded, moved, conds, sample, pictures):
    curved = call("StableVideoCurves", model=loaded.model, motion_bucket_points="0:10, 1:250")
    unstuck, *_ = call("StableVideoUnstick", model=loaded.model, strength=1.0)
    for model in (curved, unstuck):
        assert relative(sample(moved, model=model), sample(moved)) > 1e-3
        assert relative(sample(moved, model=model), sample(model=model)) > 1e-3
    shared = {"model": loaded.model, "positive": moved, "negative": conds[1], "latent": conds[2], "vae": loaded.vae}
    assert call("StableVideoSeedScout", **shared, image=pictures[:1], steps=1, tries=1)[0].isfinite().all()


def test_augmentation_is_not_swept_over_what_is_dragged(call, loaded, moved, conds, pictures, input_error):
    shared = {"model": loaded.model, "negative": conds[1], "latent": conds[2], "vae": loaded.vae, "steps": 1}
    shared |= {"image": pictures[:1], "x_setting": "augmentation", "x_values": "0, 0.1"}
    said = "augmentation is swept and positive shows views of Stable Video Camera or Drag: sweep another setting"
    for positive in (moved, conds[0] + moved):
        with pytest.raises(input_error, match=said):
            call("StableVideoSweep", positive=positive, **shared)
    other = {**shared, "x_setting": "fps", "x_values": "7"}
    assert call("StableVideoSweep", positive=moved, **other)[0].isfinite().all()
