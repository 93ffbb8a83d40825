import copy
import inspect
import pickle
import re
import threading
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, grouped, limit_full_passes, tiny_classifier, tiny_latent_classifier
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning

from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf._estimator import fit as fitting
from sklearn_msf._estimator.parameters import FEATURE_DEFAULTS, GROUPS, PARAMETERS, affecting
from sklearn_msf.data.on_demand import ImagesOnDemand
from sklearn_msf.flow.label_codes import make_label_codes
from sklearn_msf.flow.velocity_field import FieldLayout
from sklearn_msf.training.optimizer import OPTIMIZERS
from sklearn_msf.training.trainer import Trainer


def test_it_learns(fitted, digits):
    X, y = digits
    assert fitted.score(X, y) > 0.95
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]
    assert fitted.n_iter_ == len(fitted.history_) == 30


@pytest.mark.parametrize("label_encoding", ["rgb", "grayscale", "simplex"])
def test_the_velocity_form_learns_with_every_code(digits, label_encoding):
    X, y = digits[0][:120], digits[1][:120]
    classifier = tiny_classifier(
        label_prediction="velocity",
        label_encoding=label_encoding,
        channels=16,
        max_epochs=40,
        batch_size=32,
        learning_rate=1e-2,
        image_weight=0.1,
        n_draws=8,
    ).fit(X, y)
    assert classifier.score(X, y) > 0.9


def test_predictions_agree_with_each_other(fitted, digits):
    X = digits[0][:30]
    p = fitted.predict_proba(X)
    assert p.shape == (30, 3)
    assert_array_equal(fitted.classes_[p.argmax(axis=1)], fitted.predict(X))
    np.testing.assert_allclose(fitted.predict_log_proba(X), np.log(p))
    assert_array_equal(fitted.decision_function(X), fitted.predict_log_proba(X))


def test_log_probabilities_of_zeros_are_finite(fitted, digits):
    sharp = copy.copy(fitted)
    sharp.model_ = replace(fitted.model_, temperature=1e-3)
    p, log_p = sharp.predict_proba(digits[0]), sharp.predict_log_proba(digits[0])
    assert (p == 0).any()
    assert np.isfinite(log_p).all()
    assert log_p.min() == np.log(np.finfo(np.float64).tiny)


def test_two_classes_have_one_decision_column(digits, make_classifier):
    X, y = digits
    two = y != "two"
    classifier = make_classifier().fit(X[two], y[two])
    p, d = classifier.predict_proba(X), classifier.decision_function(X)
    assert d.shape == (len(X),)
    np.testing.assert_allclose(d, np.log(p[:, 1] / p[:, 0]), rtol=1e-6)


def test_a_prediction_never_depends_on_the_other_samples(fitted, digits):
    X = digits[0]
    together = fitted.predict_proba(X)
    for rows in ([3], [5, 3, 70, 3], slice(0, 65), slice(None, None, -1)):
        assert_array_equal(fitted.predict_proba(X[rows]), together[rows])


def test_distance_is_that_to_the_code_of_the_predicted_class(fitted, digits):
    X = digits[0][:20]
    p = fitted.predict_proba(X)
    codes = make_label_codes("rgb", 3, 4.0).codes.double().numpy()
    expected = np.linalg.norm(p @ codes - codes[p.argmax(axis=1)], axis=1)
    np.testing.assert_allclose(fitted.predict_uncertainty(X, "distance"), expected, atol=1e-6)


@pytest.mark.parametrize("coverage", [0.05, 0.5, 0.9, 1.0])
def test_rejection_answers_the_most_certain_fraction(fitted, digits, coverage):
    X = digits[0][:60]
    answered = fitted.predict_with_reject(X, coverage=coverage)
    accepted = ~np.ma.getmaskarray(answered)
    assert accepted.sum() == int(coverage * len(X))
    assert_array_equal(answered.data, fitted.predict(X))
    u = fitted.predict_uncertainty(X)
    if coverage < 1:
        assert u[accepted].max() <= u[~accepted].min()


# Layouts


def test_images_and_their_rows_give_the_same_model(fitted, digits):
    X, y = digits
    flat = clone(fitted).set_params(image_shape=(8, 8)).fit(X.reshape(len(X), -1), y)
    assert_array_equal(flat.predict_proba(X), fitted.predict_proba(X))
    assert_array_equal(fitted.predict_proba(X.reshape(len(X), -1)), fitted.predict_proba(X))
    assert flat.sample("one").shape == (1, 64)
    assert fitted.sample("one").shape == (1, 8, 8)


# Each pair of these once.
@pytest.mark.parametrize(
    ("shape", "dtype", "make_classifier"),
    [
        (shape, dtype, [tiny_classifier, tiny_latent_classifier][(i + j) % 2])
        for i, shape in enumerate([(9, 11), (9, 11, 3), (8, 8, 1)])
        for j, dtype in enumerate([np.uint8, np.float32, np.float64, np.int32])
    ],
)
def test_samples_have_dtype_layout_and_range_of_the_training_images(shape, dtype, make_classifier):
    rng = np.random.default_rng(0)
    X = rng.integers(10, 200, (8, *shape)).astype(dtype)
    classifier = make_classifier(max_epochs=1, patch_size=2).fit(X, [0, 1] * 4)
    sampled = classifier.sample(1, n_samples=3, n_steps=2, random_state=0)
    assert sampled.shape == (3, *shape)
    assert sampled.dtype == X.dtype
    low, high = (0, 255) if dtype == np.uint8 else (X.min(), X.max())
    assert low <= sampled.min() <= sampled.max() <= high
    assert classifier.image_shape_ == shape
    assert classifier.n_features_in_ == np.prod(shape)


def test_images_of_any_number_of_channels_come_back():
    X = np.random.default_rng(0).integers(10, 200, (8, 8, 9, 2))
    sampled = tiny_classifier(max_epochs=1, patch_size=2).fit(X, [0, 1] * 4).sample(1, n_steps=2)
    assert sampled.shape == (1, 8, 9, 2)


def test_samples_of_one_class_or_several_come_in_the_order_asked_for(fitted):
    images = fitted.sample(["two", "zero"], n_samples=6, random_state=0)
    assert images.shape == (12, 8, 8)
    # Image i of a seed is the same whatever comes after it.
    assert_array_equal(images[:6], fitted.sample("two", n_samples=6, random_state=0))
    assert_array_equal(images[6:], fitted.sample("zero", n_samples=12, random_state=0)[6:])


def test_where_memory_for_the_copy_of_x_runs_out_the_error_says_what_to_lower(digits, monkeypatch):
    def full(images):
        raise MemoryError("Unable to allocate 45.8 GiB for an array")

    monkeypatch.setattr(ImagesOnDemand, "to_array", full)
    expected = (
        r"0\.0 GB \(\d+ of the shape \(1, 8, 8\), float32\).* uint8, .*partial_fit\. \(Unable"
    )
    with pytest.raises(MemoryError, match=expected):
        tiny_classifier().fit(*digits)


def test_samples_look_like_their_classes(digits):
    classifier = tiny_classifier(channels=16, max_epochs=60, classification_fraction=0.5).fit(
        *digits
    )
    images = classifier.sample(n_samples=30, random_state=0)
    # By chance a third, with a standard deviation of 0.05.
    assert np.mean(classifier.predict(images) == np.repeat(classifier.classes_, 30)) >= 0.55


def test_samples_repeat_with_their_seed_and_only_then(fitted):
    first, again = (fitted.sample("one", 2, n_steps=2, random_state=5) for _ in range(2))
    other = fitted.sample("one", 2, n_steps=2, random_state=6)
    assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize(
    "labels", [[3, 9, 3, 9], ["b", "a", "b", "a"], [True, False] * 2, [1.0, 2.0] * 2]
)
def test_labels_of_any_sortable_kind_come_back(labels, make_classifier):
    X = np.random.default_rng(0).random((4, 8, 8))
    classifier = make_classifier(max_epochs=1).fit(X, labels)
    assert_array_equal(classifier.classes_, np.unique(labels))
    assert set(classifier.predict(X)) <= set(labels)


@pytest.mark.parametrize(
    ("labels", "dtype", "wanted"),
    [
        ([3, 9, 3, 9], "Int64", np.int64),
        ([2**60 + 1, 2**60, 2**60, 2**60 + 1], "Int64", np.int64),
        ([True, False] * 2, "boolean", np.bool_),
        ([1.0, 2.0] * 2, "Float64", np.float64),
        (["b", "a", "b", "a"], "string", object),
        (["b", "a", "b", "a"], "category", object),
        pytest.param(
            ["b", "a", "b", "a"],
            "StringDType",
            object,
            marks=pytest.mark.skipif(
                not hasattr(np.dtypes, "StringDType"), reason="numpy 2 has this dtype"
            ),
        ),
    ],
)
def test_labels_of_pandas_and_of_variable_width_keep_their_type(labels, dtype, wanted):
    X = np.random.default_rng(0).random((4, 8, 8))
    if dtype == "StringDType":
        y = np.array(labels, np.dtypes.StringDType())
    else:
        y = pd.Series(labels, dtype=dtype)
    classifier = tiny_classifier(max_epochs=1).fit(X, y)
    assert classifier.classes_.dtype == wanted
    assert classifier.classes_.tolist() == sorted(set(labels))


def test_a_column_of_nullable_labels_keeps_their_type_too():
    X = np.random.default_rng(0).random((4, 8, 8))
    labels = [2**60 + 1, 2**60] * 2
    y = pd.DataFrame({"label": pd.array(labels, dtype="Int64")})
    with pytest.warns(DataConversionWarning):
        classifier = tiny_classifier().partial_fit(X, y, classes=labels[:2])
    assert classifier.classes_.tolist() == sorted(set(labels))


def test_medmnist_labels_of_one_column_are_taken(digits, make_classifier):
    X, y = digits
    with pytest.warns(match="column-vector"):
        column = make_classifier(max_epochs=1).fit(X, y[:, None])
    assert_array_equal(column.predict(X), make_classifier(max_epochs=1).fit(X, y).predict(X))


def test_lists_and_data_frames_are_taken(digits, make_classifier):
    X, y = digits
    frame = pd.DataFrame(X.reshape(len(X), -1), columns=[f"pixel{i}" for i in range(64)])
    classifier = make_classifier(max_epochs=1, image_shape=(8, 8)).fit(frame, pd.Series(y))
    assert_array_equal(classifier.feature_names_in_, frame.columns)
    from_lists = make_classifier(max_epochs=1).fit(X.tolist(), y.tolist())
    assert_array_equal(classifier.predict_proba(frame), from_lists.predict_proba(X.tolist()))


# Training


def test_integer_weights_equal_repetitions(digits, make_classifier):
    X, y = digits[0][:30], digits[1][:30]
    weights = np.arange(30) % 3
    weighted = make_classifier().fit(X, y, sample_weight=weights)
    repeated = make_classifier().fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    assert_array_equal(weighted.predict_proba(X), repeated.predict_proba(X))


def test_balanced_class_weight_equals_those_sample_weights(digits, make_classifier):
    X, y = digits[0][:40], digits[1][:40]
    counts = {label: 40 / (3 * np.sum(y == label)) for label in np.unique(y)}
    balanced = make_classifier(class_weight="balanced").fit(X, y)
    weighted = make_classifier().fit(X, y, sample_weight=[counts[label] for label in y])
    assert_array_equal(balanced.predict_proba(X), weighted.predict_proba(X))


def test_the_order_of_the_training_samples_does_not_matter(digits, make_classifier):
    X, y = digits
    order = np.random.default_rng(0).permutation(len(X))
    first, second = make_classifier().fit(X, y), make_classifier().fit(X[order], y[order])
    assert_array_equal(first.predict_proba(X), second.predict_proba(X))


def test_partial_fit_learns_batch_by_batch(digits, make_classifier):
    X, y = digits
    classifier = make_classifier(channels=16, classification_fraction=0.8)
    for _ in range(8):
        for part in np.array_split(np.arange(len(X)), 2):
            classifier.partial_fit(X[part], y[part], classes=np.unique(y))
    assert classifier.n_iter_ == len(classifier.loss_curve_) == 16
    assert {log["learning_rate"] for log in classifier.history_} == {classifier.learning_rate}
    assert classifier.score(X, y) > 0.9


def test_warm_start_goes_on_where_it_was(digits, make_classifier):
    X, y = digits
    classifier = make_classifier(warm_start=True, channels=16, max_epochs=6).fit(X, y)
    before = classifier.loss_curve_[0]
    assert classifier.fit(X, y).loss_curve_[0] < before


def test_early_stopping_ends_before_the_last_epoch(digits, make_classifier):
    X, y = digits
    classifier = make_classifier(
        channels=16, max_epochs=60, early_stopping=True, n_iter_no_change=3
    ).fit(X, y)
    assert classifier.n_iter_ < 60
    assert all(0 <= epoch_log["validation_score"] <= 1 for epoch_log in classifier.history_)


def test_partial_fit_with_another_network_or_other_classes_names_what_starts_anew(digits):
    X, y = digits[0][:30], digits[1][:30]
    classifier = tiny_classifier().partial_fit(X, y, classes=["one", "two", "zero"])
    with pytest.raises(ValueError, match=r"another channels .* a clone of the estimator"):
        classifier.set_params(channels=16).partial_fit(X, y)
    with pytest.raises(ValueError, match=r"classes=.* are not those .* a clone of the estimator"):
        classifier.partial_fit(X, y, classes=["one", "two", "zero", "five"])
    clone(classifier).partial_fit(X, y, classes=["one", "two", "zero", "five"])


def test_partial_fit_says_when_its_time_was_over_before_all_images_were_seen():
    X, y = np.random.default_rng(0).random((60, 8, 8)), np.arange(60) % 2
    classifier = tiny_classifier(time_budget=1e-6, batch_size=10)
    with pytest.warns(ConvergenceWarning, match="after 10 of 60 images"):
        classifier.partial_fit(X, y, [0, 1])


def test_time_budget_limits_fit(digits, monkeypatch, make_classifier):
    X, y = digits
    clock = iter(np.arange(0, 1e6, 0.25))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    classifier = make_classifier(max_epochs="auto", time_budget=30.0).fit(X, y)
    assert next(clock) <= 31
    assert classifier.n_iter_ >= 1


def test_auto_epochs_suit_the_size_of_the_data(digits, monkeypatch, make_classifier):
    monkeypatch.setattr("sklearn_msf._estimator.auto_settings._AUTO_IMAGES_AT_ONE", 240)
    monkeypatch.setattr("sklearn_msf._estimator.auto_settings._AUTO_TIMES_AT_ONE", (2, 5))
    monkeypatch.setattr("sklearn_msf._estimator.auto_settings._MIN_AUTO_FRACTION", 0.25)
    X, y = digits

    def n_epochs(n, classification_fraction):
        return (
            make_classifier(max_epochs="auto", classification_fraction=classification_fraction)
            .fit(X[:n], y[:n])
            .n_iter_
        )

    assert n_epochs(240, 1.0) == 2
    assert n_epochs(80, 1.0) == 3
    assert n_epochs(30, 1.0) == 5
    # Images at t = 1 are what counts.
    assert n_epochs(80, 0.5) == 6
    assert n_epochs(30, 0.5) == 10
    # Training ends, however small their fraction.
    assert n_epochs(120, 1e-308) == n_epochs(120, 0.25) == 8
    # Every image classifies, also where none of a batch is kept at t = 1.
    assert n_epochs(120, 0.0) == 2


@pytest.mark.parametrize(("max_epochs", "wanted"), [(4, "adamw"), (5, "muon")])
def test_muon_is_for_runs_of_some_length(digits, monkeypatch, max_epochs, wanted):
    monkeypatch.setattr("sklearn_msf._estimator.auto_settings._MIN_STEPS_FOR_MUON", 10)
    X, y = digits
    common = {"channels": 16, "batch_size": 120, "max_epochs": max_epochs}
    p = {
        name: tiny_classifier(optimizer=name, **common).fit(X, y).predict_proba(X)
        for name in ("auto", "adamw", "muon")
    }
    assert_array_equal(p["auto"], p[wanted])
    assert (p["adamw"] != p["muon"]).any()


def test_predictions_see_the_flips_of_the_last_training(digits, make_classifier):
    X, y = digits
    classifier = make_classifier(augment="hflip", n_draws=4).fit(X, y)
    assert classifier.model_.flips(4) == [(), (-1,)]
    classifier.set_params(augment="flip").partial_fit(X, y)
    assert classifier.model_.flips(4) == [(), (-1,), (-2,), (-1, -2)]
    classifier.set_params(augment=None).partial_fit(X, y)
    assert classifier.model_.flips(4) == [()]


def test_partial_fit_keeps_to_its_optimizer_whatever_the_size_of_its_parts(digits, monkeypatch):
    monkeypatch.setattr("sklearn_msf._estimator.auto_settings._MIN_STEPS_FOR_MUON", 10)
    X, y = digits
    common = {"channels": 16, "batch_size": 24, "max_epochs": 2}
    parts = [slice(0, 120), slice(120, 140), slice(140, 240)]
    models = {name: tiny_classifier(optimizer=name, **common) for name in ("auto", "muon")}
    for part in parts:
        for model in models.values():
            model.partial_fit(X[part], y[part], classes=np.unique(y))
    assert_array_equal(models["auto"].predict_proba(X), models["muon"].predict_proba(X))


def test_muon_has_half_of_the_automatic_epochs(digits, monkeypatch):
    monkeypatch.setattr("sklearn_msf._estimator.auto_settings._AUTO_IMAGES_AT_ONE", 480)
    monkeypatch.setattr("sklearn_msf._estimator.auto_settings._AUTO_TIMES_AT_ONE", (2, 5))
    common = {"max_epochs": "auto", "classification_fraction": 0.5}
    n_epochs = [tiny_classifier(optimizer=o, **common).fit(*digits).n_iter_ for o in OPTIMIZERS]
    assert dict(zip(OPTIMIZERS, n_epochs, strict=True)) == {"muon": 2, "adamw": 4}


def test_verbose_shows_progress_loss_and_speed(digits, capsys, make_classifier):
    X, y = digits
    make_classifier(verbose=1).fit(X, y)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "loss=" in shown
    assert "images/s=" in shown


# The paper


@pytest.mark.parametrize(
    ("name", "batch_size", "max_epochs", "learning_rate", "beta_gray", "augment"),
    [
        ("pneumoniamnist", 128, 1000, 5e-4, 1, None),
        ("bloodmnist", 256, 1000, 5e-4, 4, "flip"),
        ("dermamnist", 256, 1000, 3e-4, 4, "flip"),
        ("retinamnist", 256, 2000, 5e-4, 3, "flip"),
    ],
)
def test_from_paper_has_the_settings_of_tables_3_and_4(
    name, batch_size, max_epochs, learning_rate, beta_gray, augment
):
    parameters = MedSymmFlowClassifier.from_paper(name).get_params()
    expected = {
        "channels": 64,
        "network_params": {
            "n_blocks": 2,
            "channel_mult": (1, 2, 2, 2),
            "attention_levels": (1,),
            "dropout": 0.0,
            "patch_size": 1,
            "time_scale": 1.0,
            "time_modulation": "shift",
            "upsampling": "adm",
            "input_size": 32,
        },
        "flow_params": {
            "beta": 4,
            "label_encoding": "rgb",
            "label_prediction": "velocity",
            "image_prediction": "velocity",
            "image_weight": 0.7,
            "class_dropout": 0.0,
            "time_shift": 1.0,
        },
        "optimizer_params": {
            "weight_decay": 0.0,
            "max_grad_norm": None,
            "ema_decay": 0.7,
            "warmup": "cosine",
            "even_batches": False,
        },
        "batch_size": batch_size,
        "max_epochs": max_epochs,
        "optimizer": "adamw",
        "learning_rate": learning_rate,
        "classification_fraction": 0.0,
        "n_steps": 1,
        "n_draws": 1,
        "ode_solver": "euler",
        "augment": augment,
    }
    assert {key: parameters[key] for key in expected} == expected
    # bfloat16, as in the published commands, only where the machine is faster with it.
    assert parameters["precision"] == "auto"
    gray = MedSymmFlowClassifier.from_paper(name, label_encoding="grayscale")
    assert gray.flow_params == {
        **expected["flow_params"],
        "label_encoding": "grayscale",
        "beta": beta_gray,
    }


def test_from_paper_takes_overrides_and_names_unknown_data_sets():
    assert MedSymmFlowClassifier.from_paper("bloodmnist", max_epochs=3).max_epochs == 3
    plain = MedSymmFlowClassifier.from_paper("bloodmnist")
    changed = MedSymmFlowClassifier.from_paper(
        "bloodmnist",
        network_params={"dropout": 0.5},
        flow_params={"beta": 2},
        optimizer_params={"max_grad_norm": 1.0},
    )
    # Of a dict only the entries that are given change.
    assert changed.network_params == {**plain.network_params, "dropout": 0.5}
    assert changed.flow_params == {**plain.flow_params, "beta": 2}
    assert changed.optimizer_params == {**plain.optimizer_params, "max_grad_norm": 1.0}
    with pytest.raises(ValueError, match="name must be one of.*got 'mnist'"):
        MedSymmFlowClassifier.from_paper("mnist")


def test_the_papers_settings_train_and_draw_smoke():
    X = np.random.default_rng(0).integers(0, 256, (4, 9, 9), dtype=np.uint8)
    small = {key: TINY[key] for key in ("channels", "channel_mult", "max_epochs", "device")}
    small = grouped({**small, "random_state": 0})
    classifier = MedSymmFlowClassifier.from_paper("retinamnist", **small)
    assert classifier.fit(X, [0, 1, 0, 1]).predict(X).shape == (4,)
    layout = classifier.model_.field.layout
    assert (layout.time_scale, layout.time_modulation) == (1.0, "shift")
    assert classifier.model_.space.shape == (1, 32, 32)
    assert classifier.sample(0, n_steps=2).shape == (1, 9, 9)


def test_every_epoch_of_partial_fit_sees_other_noise(digits, make_classifier):
    X, y = digits[0][:40], digits[1][:40]
    classifier = make_classifier(learning_rate=1e-12)
    for _ in range(3):
        classifier.partial_fit(X, y, classes=np.unique(digits[1]))
    # The weights hardly move, so only the noise can change the loss.
    assert len(set(classifier.loss_curve_)) == 3


@pytest.mark.filterwarnings("ignore:n_steps=2 and .* classify worse than one step")
@pytest.mark.parametrize("form", ["posterior", "velocity"])
def test_no_solver_makes_predictions_depend_on_other_samples(
    digits, form, make_classifier, monkeypatch
):
    limit_full_passes(8, monkeypatch)
    X, y = digits[0][:20], digits[1][:20]
    classifier = make_classifier(label_prediction=form).fit(X, y)
    for ode_solver in ("euler", "midpoint", "rk4", "dopri5"):
        classifier.set_params(ode_solver=ode_solver, n_steps=2)
        together = classifier.predict_proba(X[:4])
        assert_array_equal(classifier.predict_proba(X[2:3]), together[2:3], err_msg=ode_solver)
        assert np.isfinite(classifier.predict_uncertainty(X[:4])).all()


def test_several_steps_of_the_posterior_form_agree_with_one(fitted, digits):
    X = digits[0]
    many = pickle.loads(pickle.dumps(fitted))
    for ode_solver in ("euler", "midpoint", "rk4"):
        many.set_params(n_steps=4, ode_solver=ode_solver)
        with pytest.warns(UserWarning, match="n_steps=4 and .* classify worse than one step"):
            predicted = many.predict(X[:40])
        assert np.mean(predicted == fitted.predict(X[:40])) >= 0.9
    # One step of any method is the same as one of Euler's.
    many.set_params(n_steps=1)
    assert_array_equal(many.predict(X[:40]), fitted.predict(X[:40]))


@pytest.mark.parametrize("form", ["posterior", "velocity"])
@pytest.mark.parametrize("untrained", [{"classification_fraction": 1}, {"image_weight": 0}])
def test_an_image_branch_without_training_does_not_classify(
    make_classifier, digits, form, untrained
):
    X, y = digits
    classifier = make_classifier(max_epochs=1, label_prediction=form, **untrained).fit(X, y)
    classifier.predict(X[:2])
    for settings in ({"n_steps": 5}, {"n_steps": 1, "ode_solver": "dopri5"}):
        with pytest.raises(ValueError, match="n_steps=.* by the image branch, which is not tra"):
            classifier.set_params(**settings).predict(X[:2])
    for held_out in ({"early_stopping": True}, {"calibration": "temperature"}):
        refused = make_classifier(label_prediction=form, n_steps=5, **untrained, **held_out)
        with pytest.raises(ValueError, match="n_steps=5 and ode_solver='euler' move the image"):
            refused.fit(X, y)


def test_automatic_epochs_count_weights_as_repetitions(digits, monkeypatch, make_classifier):
    monkeypatch.setattr("sklearn_msf._estimator.auto_settings._AUTO_IMAGES_AT_ONE", 120)
    monkeypatch.setattr("sklearn_msf._estimator.auto_settings._AUTO_TIMES_AT_ONE", (1, 9))
    X, y = digits[0][:40], digits[1][:40]
    classifier = make_classifier(max_epochs="auto", classification_fraction=0.5)
    weights = np.where(np.arange(40) % 2, 1, 3)
    assert classifier.fit(X, y, sample_weight=weights).n_iter_ == 3


def test_classes_of_zero_weight_are_left_out_of_training_only(digits, make_classifier):
    X, y = digits[0][:40], digits[1][:40]
    classifier = make_classifier(class_weight={"two": 0}).fit(X, y)
    assert list(classifier.classes_) == ["one", "two", "zero"]
    # Their images teach nothing: others in their place give the same model.
    others = np.where((y == "two")[:, None, None], X[:, ::-1], X)
    same = make_classifier(class_weight={"two": 0}).fit(others, y)
    assert_array_equal(classifier.predict_proba(X), same.predict_proba(X))
    assert (classifier.predict_proba(X) != make_classifier().fit(X, y).predict_proba(X)).any()


def test_boolean_images_come_back_boolean(make_classifier):
    X = np.random.default_rng(0).random((6, 8, 8)) < 0.5
    classifier = make_classifier().fit(X, [0, 1] * 3)
    sampled = classifier.sample(0, 20, n_steps=2, random_state=0)
    assert sampled.dtype == bool
    assert 0 < sampled.mean() < 1
    assert_array_equal(classifier.predict_proba(X.astype(float)), classifier.predict_proba(X))


def test_any_byte_of_a_boolean_but_zero_is_true(make_classifier):
    X = np.random.default_rng(0).random((6, 8, 8)) < 0.5
    # So are the arrays that Pillow makes of images of one bit.
    as_pillow = (X * np.uint8(255)).view(bool)
    assert_array_equal(as_pillow, X)
    usual, other = (make_classifier().fit(images, [0, 1] * 3) for images in (X, as_pillow))
    assert usual.model_.image_format == other.model_.image_format
    for classifier in (usual, other):
        assert_array_equal(classifier.predict_proba(as_pillow), classifier.predict_proba(X))
    assert_array_equal(usual.predict_proba(X), other.predict_proba(X))


@pytest.mark.parametrize("go_on", ["partial_fit", "fit"])
def test_training_does_not_go_on_with_another_image_shape(go_on, make_classifier):
    X, y = np.random.default_rng(0).random((6, 64)), [0, 1] * 3
    classifier = make_classifier(image_shape=(4, 16), max_epochs=1, warm_start=True)
    classifier.partial_fit(X, y, classes=[0, 1])
    getattr(classifier.set_params(image_shape=(4, 16, 1)), go_on)(X, y)
    for other in ((8, 8), None):
        asked = re.escape(f"image_shape={other}: the model was fitted on images of shape (4, 16)")
        with pytest.raises(ValueError, match=asked):
            getattr(classifier.set_params(image_shape=other), go_on)(X, y)


@pytest.mark.parametrize("channels", [98, 100])
def test_widths_that_heads_do_not_divide_train_smoke(channels, make_classifier):
    X = np.random.default_rng(0).random((4, 8, 8))
    classifier = make_classifier(channels=channels, channel_mult=(1, 2), max_epochs=1)
    assert classifier.fit(X, [0, 1] * 2).predict(X).shape == (4,)


def test_every_warm_fit_sees_other_noise(digits, make_classifier):
    X, y = digits[0][:40], digits[1][:40]
    classifier = make_classifier(warm_start=True, learning_rate=1e-12, max_epochs=1)
    losses = [classifier.fit(X, y).loss_curve_[0] for _ in range(4)]
    assert len(set(losses)) == 4


def test_class_weights_do_not_lengthen_an_epoch(digits, make_classifier):
    X, y = digits[0][:40], digits[1][:40]
    classifier = make_classifier(class_weight={"one": 100}).fit(X, y)
    assert [epoch_log["n_images"] for epoch_log in classifier.history_] == [40, 40]


def test_balanced_classes_keep_weights_and_repetitions_equal(digits, make_classifier):
    X, y = digits[0][:40], digits[1][:40]
    weights = 1 + np.arange(40) % 3
    weighted = make_classifier(class_weight="balanced").fit(X, y, sample_weight=weights)
    repeated = make_classifier(class_weight="balanced")
    repeated.fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-7)


def test_a_class_weight_for_a_class_that_a_fold_lacks_is_passed_over(digits, make_classifier):
    X, y = digits[0][:40], digits[1][:40]
    two = y != "two"
    of_others = {label: 1 + (label == "one") for label in y[two].tolist()}
    lacking = make_classifier(class_weight={"two": 5, **of_others}).fit(X[two], y[two])
    known = make_classifier(class_weight={"one": 2}).fit(X[two], y[two])
    assert_array_equal(lacking.predict_proba(X), known.predict_proba(X))


# Parameters

ESTIMATORS = [MedSymmFlowClassifier, LatentMedSymmFlowClassifier]
ONLY_OVER_LATENTS = {
    "autoencoder",
    "encoded_size",
    "label_decoding",
    "n_variations",
    "cache_bytes",
    "backbone",
}
# Parameters, and entries of dict parameters, that the other class lacks.
ONLY_OVER_PIXELS = {"input_size", "n_spatial_dims"}


def constructor_parameters(estimator):
    return list(inspect.signature(estimator).parameters)


def test_signatures_have_the_parameters_of_the_table():
    table = {name for name, row in PARAMETERS.items() if row.group is None} | set(GROUPS)
    assert table >= ONLY_OVER_LATENTS
    over_latents = set(constructor_parameters(LatentMedSymmFlowClassifier))
    assert over_latents == table - ONLY_OVER_PIXELS
    assert set(constructor_parameters(MedSymmFlowClassifier)) == table - ONLY_OVER_LATENTS


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_dict_parameters_have_the_entries_of_the_table(estimator):
    entries = {
        group: {name for name, row in PARAMETERS.items() if row.group == group} for group in GROUPS
    }
    if estimator is LatentMedSymmFlowClassifier:
        entries = {group: names - ONLY_OVER_PIXELS for group, names in entries.items()}
    defaults = estimator._group_defaults
    assert {group: set(defaults[group]) for group in defaults} == entries
    signature = inspect.signature(estimator).parameters
    assert all(signature[group].default is None for group in GROUPS)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_parameter_and_every_entry_is_documented(estimator):
    documented = estimator.__doc__.split("    Attributes\n")[0]
    for name in constructor_parameters(estimator):
        assert re.search(rf"(^ {{4}}|, |^){name}(, | : |\n|$)", documented, re.MULTILINE), name
    of_pixels = MedSymmFlowClassifier._group_defaults
    for group, entries in estimator._group_defaults.items():
        for name, default in entries.items():
            if estimator is MedSymmFlowClassifier:
                shown = repr(default).replace("'", '"')
                shown = shown if isinstance(default, tuple) else f"({shown})"
                assert f'- "{name}" {shown}: ' in documented
            elif default != of_pixels[group][name]:
                # Of those that differ from pixels, for the others see there.
                shown = f"{default:g}" if isinstance(default, float) else f'"{default}"'
                shown = repr(default) if isinstance(default, int) else shown
                assert f"``{name}={shown}``" in documented
    if estimator is LatentMedSymmFlowClassifier:
        for entries in FEATURE_DEFAULTS.values():
            for name, default in entries.items():
                shown = f"{default:g}" if isinstance(default, float) else str(default)
                shown = f'"{default}"' if isinstance(default, str) else shown
                assert f"``{name}={shown}``" in documented


def test_over_the_features_of_a_backbone_alone_some_defaults_are_others():
    def values(**given):
        return vars(LatentMedSymmFlowClassifier(**given)._parameters())

    images, features = values(autoencoder="fit"), values(autoencoder=None, backbone="folder")
    differ = {name: value for name, value in features.items() if value != images[name]}
    expected = {**FEATURE_DEFAULTS["network_params"], **FEATURE_DEFAULTS["flow_params"]}
    assert differ == {**expected, "autoencoder": None, "backbone": "folder"}
    named = values(autoencoder=None, backbone="folder", flow_params={"image_weight": 0.7})
    assert named == {**features, "image_weight": 0.7}


def test_there_are_few_parameters():
    assert len(constructor_parameters(MedSymmFlowClassifier)) <= 30


def test_entries_that_are_left_out_have_their_defaults(digits, make_classifier):
    X, y = digits
    classifier = make_classifier(max_epochs=1)
    partly = {"beta": 2.0}
    whole = {**type(classifier)._group_defaults["flow_params"], **partly}
    p = [
        clone(classifier).set_params(flow_params=flow_params).fit(X, y).predict_proba(X)
        for flow_params in (partly, whole, None)
    ]
    assert_array_equal(p[0], p[1])
    assert not np.array_equal(p[0], p[2])
    # What the user passed is not written to.
    assert partly == {"beta": 2.0}


def test_the_network_has_the_entries_of_the_table():
    of_the_data = {"n_classes", "image_channels"}
    assert {field.name for field in fields(FieldLayout)} - of_the_data == set(affecting("network"))


class WithExtra(MedSymmFlowClassifier):
    """A user's subclass with a parameter of its own."""

    def __init__(self, *, extra=1, **parameters):
        super().__init__(**parameters)
        self.extra = extra


class WithFewer(MedSymmFlowClassifier):
    """A user's subclass that fixes all parameters but one."""

    def __init__(self, channels=8):
        super().__init__(channels=channels, max_epochs=1, device="cpu", random_state=0)


def test_users_may_subclass(digits):
    X, y = digits
    small = grouped({**TINY, "max_epochs": 1})
    plain = MedSymmFlowClassifier(**small).fit(X, y)
    extra = WithExtra(extra=2, **small).fit(X, y)
    assert extra.extra == 2
    assert_array_equal(extra.predict_proba(X), plain.predict_proba(X))
    fewer = clone(WithFewer(channels=16)).fit(X, y)
    assert fewer.model_.field.layout.channels == 16


class WithDropout(MedSymmFlowClassifier):
    """A user's subclass whose parameter has the name of an entry of a dict."""

    def __init__(self, dropout=0.2):
        super().__init__()
        self.dropout = dropout


def test_a_parameter_of_a_users_class_may_have_the_name_of_an_entry():
    assert clone(WithDropout()).set_params(dropout=0.5).dropout == 0.5
    with pytest.raises(ValueError, match="entry of the dict network_params"):
        MedSymmFlowClassifier().set_params(dropout=0.5)


def test_models_of_users_classes_are_saved_whole_or_not_at_all(digits, tmp_path):
    X, y = digits
    fewer = WithFewer(channels=16).fit(X, y)
    fewer.save_pretrained(tmp_path / "fewer")
    opened = WithFewer.from_pretrained(tmp_path / "fewer")
    assert opened.get_params() == {"channels": 16}
    card = (tmp_path / "fewer" / "README.md").read_text()
    assert "from sklearn_msf import WithFewer" not in card
    assert "WithFewer is a subclass of one of sklearn_msf: import it" in card
    assert_array_equal(opened.predict_proba(X), fewer.predict_proba(X))
    extra = WithExtra(extra=2, **grouped({**TINY, "max_epochs": 1})).fit(X, y)
    with pytest.raises(TypeError, match="'extra' of WithExtra is not saved.*pickle"):
        extra.save_pretrained(tmp_path / "extra")
    assert not (tmp_path / "extra").exists()


# Threads


def test_a_fit_on_other_images_leaves_the_old_model_whole_until_it_ends(
    digits, make_classifier, monkeypatch
):
    X, y = digits
    classifier = make_classifier().fit(X, y)
    before, during = classifier.predict(X[:5]), []
    epoch = Trainer._epoch

    def predict_and_train(*arguments, **settings):
        # As another thread would.
        during.append(classifier.predict(X[:5]))
        return epoch(*arguments, **settings)

    monkeypatch.setattr(Trainer, "_epoch", predict_and_train)
    wider = np.concatenate([X, X], axis=2)
    classifier.fit(wider, np.char.add("new ", y))
    assert during
    assert all(labels.tolist() == before.tolist() for labels in during)
    assert classifier.n_features_in_ == 128
    assert classifier.predict(wider[:1])[0].startswith("new ")


@pytest.mark.parametrize(("method", "warm_start"), [("fit", False), ("fit", True), ("part", False)])
def test_predictions_while_fit_runs_come_from_the_model_before(
    digits, make_classifier, monkeypatch, method, warm_start
):
    X, y = digits
    classifier = make_classifier(warm_start=warm_start).fit(X, y)
    model, before = classifier.model_, classifier.predict_proba(X)
    learned, go_on = threading.Event(), threading.Event()
    epoch = Trainer._epoch

    def epoch_and_wait(*arguments, **settings):
        losses = epoch(*arguments, **settings)
        learned.set()
        assert go_on.wait(60)
        return losses

    monkeypatch.setattr(Trainer, "_epoch", epoch_and_wait)
    classifier.set_params(random_state=1)
    fit = classifier.fit if method == "fit" else classifier.partial_fit
    thread = threading.Thread(target=fit, args=(X, y))
    thread.start()
    try:
        assert learned.wait(60)
        during = classifier.predict_proba(X)
        assert classifier.model_ is model
    finally:
        go_on.set()
        thread.join()
    assert_array_equal(during, before)
    assert classifier.model_ is not model
    assert not np.array_equal(classifier.predict_proba(X), before)


def test_training_that_goes_on_has_dropout_and_its_moments(digits, make_classifier, monkeypatch):
    seen, epoch = [], Trainer._epoch

    def noted(self, *arguments, **settings):
        seen.append((self.field.training, self._optimizer.n_steps > 0))
        return epoch(self, *arguments, **settings)

    monkeypatch.setattr(Trainer, "_epoch", noted)
    X, y = digits[0][:40], digits[1][:40]
    classifier = make_classifier(dropout=0.5, max_epochs=1, warm_start=True).fit(X, y)
    classifier.fit(X, y).partial_fit(X, y)
    assert seen == [(True, False), (True, True), (True, True)]


def test_the_temperature_is_of_averaged_weights(make_classifier, digits, monkeypatch):
    runs, fields, whole, classify = [], [], Trainer.fit, fitting.classify

    def noted(self, *arguments, **settings):
        runs.append(self)
        whole(self, *arguments, **settings)

    def watched(model, *arguments):
        fields.append(model.field)
        return classify(model, *arguments)

    monkeypatch.setattr(Trainer, "fit", noted)
    monkeypatch.setattr(fitting, "classify", watched)
    make_classifier(calibration="temperature", max_epochs=1).fit(*digits)
    assert fields == [runs[1].average]
    assert not fields[0].training
