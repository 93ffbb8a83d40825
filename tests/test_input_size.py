"""Images that are resized for the network: `input_size` of `network_params`."""

import json
import pickle

import numpy as np
import pytest
import torch
from conftest import grouped, tiny_classifier, tiny_latent_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import rewrite
from PIL import Image

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.data.resizing import resize_bilinear, resize_images
from sklearn_msf.persistence.archives import ArchiveError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (24, 9, 8, 3), dtype=np.uint8)
Y = np.arange(24) % 3
SIZE = (12, 10)


def by_pillow(images, size):
    """Resize images (n, H, W, C) channel by channel by Pillow's bilinear filter."""
    height, width = size
    resized = np.empty((len(images), height, width, images.shape[3]), np.uint8)
    for i, image in enumerate(images):
        for channel in range(images.shape[3]):
            plane = Image.fromarray(np.ascontiguousarray(image[..., channel]))
            plane = plane.resize((width, height), Image.Resampling.BILINEAR)
            resized[i, ..., channel] = np.asarray(plane)
    return resized


@pytest.fixture(scope="module")
def resizing():
    """A classifier that resizes images for its network."""
    return tiny_classifier(input_size=SIZE, augment="hflip").fit(X, Y)


# Resizing


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**31))
def test_bytes_of_any_size_are_pillows_but_for_rounding(height, width, n_channels, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, height, width, n_channels))
    images = images.astype(np.uint8)
    found = resize_bilinear(torch.from_numpy(images).permute(0, 3, 1, 2), (20, 21))
    found = found.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, by_pillow(images, (20, 21)).astype(float), atol=1)


@pytest.mark.parametrize("side", [28, 64, 128, 224])
def test_images_of_medmnist_become_pillows_32_pixels_to_the_bit(side):
    images = RNG.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    found = resize_bilinear(torch.from_numpy(images).permute(0, 3, 1, 2), (32, 32))
    np.testing.assert_array_equal(found.permute(0, 2, 3, 1).numpy(), by_pillow(images, (32, 32)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_an_image_is_resized_alike_whatever_others_there_are(dtype):
    images = torch.from_numpy(RNG.integers(0, 256, (5, 3, 28, 28))).to(dtype)
    together = resize_bilinear(images, (32, 32))
    for i in range(5):
        assert torch.equal(resize_bilinear(images[i : i + 1], (32, 32)), together[i : i + 1])


# Through the front door


def test_it_is_the_same_as_resizing_x_by_pillow_before(resizing):
    resized = by_pillow(X, SIZE)
    plain = tiny_classifier(augment="hflip").fit(resized, Y)
    np.testing.assert_array_equal(resizing.predict_proba(X), plain.predict_proba(resized))
    assert resizing.loss_curve_ == plain.loss_curve_
    kinds = ("margin", "distance", "image")
    for kind in kinds:
        found = resizing.predict_uncertainty(X, kind=kind)
        np.testing.assert_array_equal(found, plain.predict_uncertainty(resized, kind=kind))
    np.testing.assert_array_equal(resizing.score_samples(X), plain.score_samples(resized))
    # Images come back to the size of X; rounding to bytes before and after differs by a few.
    small, large = (clf.sample(n_samples=1, n_steps=3, random_state=0) for clf in (resizing, plain))
    assert small.shape == (3, *X.shape[1:])
    expected = resize_images(torch.from_numpy(large / 127.5 - 1).permute(0, 3, 1, 2), (9, 8))
    expected = 127.5 * (expected.permute(0, 2, 3, 1).numpy() + 1)
    assert np.abs(small - expected).max() <= 2


def test_all_that_generates_returns_images_of_the_size_of_x(resizing):
    images, masks, _ = resizing.sample_trajectory(0, n_steps=2, random_state=0)
    assert images.shape == (3, *X.shape[1:])
    assert masks.shape == (3, *SIZE, 3)
    assert resizing.reconstruct(X[:2], n_steps=2).shape == X[:2].shape
    assert resizing.counterfactual(X[:2], 1, n_steps=2).shape == X[:2].shape


def test_predictions_do_not_depend_on_other_images(resizing):
    together = resizing.predict_proba(X)
    np.testing.assert_array_equal(resizing.predict_proba(X[5:6]), together[5:6])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_resized_without_rounding_to_bytes(dtype):
    images = RNG.random((24, 9, 8)).astype(dtype)
    classifier = tiny_classifier(input_size=12).fit(images, Y)
    assert classifier.model_.space.shape == (1, 12, 12)
    sampled = classifier.sample(0, n_steps=2, random_state=0)
    assert (sampled.shape, sampled.dtype) == ((1, 9, 8), dtype)
    # A shift by less than a byte matters.
    shifted = (images + 1e-3).clip(0, 1).astype(dtype)
    assert not np.array_equal(classifier.predict_proba(shifted), classifier.predict_proba(images))


def test_rows_are_resized_as_images():
    rows = X.reshape(24, -1)
    classifier = tiny_classifier(input_size=SIZE, augment="hflip", image_shape=(9, 8, 3))
    p = classifier.fit(rows, Y).predict_proba(rows)
    plain = tiny_classifier(input_size=SIZE, augment="hflip").fit(X, Y)
    np.testing.assert_array_equal(p, plain.predict_proba(X))
    assert classifier.sample(0, n_steps=2).shape == (1, 9 * 8 * 3)


def test_the_size_that_images_have_changes_nothing():
    same, none = (tiny_classifier(input_size=size).fit(X, Y) for size in ((9, 8), None))
    np.testing.assert_array_equal(same.predict_proba(X), none.predict_proba(X))
    sampled = [clf.sample(0, n_steps=2, random_state=0) for clf in (same, none)]
    np.testing.assert_array_equal(*sampled)


# Continued fits


def test_a_fit_goes_on_at_the_same_size_only(resizing):
    classifier = pickle.loads(pickle.dumps(resizing)).set_params(warm_start=True)
    classifier.fit(X, Y)
    assert classifier.model_.space.shape == (3, *SIZE)
    for size in (None, 12):
        classifier.set_params(network_params={**classifier.network_params, "input_size": size})
        message = f"another input_size, {size}, than the model was fitted with"
        with pytest.raises(ValueError, match=message):
            classifier.fit(X, Y)
        with pytest.raises(ValueError, match=message):
            classifier.partial_fit(X, Y)


# Files and pickles


def test_saved_and_pickled_models_resize_too(resizing, tmp_path):
    resizing.save_pretrained(tmp_path)
    opened = MedSymmFlowClassifier.from_pretrained(tmp_path)
    copied = pickle.loads(pickle.dumps(resizing))
    assert opened.network_params == resizing.network_params
    for other in (opened, copied):
        assert other.model_.space.shape == (3, *SIZE)
        np.testing.assert_array_equal(other.predict_proba(X), resizing.predict_proba(X))
        sampled = [clf.sample(0, n_steps=2, random_state=0) for clf in (other, resizing)]
        np.testing.assert_array_equal(*sampled)


def test_models_that_resize_nothing_say_nothing_of_it(tmp_path):
    tiny_classifier().fit(X, Y).save_pretrained(tmp_path)
    assert "space" not in json.loads((tmp_path / "model.json").read_text())["metadata"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"input_size": 12}, "has input_size=12"),
        ({"input_size": [12]}, r"has input_size=\[12\]"),
        ({"input_size": [0, 12]}, r"has input_size=\[0, 12\]"),
        ({"input_size": [True, 12]}, r"has input_size=\[True, 12\]"),
        ({"input_size": ["12", 12]}, "has input_size="),
        ({"input_size": [10**9, 10**9]}, "choose a smaller input_size"),
        ({}, "open it with LatentMedSymmFlowClassifier"),
        ({"input_size": [12, 10], "encoded_size": [8, 8]}, "open it with LatentMedSymmFlow"),
        ([12, 10], "not a usable model"),
        ("12", "not a usable model"),
    ],
)
def test_a_file_with_another_description_of_the_size_is_refused(resizing, tmp_path, space, message):
    resizing.save_pretrained(tmp_path)
    metadata = json.loads((tmp_path / "model.json").read_text())["metadata"]
    rewrite(tmp_path, metadata={**metadata, "space": space})
    with pytest.raises(ArchiveError, match=message):
        MedSymmFlowClassifier.from_pretrained(tmp_path)


# Bad input


@pytest.mark.parametrize("value", [0, -1, 8.0, "32", (), (8, 8, 3), (8, 0), True])
def test_a_wrong_size_is_named(value):
    with pytest.raises(ValueError, match=r"^network_params\['input_size'\] must be .*got"):
        tiny_classifier(input_size=value).fit(X, Y)


def test_a_size_far_beyond_that_of_the_images_is_refused_before_training():
    with pytest.raises(ValueError, match=r"input_size=\(4096, 4096\).*choose a smaller"):
        tiny_classifier(input_size=4096).fit(X, Y)


def test_over_latents_the_size_is_another_parameter():
    with pytest.raises(ValueError, match="network_params has no entry 'input_size'"):
        tiny_latent_classifier(**grouped({"input_size": 32})).fit(X, Y)


def test_images_are_rotated_as_they_were_before_they_were_resized(monkeypatch):
    seen = set()

    def noted(x, kind, n_varied, generator, proportions=None):
        seen.add((tuple(x.shape[2:]), tuple(proportions)))
        return x

    monkeypatch.setattr("sklearn_msf.training.batches.augment_images", noted)
    tiny_classifier(input_size=(8, 8), augment="affine").fit(X, Y)
    assert seen == {((8, 8), (9, 8))}
