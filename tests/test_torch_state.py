"""The caller may have set torch's global settings to anything: results keep their bits."""

import contextlib
import functools
import os
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import CLASSIFIERS, fitted_classifier, limit_full_passes, three_digits

from sklearn_msf.latent.autoencoder_training import _STAGES
from sklearn_msf.runtime import batch_sizes
from sklearn_msf.runtime.torch_state import (
    _ProcessSetting,
    _use_up_advice,
    standard_torch,
    whole_float32,
)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "with-meta": lambda: torch.device("meta"),
    "no-grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": deterministic_algorithms,
    "numpy-raises": lambda: np.errstate(all="raise"),
}
# Each is in one group: no setting makes another one harmless.
TOGETHER = [
    ("float64", "with-meta", "numpy-raises"),
    ("bfloat16", "inference", "autocast"),
    ("meta", "no-grad", "deterministic"),
]
assert sorted(sum(TOGETHER, ())) == sorted(STATES)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Look for sizes of batches beside a full one of 8 images, which takes less time."""
    limit_full_passes(8, monkeypatch)


def settings():
    return (
        torch.get_default_dtype(),
        torch.empty(0).device,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
    )


def answers(classifier, X):
    """All that a fitted model computes, as bytes."""
    images = X[:4]
    results = [
        classifier.predict_proba(images),
        classifier.predict_uncertainty(images, kind="draws"),
        classifier.predict_uncertainty(images, kind="image"),
        classifier.score_samples(images),
        classifier.sample(n_samples=2, n_steps=3, random_state=1),
        *classifier.iter_samples(n_steps=2, batch_size=2, random_state=1),
        *classifier.sample_trajectory("one", n_steps=3, random_state=1),
        classifier.reconstruct(images, n_steps=2),
        classifier.counterfactual(images, "two", n_steps=2),
    ]
    return [result.tobytes() for result in results]


@pytest.fixture(scope="module", params=CLASSIFIERS)
def kind(request):
    return request.param


@pytest.fixture(params=TOGETHER, ids="+".join)
def state(request, monkeypatch):
    @contextlib.contextmanager
    def entered():
        # Sizes of batches that were seen outside would hold here too.
        monkeypatch.setattr(batch_sizes, "_CHECKED", {})
        with contextlib.ExitStack() as stack:
            for name in request.param:
                stack.enter_context(STATES[name]())
            yield

    return entered


@functools.cache
def usual_answers(kind):
    return answers(fitted_classifier(kind), three_digits()[0])


def test_a_fitted_model_answers_with_the_same_bits(kind, state):
    classifier, (X, _) = fitted_classifier(kind), three_digits()
    wanted = usual_answers(kind)
    with state():
        before = settings()
        assert answers(classifier, X) == wanted
        assert settings() == before


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_autocast_of_every_gpu_is_off(device):
    before = torch.is_autocast_enabled(device)
    torch.set_autocast_enabled(device, True)
    try:
        with standard_torch():
            assert not torch.is_autocast_enabled(device)
        assert torch.is_autocast_enabled(device)
    finally:
        torch.set_autocast_enabled(device, before)


def trained(kind):
    """Train in each way, and return what is learned."""
    X, y = three_digits()
    parameters = {"max_epochs": 1, "calibration": "temperature", "warm_start": True}
    classifier = CLASSIFIERS[kind](optimizer="muon", channels=16, **parameters)
    classifier.fit(X[:60], y[:60]).fit(X[:60], y[:60])
    classifier.set_params(calibration=None)
    classifier.partial_fit(X[:60], y[:60])
    return classifier.predict_proba(X[:9]).tobytes(), classifier.history_[0]["loss"]


usually_trained = functools.cache(trained)


def test_training_learns_the_same_bits(kind, state):
    wanted = usually_trained(kind)
    with state():
        before = settings()
        assert trained(kind) == wanted
        assert settings() == before


def test_training_in_bfloat16_reads_the_weights_of_each_step_in_the_callers_autocast(kind):
    X, y = three_digits()

    def train():
        classifier = CLASSIFIERS[kind](precision="bfloat16", max_epochs=3)
        return classifier.fit(X[:60], y[:60]).loss_curve_

    wanted = train()
    with torch.autocast("cpu", torch.bfloat16):
        # The cache of the caller holds what he computed before.
        torch.nn.Linear(2, 2)(torch.ones(1, 2))
        assert train() == wanted


def trained_with_an_autoencoder():
    X, y = three_digits()
    short = [stage._replace(n_steps=1, batch_size=2) for stage in _STAGES]
    classifier = CLASSIFIERS["latents"](autoencoder="fit", time_budget=None, max_epochs=1)
    with patch("sklearn_msf.latent.autoencoder_training._STAGES", short):
        return classifier.fit(X[:30], y[:30]).predict_proba(X[:9]).tobytes()


usually_trained_with_an_autoencoder = functools.cache(trained_with_an_autoencoder)


def test_an_autoencoder_is_trained_to_the_same_bits(state):
    wanted = usually_trained_with_an_autoencoder()
    with state():
        assert trained_with_an_autoencoder() == wanted


def test_saved_and_pickled_models_open_with_the_same_bits(kind, state, tmp_path):
    classifier, (X, _) = fitted_classifier(kind), three_digits()
    classifier.save_pretrained(tmp_path / "before")
    pickled = pickle.dumps(classifier)
    wanted = classifier.predict_proba(X[:6]).tobytes()
    with state():
        classifier.save_pretrained(tmp_path / "within")
        opened = [
            type(classifier).from_pretrained(tmp_path / "before"),
            type(classifier).from_pretrained(tmp_path / "within"),
            pickle.loads(pickled),
            pickle.loads(pickle.dumps(classifier)),
        ]
        for model in opened:
            assert model.predict_proba(X[:6]).tobytes() == wanted
    for model in opened:
        assert model.predict_proba(X[:6]).tobytes() == wanted


def test_the_default_dtype_stays_float32_until_the_last_thread_has_ended():
    inside, leave = threading.Event(), threading.Event()

    def long_computation():
        with standard_torch():
            inside.set()
            leave.wait(10)
            return torch.ones(1).dtype

    with default_dtype(torch.float64), ThreadPoolExecutor(1) as executor:
        running = executor.submit(long_computation)
        inside.wait(10)
        with standard_torch():
            assert torch.ones(1).dtype == torch.float32
        assert torch.ones(1).dtype == torch.float32
        leave.set()
        assert running.result() == torch.float32
        assert torch.ones(1).dtype == torch.float64


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_process_that_is_forked_meanwhile_has_the_callers_dtype():
    inside, leave = threading.Event(), threading.Event()

    def long_computation():
        with standard_torch():
            inside.set()
            leave.wait(10)

    with default_dtype(torch.float64), ThreadPoolExecutor(1) as executor:
        running = executor.submit(long_computation)
        inside.wait(10)
        child = os.fork()
        if not child:
            code = 1
            try:
                with standard_torch():
                    is_standard = torch.ones(1).dtype == torch.float32
                code = 0 if is_standard and torch.ones(1).dtype == torch.float64 else 1
            finally:
                os._exit(code)
        leave.set()
        running.result()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_process_that_is_forked_inside_goes_on_inside():
    with default_dtype(torch.float64), standard_torch():
        child = os.fork()
        if not child:
            os._exit(0 if torch.ones(1).dtype == torch.float32 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def tf32():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_tf32_is_off_until_the_last_of_overlapping_users_ends():
    before = tf32()
    first, second = whole_float32(), whole_float32()
    first.__enter__()
    second.__enter__()
    assert tf32() == ("highest", False) != before
    first.__exit__(None, None, None)
    assert tf32() == ("highest", False)
    second.__exit__(None, None, None)
    assert tf32() == before


@pytest.mark.parametrize("of", ["matmul", "conv", "all"])
def test_tf32_may_have_been_set_by_the_new_way(of):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    owner = {"matmul": matmul, "conv": conv, "all": torch.backends}[of]
    before = matmul.fp32_precision, conv.fp32_precision, torch.backends.fp32_precision
    other = "ieee" if owner.fp32_precision == "tf32" else "tf32"
    owner.fp32_precision = other
    try:
        seen = matmul.fp32_precision, conv.fp32_precision
        with whole_float32():
            assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
        assert (matmul.fp32_precision, conv.fp32_precision) == seen
    finally:
        torch.backends.fp32_precision = before[2]
        matmul.fp32_precision, conv.fp32_precision = before[:2]


def test_that_torch_has_a_new_way_is_no_warning_of_ours(monkeypatch):
    # As torch 2.9 and 2.10 say once in a process.
    said = []
    setter = torch.set_float32_matmul_precision

    def advising(precision):
        if not said:
            said.append(precision)
            warnings.warn("Please use the new API settings to control TF32", stacklevel=2)
        setter(precision)

    monkeypatch.setattr(torch, "set_float32_matmul_precision", advising)
    _use_up_advice.cache_clear()
    before = tf32()
    with whole_float32():
        assert said == [before[0]]
        assert tf32() == ("highest", False)
    assert tf32() == before


def test_a_setting_that_could_not_be_changed_is_held_by_nobody():
    setting = _ProcessSetting(lambda: 0, lambda: 1 / 0, lambda saved: None)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), setting.held():
            raise AssertionError("never here")
    assert not setting._holders
