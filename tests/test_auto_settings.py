"""What "auto" stands for, from the size of the images."""

import math

import numpy as np
import pytest
import torch
from conftest import ShrinkingAutoencoder, TinyBackbone, tiny_classifier
from hypothesis import given
from hypothesis import strategies as st

from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf._estimator.auto_settings import field_layout, training_settings


def patch_size_of(size, wanted="auto", estimator=MedSymmFlowClassifier):
    classifier = estimator(network_params={"patch_size": wanted})
    return field_layout(classifier._parameters(), 2, (1, *size)).patch_size


def n_positions(size, patch_size):
    return math.prod(math.ceil(side / patch_size) for side in size)


@pytest.mark.parametrize(
    ("size", "n_levels"),
    [
        ((1, 1), 1),
        ((2, 2), 1),
        ((8, 8), 2),
        ((16, 16), 3),
        ((17, 17), 4),
        ((28, 28), 4),
        # Halved along its only axis.
        ((1, 12), 3),
        # Volumes have all levels.
        ((8, 8, 8), 4),
    ],
)
def test_auto_levels_of_a_single_position_are_left_out(size, n_levels):
    layout = field_layout(MedSymmFlowClassifier()._parameters(), 2, (1, *size))
    assert layout.channel_mult == (1, 2, 2, 2)[:n_levels]


def test_levels_that_were_asked_for_are_all_there():
    for levels in ((1, 2, 2, 2), np.array([1, 2, 2, 2])):
        asked = MedSymmFlowClassifier(network_params={"channel_mult": levels})
        assert field_layout(asked._parameters(), 2, (1, 8, 8)).channel_mult == (1, 2, 2, 2)


def test_auto_levels_over_features_alone_are_two():
    over_features = LatentMedSymmFlowClassifier(None, backbone=TinyBackbone())
    assert field_layout(over_features._parameters(), 2, (8, 7, 7)).channel_mult == (1, 2)
    assert field_layout(over_features._parameters(), 2, (8, 1, 1)).channel_mult == (1,)


@pytest.mark.parametrize("resized", [8, (8, 8)])
def test_auto_levels_are_those_of_the_size_that_the_network_gets(resized):
    X = np.random.default_rng(0).random((4, 28, 28))
    small = tiny_classifier(channel_mult="auto", patch_size=2, input_size=resized, max_epochs=1)
    assert small.fit(X, [0, 1, 0, 1]).model_.field.layout.channel_mult == (1, 2)


def test_a_network_for_small_images_is_saved_and_continued(tmp_path, digits):
    X, y = digits
    classifier = tiny_classifier(channel_mult="auto", patch_size=2, warm_start=True)
    p = classifier.fit(X, y).fit(X, y).predict_proba(X)
    classifier.save_pretrained(tmp_path)
    opened = MedSymmFlowClassifier.from_pretrained(tmp_path)
    np.testing.assert_array_equal(opened.predict_proba(X), p)
    assert opened.model_.field.layout.channel_mult == (1, 2)


def test_images_of_one_position_are_warned_of():
    X, y = np.random.default_rng(0).random((8, 2)), np.arange(8) % 2
    settings = {"max_epochs": 1, "channel_mult": "auto"}
    # "auto" folds nothing here.
    classifier = tiny_classifier(patch_size="auto", **settings).fit(X, y)
    assert classifier.model_.field.layout.patch_size == 1
    with pytest.warns(UserWarning, match="1 x 2 are one position .* patch_size=2"):
        tiny_classifier(patch_size=2, **settings).fit(X, y)
    with pytest.warns(UserWarning, match="1 x 1 are one position"):
        tiny_classifier(patch_size="auto", **settings).fit(X[:, :1], y)


@pytest.mark.filterwarnings("error")
def test_one_position_of_several_channels_a_group_is_not_warned_of():
    X, y = np.random.default_rng(0).random((8, 2)), np.arange(8) % 2
    settings = {"patch_size": 2, "channels": 32, "max_epochs": 1}
    tiny_classifier(channel_mult=(2,), **settings).fit(X, y)


@pytest.mark.filterwarnings("ignore:Images of 1 x 2 are one position")
def test_where_training_goes_on_auto_stands_for_the_patches_that_the_model_has():
    X, y = np.random.default_rng(0).random((8, 2)), np.arange(8) % 2
    # As in earlier versions, where "auto" was 2 here.
    classifier = tiny_classifier(patch_size=2, max_epochs=1, warm_start=True).fit(X, y)
    network = {**classifier.network_params, "patch_size": "auto"}
    classifier.set_params(network_params=network).fit(X, y)
    assert classifier.model_.field.layout.patch_size == 2


@pytest.mark.parametrize("goes_on", ["fit", "partial_fit"])
def test_where_training_goes_on_auto_stands_for_the_levels_that_the_model_has(digits, goes_on):
    X, y = digits
    settings = {"patch_size": 2, "warm_start": True, "max_epochs": 1}
    # As models of before had them for images of any size.
    classifier = tiny_classifier(channel_mult=(1, 1, 1), **settings).fit(X, y)
    network = {**classifier.network_params, "channel_mult": "auto"}
    getattr(classifier.set_params(network_params=network), goes_on)(X, y)
    assert classifier.model_.field.layout.channel_mult == (1, 1, 1)
    classifier.set_params(network_params={**network, "channel_mult": (1, 1)})
    with pytest.raises(ValueError, match="another channel_mult"):
        getattr(classifier, goes_on)(X, y)


@pytest.mark.parametrize(
    ("estimator", "least"), [(MedSymmFlowClassifier, 2), (LatentMedSymmFlowClassifier, 1)]
)
@given(size=st.lists(st.integers(1, 300), min_size=2, max_size=3))
def test_auto_folds_by_the_smallest_power_of_two_that_leaves_512_positions(estimator, least, size):
    patch_size = patch_size_of(size, estimator=estimator)
    if n_positions(size, least) == 1:
        # A network of one position could learn linear functions only.
        assert patch_size == 1
        return
    assert patch_size >= least
    assert patch_size & (patch_size - 1) == 0
    # No axis is padded to a multiple of its length.
    assert patch_size == least or patch_size <= min(size)
    assert n_positions(size, patch_size) <= 512 or 2 * patch_size > min(size)
    assert patch_size == least or n_positions(size, patch_size // 2) > 512


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((8, 8), 2),
        ((28, 28), 2),
        ((64, 64), 4),
        ((128, 128), 8),
        ((224, 224), 16),
        ((28, 28, 28), 4),
        ((1, 784), 2),
        ((1, 50_000), 2),
        ((28, 200), 4),
        ((5, 256, 256), 4),
    ],
)
def test_usual_sizes(size, expected):
    assert patch_size_of(size) == expected
    assert patch_size_of(size, wanted=1) == 1


@pytest.mark.parametrize(
    ("size", "expected"), [((7, 7), 1), ((22, 22), 1), ((23, 23), 2), ((28, 28), 2)]
)
def test_usual_sizes_of_latents(size, expected):
    assert patch_size_of(size, estimator=LatentMedSymmFlowClassifier) == expected


def test_a_fitted_network_has_the_patch_size_of_its_images_and_goes_on_with_it():
    X = np.random.default_rng(0).integers(0, 256, (8, 48, 48), dtype=np.uint8)
    classifier = tiny_classifier(patch_size="auto", max_epochs=1, augment=None)
    classifier.fit(X, [0, 1] * 4).partial_fit(X, [0, 1] * 4)
    assert classifier.model_.field.layout.patch_size == 4
    assert classifier.sample(1, n_steps=1).shape == (1, 48, 48)


def test_larger_latents_are_folded_and_come_back_whole():
    X = np.random.default_rng(0).integers(0, 256, (8, 48, 48), dtype=np.uint8)
    tiny = {"channel_mult": (1,), "attention_levels": ()}
    classifier = LatentMedSymmFlowClassifier(
        ShrinkingAutoencoder(), channels=8, network_params=tiny, max_epochs=1, augment=None
    ).fit(X, [0, 1] * 4)
    assert classifier.model_.field.layout.patch_size == 2
    assert classifier.sample(1, n_steps=1).shape == (1, 48, 48)


@pytest.mark.parametrize(
    ("device", "n_epochs", "budget", "compiles"),
    [
        ("cuda", 100, None, True),
        ("cuda", 99, None, False),
        ("cuda", 100, 900.0, True),
        ("cuda", 100, 899.0, False),
        ("cpu", 100, None, False),
        ("cuda", 1, None, False),
    ],
)
def test_long_runs_on_a_gpu_are_compiled(device, n_epochs, budget, compiles):
    classifier = MedSymmFlowClassifier(precision="float32", max_epochs=100, time_budget=budget)
    p = classifier._parameters()
    found = training_settings(p, 12_800, torch.device(device), None, n_epochs)
    assert found.compile_network == compiles
