"""Lists and object arrays of images become one array, or an error says why not."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_classifier
from PIL import Image

from sklearn_msf.data.images import flatten_images
from sklearn_msf.data.on_demand import RowsOnDemand
from sklearn_msf.data.stacking import stack_images

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)
Y = np.array([0, 1] * 3)


@pytest.fixture(scope="module")
def on_rgb():
    return tiny_classifier(max_epochs=1).fit(RGB, Y)


def objects(images):
    array = np.empty(len(images), dtype=object)
    array[:] = images
    return array


def test_masked_values_are_not_taken_for_data():
    masked = np.ma.MaskedArray(RGB, RGB > 250)
    for X, name in ((masked, "X"), (list(masked), "image 0 of X")):
        with pytest.raises(ValueError, match=f"^{name} is a masked array with [0-9]+ masked"):
            flatten_images(X)
    rows, *_ = flatten_images(np.ma.MaskedArray(RGB))
    assert np.array_equal(rows, RGB.reshape(6, -1))


def test_a_dtype_that_numpy_lacks_is_named():
    X = torch.zeros(3, 4, 4, dtype=torch.bfloat16)
    for images in (X, list(X)):
        with pytest.raises(ValueError, match=r"X is a tensor of bfloat16.*pass X.float\(\)"):
            flatten_images(images)


FORMS = {
    "list": list,
    "tuple": tuple,
    "tensors": lambda X: list(torch.from_numpy(X)),
    "objects": lambda X: objects(list(X)),
    "column": lambda X: pd.Series(list(X)),
    "pillow": lambda X: [Image.fromarray(image) for image in X],
    "pillow objects": lambda X: objects([Image.fromarray(image) for image in X]),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_in_a_list_are_those_in_an_array(form):
    stacked = stack_images(FORMS[form](RGB))
    assert stacked.dtype == np.uint8
    np.testing.assert_array_equal(stacked, RGB)
    flat = flatten_images(FORMS[form](RGB))
    assert flat.shape == (8, 9, 3)
    np.testing.assert_array_equal(RowsOnDemand(*flat)[:], RGB.reshape(6, -1))


@pytest.mark.parametrize("form", [form for form in FORMS if "pillow" not in form])
@pytest.mark.parametrize("order", ["channels first", "Fortran"])
def test_images_in_a_list_may_lie_in_memory_in_any_order(form, order, on_rgb):
    if order == "Fortran":
        images = [np.asfortranarray(image) for image in RGB]
    else:
        images = list(np.ascontiguousarray(RGB.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1))
    in_form = {
        "list": images,
        "tuple": tuple(images),
        "tensors": [torch.from_numpy(image) for image in images],
        "objects": objects(images),
        "column": pd.Series(images),
    }[form]
    np.testing.assert_array_equal(stack_images(in_form), RGB)
    np.testing.assert_array_equal(RowsOnDemand(*flatten_images(in_form))[:], RGB.reshape(6, -1))
    np.testing.assert_array_equal(on_rgb.predict_proba(in_form), on_rgb.predict_proba(RGB))


def test_a_model_takes_a_list_and_an_object_array(on_rgb):
    classifier = tiny_classifier(max_epochs=1).fit(objects(list(RGB)), Y)
    expected = on_rgb.predict_proba(RGB)
    np.testing.assert_array_equal(classifier.predict_proba(list(RGB)), expected)


@pytest.mark.parametrize(
    ("first", "second"),
    [(np.uint8, np.uint16), (np.float64, np.uint8), (np.int16, np.uint16), (bool, np.uint8)],
)
@pytest.mark.parametrize("container", [list, objects])
def test_images_of_several_dtypes_are_refused_and_both_named(
    first, second, container, make_classifier, on_rgb
):
    images = container([*RGB[:5].astype(first), RGB[5].astype(second)])
    names = f"got {np.dtype(first)} and {np.dtype(second)}: bring all images to one range"
    with pytest.raises(ValueError, match=names):
        make_classifier().fit(images, Y)
    with pytest.raises(ValueError, match=names):
        make_classifier().partial_fit(images, Y, classes=[0, 1])
    with pytest.raises(ValueError, match=names):
        on_rgb.predict(images)


def test_rows_of_several_dtypes_are_refused():
    with pytest.raises(ValueError, match="got uint8 and uint16"):
        stack_images([np.arange(4, dtype=np.uint8), np.arange(4, dtype=np.uint16)])


def test_floats_of_several_widths_and_numbers_of_python_are_one_dtype():
    assert stack_images([np.float32([[0.5]]), np.float64([[0.25]])]).tolist() == [[[0.5]], [[0.25]]]
    assert stack_images([[1, 2], [0.5, 1]]).tolist() == [[1, 2], [0.5, 1]]


def test_images_of_several_shapes_are_refused_and_two_named():
    with pytest.raises(
        ValueError,
        match=r"one size, got \(8, 9, 3\) for image 0 and \(7, 9, 3\) for image 2",
    ):
        stack_images(objects([RGB[0], RGB[1], RGB[2, :7]]))
    with pytest.raises(ValueError, match=r"\(8, 9, 3\) for image 0 and \(8, 9\) for image 1"):
        stack_images([RGB[0], RGB[1, ..., 0]])
    with pytest.raises(ValueError, match=r"\(8, 9, 3\) for image 0 and \(\) for image 1"):
        stack_images([RGB[0], None])
    with pytest.raises(ValueError, match=r"\(2,\) for image 0 and \(1,\) for image 1"):
        stack_images([[1, 2], [3]])


def test_an_image_of_ragged_rows_is_named():
    with pytest.raises(ValueError, match="image 1 of X is not a rectangle"):
        stack_images([[[1, 2], [3, 4]], [[1, 2], [3]]])


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_indices_into_a_palette_are_not_taken_for_gray(mode):
    images = [Image.fromarray(image).convert("P").convert(mode) for image in RGB]
    with pytest.raises(
        ValueError, match=re.escape(f"mode {mode!r}, whose values are indices into")
    ):
        stack_images(images)
    with pytest.raises(ValueError, match=re.escape("pass image.convert('RGB')")):
        stack_images(images[0])


def test_one_image_of_pillow_needs_an_axis_for_the_images(on_rgb):
    with pytest.raises(ValueError, match=re.escape("is a single image: pass np.asarray(X)[None]")):
        on_rgb.predict(Image.fromarray(RGB[0]))


def test_images_of_floats_on_two_scales_are_warned_of():
    images = [*RGB[:4].astype(float), *(RGB[4:] / 255)]
    warns = pytest.warns(UserWarning, match=r"2 of 6 images of X are in \[0, 1\], first image 4")
    with warns:
        tiny_classifier(max_epochs=1).fit(images, Y)
    fitted = tiny_classifier(max_epochs=1).fit(RGB.astype(float), Y)
    with warns:
        fitted.predict(images)


def test_dates_are_no_images(make_classifier):
    with pytest.raises(ValueError, match=r"X must hold numbers, got datetime64\[ns\]"):
        make_classifier().fit(RGB.astype("datetime64[ns]"), Y)


@pytest.mark.parametrize("kind", ["frame", "column"])
def test_a_table_of_one_column_of_images_is_a_list_of_them(kind):
    images = np.random.default_rng(0).random((6, 8, 8))
    column = np.empty((6, 1), dtype=object)
    for i, image in enumerate(images):
        column[i, 0] = image
    X = pd.DataFrame(column) if kind == "frame" else column
    np.testing.assert_array_equal(stack_images(X), images)


def test_signed_integers_of_several_widths_mean_the_same():
    images = [np.full((4, 4), value, dtype) for value, dtype in ((5, np.int16), (-7, np.int32))]
    np.testing.assert_array_equal(stack_images(images)[:, 0, 0], [5, -7])
