"""Stable Video Camera in the real ComfyUI: what it shows the model, on ours and the native one, beside every node."""

import importlib

import pytest
import torch
from native_pair import native_trio
from torch import Tensor
from weights import relative

from svd_core.motion import CameraMove, filmed, view_latents

FRAMES, SEED = 5, 11
HEIGHT, WIDTH = 64, 128
WAY = {"pan_x": 0.2, "pan_y": -0.1, "zoom": 1.2, "roll": 5.0}
MOVE = CameraMove(**WAY)


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
def film(call, loaded, conds, pictures):
    """positive of the node, for the first picture."""

    def run(positive=None, **inputs) -> list:
        given = {"positive": positive or conds[0], "vae": loaded.vae, "latent": conds[2], "image": pictures[:1]}
        return call("StableVideoCamera", **(given | WAY | inputs))[0]

    return run


@pytest.fixture(scope="module")
def moved(film):
    return film()


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


def native_conditioning(loaded, picture, frames=FRAMES, augmentation=0.0) -> tuple:
    module = importlib.import_module("comfy_extras.nodes_video_model")
    with torch.inference_mode():
        return module.SVD_img2vid_Conditioning().encode(
            loaded.clip_vision, picture.clone(), loaded.vae, WIDTH, HEIGHT, frames, 127, 7, augmentation
        )


def views_of(positive) -> Tensor:
    """The latents (T, 4, h, w) of the first entry."""
    return positive[0][1]["concat_latent_image"]


def shown_in_a_run(model, conds, latent) -> list[Tensor]:
    """What the network is shown in each branch of the first step, (T, 4, h, w)."""
    seen = []

    def wrapper(apply, args):
        seen.extend(args["c"]["c_concat"].clone().split(FRAMES))
        return apply(args["input"], args["timestep"], **args["c"])

    watched = model.clone()
    watched.set_model_unet_function_wrapper(wrapper)
    ksampled(watched, conds, latent, steps=1)
    return seen


# What it makes


def test_views_are_the_cores_and_the_first_is_the_conditionings_own(moved, conds, loaded, pictures):
    views, first = views_of(moved), views_of(conds[0])
    assert views.shape == (FRAMES, 4, HEIGHT // 8, WIDTH // 8)
    assert torch.equal(views[:1], first)
    pixels = pictures[:1].movedim(-1, 1) * 2 - 1
    with torch.inference_mode():
        expected = view_latents(
            first, filmed(pixels, MOVE, FRAMES), lambda view: loaded.vae.encode((view.movedim(1, -1) + 1) / 2)
        )[0]
    torch.testing.assert_close(views, expected, rtol=1e-4, atol=1e-4)


def test_what_augmentation_added_is_added_to_every_view(film, condition, loaded, pictures):
    noisy = condition(pictures[:1], augmentation=0.5, seed=3)[0]
    plain = condition(pictures[:1], augmentation=0.0)[0]
    added = views_of(noisy) - views_of(plain)
    assert added.abs().mean() > 0.05
    torch.testing.assert_close(views_of(film(noisy)) - views_of(film(plain)), added.expand(FRAMES, -1, -1, -1))


def test_all_else_in_positive_is_kept_and_nothing_given_is_changed(moved, conds):
    (context, held), (before, own) = moved[0], conds[0][0]
    assert context is before and len(views_of(conds[0])) == 1
    assert held.keys() == own.keys()
    assert all(held[name] == own[name] for name in own if name != "concat_latent_image")


def test_a_camera_that_does_not_move_changes_no_bit(film, sample, loaded, monkeypatch):
    still = {"pan_x": 0.0, "pan_y": 0.0, "zoom": 1.0, "roll": 0.0}
    with monkeypatch.context() as patched:
        patched.setattr(loaded.vae, "encode", lambda *_: pytest.fail("encoded"))
        unmoved = film(**still, ease=True, depth=torch.zeros(1, HEIGHT, WIDTH))
    assert torch.equal(sample(unmoved), sample())


def test_one_encode_for_each_frame(film, loaded, monkeypatch):
    encoded, encode = [], loaded.vae.encode
    monkeypatch.setattr(loaded.vae, "encode", lambda pixels: encoded.append(pixels.shape) or encode(pixels))
    film()
    assert encoded == [(1, HEIGHT, WIDTH, 3)] * FRAMES


def test_ease_and_depth_act(film, moved):
    depth = torch.linspace(0, 1, WIDTH).expand(1, HEIGHT, WIDTH)
    made = [moved, film(ease=True), film(depth=depth), film(depth=depth[0])]
    eased, deep, flat = (views_of(each) for each in made[1:])
    assert not torch.equal(eased[1], views_of(moved)[1])
    torch.testing.assert_close(eased[-1], views_of(moved)[-1])
    assert relative(deep[-1], views_of(moved)[-1]) > 1e-2
    assert torch.equal(flat, deep), "a MASK may come without its count"
    assert (
        torch.equal(views_of(film(depth=depth.half())), deep)
        or relative(views_of(film(depth=depth.half())), deep) < 1e-2
    )


def test_a_picture_with_opacity_is_on_white_as_in_the_conditioning(film, condition, pictures):
    see_through = torch.cat([pictures[:1], torch.full((1, HEIGHT, WIDTH, 1), 0.25)], dim=-1)
    white = pictures[:1] * 0.25 + 0.75
    positive = condition(see_through)[0]
    made = views_of(film(positive, image=see_through))
    torch.testing.assert_close(made, views_of(film(condition(white)[0], image=white)), rtol=1e-2, atol=1e-2)
    assert torch.equal(made[:1], views_of(positive))


def test_it_can_be_cancelled_between_views(film, loaded, monkeypatch):
    import comfy.model_management as management

    encoded, encode = [], loaded.vae.encode

    def cancelling(pixels):
        encoded.append(1)
        if len(encoded) == 2:
            management.interrupt_current_processing()
        return encode(pixels)

    monkeypatch.setattr(loaded.vae, "encode", cancelling)
    with pytest.raises(management.InterruptProcessingException):
        film()
    assert len(encoded) == 2
    assert len(views_of(film())) == FRAMES, "and the next run is whole"


# Sampling


def test_the_network_is_shown_each_frames_view_in_one_branch_and_nothing_in_the_other(moved, conds, loaded, native):
    views = views_of(moved)
    for model in (loaded.model, native.model):
        shown = shown_in_a_run(model, (moved, conds[1]), conds[2])
        assert len(shown) == 2
        assert sum(torch.equal(each, views) for each in shown) == 1
        assert sum(not each.any() for each in shown) == 1


def test_the_native_model_and_samplers_make_the_same(moved, sample, conds, loaded, native):
    ours = ksampled(loaded.model, (moved, conds[1]), conds[2])
    assert relative(ksampled(native.model, (moved, conds[1]), conds[2]), ours) < 1e-3
    weights = {"min_guidance": 1.0, "max_guidance": 2.0}
    assert relative(sample(moved, model=native.model, **weights), sample(moved, **weights)) < 1e-3
    assert relative(ours, ksampled(loaded.model, conds, conds[2])) > 1e-3


def test_it_is_the_cores_clip(moved, sample, reference, conds):
    from svd_core.conditioning import Conditioning
    from svd_core.sampling import edm_sigmas, linear_guidance

    vector = reference.condition(torch.zeros(1, 3, HEIGHT, WIDTH)).vector
    cond = Conditioning(moved[0][0], views_of(moved)[None], vector)
    noise = torch.randn(FRAMES, 4, 8, 16, generator=torch.Generator().manual_seed(SEED))
    wanted = reference.sample(noise, cond, edm_sigmas(2), linear_guidance(FRAMES, 1.0, 2.0)) / 0.18215
    assert relative(sample(moved, min_guidance=1.0, max_guidance=2.0), wanted) < 1e-4


@pytest.mark.parametrize("augmentation", [0.0, 0.2])
def test_native_conditioning_is_filmed_too(film, sample, loaded, pictures, input_error, augmentation):
    positive, negative, latent = native_conditioning(loaded, pictures[:1], augmentation=augmentation)
    made = film(positive, latent=latent)
    assert torch.equal(views_of(made)[:1], views_of(positive).float())
    assert sample(made, negative=negative, latent=latent).isfinite().all()
    views = views_of(made)
    shown = shown_in_a_run(loaded.model, (made, negative), latent)
    assert sum(torch.equal(each, views) for each in shown) == 1
    short = cut(latent, 0, 3)
    with pytest.raises(input_error, match="the latent holds 3 frames, which is not a whole number of clips of 5"):
        sample(made, negative=negative, latent=short)
    with pytest.raises(input_error, match="the conditioning shows 5 frames and the latent holds 3"):
        ksampled(loaded.model, (made, negative), short)


def test_one_model_runs_with_and_without_a_camera_in_any_order(moved, sample):
    plain, made = sample(), sample(moved)
    assert torch.equal(sample(), plain)
    assert torch.equal(sample(moved), made)
    assert relative(made, plain) > 1e-3


# Entries, clips and lengths that do not fit


def test_entries_of_one_picture_are_all_filmed_and_those_of_several_refused(
    film, conds, condition, pictures, input_error
):
    quick = condition(pictures[:1], fps=20)[0]
    made = film(conds[0] + quick)
    assert [held["fps"] for _, held in made] == [7, 20]
    assert torch.equal(made[0][1]["concat_latent_image"], made[1][1]["concat_latent_image"])
    with pytest.raises(
        input_error, match="positive shows several pictures: move what it shows before conditionings are"
    ):
        film(conds[0] + condition(pictures[1:])[0])
    textual = [[torch.zeros(1, 1, 32), {}]]
    for mixed in (conds[0] + textual, textual + conds[0], textual):
        with pytest.raises(input_error, match=r"positive (shows several pictures|holds no picture): "):
            film(mixed)


def test_several_clips_and_a_camera_after_a_camera_are_refused(film, moved, condition, pictures, input_error):
    positive, _, latent = condition(pictures)
    with pytest.raises(input_error, match="the latent holds 2 clips: control one at a time, from one picture"):
        film(positive, latent=latent)
    with pytest.raises(
        input_error, match="positive shows 10 pictures: connect that of Stable Video Conditioning itself"
    ):
        film(positive)
    with pytest.raises(
        input_error,
        match="positive shows 5 pictures: connect that of Stable Video Conditioning itself, for one picture",
    ):
        film(moved)


def test_sizes_that_do_not_fit_are_refused(film, condition, pictures, input_error):
    square = torch.rand(1, 64, 64, 3)
    with pytest.raises(input_error, match="1 pictures of 64x64 for 5 frames of 128x64: connect the one fitted picture"):
        film(image=square)
    with pytest.raises(input_error, match="2 pictures of 128x64 for 5 frames of 128x64"):
        film(image=pictures)
    with pytest.raises(input_error, match="positive is for 64x64 pixels and the latent for 128x64: take both from one"):
        film(condition(square)[0])
    with pytest.raises(input_error, match="the picture has 1 channels, needed 3"):
        film(image=pictures[:1, ..., :1])
    with pytest.raises(input_error, match="the picture holds NaN or infinity"):
        film(image=pictures[:1] * float("nan"))
    with pytest.raises(input_error, match=r"the latent is shape \(5, 16, 8, 16\)"):
        film(latent={"samples": torch.zeros(FRAMES, 16, 8, 16)})


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (torch.zeros(1, 64, 64), "the depth map is 64x64 and the clip 128x64: make it from the fitted picture"),
        (torch.zeros(1, 128, 64), "the depth map is 64x128 and the clip 128x64"),
        (torch.zeros(2, HEIGHT, WIDTH), "2 depth maps for 1 pictures: give the depth of each picture"),
        (torch.zeros(FRAMES, HEIGHT, WIDTH), "5 depth maps for 1 pictures"),
        (torch.full((1, HEIGHT, WIDTH), 1.5), "the depth map holds values outside 0 to 1: 1 is near, 0 is far"),
        (torch.full((1, HEIGHT, WIDTH), float("nan")), "the depth map holds values outside 0 to 1"),
        (torch.zeros(0, HEIGHT, WIDTH), "depth is of shape .*, needed masks of shape"),
        (torch.zeros(1, HEIGHT, WIDTH, 3), "depth is of shape .*, needed masks of shape"),
    ],
)
def test_a_depth_that_does_not_fit_is_refused(film, depth, message, input_error):
    with pytest.raises(input_error, match=message):
        film(depth=depth)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("pan_x", -1, 1), ("pan_y", -1, 1), ("zoom", 0.25, 4), ("roll", -180, 180)]
)
def test_numbers_out_of_range_over_a_link_are_refused(film, name, low, high, input_error):
    for value in (low - 0.01, high + 0.01, float("nan"), float("inf"), "1", [0.5], 1j):
        with pytest.raises(input_error, match=f"^{name} is .*, needed a number from {low:g} to {high:g}: change it"):
            film(**{name: value})
    with pytest.raises(input_error, match=r"^ease .* is not true or false"):
        film(ease="yes")


def cut(latent, start, length):
    return importlib.import_module("nodes").LatentFromBatch().frombatch(latent, start, length)[0]


def repeated(latent, times):
    return importlib.import_module("nodes").RepeatLatentBatch().repeat(latent, times)[0]


def test_lengths_of_latent_and_conditioning_that_differ_are_refused_in_the_node(
    film, conds, condition, pictures, input_error
):
    other = condition(pictures[:1], frames=3)
    with pytest.raises(
        input_error, match="the latent is for a clip of 3 frames and positive for 5: take both from one"
    ):
        film(latent=other[2])
    with pytest.raises(input_error, match="the latent is for a clip of 3 frames and positive for 5"):
        film(latent={"samples": torch.zeros(3, 4, 8, 16)})
    with pytest.raises(input_error, match="the latent holds 3 frames, which is not a whole number of clips of 5"):
        film(latent=cut(conds[2], 0, 3))
    with pytest.raises(input_error, match="the latent holds 2 clips: control one at a time"):
        film(latent=repeated(conds[2], 2))


@pytest.mark.parametrize("change", [lambda latent: cut(latent, 1, 3), lambda latent: repeated(latent, 2)])
def test_latents_cut_or_repeated_after_the_camera_are_refused_by_every_sampler(
    moved, conds, sample, loaded, change, input_error
):
    """ComfyUI would spread the views over the frames that are left, and over both clips."""
    latent = change(conds[2])
    with pytest.raises(input_error, match="the latent holds"):
        sample(moved, latent=latent)
    with pytest.raises(
        input_error, match=r"the conditioning shows 5 frames and the latent holds (3|10): take both from"
    ):
        ksampled(loaded.model, (moved, conds[1]), latent)


def test_positive_kept_from_a_clip_of_another_length_is_refused(
    moved, condition, pictures, sample, loaded, input_error
):
    _, negative, latent = condition(pictures[:1], frames=8)
    with pytest.raises(input_error, match="the latent holds 8 frames, which is not a whole number of clips of 5"):
        sample(moved, negative=negative, latent=latent)
    with pytest.raises(input_error, match="the conditioning shows 5 frames and the latent holds 8"):
        ksampled(loaded.model, (moved, negative), latent)
    _, negative, latent = native_conditioning(loaded, pictures[:1], frames=3)
    with pytest.raises(input_error, match=r"the latent holds 3 frames|not a whole number of clips"):
        sample(moved, negative=negative, latent=latent)


def test_repeated_latents_and_batches_without_a_camera_run_as_before(conds, condition, pictures, loaded):
    two = condition(pictures)
    for given, latent in ((conds, repeated(conds[2], 2)), (two, two[2])):
        assert ksampled(loaded.model, given, latent, steps=1).shape[0] == 2 * FRAMES


def test_a_clip_of_one_frame_is_the_still(film, condition, pictures):
    positive, _, latent = condition(pictures[:1], frames=1)
    assert torch.equal(views_of(film(positive, latent=latent)), views_of(positive))


# Beside the other nodes

HELD = "the clip to its picture, and Stable Video Camera or Drag moves that: use only one of them"


@pytest.fixture
def holding(call, loaded, conds, condition, pictures):
    """The MODEL and LATENT of a node that holds a clip to its picture."""
    end = condition(pictures[1:])[0]
    mask = torch.ones(1, HEIGHT, WIDTH)
    base = {"model": loaded.model, "latent": conds[2]}
    nodes = {
        "Loop": ("StableVideoLoop", {}),
        "Loop in turns": ("StableVideoLoop", {"method": "in turns"}),
        "In-Between": ("StableVideoInBetween", {"end": end}),
        "In-Between in turns": ("StableVideoInBetween", {"end": end, "method": "in turns"}),
        "Brush": ("StableVideoMotionBrush", {"vae": loaded.vae, "image": pictures[:1], "mask": mask}),
    }
    return lambda name: call(nodes[name][0], **base, **nodes[name][1])


@pytest.mark.parametrize("name", ["Loop", "Loop in turns", "In-Between", "In-Between in turns", "Brush"])
def test_what_holds_the_clip_to_its_picture_is_refused_with_a_camera(
    holding, film, moved, conds, sample, name, input_error
):
    model, latent = holding(name)
    for positive in (moved, film(latent=latent), conds[0] + moved, moved + conds[0]):
        with pytest.raises(input_error, match=HELD):
            sample(positive, model=model, latent=latent)
        with pytest.raises(input_error, match=HELD):
            ksampled(model, (positive, conds[1]), latent)
    assert sample(model=model, latent=latent, steps=1).isfinite().all(), "and without one it runs"


@pytest.mark.parametrize("way", [{}, {"method": "fusion", "overlap": 2}])
def test_a_long_take_before_or_after_a_camera_is_refused(call, loaded, conds, film, moved, sample, way, input_error):
    def take(positive):
        given = {"model": loaded.model, "positive": positive, "negative": conds[1], "latent": conds[2]}
        model, *told = call("StableVideoLongTake", **given, frames=8, window=5, **way)
        return model, *told

    model, positive, negative, latent = take(conds[0])
    after = film(positive, latent=latent)
    assert len(views_of(after)) == 8
    with pytest.raises(input_error, match=HELD):
        sample(after, model=model, negative=negative, latent=latent)
    with pytest.raises(input_error, match=HELD):
        ksampled(model, (after, negative), latent)
    model, before, negative, latent = take(moved)
    with pytest.raises(input_error, match="the conditioning holds 5 pictures for 1 clips of 8 frames: take both from"):
        sample(before, model=model, negative=negative, latent=latent)
    with pytest.raises(input_error, match="the conditioning shows 5 frames and the latent holds 8: take both from"):
        ksampled(model, (before, negative), latent)


def test_the_end_of_an_in_between_is_one_picture(call, loaded, conds, moved, input_error):
    with pytest.raises(input_error, match="end holds several pictures: give one end picture"):
        call("StableVideoInBetween", model=loaded.model, end=moved, latent=conds[2])


def test_curves_go_with_a_camera(call, loaded, moved, conds, sample, native):
    curves = {"motion_bucket_points": "0:10, 1:250", "augmentation_points": "0:0, 1:0.5"}
    for trio in (loaded, native):
        model = call("StableVideoCurves", model=trio.model, **curves)
        shown = shown_in_a_run(model, (moved, conds[1]), conds[2])
        assert sum(torch.equal(each, views_of(moved)) for each in shown) == 1
    model = call("StableVideoCurves", model=loaded.model, **curves)
    assert relative(sample(moved, model=model), sample(moved)) > 1e-3
    assert relative(sample(moved, model=model), sample(model=model)) > 1e-3


def test_unstick_starts_from_the_still_of_a_filmed_clip(call, loaded, moved, conds, sample, pictures, film, part):
    start, empty = part("nodes.bridge.motion.runs")._picture_start, conds[2]["samples"]
    assert torch.equal(start(moved[0][1], empty, SEED), start(conds[0][0][1], empty, SEED))
    model, *_ = call("StableVideoUnstick", model=loaded.model, strength=1.0)
    still = film(pan_x=0.0, pan_y=0.0, zoom=1.0, roll=0.0)
    assert torch.equal(sample(still, model=model), sample(model=model))
    assert relative(sample(moved, model=model), sample(model=model)) > 1e-3
    positive, negative, latent = native_conditioning(loaded, pictures[:1])
    native_film = film(positive, latent=latent)
    assert sample(native_film, model=model, negative=negative, latent=latent).isfinite().all()


@pytest.fixture
def study(call, loaded, conds, pictures):
    def run(node, positive, **inputs):
        shared = {"model": loaded.model, "positive": positive, "negative": conds[1], "latent": conds[2]}
        return call(node, **{**shared, "vae": loaded.vae, "steps": 1, "image": pictures[:1]}, **inputs)

    return run


def test_seed_scout_and_sweep_compare_filmed_clips(study, moved, conds):
    assert study("StableVideoSeedScout", moved, tries=1)[0].isfinite().all()
    one, other = (study("StableVideoSweep", each, x_setting="fps", x_values="7")[0] for each in (moved, conds[0]))
    assert not torch.equal(one, other)


def test_augmentation_is_not_swept_over_views(study, moved, conds, input_error):
    values = {"x_setting": "augmentation", "x_values": "0, 0.1"}
    for positive in (moved, conds[0] + moved):
        with pytest.raises(
            input_error, match="augmentation is swept and positive shows views of Stable Video Camera or Drag: sweep"
        ):
            study("StableVideoSweep", positive, **values)
    with pytest.raises(input_error, match="augmentation is swept and positive shows views of"):
        study("StableVideoSweep", moved, x_values="1", y_setting="augmentation", y_values="0, 0.1")
    assert study("StableVideoSweep", conds[0], **values)[0].isfinite().all()
