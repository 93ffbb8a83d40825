"""The nearest of many images, a part of them at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklearn_msf._evaluation import nearest_images
from sklearn_msf._evaluation.nearest_images import NearestImages, find_nearest, without_duplicates
from sklearn_msf.generation_metrics import copying_check, kernel_distance

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
OTHERS = np.random.default_rng(1).integers(0, 256, (13, 30), dtype=np.uint8)


def true_distances(images, others):
    return np.linalg.norm(images[:, None].astype(float) - others, axis=2)


@pytest.fixture(params=[(1000, 2**22), (7, 2**22), (1000, 40), (7, 90)])
def parts(monkeypatch, request):
    """Few images and few values at once."""
    monkeypatch.setattr(nearest_images, "_IMAGES_AT_ONCE", request.param[0])
    monkeypatch.setattr(nearest_images, "_VALUES_AT_ONCE", request.param[1])


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("n_neighbors", [1, 2, 3, 8])
def test_parts_have_the_neighbours_of_the_whole(n_neighbors):
    distances, indices = find_nearest(IMAGES, OTHERS, n_neighbors)
    expected = true_distances(OTHERS, IMAGES)
    np.testing.assert_array_equal(indices, expected.argsort(axis=1)[:, :n_neighbors])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :n_neighbors])


@pytest.mark.usefixtures("parts")
def test_of_equally_near_images_the_first_is_found():
    searched = np.repeat(np.array([[9], [5], [1]], dtype=np.uint8), 10, axis=0)
    distances, indices = find_nearest(searched, np.array([[3]], dtype=np.uint8), 3)
    assert distances.tolist() == [[2, 2, 2]]
    assert indices.tolist() == [[10, 11, 12]]


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.5]), min_size=1, max_size=30))
def test_of_equal_images_the_first_is_kept_and_their_order_too(values):
    images = np.repeat(np.array(values)[:, None], 3, axis=1)
    kept = without_duplicates(images)
    np.testing.assert_array_equal(kept[:, 0], list(dict.fromkeys(values)))


def test_images_without_duplicates_are_not_copied():
    assert without_duplicates(IMAGES) is IMAGES
    assert NearestImages(IMAGES).different is IMAGES


def test_the_index_of_the_nearest_image_is_that_of_the_first_of_its_duplicates():
    distances, ratios, indices = NearestImages(np.repeat(IMAGES, 2, axis=0))(IMAGES[[7, 3]])
    assert indices.tolist() == [14, 6]
    np.testing.assert_allclose(distances, 0, atol=1e-4)
    np.testing.assert_allclose(ratios, 0, atol=1e-6)


@pytest.mark.parametrize("at_most", [2000, 40, 39, 4])
def test_how_far_training_images_are_apart_is_known_from_some_of_many(monkeypatch, at_most):
    monkeypatch.setattr(nearest_images, "_MAX_IMAGES_APART", at_most)
    distances = true_distances(IMAGES, IMAGES)
    np.fill_diagonal(distances, np.inf)
    apart = NearestImages(IMAGES).distances_apart()
    all_apart = distances.min(axis=1)
    if at_most >= 40:
        np.testing.assert_allclose(apart, all_apart)
    else:
        assert len(apart) == at_most
        np.testing.assert_allclose(np.abs(apart[:, None] - all_apart).min(axis=1), 0, atol=1e-6)


def test_copies_are_counted_alike_whatever_is_converted_at_once(monkeypatch):
    def check():
        return copying_check(
            np.concatenate([OTHERS, IMAGES[:5, ::-1]]).reshape(-1, 5, 6),
            IMAGES.reshape(-1, 5, 6),
            OTHERS[::-1].reshape(-1, 5, 6),
            flipped_axes=(1, 2),
        )

    whole = vars(check())
    assert 0 < whole["duplicates_of_training"] < 1
    monkeypatch.setattr(nearest_images, "_IMAGES_AT_ONCE", 7)
    monkeypatch.setattr(nearest_images, "_VALUES_AT_ONCE", 90)
    for name, value in vars(check()).items():
        np.testing.assert_allclose(value, whole[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("at_once", [1, 7, 40])
def test_the_kernel_distance_does_not_depend_on_how_much_of_the_kernel_is_held(
    monkeypatch, at_once
):
    real, generated = IMAGES / 255, OTHERS / 200
    whole = kernel_distance(real, generated, n_blocks=4)
    monkeypatch.setattr("sklearn_msf.generation_metrics._ROWS_AT_ONCE", at_once)
    parts = kernel_distance(real, generated, n_blocks=4)
    assert parts.value == pytest.approx(whole.value)
    assert parts.standard_error == pytest.approx(whole.standard_error)
