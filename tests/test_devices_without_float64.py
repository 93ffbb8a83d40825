import pickle

import numpy as np
import pytest
import torch
from conftest import CLASSIFIERS, JOINT_CLASSIFIERS, limit_full_passes, three_digits, tiny_model
from device_without_float64 import device_without_float64
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sklearn_msf.flow import ode_solver
from sklearn_msf.flow.ode_solver import OdeSettings, integrate
from sklearn_msf.model.denoising_error import denoising_errors
from sklearn_msf.model.image_space import PixelInputs
from sklearn_msf.model.sampling import change_class
from sklearn_msf.training.trainer import Trainer

WITH_ENCODERS = {"latents": CLASSIFIERS["latents"], **JOINT_CLASSIFIERS}


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
    # Each operation of a full pass is looked at, which takes a minute at the usual sizes.
    limit_full_passes(4, monkeypatch)
    monkeypatch.setattr("sklearn_msf.model.sampling._MAX_SAMPLED_ON_GPU", 2)

    def answers(classifier):
        return [
            classifier.predict_proba(X[:3]),
            classifier.predict_uncertainty(X[:3], kind="image"),
            classifier.score_samples(X[:3]),
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


@pytest.mark.parametrize("kind", WITH_ENCODERS)
def test_a_fit_that_goes_on_on_another_device_moves_the_encoders(kind, monkeypatch):
    X, y = three_digits()
    limit_full_passes(8, monkeypatch)
    classifier = WITH_ENCODERS[kind](max_epochs=1).fit(X[:12], y[:12])
    with device_without_float64(monkeypatch) as device:
        classifier.set_params(device=device, warm_start=True).fit(X[:12], y[:12])
        assert classifier.model_.space.device == classifier.model_.device == device
        on_device, pickled = classifier.predict_proba(X[:4]), pickle.dumps(classifier)
    with pytest.warns(UserWarning, match="opened on the CPU"):
        on_cpu = pickle.loads(pickled).predict_proba(X[:4])
    np.testing.assert_allclose(on_device, on_cpu, rtol=1e-4, atol=1e-4)


def test_a_fit_on_another_device_that_fails_leaves_the_model_where_it_was(monkeypatch):
    X, y = three_digits()
    classifier = WITH_ENCODERS["joint"](max_epochs=1).fit(X[:12], y[:12])
    wanted = classifier.predict_proba(X[:4])

    def fail(self, *arguments, **options):
        raise KeyboardInterrupt

    with device_without_float64(monkeypatch) as device:
        monkeypatch.setattr(Trainer, "fit", fail)
        classifier.set_params(device=device, warm_start=True)
        with pytest.raises(KeyboardInterrupt):
            classifier.fit(X[:12], y[:12])
    assert classifier.model_.space.device == classifier.model_.device == torch.device("cpu")
    np.testing.assert_array_equal(classifier.predict_proba(X[:4]), wanted)


class Types(TorchDispatchMode):
    """Notes the types of all results."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.seen |= {leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        return result


def test_adaptive_steps_are_taken_in_a_precision_that_the_device_has(monkeypatch):
    # torchdiffeq makes tensors in ways that the stand-in does not see.
    ode = OdeSettings(0.0, 1.0, 1, "dopri5")
    for there_is in (True, False):
        monkeypatch.setattr(ode_solver, "has_float64", lambda device, has=there_is: has)
        with Types() as types:
            (z,) = integrate(lambda t, state: state, (torch.ones(1, 2),), ode)
        assert (torch.float64 in types.seen) == there_is
        np.testing.assert_allclose(z, np.e, rtol=1e-3)


class Copies(TorchDispatchMode):
    """Notes when tensors are copied to the device, or from it, and when a network runs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name, target = operation.name(), (kwargs or {}).get("device")
        if "_to_copy" in name and target is not None:
            self.seen.append("copy")
        elif "convolution" in name and self.seen[-1:] != ["network"]:
            self.seen.append("network")
        return operation(*args, **(kwargs or {}))


def test_denoising_waits_for_the_device_once_a_batch(make_tiny_field, monkeypatch):
    images = np.zeros((4, 1, 8, 8), dtype=np.uint8)
    seen = []
    with device_without_float64(monkeypatch) as device:
        model = tiny_model(make_tiny_field().move_to(device))
        for times, n_tried in (((0.5,), 1), ((0.2, 0.5, 0.9), 3)):
            inputs, labels = PixelInputs(images, device), np.zeros((4, n_tried), dtype=np.int64)
            with Copies() as copies:
                denoising_errors(model, inputs, labels, times, "float32", 4)
            seen.append(copies.seen)
    # Noise, times, images and classes; then the result.
    assert seen == [["copy"] * 4 + ["network", "copy"]] * 2


def test_a_change_of_class_does_not_wait_between_its_two_ways(make_tiny_field, monkeypatch):
    images, labels = np.zeros((4, 1, 8, 8), dtype=np.uint8), np.zeros(4, dtype=np.int64)
    monkeypatch.setattr("sklearn_msf.model.sampling._MAX_SAMPLED_ON_GPU", 4)
    with device_without_float64(monkeypatch) as device:
        model = tiny_model(make_tiny_field().move_to(device))
        with Copies() as copies:
            change_class(model, PixelInputs(images, device), labels, labels, OdeSettings(0.0, 1.0))
    assert copies.seen.count("network") == 1
