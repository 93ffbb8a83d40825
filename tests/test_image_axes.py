"""Images whose axes are not (n, height, width) or (n, height, width, channels) are refused.

With ``n_spatial_dims=3`` volumes (n, depth, height, width) and (n, depth, height, width, channels)
take their place.
"""

import copy
import re

import numpy as np
import pytest
import torch
from conftest import tiny_classifier, tiny_latent_classifier

from sklearn_msf import LatentMedSymmFlowClassifier

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)
FIRST = np.ascontiguousarray(RGB.transpose(0, 3, 1, 2))
GRAY = RGB[..., 0]
Y = np.array([0, 1] * 3)


@pytest.fixture(scope="module")
def on_rgb():
    return tiny_classifier(max_epochs=1).fit(RGB, Y)


@pytest.fixture(scope="module")
def on_gray():
    return tiny_classifier(max_epochs=1).fit(GRAY, Y)


@pytest.mark.parametrize(
    ("form", "remedy"),
    [
        (lambda X: X, "X.transpose(0, 2, 3, 1)"),
        (torch.from_numpy, "X.permute(0, 2, 3, 1)"),
        (list, "np.stack(X).transpose(0, 2, 3, 1)"),
        (lambda X: list(torch.from_numpy(X)), "torch.stack(X).permute(0, 2, 3, 1)"),
    ],
    ids=["array", "tensor", "list of arrays", "list of tensors"],
)
@pytest.mark.parametrize("n_channels", [1, 3])
def test_channels_first_are_refused_with_the_transpose_written_out(
    form, remedy, n_channels, make_classifier
):
    X = form(FIRST[:, :n_channels])
    axes = (
        rf"X has the shape \(6, {n_channels}, 8, 9\), which looks like \(n, channels, height, "
        r"width\); images are \(n, height, width, channels\): pass "
    )
    with pytest.raises(ValueError, match=axes + re.escape(remedy)):
        make_classifier().fit(X, Y)
    with pytest.raises(ValueError, match=axes + re.escape(remedy)):
        make_classifier().partial_fit(X, Y, classes=[0, 1])
    # What the message says gives the images.
    expected = RGB[..., :n_channels]
    written = eval(remedy, {"X": X, "np": np, "torch": torch})
    np.testing.assert_array_equal(np.asarray(written), expected)


FOR_VOLUMES = "for volumes fit MedSymmFlowClassifier with n_spatial_dims=3"


def test_volumes_that_are_not_declared_are_refused(make_classifier):
    with pytest.raises(
        ValueError,
        match=r"\(6, 20, 8, 9\), which looks like volumes \(n, depth, height, width\), but images "
        rf"are .*: {FOR_VOLUMES}. To classify slices, pass X.reshape\(-1, 8, 9\) with a label "
        r"for each",
    ):
        make_classifier().fit(np.zeros((6, 20, 8, 9)), Y)
    with pytest.raises(ValueError, match=f"with 5 dimensions, but images are .*: {FOR_VOLUMES}"):
        make_classifier().fit(np.zeros((6, 20, 8, 9, 1)), Y)
    with pytest.raises(ValueError, match=f"with 6 dimensions, but images are .*: {FOR_VOLUMES}"):
        make_classifier().fit(np.zeros((6, 2, 2, 2, 2, 2)), Y)


def test_volumes_are_refused_after_a_fit_on_images(on_gray):
    with pytest.raises(ValueError, match=r"shape \(20, 8, 9\).*fitted on images of shape \(8, 9\)"):
        on_gray.predict(np.zeros((6, 20, 8, 9), dtype=np.uint8))
    with pytest.raises(ValueError, match=f"with 5 dimensions, but images are .*: {FOR_VOLUMES}"):
        on_gray.predict(np.zeros((6, 20, 8, 9, 1), dtype=np.uint8))


def test_undeclared_arrays_with_many_channels_stay_images():
    X = np.random.default_rng(0).random((6, 9, 9, 9))
    classifier = tiny_classifier(max_epochs=1, image_shape=(9, 9, 9)).fit(X, Y)
    assert classifier.model_.image_format.n_channels == 9
    assert classifier.model_.image_format.size == (9, 9)


VOLUMES = np.random.default_rng(1).integers(0, 256, (6, 5, 6, 7, 2), dtype=np.uint8)
CHANNELS_FIRST = np.ascontiguousarray(VOLUMES.transpose(0, 4, 1, 2, 3))


def tiny_3d(**overrides):
    return tiny_classifier(**{"max_epochs": 1, "n_spatial_dims": 3, **overrides})


@pytest.fixture(scope="module")
def on_volumes():
    return tiny_3d().fit(VOLUMES, Y)


def test_images_are_refused_where_volumes_are_declared(on_volumes):
    for_images = "for images fit with n_spatial_dims=2"
    with pytest.raises(
        ValueError,
        match=r"\(6, 8, 9\) with 3 dimensions, but volumes are \(n, depth, height, width\) or "
        rf"\(n, depth, height, width, channels\): of a single volume pass X\[None\]; {for_images}",
    ):
        tiny_3d().fit(GRAY, Y)
    with pytest.raises(
        ValueError,
        match=r"\(6, 8, 9, 3\), which looks like images \(n, height, width, channels\), but "
        rf"n_spatial_dims=3 declares volumes: {for_images}. If its volumes really have a width of "
        r"3, set image_shape=\(8, 9, 3\)",
    ):
        tiny_3d().fit(RGB, Y)
    with pytest.raises(ValueError, match=for_images):
        on_volumes.predict(GRAY)
    with pytest.raises(ValueError, match="with 6 dimensions, but volumes are"):
        tiny_3d().fit(VOLUMES[..., None], Y)


def test_volumes_of_little_width_need_image_shape():
    assert tiny_3d(image_shape=(8, 9, 3)).fit(RGB, Y).image_shape_ == (8, 9, 3)


@pytest.mark.parametrize(
    ("form", "remedy"),
    [(lambda X: X, "X.transpose(0, 2, 3, 4, 1)"), (torch.from_numpy, "X.permute(0, 2, 3, 4, 1)")],
    ids=["array", "tensor"],
)
def test_volumes_with_channels_first_have_the_transpose_written_out(form, remedy, on_volumes):
    X = form(CHANNELS_FIRST)
    with pytest.raises(
        ValueError,
        match=r"looks like \(n, channels, depth, height, width\); volumes are \(n, depth, height, "
        rf"width, channels\): pass {re.escape(remedy)}",
    ):
        tiny_3d().fit(X, Y)
    with pytest.raises(ValueError, match=f"is .*channels, depth.*: pass {re.escape(remedy)}"):
        on_volumes.predict(X)
    written = eval(remedy, {"X": X})
    np.testing.assert_array_equal(np.asarray(written), VOLUMES)


def test_many_channels_of_volumes_need_image_shape():
    X = np.random.default_rng(0).random((6, 5, 6, 7, 9))
    with pytest.raises(
        ValueError,
        match=r"last axis is longer than channels usually are. If the volumes have 9 channels, set "
        r"image_shape=\(5, 6, 7, 9\); if they have 5 channels, pass X.transpose\(0, 2, 3, 4, 1\) "
        r"and set image_shape=\(6, 7, 9, 5\)",
    ):
        tiny_3d().fit(X, Y)
    assert tiny_3d(image_shape=X.shape[1:]).fit(X, Y).model_.image_format.n_channels == 9


def test_a_single_volume_needs_an_axis_for_the_volumes(on_volumes):
    with pytest.raises(ValueError, match=r"is a single volume: pass X\[None\]"):
        on_volumes.predict(VOLUMES[0])
    with pytest.raises(ValueError, match=r"pass X.transpose\(1, 2, 3, 0\)\[None\]"):
        on_volumes.predict(CHANNELS_FIRST[0])
    with pytest.raises(ValueError, match=r"is 5 volumes, but y has one label; of a single volume"):
        tiny_3d().fit(VOLUMES[0], [1])


def test_another_depth_is_named(on_volumes):
    with pytest.raises(
        ValueError,
        match=r"X has volumes of shape \(4, 6, 7, 2\), but MedSymmFlowClassifier was fitted on "
        r"volumes of shape \(5, 6, 7, 2\): pass volumes of that shape, resized if need be \(depth "
        r"4, not 5\)",
    ):
        on_volumes.predict(VOLUMES[:, :4])
    with pytest.raises(ValueError, match=r"depth 4, not 5, width 6, not 7"):
        on_volumes.predict_proba(VOLUMES[:, :4, :, :6])
    with pytest.raises(ValueError, match=r"depth 4, not 5"):
        on_volumes.partial_fit(VOLUMES[:, :4], Y)


@pytest.mark.parametrize(
    ("n_spatial_dims", "image_shape", "expected"),
    [
        (
            2,
            (4, 8, 9, 1),
            rf"\(height, width\) or \(height, width, channels\), or None \({FOR_VOLUMES}\)",
        ),
        (3, (8, 9), r"\(depth, height, width\) or \(depth, height, width, channels\), or None"),
        (
            3,
            (2, 4, 8, 9, 1),
            r"\(depth, height, width\) or .* \(for images fit with n_spatial_dims=2",
        ),
    ],
)
def test_image_shape_has_the_axes_that_are_declared(n_spatial_dims, image_shape, expected):
    with pytest.raises(ValueError, match=f"image_shape must be {expected}"):
        tiny_3d(n_spatial_dims=n_spatial_dims, image_shape=image_shape).fit(GRAY, Y)


@pytest.mark.parametrize("value", [1, 4, 2.0, "3", True, None])
def test_the_number_of_spatial_axes_is_2_or_3(value):
    with pytest.raises(ValueError, match=f"n_spatial_dims must be one of 2, 3, got {value!r}"):
        tiny_3d(n_spatial_dims=value).fit(GRAY, Y)


def test_a_fit_that_goes_on_keeps_the_number_of_spatial_axes():
    X = VOLUMES[..., 0]
    classifier = tiny_3d(warm_start=True, image_shape=(5, 6, 7)).fit(X.reshape(6, -1), Y)
    classifier.set_params(n_spatial_dims=2, image_shape=(30, 7))
    with pytest.raises(ValueError, match="cannot go on with another n_spatial_dims"):
        classifier.fit(X.reshape(6, -1), Y)


def test_the_latent_class_has_images_alone():
    with pytest.raises(TypeError, match="n_spatial_dims"):
        LatentMedSymmFlowClassifier(n_spatial_dims=3)
    with pytest.raises(ValueError, match=f"image_shape must be .*{FOR_VOLUMES}"):
        tiny_latent_classifier(image_shape=(4, 8, 9, 1)).fit(GRAY, Y)


@pytest.mark.parametrize("shape", [(5, 6, 5), (3, 8, 9), (1, 1, 5)])
def test_more_than_four_channels_need_image_shape(shape):
    X = np.random.default_rng(0).random((6, *shape))
    with pytest.raises(ValueError, match=re.escape(f"set image_shape={shape}")):
        tiny_classifier(max_epochs=1).fit(X, Y)
    classifier = tiny_classifier(max_epochs=1, image_shape=shape).fit(X, Y)
    assert classifier.image_shape_ == shape
    assert classifier.predict_proba(X).shape == (6, 2)


@pytest.mark.parametrize("shape", [(3, 5, 2), (3, 3, 3), (1, 1, 4), (1, 8, 1), (8, 8, 4), (3, 9)])
def test_small_images_of_up_to_four_channels_stay_what_they_were(shape):
    X = np.random.default_rng(0).random((6, *shape))
    assert tiny_classifier(max_epochs=1).fit(X, Y).image_shape_ == shape


@pytest.mark.parametrize(
    ("X", "image_shape"), [(FIRST, (8, 9, 3)), (FIRST[:, :1], (8, 9)), (FIRST[:, :1], (8, 9, 1))]
)
def test_channels_first_that_contradict_image_shape_have_the_transpose_written_out(X, image_shape):
    with pytest.raises(
        ValueError,
        match=rf"image_shape={re.escape(str(image_shape))}; .*\(n, channels, height, width\): "
        r"pass X.transpose\(0, 2, 3, 1\)",
    ):
        tiny_classifier(image_shape=image_shape).fit(X, Y)


CALLS = {
    "predict": lambda c, X: c.predict(X),
    "predict_proba": lambda c, X: c.predict_proba(X),
    "predict_uncertainty": lambda c, X: c.predict_uncertainty(X),
    "predict_with_reject": lambda c, X: c.predict_with_reject(X),
    "fit_reject": lambda c, X: c.fit_reject(X, Y),
    "score_samples": lambda c, X: c.score_samples(X),
    "reconstruct": lambda c, X: c.reconstruct(X),
    "counterfactual": lambda c, X: c.counterfactual(X, 0),
    "partial_fit": lambda c, X: c.partial_fit(X, Y),
    "fit that goes on": lambda c, X: c.set_params(warm_start=True).fit(X, Y),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_method_of_a_fitted_model_writes_the_transpose_out(on_rgb, call):
    with pytest.raises(
        ValueError,
        match=r"images of shape \(3, 8, 9\), but MedSymmFlowClassifier was fitted on images of "
        r"shape \(8, 9, 3\): .* pass X.transpose\(0, 2, 3, 1\)",
    ):
        CALLS[call](copy.copy(on_rgb), FIRST)


@pytest.mark.parametrize(
    ("form", "remedy"),
    [
        (np.asarray, "X[None]"),
        (torch.from_numpy, "X[None]"),
        (lambda image: image.tolist(), "np.stack(X)[None]"),
    ],
    ids=["array", "tensor", "lists"],
)
def test_one_image_needs_an_axis_for_the_images_in_predict(on_rgb, on_gray, form, remedy):
    for model, image in ((on_rgb, RGB[0]), (on_gray, GRAY[0].copy())):
        X = form(image)
        with pytest.raises(ValueError, match=f"is a single image: pass {re.escape(remedy)}[.]"):
            model.predict(X)
        written = eval(remedy, {"X": X, "np": np})
        np.testing.assert_array_equal(np.asarray(written), image[None])


def test_one_image_with_its_channels_first_is_turned_and_gets_the_axis(on_rgb):
    with pytest.raises(ValueError, match=re.escape("pass X.transpose(1, 2, 0)[None]")):
        on_rgb.predict(FIRST[0])
    with pytest.raises(ValueError, match=re.escape("pass X.permute(1, 2, 0)[None]")):
        on_rgb.predict(torch.from_numpy(FIRST[0]))


@pytest.mark.parametrize("y", [[1], 1, np.array([1])])
@pytest.mark.parametrize("image", [RGB[0], GRAY[0]])
def test_one_image_needs_an_axis_for_the_images_in_fit(image, y, make_classifier):
    with pytest.raises(ValueError, match=r"y has one label; of a single image pass X\[None\]"):
        make_classifier().fit(image, y)
    with pytest.raises(ValueError, match=r"y has one label; of a single image pass X\[None\]"):
        make_classifier().partial_fit(image, y, classes=[0, 1])


@pytest.mark.parametrize("image", [RGB[0], GRAY[0]])
def test_one_image_of_image_shape_needs_an_axis_for_the_images(image):
    with pytest.raises(ValueError, match=r"is a single image: pass X\[None\]"):
        tiny_classifier(image_shape=image.shape).fit(image, [0, 1] * 4)


def test_rows_of_one_line_are_rows_and_no_single_image():
    rows = np.random.default_rng(0).random((6, 8))
    classifier = tiny_classifier(max_epochs=1).fit(rows, Y)
    assert classifier.image_shape_ == (1, 8)
    assert classifier.predict(rows[:1]).shape == (1,)


def test_one_image_with_its_axis_is_a_part_to_learn_from():
    classifier = tiny_classifier().partial_fit(GRAY, Y, classes=[0, 1])
    assert classifier.partial_fit(GRAY[:1], [1]).n_iter_ == 2


def test_a_latent_model_writes_the_transpose_out_in_predict():
    classifier = tiny_latent_classifier(max_epochs=1).fit(RGB, Y)
    with pytest.raises(ValueError, match=r"pass X.transpose\(0, 2, 3, 1\)"):
        classifier.predict(FIRST)
