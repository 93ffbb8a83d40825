"""How much memory the images of X take beside X itself.

numpy's arrays are counted by tracemalloc. torch's tensors are not in its count, so the largest one
is noted as it is made. Batches run one after the other here, because each worker thread of a user's
process holds one batch more.
"""

import contextlib
import functools
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from conftest import Averages, tiny_classifier, tiny_latent_classifier
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sklearn_msf._estimator.run_fingerprint import digest_arrays
from sklearn_msf.data.images import ImageFormat, check_finite, flatten_images
from sklearn_msf.data.on_demand import ImagesOnDemand, RowsOnDemand
from sklearn_msf.generation_metrics import copying_check, kernel_distance
from sklearn_msf.plotting import SampleGridDisplay
from sklearn_msf.sample_augmentation import _CopyFilter

RNG = np.random.default_rng(0)
N = 60
Y = np.arange(N) % 2
# Values from 0 to 255, so that all dtypes can hold them.
PIXELS = RNG.integers(0, 256, (N, 40, 40, 3), dtype=np.uint8)
# Values of half of X: more than a few batches and the objects of Python beside them.
SMALL = PIXELS.size // 2
DTYPES = ["uint8", "uint16", "int16", "float16", "float32", "float64", "bool"]


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that torch makes."""

    n_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.n_bytes = max(self.n_bytes, tensor.untyped_storage().nbytes())
        return made


class OneAfterTheOther:
    map = staticmethod(map)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    one = contextlib.nullcontext(OneAfterTheOther())
    monkeypatch.setattr("sklearn_msf.runtime.batching.worker_threads", lambda n_tasks: one)
    monkeypatch.setattr("sklearn_msf.model.classification._MAX_PIXELS", 3 * 1600)
    monkeypatch.setattr("sklearn_msf.model.classification._TIMES_ON_GPU", 1)
    monkeypatch.setattr("sklearn_msf.latent.latent_space.ENCODED_AT_ONCE", 2)
    monkeypatch.setattr("sklearn_msf.latent.latent_space._BYTES_AT_ONCE", 1)
    monkeypatch.setattr("sklearn_msf.latent.latent_space._BYTES_KEPT", 0)
    monkeypatch.setattr("sklearn_msf.latent.latent_batches.ENCODED_AT_ONCE", 2)
    monkeypatch.setattr("sklearn_msf.latent.autoencoder_latents.ENCODED_AT_ONCE", 2)
    monkeypatch.setattr("sklearn_msf.latent.autoencoder_latents._N_MEASURED", 4)
    monkeypatch.setattr("sklearn_msf.data.parts._VALUES_AT_ONCE", 2**10)


def memory_of(call, first=None):
    """Return the most bytes that arrays of numpy and objects take beside those from before.

    The first call imports and caches; it may be one with fewer images, in as large batches.
    """
    (first or call)()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def memory_of_predicting(clf, X):
    return memory_of(lambda: clf.predict_proba(X), lambda: clf.predict_proba(X[:6]))


def largest_tensor(call):
    with LargestTensor() as largest:
        call()
    return largest.n_bytes


@pytest.fixture
def no_training(monkeypatch):
    """Prepare fits and skip their steps, which work on batches."""
    monkeypatch.setattr("sklearn_msf.training.step.TrainingStep.__call__", lambda *arguments: None)


def images(dtype="float32", order="C"):
    X = PIXELS > 127 if dtype == "bool" else PIXELS.astype(dtype)
    return np.asarray(X, order=order)


def fitted(X, make_classifier=tiny_classifier, **overrides):
    settings = {"max_epochs": 1, "n_draws": 1, **overrides}
    return make_classifier(**settings).fit(X[:8], Y[:8])


PREDICTING = {
    "predict": lambda clf, X: clf.predict(X),
    "predict_proba": lambda clf, X: clf.predict_proba(X),
    "predict_uncertainty": lambda clf, X: clf.predict_uncertainty(X, "image"),
    "score_samples": lambda clf, X: clf.score_samples(X),
    "fit_reject": lambda clf, X: clf.fit_reject(X, Y, target_risk=0.9),
    "predict_with_reject": lambda clf, X: clf.predict_with_reject(X, 0.5),
}


@pytest.mark.parametrize("make_classifier", [tiny_classifier, tiny_latent_classifier])
@pytest.mark.parametrize("method", PREDICTING)
def test_predicting_holds_a_few_batches_beside_x(method, make_classifier):
    X, settings = images(), {}
    if make_classifier is tiny_latent_classifier:
        # Latents have a fourth of the side, so that a batch is all of X.
        settings["autoencoder"] = Averages()
    clf = fitted(X, make_classifier, **settings)
    # Thresholds need all labels.
    n_first = N if "reject" in method else 6
    first = functools.partial(PREDICTING[method], clf, X[:n_first])
    arrays = memory_of(lambda: PREDICTING[method](clf, X), first)
    assert arrays < SMALL * X.itemsize


@pytest.mark.parametrize("method", ["predict_proba", "reconstruct"])
def test_images_that_are_resized_are_held_a_few_at_a_time(method):
    # One batch of so small images is all of X.
    X = images()
    clf = fitted(X, input_size=(8, 8))
    arguments = {"n_steps": 1} if method == "reconstruct" else {}
    arrays = memory_of(lambda: getattr(clf, method)(X, **arguments))
    made = X.nbytes if method == "reconstruct" else 0
    assert arrays < made + SMALL * X.itemsize


@pytest.mark.parametrize("method", ["predict_proba", "reconstruct"])
def test_no_tensor_is_as_large_as_half_of_x(method):
    X = images()
    clf = fitted(X)
    arguments = {"n_steps": 1} if method == "reconstruct" else {}
    n_bytes = largest_tensor(lambda: getattr(clf, method)(X, **arguments))
    assert 0 < n_bytes < SMALL * X.itemsize


def test_fit_trains_on_one_tensor_that_is_no_second_copy(no_training):
    X = images()
    assert largest_tensor(lambda: tiny_classifier(max_epochs=1).fit(X, Y)) <= X.nbytes


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_predicting_holds_a_few_batches_whatever_the_dtype_and_the_order(dtype, order):
    X = images(dtype, order)
    clf = fitted(X)
    arrays = memory_of_predicting(clf, X)
    assert arrays < SMALL * max(X.itemsize, 2)


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_pixels_are_not_copied_either(order):
    X = np.asarray(images().reshape(N, -1), order=order)
    clf = fitted(X, image_shape=(40, 40, 3))
    arrays = memory_of_predicting(clf, X)
    assert arrays < SMALL * X.itemsize


def test_whole_floats_for_a_model_of_bytes_are_not_copied():
    clf, X = fitted(images("uint8")), images("float32")
    arrays = memory_of_predicting(clf, X)
    assert arrays < SMALL * X.itemsize


def test_a_list_of_images_is_stacked_once():
    X = images()
    clf, listed = fitted(X), list(X)
    arrays = memory_of_predicting(clf, listed)
    assert arrays < X.nbytes + SMALL * X.itemsize


@pytest.mark.parametrize("shape", [(N, 40, 40, 3), (N, 120, 40)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_file_that_is_mapped_into_memory_is_read_batch_by_batch(tmp_path, dtype, shape):
    X = images(dtype).reshape(shape)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    clf = fitted(X)
    with warnings.catch_warnings():
        # torch warns of arrays that it cannot write to.
        warnings.simplefilter("error")
        arrays = memory_of_predicting(clf, mapped)
    assert arrays < SMALL * 4
    np.testing.assert_array_equal(clf.predict_proba(mapped[:9]), clf.predict_proba(X[:9]))


@pytest.mark.parametrize("method", ["reconstruct", "counterfactual"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_changed_images_are_held_once(method, dtype):
    X = images(dtype)[:40]
    clf = fitted(X)
    arguments = [0] if method == "counterfactual" else []
    arrays = memory_of(lambda: getattr(clf, method)(X, *arguments, n_steps=1))
    assert arrays < X.nbytes + SMALL * 4


def test_generated_images_are_held_once():
    clf = fitted(images("uint8"))
    arrays = memory_of(lambda: clf.sample(0, 40, n_steps=1, random_state=0))
    assert arrays < 40 * 40 * 40 * 3 + SMALL * 4


def many(dtype="float32", order="C"):
    """Images beside which two networks and the objects of a fit are small."""
    return np.asarray(np.tile(images(dtype), (10, 1, 1, 1)), order=order)


# Objects of Python, mostly networks: 1 MB. A copy of the images as bytes is 3 MB.
OF_A_FIT = 2**21


def test_fit_holds_a_few_of_the_images_that_it_resizes(no_training, monkeypatch):
    # So many values are a quarter of X once it is resized.
    monkeypatch.setattr("sklearn_msf.data.parts._VALUES_AT_ONCE", 2**15)
    X, y = many(), np.tile(Y, 10)
    clf = tiny_classifier(max_epochs=1, input_size=(8, 8))
    assert memory_of(lambda: clf.fit(X, y), lambda: clf.fit(X[:40], y[:40])) < OF_A_FIT


@pytest.mark.parametrize(
    "overrides", [{}, {"early_stopping": True}, {"calibration": "temperature"}], ids=repr
)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_fit_holds_one_copy_of_the_images(no_training, dtype, overrides):
    X, y = many(dtype), np.tile(Y, 10)
    clf = tiny_classifier(max_epochs=1, n_draws=1, **overrides)
    arrays = memory_of(lambda: clf.fit(X, y), lambda: clf.fit(X[:60], y[:60]))
    # uint8 is trained on as it is, other numbers as float32.
    assert arrays < X.nbytes + OF_A_FIT


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float64"])
def test_fit_holds_one_copy_of_fortrans_order_and_samples_without_weight(no_training, dtype):
    X, y = many(dtype, "F"), np.tile(Y, 10)
    clf = tiny_classifier(max_epochs=1)
    weights = np.r_[np.zeros(20), np.ones(len(X) - 20)]
    arrays = memory_of(
        lambda: clf.fit(X, y, sample_weight=weights),
        lambda: clf.fit(X[:60], y[:60], sample_weight=weights[:60]),
    )
    assert arrays < max(X.nbytes, 4 * X.size) + OF_A_FIT


def test_fit_over_latents_copies_no_image(no_training):
    X, y = many(), np.tile(Y, 10)
    clf = tiny_latent_classifier(autoencoder=Averages(), max_epochs=1, n_draws=1)
    arrays = memory_of(lambda: clf.fit(X, y), lambda: clf.fit(X[:60], y[:60]))
    assert arrays < OF_A_FIT


def test_the_search_for_copies_converts_a_few_images_at_a_time(monkeypatch):
    monkeypatch.setattr("sklearn_msf._evaluation.nearest_images._VALUES_AT_ONCE", PIXELS[0].size)
    monkeypatch.setattr("sklearn_msf.generation_metrics._ROWS_AT_ONCE", 1)
    X = images("uint8")
    assert memory_of(lambda: _CopyFilter(X)) < X.nbytes
    # Generated and held-out images have a mirror image each.
    few = X[:8]
    mirrored = 2 * 2 * few.nbytes
    check = functools.partial(copying_check, few, X, few[::-1], flipped_axes=(2,))
    assert memory_of(check) < X.nbytes + mirrored


def test_the_image_nearest_to_a_generated_one_is_found_without_a_copy_of_x(monkeypatch):
    monkeypatch.setattr("sklearn_msf._evaluation.nearest_images._VALUES_AT_ONCE", PIXELS[0].size)
    X = images("uint8")
    clf = tiny_classifier(max_epochs=1, network_params={"patch_size": 8}).fit(X, Y)
    monkeypatch.setattr(type(clf), "sample", lambda *_, **__: X[:2])
    monkeypatch.setattr(SampleGridDisplay, "plot", lambda display, ax: display)
    show = functools.partial(SampleGridDisplay.from_estimator, clf, X=X, y=Y, n_columns=1)
    # In float64 X is 16 times as large as half of it. Six tiles are, too.
    assert memory_of(show) < SMALL + 6 * 8 * X[0].size + SMALL


def test_the_kernel_of_many_images_is_never_held(monkeypatch):
    monkeypatch.setattr("sklearn_msf.generation_metrics._ROWS_AT_ONCE", 10)
    features = RNG.normal(size=(1000, 3))
    # Of all pairs it has 8 MB.
    assert memory_of(lambda: kernel_distance(features, features + 0.1)) < 2e6


def test_values_that_are_not_finite_are_found_without_a_copy():
    rows = images().reshape(N, -1)
    rows[7, 5] = np.nan

    def check():
        with pytest.raises(ValueError, match="1 of 60 images"):
            check_finite(rows)

    arrays = memory_of(check)
    assert arrays < SMALL * rows.itemsize


@given(
    st.permutations([1, 2, 3]),
    st.lists(st.sampled_from([slice(None), slice(1, None), slice(None, None, -1)]), min_size=3),
    st.integers(1, 3),
)
def test_rows_have_the_usual_order_of_pixels_however_they_lie_in_memory(axes, cuts, n_channels):
    stored = np.arange(4 * 3 * 5 * n_channels).reshape(4, 3, 5, n_channels)
    X = stored.transpose(0, *axes)[:, *cuts[:3]]
    if 0 in X.shape:
        return
    rows = RowsOnDemand(*flatten_images(X))
    np.testing.assert_array_equal(rows[1:3], X[1:3].reshape(2, -1))
    np.testing.assert_array_equal(rows[np.array([3, 0])], X[[3, 0]].reshape(2, -1))


@pytest.mark.parametrize("order", ["C", "F"])
def test_selections_of_rows_are_sorted_as_their_copies_would_be(order):
    X = np.asarray(RNG.integers(0, 2, (40, 2, 2)), order=order)
    chosen = np.flatnonzero(RNG.random(40) < 0.7)
    rows = RowsOnDemand(*flatten_images(X)).take(chosen)
    copies = [row.tobytes() for row in X.reshape(40, -1)[chosen]]
    assert rows.order_of_content().tolist() == sorted(range(len(chosen)), key=copies.__getitem__)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_images_on_demand_are_those_that_are_converted_at_once(dtype):
    rows = images(dtype).reshape(N, -1)
    dtype_, high = (np.dtype(dtype), 255.0)
    image_format = ImageFormat((40, 40, 3), False, dtype_, 0.0, high)
    wanted = image_format.to_numpy_images(rows)
    found = ImagesOnDemand(image_format, rows)
    assert (found.shape, found.dtype, len(found)) == (wanted.shape, wanted.dtype, N)
    np.testing.assert_array_equal(found.to_array(), wanted)
    np.testing.assert_array_equal(found[10:13], wanted[10:13])


def test_digests_of_parts_are_those_of_the_whole():
    X = images("float32", "F")
    rows = RowsOnDemand(*flatten_images(X))
    assert digest_arrays(rows) == digest_arrays(np.ascontiguousarray(X).reshape(N, -1))
    arrays = memory_of(lambda: digest_arrays(rows, X))
    assert arrays < SMALL * X.itemsize
