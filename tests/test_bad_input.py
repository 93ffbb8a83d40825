"""Every mistake has an error that names the argument, what came and what is expected."""

import re

import numpy as np
import pytest
from conftest import tiny_autoencoder, tiny_classifier, tiny_latent_classifier
from hypothesis import given
from hypothesis import strategies as st
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf._estimator.parameters import GROUPS, PARAMETERS
from sklearn_msf.datasets import load_image_folder
from sklearn_msf.exceptions import DivergenceError

X = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
Y = np.array([0, 1] * 3)


@pytest.fixture(scope="module")
def on_bytes(make_classifier):
    return make_classifier(max_epochs=1).fit(X, Y)


@pytest.fixture(scope="module")
def on_floats(make_classifier):
    return make_classifier(max_epochs=1).fit(X / 255, Y)


def name_in_messages(parameter):
    """Pattern of what messages call a parameter, or an entry of one of the dicts."""
    group = PARAMETERS[parameter].group
    return parameter if group is None else re.escape(f"{group}[{parameter!r}]")


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("image_shape", 64),
        ("image_shape", (8,)),
        ("image_shape", (8, 0)),
        ("image_shape", (8, 8, 1, 1)),
        ("image_shape", (8.0, 8.0)),
        ("label_encoding", "RGB"),
        ("label_encoding", None),
        ("label_prediction", "score"),
        ("image_prediction", "noise"),
        ("image_prediction", "image"),
        ("beta", -1),
        ("beta", "4"),
        ("beta", np.nan),
        ("classification_fraction", 1.5),
        ("class_dropout", 1.0),
        ("class_dropout", "none"),
        ("time_shift", 0),
        ("time_shift", 11.0),
        ("classification_fraction", True),
        ("image_weight", 1.0),
        ("image_weight", None),
        ("channels", 0),
        ("channels", 7),
        ("channels", 8.0),
        ("channel_mult", ()),
        ("channel_mult", 2),
        ("channel_mult", (1, 0)),
        ("n_blocks", 0),
        ("attention_levels", (-1,)),
        ("attention_levels", "1"),
        ("patch_size", 0),
        ("dropout", 1.0),
        ("time_scale", 0),
        ("time_scale", 1e7),
        ("time_scale", "1"),
        ("time_modulation", "add"),
        ("time_modulation", None),
        ("max_epochs", 0),
        ("max_epochs", "many"),
        ("max_epochs", None),
        ("time_budget", 0),
        ("time_budget", np.inf),
        ("batch_size", 0),
        ("learning_rate", 0),
        ("weight_decay", -1),
        ("optimizer", "sgd"),
        ("ema_decay", 1),
        ("warmup", "step"),
        ("even_batches", 0),
        ("augment", "rotate"),
        ("class_weight", "even"),
        ("early_stopping", 1),
        ("validation_fraction", 0),
        ("validation_fraction", 1),
        ("n_iter_no_change", 0),
        ("n_draws", 0),
        ("n_steps", 0.5),
        ("ode_solver", "heun"),
        ("warm_start", "yes"),
        ("device", "gpu"),
        ("precision", "float16"),
        ("verbose", "loud"),
        ("max_grad_norm", 0),
        ("ema_decay", None),
        ("calibration", "platt"),
        ("checkpoint_dir", 3),
        ("checkpoint_dir", ""),
        ("checkpoint_every", 0),
        ("compile_network", "yes"),
        ("ode_solver", None),
        ("random_state", "abc"),
        ("random_state", object()),
        ("random_state", -1),
        ("class_weight", np.array([1.0, 2.0])),
    ],
)
def test_a_wrong_parameter_or_entry_is_named_at_fit(parameter, value, make_classifier):
    with pytest.raises(ValueError, match=f"^{name_in_messages(parameter)} must be .*got"):
        make_classifier(**{parameter: value}).fit(X, Y)


@pytest.mark.parametrize("group", GROUPS)
def test_an_unknown_entry_is_named_with_those_there_are(group, make_classifier):
    classifier = make_classifier()
    known = ", ".join(sorted(classifier._group_defaults[group]))
    message = f"{group} has no entry 'x'; its entries are {known}."
    classifier.set_params(**{group: {**(getattr(classifier, group) or {}), "x": 1}})
    with pytest.raises(ValueError, match=re.escape(message)):
        classifier.fit(X, Y)
    with pytest.raises(ValueError, match=re.escape(message)):
        classifier.partial_fit(X, Y, classes=[0, 1])
    with pytest.raises(ValueError, match=re.escape(message)):
        type(classifier).from_paper("bloodmnist", **{group: {"x": 1}})


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("value", [("beta", 4.0), "beta", 3])
def test_a_dict_parameter_is_a_dict_or_none(group, value, make_classifier):
    with pytest.raises(ValueError, match=f"^{group} must be a dict or None, got"):
        make_classifier().set_params(**{group: value}).fit(X, Y)


@pytest.mark.parametrize("group", GROUPS)
def test_a_dict_parameter_may_be_none(group, make_classifier):
    make_classifier().set_params(**{"max_epochs": 1, group: None}).fit(X, Y)


def test_entries_of_other_dicts_are_not_mistaken_for_parameters():
    for make in (MedSymmFlowClassifier, LatentMedSymmFlowClassifier):
        for name in ("beta", "n_blocks", "weight_decay", "guidance"):
            with pytest.raises(TypeError, match=name):
                make(**{name: 1})
        with pytest.raises(ValueError, match="network_params has no entry 'beta'"):
            make(network_params={"beta": 1}).fit(X, Y)


def test_a_mask_without_a_class_must_not_look_like_that_of_one():
    three, settings = [0, 1, 2] * 2, {"label_encoding": "grayscale"}
    with pytest.raises(
        ValueError, match="class_dropout=0.1 cannot be used with .* set class_dropout=0"
    ):
        tiny_classifier(class_dropout=0.1, **settings).fit(X, three)
    tiny_classifier(class_dropout=0.0, **settings).fit(X, three).sample(0, n_steps=1)
    tiny_classifier(class_dropout=0.1, label_prediction="velocity", **settings).fit(X, three)
    tiny_classifier(class_dropout=0.1, **settings).fit(X, [0, 1] * 3)


@given(
    parameter=st.sampled_from(["beta", "classification_fraction", "dropout", "learning_rate"]),
    value=st.floats(max_value=-1e-9),
)
def test_negative_numbers_are_refused_where_they_mean_nothing(parameter, value, make_classifier):
    with pytest.raises(ValueError, match=f"{name_in_messages(parameter)} must be"):
        make_classifier(**{parameter: value}).fit(X, Y)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_in_fit_and_predict(
    on_floats, value, make_classifier
):
    bad = X / 255
    bad[2, 3, 4] = value
    with pytest.raises(ValueError, match="X contains (NaN|infinity)"):
        make_classifier().fit(bad, Y)
    with pytest.raises(ValueError, match="X contains (NaN|infinity)"):
        on_floats.predict(bad)


@pytest.mark.parametrize("shape", [(0, 8, 8), (0, 64), (6, 0, 8)])
def test_empty_images_are_refused(shape, make_classifier):
    with pytest.raises(ValueError, match="0 (sample|feature)"):
        make_classifier().fit(np.empty(shape), Y[: shape[0]])


def test_predicting_nothing_is_refused(on_bytes):
    with pytest.raises(ValueError, match="0 sample"):
        on_bytes.predict(X[:0])


@pytest.mark.parametrize("shape", [(6,), (6, 2, 2, 2, 2)])
def test_other_dimensions_are_refused(shape, make_classifier):
    with pytest.raises(ValueError, match=r"(1D|dim)"):
        make_classifier().fit(np.zeros(shape), Y)


def test_one_class_is_refused(make_classifier):
    with pytest.raises(ValueError, match="at least 2 classes; got 1 class"):
        make_classifier().fit(X, np.zeros(6))


def test_one_class_left_by_zero_weights_is_refused(make_classifier):
    with pytest.raises(ValueError, match="at least 2 classes; got 1 class"):
        make_classifier().fit(X, Y, sample_weight=1 - Y)


def test_several_label_columns_are_not_supported_and_said_so(make_classifier):
    with pytest.raises(ValueError, match=r"y must be of shape .*got \(6, 3\).*multi-label"):
        make_classifier().fit(X, np.zeros((6, 3)))


def test_continuous_labels_are_refused(make_classifier):
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        make_classifier().fit(X, Y + 0.5 * np.arange(6) / 7)


def test_labels_and_images_must_be_as_many(make_classifier):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        make_classifier().fit(X, Y[:5])


def test_rows_that_do_not_match_image_shape_are_named(make_classifier):
    with pytest.raises(ValueError, match=r"image_shape=\(7, 9\) has 63 values, but X has 64"):
        make_classifier(image_shape=(7, 9)).fit(X.reshape(6, 64), Y)


def test_images_that_contradict_image_shape_are_named(make_classifier):
    with pytest.raises(ValueError, match=r"shape \(8, 8\), but image_shape=\(4, 16\)"):
        make_classifier(image_shape=(4, 16)).fit(X, Y)


@pytest.mark.parametrize("shape", [(9, 8), (4, 16), (8, 8, 3)])
def test_images_of_another_size_or_other_channels_are_named(on_bytes, shape):
    with pytest.raises(ValueError, match=r"X has images of shape .*fitted on images of shape"):
        on_bytes.predict(np.zeros((2, *shape), dtype=np.uint8))


def test_rows_of_another_length_are_named(on_bytes):
    with pytest.raises(
        ValueError, match=r"63 features, but \w*MedSymmFlowClassifier is expecting 64"
    ):
        on_bytes.predict(np.zeros((2, 63), dtype=np.uint8))


def test_floats_for_a_model_of_bytes_name_the_remedy(on_bytes):
    with pytest.raises(ValueError, match="fitted on uint8.*np.rint"):
        on_bytes.predict(X / 255)


def test_binary_floats_for_a_model_of_bytes_are_refused(on_bytes):
    with pytest.raises(ValueError, match="fitted on uint8"):
        on_bytes.predict((X > 100).astype(float))


def test_whole_floats_in_the_byte_range_are_the_same_images(on_bytes):
    np.testing.assert_array_equal(
        on_bytes.predict_proba(X.astype(float)), on_bytes.predict_proba(X)
    )


def test_bytes_for_a_model_of_floats_are_refused(on_floats):
    with pytest.raises(
        ValueError, match=r"X is uint8, but the model was fitted on float64 in \[0, 1\]"
    ):
        on_floats.predict(X)


@pytest.mark.parametrize("weight", [[-1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 1], [np.nan] * 6])
def test_unusable_sample_weights_are_named(weight, make_classifier):
    with pytest.raises(ValueError, match="(?i)sample_weight"):
        make_classifier().fit(X, Y, sample_weight=weight)


@pytest.mark.parametrize("class_id", [2, "0", [0, 5], [[0, 1]], []])
def test_an_unknown_class_is_named(on_bytes, class_id):
    with pytest.raises(ValueError, match=r"class_id must be one or more of the classes \[0, 1\]"):
        on_bytes.sample(class_id)


def test_a_single_label_of_any_form_is_one(make_classifier):
    fitted = make_classifier(max_epochs=1).fit(X, np.array(list("ababab"), dtype=object))
    for label in ("a", np.str_("a"), np.array("a"), np.array("a", dtype=object)):
        assert fitted.sample(label, n_steps=1).shape == X[:1].shape


@pytest.mark.parametrize("classes", [{0, 1}, {0: 5}.keys(), {0: 5}, {5: 0}.values()])
def test_classes_without_positions_are_refused(on_bytes, classes):
    for name, ask in (
        ("class_id", lambda: on_bytes.sample(classes)),
        ("to_class", lambda: on_bytes.counterfactual(X, classes)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a label, or a list or an array of"):
            ask()


@pytest.mark.parametrize("argument", ["n_samples", "n_steps"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_counts_of_sample_are_positive_integers(on_bytes, argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be an integer >= 1"):
        on_bytes.sample(0, **{argument: value})


@pytest.mark.parametrize("coverage", [0, -0.1, 1.1, np.nan, "0.9", True])
def test_coverage_is_a_fraction(on_bytes, coverage):
    with pytest.raises(ValueError, match=r"coverage must be a number in \(0, 1\], got"):
        on_bytes.predict_with_reject(X, coverage=coverage)


def test_an_unknown_kind_of_uncertainty_is_named(on_bytes):
    with pytest.raises(ValueError, match="kind must be one of .*got 'doubt'"):
        on_bytes.predict_uncertainty(X, kind="doubt")
    with pytest.raises(ValueError, match="kind must be one of .*got 'doubt'"):
        on_bytes.predict_with_reject(X, kind="doubt")
    with pytest.raises(ValueError, match="kind must be one of .*got 'doubt'"):
        on_bytes.fit_reject(X, Y, kind="doubt")


def test_more_classes_than_colours_name_the_other_code(make_classifier):
    many = np.zeros((195, 8, 8))
    with pytest.raises(ValueError, match="64 codes, got 65 classes.*simplex"):
        make_classifier().fit(many, np.arange(195) % 65)


@pytest.mark.parametrize("autoencoder", ["fit", "object"])
@pytest.mark.parametrize("form", ["posterior", "velocity"])
def test_more_classes_than_codes_are_refused_before_anything_is_trained_or_encoded(
    monkeypatch, tmp_path, autoencoder, form
):
    def too_late(*arguments, **settings):
        raise AssertionError("something was trained or encoded")

    module = tiny_autoencoder()
    for name in ("fit_autoencoder", "learn_latents", "encode_variations", "keep_latents"):
        monkeypatch.setattr(f"sklearn_msf._estimator.latent_preparation.{name}", too_late)
    monkeypatch.setattr(type(module), "encode", too_late)
    monkeypatch.setattr("sklearn_msf.training.trainer.Trainer._epoch", too_late)
    classifier = tiny_latent_classifier(
        autoencoder="fit" if autoencoder == "fit" else module,
        label_prediction=form,
        checkpoint_dir=tmp_path / "run",
        augment="hflip+affine",
    )
    images, labels = np.zeros((195, 8, 8)), np.arange(195) % 65
    with pytest.raises(ValueError, match="64 codes, got 65 classes"):
        classifier.fit(images, labels)
    with pytest.raises(ValueError, match="64 codes, got 65 classes"):
        classifier.partial_fit(images, labels, classes=np.arange(65))
    assert not (tmp_path / "run").exists()


def test_classes_whose_mean_code_is_one_are_refused_before_anything_is_encoded(monkeypatch):
    monkeypatch.setattr("sklearn_msf._estimator.latent_preparation.learn_latents", None)
    classifier = tiny_latent_classifier(label_encoding="grayscale", class_dropout=0.1)
    with pytest.raises(ValueError, match="class_dropout=0.1 cannot be used with"):
        classifier.fit(X, [0, 1, 2] * 2)


def test_early_stopping_on_too_little_data_is_named(make_classifier):
    with pytest.raises(ValueError, match="early_stopping cannot hold out a fraction of 0.1 of 3"):
        make_classifier(early_stopping=True).fit(X[:3], [0, 1, 1])


@pytest.mark.parametrize("settings", [{"early_stopping": True}, {"calibration": "temperature"}])
def test_a_class_of_one_image_is_named_by_its_label(make_classifier, settings):
    images, y = np.zeros((41, 8, 8)), [1] * 20 + [2] * 20 + [3]
    with pytest.raises(ValueError, match=r"one image only is of each of the classes \[3\]; pass X"):
        make_classifier(**settings).fit(images, y)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"early_stopping": True},
            "would hold out 1 of 6 images, .* the 3 classes are; raise validation_fraction, pass X",
        ),
        (
            {"early_stopping": True, "validation_fraction": 0.7},
            "would train on 1 of 6 images, .*; lower validation_fraction, pass X_val and y_val",
        ),
        ({"calibration": "temperature"}, "would hold out 2 of 6 images, .*; pass X_val and y_val"),
    ],
)
def test_too_few_images_to_hold_out_are_counted(make_classifier, settings, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(**settings).fit(X, [0, 1, 2] * 2)


def test_what_more_classes_than_colours_need_depends_on_what_is_encoded(make_classifier):
    images, y = np.zeros((130, 8, 8)), np.arange(130) % 65
    classifier = make_classifier(label_prediction="velocity")
    with pytest.raises(ValueError, match="has 64 codes, got 65") as found:
        classifier.fit(images, y)
    # Over latents the masks are encoded, as simplex codes cannot be.
    over_latents = "label_prediction='posterior'" in str(found.value)
    assert over_latents == isinstance(classifier, LatentMedSymmFlowClassifier)


def test_over_latents_no_advice_leads_to_masks_that_cannot_be_encoded():
    classifier = tiny_latent_classifier(label_encoding="grayscale", class_dropout=0.1)
    with pytest.raises(ValueError, match="another label_encoding there"):
        classifier.fit(X, [0, 1, 2] * 2)


@pytest.mark.parametrize("parameters", [{"early_stopping": True, "validation_fraction": 0.8}])
def test_a_class_that_would_be_held_out_as_a_whole_is_named(make_classifier, parameters):
    images, y = np.zeros((40, 8, 8)), ["usual"] * 38 + ["rare"] * 2
    with pytest.raises(ValueError, match=r"leave no image of the classes \['rare'\] to train on"):
        make_classifier(**parameters).fit(images + np.arange(40)[:, None, None], y)


def test_a_class_without_a_held_out_image_is_warned_of(make_classifier):
    images, y = np.arange(40.0)[:, None, None] + np.zeros((8, 8)), ["usual"] * 38 + ["rare"] * 2
    with pytest.warns(UserWarning, match=r"no image of the classes \['rare'\], which have too few"):
        make_classifier(max_epochs=1, early_stopping=True, validation_fraction=0.1).fit(images, y)


def test_choices_may_be_of_types_of_numpy(make_classifier):
    parameters = {"optimizer": "muon", "augment": "flip", "precision": "float32"}
    as_numpy = {name: np.str_(value) for name, value in parameters.items()}
    images = np.random.default_rng(0).random((12, 8, 8))
    found, expected = (
        make_classifier(max_epochs=1, **given).fit(images, [0, 1] * 6).predict_proba(images)
        for given in (as_numpy, parameters)
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [2.0, True, "2", np.float64(2)])
def test_a_number_of_another_type_is_no_choice(value):
    with pytest.raises(ValueError, match="n_spatial_dims must be one of 2, 3, got"):
        tiny_classifier(n_spatial_dims=value).fit(X, Y)


def test_the_first_partial_fit_needs_all_classes(make_classifier):
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        make_classifier().partial_fit(X, Y)


def test_later_partial_fits_keep_classes_and_images(make_classifier):
    classifier = make_classifier().partial_fit(X, Y, classes=[0, 1])
    with pytest.raises(
        ValueError, match="are not those of the model that partial_fit goes on with"
    ):
        classifier.partial_fit(X, Y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match=r"labels \[2\] that are not among the classes"):
        classifier.partial_fit(X, Y + 1)
    with pytest.raises(ValueError, match="images of shape"):
        classifier.partial_fit(np.zeros((6, 9, 8), dtype=np.uint8), Y)
    assert classifier.partial_fit(X, Y).classes_.tolist() == [0, 1]
    assert len(classifier.history_) == 2


def test_partial_fit_holds_nothing_out(make_classifier):
    with pytest.raises(ValueError, match="early_stopping=True is not supported by partial_fit"):
        make_classifier(early_stopping=True).partial_fit(X, Y, classes=[0, 1])


def test_a_failed_first_partial_fit_leaves_nothing_behind(make_classifier):
    classifier = make_classifier()
    with pytest.raises(ValueError, match="sample_weight"):
        classifier.partial_fit(X, Y, classes=[0, 1], sample_weight=np.zeros(6))
    with pytest.raises(NotFittedError):
        classifier.predict(X)


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.predict(X),
        lambda c: c.predict_proba(X),
        lambda c: c.sample(0),
        lambda c: c.predict_uncertainty(X),
        lambda c: c.predict_with_reject(X),
    ],
)
def test_an_unfitted_model_says_so(call, make_classifier):
    with pytest.raises(NotFittedError):
        call(make_classifier())


def test_a_failed_fit_keeps_the_model_that_was_there(make_classifier):
    classifier = make_classifier().fit(X, Y)
    before = classifier.predict_proba(X)
    with pytest.raises(ValueError, match="at least 2 classes"):
        classifier.fit(X, np.zeros(6))
    np.testing.assert_array_equal(classifier.predict_proba(X), before)


def test_a_learning_rate_that_diverges_is_named_and_the_old_model_kept(make_classifier):
    classifier = make_classifier().fit(X, Y)
    before = classifier.predict_proba(X)
    with (
        pytest.warns(
            UserWarning, match="The epoch is repeated at 0[.][0-9]+ times the learning rate"
        ),
        pytest.raises(DivergenceError, match="not finite in epoch .*learning_rate=1e"),
    ):
        classifier.set_params(learning_rate=1e30, max_epochs=20).fit(X, Y)
    np.testing.assert_array_equal(classifier.predict_proba(X), before)


def test_going_on_with_another_network_is_refused(make_classifier):
    classifier = make_classifier(warm_start=True).fit(X, Y).set_params(channels=16)
    with pytest.raises(ValueError, match="cannot go on with another channels"):
        classifier.fit(X, Y)
    other = {**classifier.flow_params, "beta": 2.0}
    with pytest.raises(ValueError, match="cannot go on with another beta"):
        classifier.set_params(channels=8, flow_params=other).fit(X, Y)


def test_parameters_spoiled_after_fit_are_named(on_bytes):
    spoiled = clone(on_bytes).fit(X, Y).set_params(n_draws=0)
    with pytest.raises(ValueError, match="n_draws must be"):
        spoiled.predict(X)


@pytest.mark.parametrize("weight", [{0: -1}, {0: 0, 1: 0}, {5: 1}, {0: np.nan}, {0: "a"}])
def test_unusable_class_weights_are_named(weight, make_classifier):
    with pytest.raises(ValueError, match=r"class_weight must map classes out of \[0, 1\]"):
        make_classifier(class_weight=weight).fit(X, Y)


def test_balanced_weights_in_parts_are_refused(make_classifier):
    with pytest.raises(ValueError, match="not supported by partial_fit"):
        make_classifier(class_weight="balanced").partial_fit(X, Y, classes=[0, 1])


def test_a_list_of_images_of_several_sizes_is_refused(make_classifier):
    with pytest.raises(ValueError, match="images of one size"):
        make_classifier().fit([np.zeros((8, 8)), np.zeros((9, 8))], [0, 1])


def test_a_part_whose_classes_all_weigh_nothing_is_named(make_classifier):
    classifier = make_classifier(class_weight={0: 0})
    with pytest.raises(ValueError, match="class_weight=.*gives weight zero to every sample"):
        classifier.partial_fit(X[:2], [0, 0], classes=[0, 1])


@pytest.mark.parametrize("values", [X.astype(float), X.astype(np.int64)])
def test_a_byte_range_for_a_model_of_unit_floats_names_the_remedy(on_floats, values):
    with pytest.raises(ValueError, match=r"fitted on values in \[0, 1\].*X / 255"):
        on_floats.predict(values)


def test_sample_names_an_unknown_solver(on_bytes):
    spoiled = clone(on_bytes).fit(X, Y).set_params(ode_solver="heun2")
    with pytest.raises(ValueError, match="ode_solver must be one of"):
        spoiled.sample(0)
    for solver in ("heun2", None, 3):
        with pytest.raises(ValueError, match="ode_solver must be one of .*got"):
            on_bytes.sample(0, ode_solver=solver)


def test_sample_names_an_unusable_seed(on_bytes):
    with pytest.raises(ValueError, match="random_state must be"):
        on_bytes.sample(0, random_state="abc")


@pytest.mark.parametrize("value", [["beta"], "dropout", 3])
@pytest.mark.parametrize("estimator", [MedSymmFlowClassifier, LatentMedSymmFlowClassifier])
def test_from_paper_names_a_dict_parameter_that_is_no_dict(estimator, value):
    with pytest.raises(ValueError, match="flow_params must be a dict or None, got"):
        estimator.from_paper("bloodmnist", flow_params=value)


def test_nan_is_refused_although_scikit_learn_assumes_that_there_is_none(make_classifier):
    images = np.random.default_rng(0).random((12, 8, 8))
    labels = [0, 1] * 6
    classifier = make_classifier(max_epochs=1).fit(images, labels)
    bad = images.copy()
    bad[3, 0, 0] = np.nan
    with config_context(assume_finite=True):
        for method in (
            classifier.predict_proba,
            classifier.predict_with_reject,
            classifier.predict,
        ):
            with pytest.raises(ValueError, match="X contains NaN: 1 of 12 images .* first image 3"):
                method(bad)
        with pytest.raises(ValueError, match="X contains NaN"):
            make_classifier().fit(bad, labels)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("folder", lambda classifier, path: classifier.save_pretrained(path)),
        ("folder", lambda classifier, path: type(classifier).from_pretrained(path)),
        ("path", lambda classifier, path: classifier.export_onnx(path)),
        ("path", lambda classifier, path: load_image_folder(path)),
    ],
)
def test_what_is_no_path_is_refused_by_name_and_nothing_is_written(
    on_bytes, name, call, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for wrong in (None, 3, b"folder", ["folder"]):
        with pytest.raises(TypeError, match=f"{name} must be a path, .*{re.escape(repr(wrong))}"):
            call(on_bytes, wrong)
    with pytest.raises(ValueError, match=f"{name} is empty: name a path"):
        call(on_bytes, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("estimator", [MedSymmFlowClassifier, LatentMedSymmFlowClassifier])
@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("network_params__dropout", 0.1, r"network_params=\{'dropout': 0\.1\}"),
        ("dropout", 0.1, r"network_params=\{'dropout': 0\.1\}"),
        ("flow_params__beta", 2, r"flow_params=\{'beta': 2\}"),
        ("optimizer_params__unknown", 1, "optimizer_params has no entry 'unknown'; its entries"),
    ],
)
def test_an_entry_of_a_dict_by_itself_says_how_it_is_set(estimator, name, value, remedy):
    classifier = estimator()
    with pytest.raises(ValueError, match=remedy):
        classifier.set_params(**{name: value})
    assert classifier.set_params(channels=8, network_params={"dropout": 0.1}) is classifier
    assert (classifier.channels, classifier.network_params) == (8, {"dropout": 0.1})
    with pytest.raises(ValueError, match="Invalid parameter 'nothing'"):
        classifier.set_params(nothing=1)


def test_the_size_over_latents_is_a_parameter_of_its_own():
    for name in ("input_size", "network_params__input_size"):
        with pytest.raises(ValueError, match=r"no entry 'input_size'; .* parameter encoded_size"):
            LatentMedSymmFlowClassifier().set_params(**{name: 256})
