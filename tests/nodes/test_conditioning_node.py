"""Stable Video Conditioning: the reference's conditioning in ComfyUI's types, by its own recipe or another's."""

import pytest
import torch
from native_pair import native_trio
from weights import relative

from svd_core.conditioning import draw_noise

FRAMES = 3


@pytest.fixture
def condition(call, loaded, pictures):
    """Run the node on the first picture, or on what is given."""

    def run(**inputs):
        given = {"clip_vision": loaded.clip_vision, "vae": loaded.vae, "image": pictures[:1]}
        return call("StableVideoConditioning", **(given | inputs))

    return run


@pytest.fixture(scope="module")
def native(pack, checkpoint):
    """ComfyUI's own classes around the same weights."""
    return native_trio(pack, checkpoint)


def test_it_is_the_cores_conditioning(condition, reference, pictures):
    positive, negative, latent = condition(seed=5, augmentation=0.1)
    pixels = pictures[:1].movedim(-1, 1) * 2 - 1
    expected = reference.condition(pixels, augmentation=0.1, seed=5)
    [[context, numbers]] = positive
    assert context.shape == (1, 1, 32)
    assert relative(context, expected.context) < 1e-5
    assert relative(numbers["concat_latent_image"], expected.first) < 1e-5
    assert latent["samples"].shape == (FRAMES, 4, 8, 16)
    assert not latent["samples"].any()
    assert latent["num_video_frames"] == numbers["num_video_frames"] == FRAMES
    [[without, same_numbers]] = negative
    assert not without.any()
    assert not same_numbers["concat_latent_image"].any()
    assert without.shape == context.shape


def test_the_model_reads_the_numbers_as_the_core_does(condition, loaded):
    from svd_core import MicroConditioning

    [[_, numbers]] = condition(fps=12, motion_bucket=40, augmentation=0.3)[0]
    told = loaded.model.model.encode_adm(**numbers)
    torch.testing.assert_close(told, MicroConditioning(12, 40, 0.3).vector(48))


def test_what_is_no_number_among_the_conditioning_is_named(loaded, part):
    refusal = part("svd_core.errors").InputError
    with pytest.raises(refusal, match=r"the conditioning's fps is 'seven', which is no number"):
        loaded.model.model.extra_conds(fps="seven", noise=torch.zeros(3, 4, 8, 8), device=torch.device("cpu"))


def test_a_batch_of_pictures_is_a_batch_of_clips(condition, pictures):
    [[context, numbers]], [[without, _]], latent = condition(image=pictures, augmentation=0.0)
    assert latent["samples"].shape == (2 * FRAMES, 4, 8, 16)
    assert latent["num_video_frames"] == FRAMES
    assert without.shape == context.shape == (2 * FRAMES, 1, 32)
    for clip, picture in enumerate(pictures):
        [[alone, numbers_alone]] = condition(image=picture[None], augmentation=0.0)[0]
        for frame in range(clip * FRAMES, (clip + 1) * FRAMES):
            torch.testing.assert_close(context[frame], alone[0])
            torch.testing.assert_close(
                numbers["concat_latent_image"][frame], numbers_alone["concat_latent_image"][0], rtol=1e-4, atol=1e-5
            )


def test_pictures_of_a_batch_get_noise_of_their_own(condition, pictures):
    same = pictures[:1].expand(2, -1, -1, -1)
    [[_, numbers]] = condition(image=same, augmentation=0.5)[0]
    first, second = numbers["concat_latent_image"][[0, FRAMES]]
    [[_, alone]] = condition(augmentation=0.5)[0]
    torch.testing.assert_close(first, alone["concat_latent_image"][0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first, second, atol=0.01)


def test_the_seed_decides_the_noise_and_the_global_generator_does_not(condition):
    def first(seed: int) -> torch.Tensor:
        return condition(seed=seed)[0][0][1]["concat_latent_image"]

    torch.manual_seed(1)
    one = first(3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(one, first(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one, first(4))


def test_the_length_is_the_checkpoints_unless_given(condition, native):
    assert condition(frames=5)[2]["samples"].shape[0] == 5
    assert condition(frames=0)[2]["samples"].shape[0] == FRAMES
    assert condition(vae=native.vae)[2]["samples"].shape[0] == 14


def test_native_encoders_give_the_same(condition, native):
    [[context, numbers]] = condition()[0]
    [[their_context, their_numbers]] = condition(clip_vision=native.clip_vision, vae=native.vae)[0]
    assert relative(context, their_context) < 1e-5
    assert relative(numbers["concat_latent_image"], their_numbers["concat_latent_image"]) < 1e-4


# Numerics


class Camera:
    """A VAE that keeps what it is shown."""

    latent_channels, latent_dim = 4, 2

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        self.shown = image
        return torch.zeros(image.shape[0], 4, image.shape[1] // 8, image.shape[2] // 8)


@pytest.mark.parametrize(("numerics", "deviations"), [("reference", 1.0), ("diffusers", 1.0), ("comfyui", 2.0)])
def test_the_noise_has_the_scale_of_the_chosen_numerics(condition, pictures, numerics, deviations):
    camera = Camera()
    condition(vae=camera, numerics=numerics, augmentation=0.1, seed=9)
    pixels = pictures[:1].movedim(-1, 1) * 2 - 1
    expected = pixels + deviations * 0.1 * draw_noise(pixels.shape, 9)
    torch.testing.assert_close(camera.shown.movedim(-1, 1) * 2 - 1, expected)


def test_comfyuis_numerics_without_noise_are_comfyuis_node(condition, loaded, pictures, pack):
    import importlib

    theirs = importlib.import_module("comfy_extras.nodes_video_model").SVD_img2vid_Conditioning()
    with torch.inference_mode():
        [[context, numbers]], _, _ = theirs.encode(
            loaded.clip_vision, pictures[:1], loaded.vae, 128, 64, FRAMES, 127, 7, 0.0
        )
    [[ours, our_numbers]] = condition(numerics="comfyui", augmentation=0.0)[0]
    assert torch.equal(ours, context)
    assert torch.equal(our_numbers["concat_latent_image"], numbers["concat_latent_image"])
    assert our_numbers["fps"] == numbers["fps"]
    whole = condition(augmentation=0.0)[0][0][0]
    assert not torch.allclose(whole, context, atol=1e-3)


def test_diffusers_is_told_the_noise_in_half_precision(condition):
    def told(numerics: str) -> float:
        return condition(numerics=numerics)[0][0][1]["augmentation_level"]

    assert told("reference") == told("comfyui") == 0.02
    assert told("diffusers") == pytest.approx(0.0200043, abs=1e-7)


# What is refused


class Untouchable:
    """Fails when anything but a check looks at it."""

    def __init__(self, **known) -> None:
        self.__dict__ |= known

    def __getattr__(self, name: str):
        raise AssertionError(f"{name} was used before the inputs were checked")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 60, 128, 3), "the picture is 128x60; sides must be multiples of 8.* put Fit Picture"),
        (torch.zeros(1, 1, 1, 3), "the picture is 1x1;.* at least 64: put Fit Picture"),
        (torch.zeros(1, 64, 64, 1), "the picture has 1 channels, needed 3: put Fit Picture"),
        (torch.full((1, 64, 64, 3), torch.nan), "the picture holds NaN"),
    ],
)
def test_pictures_that_do_not_fit_are_refused_before_anything_loads(condition, input_error, image, message):
    nothing = Untouchable()
    with pytest.raises(input_error, match=message):
        condition(image=image, clip_vision=nothing, vae=nothing)


def test_the_vae_of_another_family_is_refused_before_anything_loads(condition, input_error):
    flux = Untouchable(latent_channels=16, latent_dim=2)
    with pytest.raises(input_error, match="latents of 16 channels, Stable Video needs 4: connect the VAE"):
        condition(vae=flux, clip_vision=Untouchable())


def test_an_image_encoder_without_projection_is_refused(condition, input_error):
    from types import SimpleNamespace

    encoder = SimpleNamespace(encode_image=lambda image: SimpleNamespace(image_embeds=None))
    with pytest.raises(input_error, match="no projected embedding: connect that of the video checkpoint"):
        condition(clip_vision=encoder, numerics="comfyui")


def test_unusual_settings_are_mentioned_and_usual_ones_are_not(part):
    node = part("nodes.conditioning")
    micro = part("svd_core.conditioning").MicroConditioning
    svd = part("svd_core.config").VARIANTS["svd"]
    assert node.advice(micro(), torch.zeros(1, 576, 1024, 3), svd) == []
    text = " ".join(node.advice(micro(3, 300), torch.zeros(1, 72, 128, 3), svd))
    for part_of_it in ("128x72 is not 1024x576", "Motion bucket 300", "At 3 frames", "not multiples of 64"):
        assert part_of_it in text


def test_transparent_parts_are_white_as_in_fit_picture(call, loaded, pictures):
    """Their hidden colours are not shown."""
    opacity = torch.ones(1, 64, 128, 1)
    opacity[:, :, :64] = 0
    white = torch.where(opacity == 0, torch.ones(1), pictures[:1])
    given = {"clip_vision": loaded.clip_vision, "vae": loaded.vae}
    clear, wanted = (
        call("StableVideoConditioning", **given, image=image)[0][0]
        for image in (torch.cat([pictures[:1], opacity], dim=-1), white)
    )
    assert torch.equal(clear[0], wanted[0])
    assert torch.equal(clear[1]["concat_latent_image"], wanted[1]["concat_latent_image"])
