import pickle

import numpy as np
import pytest
import torch
from conftest import CLASSIFIERS, three_digits
from device_without_float64 import device_without_float64


def test_the_stand_in_refuses_float64_and_tensors_of_two_devices(monkeypatch):
    with device_without_float64(monkeypatch) as device:
        with pytest.raises(TypeError, match="no float64"):
            torch.ones(2, device=device).double()
        with pytest.raises(RuntimeError, match="two devices"):
            torch.ones(2, device=device) + torch.ones(2)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_everything_runs_on_a_device_without_float64(kind, monkeypatch):
    X, y = three_digits()
    weights = np.linspace(0.5, 2, 12)
    parameters = {"max_epochs": 1, "optimizer": "muon", "augment": "flip+affine", "dropout": 0.1}

    def answers(classifier):
        return [
            classifier.predict_proba(X[:4]),
            classifier.predict_uncertainty(X[:4], kind="image"),
            classifier.score_samples(X[:4]),
            classifier.sample("one", n_steps=2, random_state=0),
            classifier.reconstruct(X[:2], n_steps=1),
        ]

    with device_without_float64(monkeypatch) as device:
        classifier = CLASSIFIERS[kind](device=device, calibration="temperature", **parameters)
        classifier.fit(X[:12], y[:12], sample_weight=weights)
        assert classifier.model_.device == device
        on_device = answers(classifier)
        pickled = pickle.dumps(classifier)
    with pytest.warns(UserWarning, match="opened on the CPU"):
        on_cpu = answers(pickle.loads(pickled))
    for there, here in zip(on_device, on_cpu, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4)
