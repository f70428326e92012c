"""Fit and Unfit: any picture to a clip's size, and back to what shows the picture."""

import numpy as np
import pytest
import torch

from svd_core.media import fit_image


def ramp(width: int, height: int) -> torch.Tensor:
    """(1, H, W, 3): red rises to the right, green downwards, blue is constant."""
    across = torch.linspace(0, 1, width).expand(height, width)
    down = torch.linspace(0, 1, height)[:, None].expand(height, width)
    return torch.stack([across, down, torch.full((height, width), 0.5)], dim=-1)[None]


@pytest.fixture
def fit(call):
    return lambda image, **widgets: call("StableVideoImageFit", image=image, **widgets)


@pytest.mark.parametrize(
    ("given", "size"),
    [((1920, 1080), (1024, 576)), ((1080, 1920), (576, 1024)), ((500, 500), (768, 768)), ((300, 250), (768, 768))],
)
def test_left_alone_it_chooses_the_trained_area_in_the_pictures_orientation(fit, given, size):
    image, width, height, _ = fit(ramp(*given))
    assert (width, height) == size
    assert image.shape == (1, height, width, 3)


def test_one_given_side_keeps_the_pictures_shape_and_both_are_rounded(fit):
    assert fit(ramp(200, 100), width=256)[1:3] == (256, 128)
    assert fit(ramp(200, 100), height=64)[1:3] == (128, 64)
    assert fit(ramp(200, 100), width=100, height=90)[1:3] == (128, 64)


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_modes_in_the_middle_are_the_cores_own(fit, mode):
    image = torch.rand(1, 90, 200, 3)
    fitted = fit(image, mode=mode, width=128, height=128)[0]
    expected = fit_image(image[0].numpy(), 128, 128, mode).image
    np.testing.assert_array_equal(fitted[0].numpy(), expected)


def test_a_crop_follows_the_focus_to_the_edges_and_no_further(fit):
    image = ramp(400, 100)
    red = [fit(image, width=64, height=64, focus_x=x)[0][0, 32, 32, 0].item() for x in (0.0, 0.1, 0.5, 0.7, 1.0)]
    # A square crop of a 4:1 picture shows a quarter of it: its middle lies between 1/8 and 7/8.
    np.testing.assert_allclose(red, [0.125, 0.125, 0.5, 0.7, 0.875], atol=0.01)
    tall = fit(ramp(100, 400), width=64, height=64, focus_y=0.3)[0]
    assert tall[0, 32, 32, 1].item() == pytest.approx(0.3, abs=0.01)


def test_unfit_gives_back_the_padded_picture(fit, call):
    image = ramp(400, 100)
    fitted, _, _, content = fit(image, mode="pad", width=256, height=256, background="#ff0000")
    assert torch.equal(fitted[0, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    frames = call("StableVideoImageUnfit", images=fitted.expand(5, -1, -1, -1), content=content)
    assert frames.shape == (5, 64, 256, 3)
    expected = fit_image(image[0].numpy(), 256, 64, "stretch").image
    np.testing.assert_array_equal(frames[3].numpy(), expected)


def test_unfit_still_finds_the_picture_after_an_upscaler(fit, call):
    fitted, _, _, content = fit(ramp(400, 100), mode="pad", width=256, height=256)
    upscaled = torch.nn.functional.interpolate(fitted.movedim(-1, 1), scale_factor=3).movedim(1, -1)
    small = call("StableVideoImageUnfit", images=fitted, content=content)
    large = call("StableVideoImageUnfit", images=upscaled, content=content)
    assert torch.equal(large[:, ::3, ::3], small)


def test_the_content_box_serves_comfyuis_own_crop(fit, call):
    import importlib

    crop = importlib.import_module("comfy_extras.nodes_images").ImageCropV2
    fitted, _, _, content = fit(ramp(100, 400), mode="blurred pad", width=128, height=128)
    left, top = content["x"], content["y"]
    native = fitted[:, top : top + content["height"], left : left + content["width"]]
    assert torch.equal(call("StableVideoImageUnfit", images=fitted, content=content), native)
    assert set(content) >= {"x", "y", "width", "height"}
    assert "crop_region" in {each.id for each in crop.define_schema().inputs}


def test_a_box_of_another_picture_is_refused(call, input_error):
    box = {"x": 10, "y": 0, "width": 100, "height": 64}
    with pytest.raises(input_error, match=r"from 10,0 to 110,64 does not lie in frames of 64x64: connect"):
        call("StableVideoImageUnfit", images=torch.zeros(1, 64, 64, 3), content=box)


def test_a_blurred_background_has_the_pictures_light_and_none_of_its_detail(fit):
    stripes = (torch.arange(400) % 4 < 2).float()[None, None, :, None].expand(1, 100, 400, 3) * 0.6
    fitted = fit(stripes, mode="blurred pad", width=256, height=256)[0][0]
    bars, middle = fitted[:90], fitted[100:156]
    assert bars.mean().item() == pytest.approx(0.3, abs=0.03)
    assert bars.std() < 0.05 < middle.std()
    assert fitted.isfinite().all()
    assert 0 <= fitted.min() <= fitted.max() <= 1


def test_transparency_shows_the_background(fit):
    image = torch.zeros(1, 64, 64, 4)
    image[..., 32:, 3] = 1
    fitted = fit(image, width=64, height=64, background="#0000ff")[0][0]
    assert torch.equal(fitted[0, 0], torch.tensor([0.0, 0.0, 1.0]))
    assert torch.equal(fitted[0, 63], torch.zeros(3))


def test_a_batch_is_fitted_picture_by_picture(fit, pictures):
    both = fit(pictures, width=64, height=64, focus_x=0.2)[0]
    alone = [fit(one[None], width=64, height=64, focus_x=0.2)[0] for one in pictures]
    assert torch.equal(both, torch.cat(alone))


def test_the_given_picture_is_left_as_it_was(fit, pictures):
    before = pictures.clone()
    for mode in ("crop", "pad", "blurred pad", "stretch"):
        fit(pictures, mode=mode, width=192, height=64)
    assert torch.equal(pictures, before)


def test_overshoot_of_other_nodes_is_clipped(fit):
    image = torch.full((1, 64, 64, 3), 1.02)
    assert fit(image, width=64, height=64)[0].max() == 1


def test_eight_thousand_pixels_are_fine(fit):
    image, width, height, _ = fit(torch.zeros(1, 1, 1, 3).expand(1, 2160, 8192, 3))
    assert image.shape == (1, height, width, 3)


def test_what_is_no_picture_is_refused(fit, input_error):
    with pytest.raises(input_error, match="image is 1x1: needed at least 16 pixels a side"):
        fit(torch.zeros(1, 1, 1, 3))
    with pytest.raises(input_error, match="NaN"):
        fit(torch.full((1, 64, 64, 3), torch.nan))
    with pytest.raises(input_error, match="colour 'sky' is not known: write it as #rrggbb"):
        fit(torch.zeros(1, 64, 64, 3), background="sky")
    with pytest.raises(input_error, match="above 8192 pixels a side: give both width and height"):
        fit(ramp(16, 640), width=1024)


def test_the_node_says_what_it_did(fit, shown):
    for focus in (0.5, 0.1):  # it loses as much wherever the focus is
        fit(ramp(400, 100), on_page=True, width=64, height=64, focus_x=focus)
        assert shown.pop() == "400x100 cropped to 64x64, 75 % of the width lost"
