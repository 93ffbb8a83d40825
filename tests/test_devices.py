"""Fit, predict, sample, go on and move, on every kind of device this machine has."""

import pickle

import numpy as np
import pytest
import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
Y = np.array(["a", "b", "c", "d"] * 10)


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    return request.param


@pytest.mark.parametrize("label_prediction", ["posterior", "velocity"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_device_trains_classifies_and_samples(
    device, label_prediction, precision, make_classifier
):
    classifier = make_classifier(
        device=device,
        label_prediction=label_prediction,
        precision=precision,
        dropout=0.2,
        augment="flip",
    ).fit(X, Y)
    assert next(classifier.model_.field.parameters()).device.type == device
    p = classifier.predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(classifier.predict_proba(X[:3]), p[:3])
    assert classifier.sample("b", 3, n_steps=2).shape == (3, 8, 8, 3)


def test_a_device_repeats_itself(device, make_classifier):
    first, second = (make_classifier(device=device, dropout=0.2).fit(X, Y) for _ in range(2))
    np.testing.assert_allclose(first.predict_proba(X), second.predict_proba(X), rtol=1e-4)


def test_a_device_goes_on_from_its_checkpoints(device, tmp_path, make_classifier):
    whole = make_classifier(device=device).fit(X, Y)
    kept = make_classifier(device=device, checkpoint_dir=tmp_path, checkpoint_every=1).fit(X, Y)
    for path in tmp_path.glob("checkpoint-0000002*"):
        path.unlink()
    resumed = make_classifier(device=device, checkpoint_dir=tmp_path).fit(X, Y)
    np.testing.assert_allclose(whole.predict_proba(X), kept.predict_proba(X), rtol=1e-4)
    np.testing.assert_allclose(whole.predict_proba(X), resumed.predict_proba(X), rtol=1e-4)


def test_models_move_between_devices(device, tmp_path, make_classifier):
    classifier = make_classifier(device=device).fit(X, Y)
    expected = classifier.predict_proba(X)
    classifier.save_pretrained(tmp_path)
    for opened in (
        type(classifier).from_pretrained(tmp_path),
        pickle.loads(pickle.dumps(classifier)),
    ):
        np.testing.assert_allclose(opened.predict_proba(X), expected, rtol=1e-4)


def test_a_warm_start_and_partial_fit_stay_on_their_device(device, make_classifier):
    classifier = make_classifier(device=device, warm_start=True).fit(X, Y)
    classifier.fit(X, Y).partial_fit(X, Y)
    assert next(classifier.model_.field.parameters()).device.type == device
    assert len(classifier.history_) == 3
