import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sklearn_msf.data.images import check_finite, flatten_images, learn_format

IMAGES = arrays(np.uint8, (3, 2, 4, 3))


def as_tensor(fmt, rows):
    return fmt.normalise(torch.from_numpy(fmt.to_numpy_images(rows)))


# Whether the values look like images is not the question here: any numbers must survive.
@pytest.mark.filterwarnings("ignore::UserWarning")
@given(IMAGES)
def test_bytes_survive_the_way_there_and_back(X):
    rows, shape, _ = flatten_images(X)
    fmt = learn_format(rows, shape, flat=False)
    tensor = as_tensor(fmt, rows)
    assert tensor.shape == (3, 3, 2, 4)
    assert -1 <= tensor.min() <= tensor.max() <= 1
    np.testing.assert_array_equal(fmt.from_tensor(tensor), X)


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(
    arrays(np.float64, (3, 8), elements=st.floats(-1e6, 1e6)),
    st.sampled_from([np.float32, np.float64, np.int16]),
)
def test_other_numbers_survive_to_float32_precision(values, dtype):
    rows = np.clip(values, -3e4, 3e4).astype(dtype)
    fmt = learn_format(rows, (2, 4), flat=True)
    back = fmt.from_tensor(as_tensor(fmt, rows))
    assert back.dtype == rows.dtype
    assert back.shape == rows.shape
    tolerance = 1e-6 * max(1.0, fmt.high - fmt.low, abs(fmt.high), abs(fmt.low))
    np.testing.assert_allclose(back, rows, atol=tolerance + (dtype == np.int16), rtol=0)


@pytest.mark.parametrize(
    ("rows", "low", "high"),
    [
        (np.array([[3, 7]], dtype=np.uint8), 0, 255),
        (np.array([[0.2, 0.7]]), 0, 1),
        (np.array([[-0.2, 0.7]]), -0.2, 0.7),
        (np.array([[0, 16]]), 0, 16),
    ],
)
def test_the_range_follows_the_documented_rule(rows, low, high):
    fmt = learn_format(rows, (1, 2), flat=True)
    assert (fmt.low, fmt.high) == (low, high)


def test_layouts_are_told_by_their_dimensions():
    assert flatten_images(np.zeros((5, 4, 3)))[1] == (4, 3)
    assert flatten_images(np.zeros((5, 4, 3, 2)))[1] == (4, 3, 2)
    assert flatten_images(np.zeros((5, 4)))[1] is None
    assert flatten_images([[[1, 2], [3, 4]]])[1] == (2, 2)


def test_generated_values_stay_in_the_training_range():
    fmt = learn_format(np.array([[0, 255]], dtype=np.uint8), (1, 2), flat=False)
    generated = fmt.from_tensor(torch.tensor([[[[-1.7, 1.4]]]]))
    np.testing.assert_array_equal(generated, [[[0, 255]]])


def test_huge_values_do_not_overflow():
    fmt = learn_format(np.array([[0.0, 10.0]]), (1, 2), flat=True)
    assert torch.isfinite(as_tensor(fmt, np.array([[1e300, -1e300]]))).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_not_finite_are_counted_and_the_first_image_named(value, dtype):
    rows = np.zeros((5, 4), dtype=dtype)
    rows[2, 1] = rows[4] = value
    what = "NaN" if np.isnan(value) else "infinity"
    with pytest.raises(ValueError, match=f"contains {what}: 2 of 5 images .* first image 2"):
        check_finite(rows)


def test_large_values_and_integers_are_finite():
    check_finite(np.full((3, 4), np.finfo(np.float64).max))
    check_finite(np.full((3, 4), np.iinfo(np.int64).max))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int8])
def test_images_over_the_whole_range_of_integers_are_drawn_from_its_least_to_its_greatest(dtype):
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    rows = np.array([[least, 0], [1, most]], dtype=dtype)
    fmt = learn_format(rows, (1, 2), flat=True)
    black_and_white = fmt.from_tensor(torch.tensor([[[[-1.0, 1.0]]]]))
    assert black_and_white.dtype == dtype
    assert black_and_white.tolist() == [[least, most]]
