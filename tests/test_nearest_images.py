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


# 40 images in 40, 20, 6 and 1 parts; the last of 6 has 5 images.
@pytest.mark.parametrize("values_at_once", [1, 60, 210, 2**24])
@pytest.mark.parametrize("n_neighbors", [1, 2, 3])
def test_parts_have_the_neighbours_of_the_whole(monkeypatch, values_at_once, n_neighbors):
    monkeypatch.setattr(nearest_images, "_VALUES_AT_ONCE", values_at_once)
    distances, indices = find_nearest(IMAGES, OTHERS, n_neighbors)
    expected = true_distances(OTHERS, IMAGES)
    np.testing.assert_array_equal(indices, expected.argsort(axis=1)[:, :n_neighbors])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :n_neighbors])


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


@pytest.mark.parametrize(("at_most", "step"), [(2000, 1), (40, 1), (30, 2), (4, 10)])
def test_how_far_training_images_are_apart_is_known_from_some_of_many(monkeypatch, at_most, step):
    monkeypatch.setattr(nearest_images, "_MAX_IMAGES_APART", at_most)
    distances = true_distances(IMAGES, IMAGES)
    np.fill_diagonal(distances, np.inf)
    expected = distances.min(axis=1)[::step]
    np.testing.assert_allclose(NearestImages(IMAGES).distances_apart(), expected)


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
    monkeypatch.setattr(nearest_images, "_VALUES_AT_ONCE", 90)
    for name, value in vars(check()).items():
        np.testing.assert_allclose(value, whole[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("at_once", [1, 7, 40])
def test_the_kernel_distance_does_not_depend_on_how_much_of_the_kernel_is_held(
    monkeypatch, at_once
):
    real, generated = IMAGES / 255, OTHERS / 200
    whole = kernel_distance(real, generated, n_blocks=4)
    monkeypatch.setattr("sklearn_msf.generation_metrics._KERNEL_ROWS", at_once)
    parts = kernel_distance(real, generated, n_blocks=4)
    assert parts.value == pytest.approx(whole.value)
    assert parts.standard_error == pytest.approx(whole.standard_error)
