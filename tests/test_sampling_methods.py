"""Sampling new images, and others made of given ones."""

import copy
import datetime
import inspect
import math
import pickle
import re
import types
import warnings

import numpy as np
import pytest
from conftest import tiny_classifier
from sklearn.exceptions import ConvergenceWarning

from sklearn_msf.flow.ode_solver import ODE_SOLVERS
from sklearn_msf.sample_augmentation import augment_with_samples


def test_all_classes_are_sampled_where_none_is_named(fitted):
    together = fitted.sample(n_samples=2, n_steps=2, random_state=0)
    named = fitted.sample(fitted.classes_, 2, n_steps=2, random_state=0)
    np.testing.assert_array_equal(together, named)
    assert len(together) == 6


def test_a_class_that_is_a_date_is_asked_for_in_any_unit(digits):
    X, y = digits
    days = np.array(["2024-01-01", "2024-01-02", "2024-01-03"], dtype="datetime64[s]")
    classifier = tiny_classifier(max_epochs=1).fit(X, days[np.unique(y, return_inverse=True)[1]])
    first = classifier.sample(classifier.classes_[0], n_steps=1, random_state=0)
    for day in (np.datetime64("2024-01-01"), datetime.date(2024, 1, 1)):
        asked = classifier.sample(day, n_steps=1, random_state=0)
        np.testing.assert_array_equal(asked, first)
    with pytest.raises(ValueError, match="class_id must be one or more of"):
        classifier.sample(np.datetime64("2024-01-04"))


def test_every_solver_samples_the_same_image_given_steps_enough(fitted):
    settings = {"class_id": "two", "random_state": 0}
    # From 20 steps on all solvers have the same last step, 0.05 long.
    exact = fitted.sample(**settings, n_steps=20, ode_solver="rk4")
    for solver in ODE_SOLVERS:
        few, many = (fitted.sample(**settings, n_steps=n, ode_solver=solver) for n in (2, 20))
        assert few.shape == (1, 8, 8)
        assert np.isfinite(few).all()
        # Of values in 0 to 16.
        assert np.abs(many - exact).mean() < 0.3, solver


@pytest.mark.parametrize("form", ["posterior", "velocity"])
def test_a_denoised_image_is_learned_and_kept_instead_of_a_velocity(
    make_classifier, digits, form, tmp_path
):
    classifier = make_classifier(label_prediction=form, image_prediction="denoised").fit(*digits)
    sampled = classifier.sample(n_samples=2, n_steps=3, random_state=0)
    assert np.isfinite(sampled).all()
    other = make_classifier(label_prediction=form, image_prediction="velocity").fit(*digits)
    assert (other.sample(n_samples=2, n_steps=3, random_state=0) != sampled).any()
    classifier.save_pretrained(tmp_path)
    opened = type(classifier).from_pretrained(tmp_path)
    np.testing.assert_array_equal(opened.sample(n_samples=2, n_steps=3, random_state=0), sampled)


@pytest.mark.parametrize("form", ["posterior", "velocity"])
def test_guidance_changes_what_is_sampled(make_classifier, digits, form):
    classifier = make_classifier(label_prediction=form, class_dropout=0.2).fit(*digits)
    settings = {"n_steps": 3, "random_state": 0}
    sampled = classifier.sample("one", 2, **settings)
    guided = classifier.sample("one", 2, guidance=1.0, **settings)
    assert np.isfinite(guided).all()
    assert not np.array_equal(guided, sampled)
    images, _, _ = classifier.sample_trajectory("one", guidance=1.0, **settings)
    np.testing.assert_allclose(images[-1], guided[0], atol=1e-3)


# Every method that samples under guidance; each takes a classifier, images and more settings.
GUIDED = {
    "sample": lambda c, X, **more: c.sample(n_samples=2, n_steps=3, random_state=0, **more),
    "iter_samples": lambda c, X, **more: np.concatenate(
        list(c.iter_samples(n_samples=2, batch_size=4, n_steps=3, random_state=0, **more))
    ),
    "sample_trajectory": lambda c, X, **more: np.concatenate(
        [part.ravel() for part in c.sample_trajectory("one", n_steps=3, random_state=0, **more)]
    ),
    "counterfactual": lambda c, X, **more: c.counterfactual(X, "one", n_steps=3, **more),
}


@pytest.mark.parametrize(("class_dropout", "guidance"), [(0.2, 0.5), (0.0, 0.0)])
def test_guidance_is_one_half_where_the_field_learned_unconditional_samples_else_zero(
    make_classifier, digits, class_dropout, guidance
):
    X, y = digits
    classifier = make_classifier(class_dropout=class_dropout).fit(X, y)
    # What is set after training has trained nothing.
    later = copy.copy(classifier).set_params(flow_params={"class_dropout": 0.2 - class_dropout})
    for method, call in GUIDED.items():
        chosen = call(classifier, X[:4])
        explicit = call(classifier, X[:4], guidance=guidance)
        np.testing.assert_array_equal(chosen, explicit, err_msg=method)
        np.testing.assert_array_equal(call(later, X[:4]), chosen, err_msg=method)
        if guidance:
            assert not np.array_equal(chosen, call(classifier, X[:4], guidance=0)), method


def test_defaults_learn_unconditional_samples_over_pixels_and_over_latents(make_classifier, digits):
    classifier = make_classifier(max_epochs=1).fit(*digits)
    assert classifier.model_.generates_unconditionally
    settings = {"n_samples": 2, "n_steps": 2, "random_state": 0}
    np.testing.assert_array_equal(
        classifier.sample(**settings), classifier.sample(guidance=0.5, **settings)
    )


@pytest.mark.parametrize("method", ["sample", "iter_samples", "sample_trajectory"])
def test_sampling_is_in_float32_whatever_the_precision(fitted, digits, method):
    rounding = copy.copy(fitted).set_params(precision="bfloat16")
    found, wanted = (GUIDED[method](c, digits[0][:2]) for c in (rounding, fitted))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("method", GUIDED)
@pytest.mark.parametrize("guidance", [-0.5, 101, np.nan, np.inf, "0.5", True, [0.5]])
def test_a_guidance_that_is_none_is_named(fitted, digits, method, guidance):
    with pytest.raises(ValueError, match=r"guidance must be a number in \[0, 100\] or None, got"):
        GUIDED[method](fitted, digits[0][:2], guidance=guidance)


@pytest.mark.filterwarnings("ignore:n_steps=3 and .* classify worse than one step")
def test_how_the_classifier_classifies_does_not_change_what_is_sampled(fitted, digits):
    other = copy.copy(fitted).set_params(n_steps=3, ode_solver="midpoint", n_draws=4)
    # Of images that both take for the same class.
    X = digits[0][:40]
    X = X[fitted.predict(X) == other.predict(X)][:4]
    assert len(X) == 4
    for method, call in {**GUIDED, "reconstruct": lambda c, X: c.reconstruct(X, n_steps=3)}.items():
        np.testing.assert_array_equal(call(other, X), call(fitted, X), err_msg=method)


@pytest.mark.parametrize(
    ("method", "n_steps", "ode_solver"),
    [
        ("sample", 5, "midpoint"),
        ("iter_samples", 5, "midpoint"),
        ("sample_trajectory", 5, "midpoint"),
        ("reconstruct", 25, "midpoint"),
        ("counterfactual", 25, "midpoint"),
    ],
)
def test_sampling_has_steps_and_a_solver_of_its_own(fitted, method, n_steps, ode_solver):
    defaults = inspect.signature(getattr(fitted, method)).parameters
    assert defaults["n_steps"].default == n_steps
    assert defaults["ode_solver"].default == ode_solver


def test_guidance_needs_a_field_that_samples_without_a_class(make_classifier, digits):
    X = digits[0][:2]
    classifier = make_classifier(class_dropout=0.0).fit(*digits)
    reconstructed = classifier.reconstruct(X, n_steps=3)
    # What is set now has trained nothing.
    trained = {**classifier.flow_params, "class_dropout": 0.1}
    classifier.set_params(flow_params=trained)
    remedy = re.escape("fit with flow_params={'class_dropout': 0.1}, or pass guidance=0.")
    message = f"guidance=0.5 needs a field that learned.*: {remedy}"
    for call in GUIDED.values():
        with pytest.raises(ValueError, match=message):
            call(classifier, X, guidance=0.5)
    # There and back is never guided.
    np.testing.assert_array_equal(classifier.reconstruct(X, n_steps=3), reconstructed)


def test_guidance_goes_further_into_the_other_class(digits):
    X = digits[0][digits[1] != "two"][:20]
    classifier = tiny_classifier(class_dropout=0.2, channels=16, max_epochs=60).fit(*digits)
    p = []
    for guidance in (0.0, 2.0):
        images = classifier.counterfactual(X, "two", n_steps=8, guidance=guidance)
        p.append(classifier.predict_proba(images)[:, 1].mean())
    assert p[0] < p[1]


def test_what_a_field_can_sample_is_saved_with_it(make_classifier, digits, tmp_path):
    classifier = make_classifier(class_dropout=0.2, max_epochs=1).fit(*digits)
    changed = {**classifier.flow_params, "class_dropout": 0.0}
    classifier.set_params(flow_params=changed).save_pretrained(tmp_path)
    opened = type(classifier).from_pretrained(tmp_path)
    settings = {"n_steps": 2, "random_state": 0}
    sampled = classifier.sample("one", guidance=0.5, **settings)
    np.testing.assert_array_equal(opened.sample("one", guidance=0.5, **settings), sampled)
    # It is also what None stands for.
    np.testing.assert_array_equal(opened.sample("one", **settings), sampled)


@pytest.mark.parametrize("image_prediction", ["velocity", "denoised"])
def test_going_on_does_not_forget_how_to_sample(make_classifier, digits, image_prediction):
    classifier = make_classifier(
        warm_start=True, max_epochs=1, image_prediction=image_prediction
    ).fit(*digits)
    sampled = classifier.sample("one", n_steps=2, random_state=0)
    classifier.set_params(classification_fraction=1.0).fit(*digits)
    again = classifier.sample("one", n_steps=2, random_state=0)
    # The way down classifies too and has learned on.
    assert np.isfinite(again).all()
    assert np.abs(again.astype(float) - sampled).mean() < 4


def test_one_step_goes_all_the_way(fitted):
    sampled = fitted.sample("one", 3, n_steps=1, random_state=0)
    images, _, times = fitted.sample_trajectory("one", n_steps=1, random_state=0)
    assert times.tolist() == [0, 1]
    np.testing.assert_allclose(images[-1], sampled[0], atol=1e-3)


def test_an_image_of_a_seed_is_the_same_however_many_are_sampled(fitted):
    many = fitted.sample("one", 20, n_steps=2, random_state=5)
    np.testing.assert_array_equal(fitted.sample("one", 3, n_steps=2, random_state=5), many[:3])


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_batches_hold_the_images_that_sample_gives(fitted, batch_size):
    arguments = {"class_id": ["one", "zero"], "n_samples": 5, "n_steps": 2, "random_state": 3}
    batches = fitted.iter_samples(batch_size=batch_size, **arguments)
    assert isinstance(batches, types.GeneratorType)
    parts = list(batches)
    assert {len(part) for part in parts[:-1]} <= {batch_size}
    np.testing.assert_array_equal(np.concatenate(parts), fitted.sample(**arguments))


def test_verbose_shows_how_many_images_are_sampled(fitted, capsys):
    talkative = copy.copy(fitted).set_params(verbose=1)
    sampled = talkative.sample("one", 20, n_steps=1, random_state=0)
    assert "20/20" in capsys.readouterr().err
    np.testing.assert_array_equal(sampled, fitted.sample("one", 20, n_steps=1, random_state=0))
    assert capsys.readouterr().err == ""


def test_large_numbers_are_sampled_only_as_they_are_taken(fitted):
    batches = fitted.iter_samples(n_samples=10**9, batch_size=2, n_steps=1, random_state=0)
    assert next(batches).shape == (2, 8, 8)


@pytest.mark.parametrize("form", ["posterior", "velocity"])
def test_a_trajectory_ends_at_the_image_that_sample_gives(make_classifier, digits, form):
    classifier = make_classifier(label_prediction=form).fit(*digits)
    images, masks, times = classifier.sample_trajectory("two", n_steps=6, random_state=3)
    np.testing.assert_allclose(times, np.arange(7) / 6)
    assert images.shape == (7, 8, 8)
    sampled = classifier.sample("two", n_steps=6, random_state=3)
    np.testing.assert_allclose(images[-1], sampled[0], atol=1e-3)
    assert len(masks) == 7
    if not (form == "velocity" and hasattr(classifier, "autoencoder_")):
        # Of one colour, with the jitter of training where the field carries the mask; encoded
        # masks are decoded, and have several.
        deviation = 4 / 127.5 / math.sqrt(12) if form == "velocity" else 0.0
        np.testing.assert_allclose(masks[0].std(axis=(0, 1)), deviation, atol=2e-3)
    assert not np.allclose(masks[-1], masks[0], atol=1e-3)


@pytest.mark.parametrize("ode_solver", ODE_SOLVERS)
@pytest.mark.parametrize("n_steps", [1, 2, 25])
def test_every_solver_shows_the_way(fitted, ode_solver, n_steps):
    settings = {"n_steps": n_steps, "ode_solver": ode_solver, "random_state": 0}
    images, masks, times = fitted.sample_trajectory("two", **settings)
    assert len(images) == len(masks) == len(times) == n_steps + 1
    assert np.isfinite(images).all()
    if ode_solver != "dopri5":
        # Its steps end at every time that is shown, so that it takes others.
        np.testing.assert_allclose(images[-1], fitted.sample("two", **settings)[0], atol=1e-3)


def test_batches_come_from_the_model_that_was_asked(make_classifier, digits):
    classifier = make_classifier().fit(*digits)
    wanted = classifier.sample("one", 4, n_steps=2, random_state=0)
    batches = classifier.iter_samples("one", 4, batch_size=2, n_steps=2, random_state=0)
    first = next(batches)
    classifier.set_params(random_state=9).fit(*digits)
    np.testing.assert_array_equal(np.concatenate([first, next(batches)]), wanted)


@pytest.mark.parametrize(("name", "value"), [("image_weight", 0), ("classification_fraction", 1)])
def test_an_untrained_image_branch_does_not_sample(make_classifier, digits, name, value):
    X, y = digits
    classifier = make_classifier(max_epochs=1, **{name: value}).fit(X, y)
    for call in GUIDED.values():
        with pytest.raises(ValueError, match=f"needs the image branch, which .*{name}={value}"):
            call(classifier, X)
    with pytest.raises(ValueError, match=f"reconstruct needs the image branch.*{name}={value}"):
        classifier.reconstruct(X)
    with pytest.raises(ValueError, match=f"Sampling needs the image branch.*{name}={value}"):
        classifier.sample()


def test_there_and_back_under_one_class_gives_the_image(fitted, digits):
    X = digits[0][:6]
    # Over latents what the autoencoder itself makes of the image.
    model, inputs, _ = fitted._prepared(X)
    made = model.space.images(inputs.batch(0, 6))
    wanted = fitted.model_.image_format.from_tensor(made)
    coarse, fine = (np.abs(fitted.reconstruct(X, n_steps=n) - wanted).mean() for n in (4, 32))
    assert fine < coarse
    assert fine < 0.15 * np.abs(wanted - wanted.mean(axis=0)).mean()


def test_a_counterfactual_of_the_own_class_is_the_reconstruction(fitted, digits):
    X = digits[0][:6]
    own = fitted.predict(X)
    unguided = fitted.counterfactual(X, own, n_steps=4, guidance=0.0)
    np.testing.assert_array_equal(unguided, fitted.reconstruct(X, n_steps=4))


def test_one_class_for_all_is_as_that_class_for_each(fitted, digits):
    X = digits[0][:5]
    one, each = (fitted.counterfactual(X, to, n_steps=2) for to in ("one", ["one"] * 5))
    np.testing.assert_array_equal(one, each)
    assert one.shape == X.shape


def test_a_counterfactual_does_not_depend_on_the_other_samples(fitted, digits):
    X = digits[0][:30]
    together = fitted.counterfactual(X, "two", n_steps=2)
    np.testing.assert_array_equal(fitted.counterfactual(X[[17]], "two", n_steps=2), together[[17]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, X: c.sample("nine"), "class_id must be one or more of .* got 'nine'"),
        (lambda c, X: c.sample("one", -1), "n_samples must be an integer >= 1, got -1"),
        (lambda c, X: c.sample("one", n_steps=0), "n_steps must be an integer >= 1, got 0"),
        (lambda c, X: c.sample("one", ode_solver="heun"), "ode_solver must be one of .*'heun'"),
        (lambda c, X: c.iter_samples("one", batch_size=0), "batch_size must be an integer >= 1"),
        (lambda c, X: c.iter_samples("nine"), "class_id must be one or more of .* got 'nine'"),
        (
            lambda c, X: c.sample_trajectory(["one", "two"]),
            "class_id must be a single one of the classes",
        ),
        (lambda c, X: c.counterfactual(X, "nine"), "to_class must be one or more of .*'nine'"),
        (lambda c, X: c.counterfactual(X, ["one"] * 2), r"to_class must be one class.*\(2,\)"),
        (lambda c, X: c.counterfactual(X[:, :4], "one"), "X has images of shape"),
        (lambda c, X: c.reconstruct(X, n_steps=0), "n_steps must be an integer >= 1, got 0"),
        (lambda c, X: c.reconstruct(X, ode_solver=None), "ode_solver must be"),
        (lambda c, X: c.counterfactual(X, "one", ode_solver="heun"), "ode_solver must be"),
        (lambda c, X: c.sample_trajectory("one", ode_solver=None), "ode_solver must be"),
        (lambda c, X: c.iter_samples("one", n_steps=0), "n_steps must be an integer >= 1, got 0"),
    ],
)
def test_what_cannot_be_sampled_is_named(fitted, digits, call, message):
    with pytest.raises(ValueError, match=message):
        call(fitted, digits[0][:5])


def images_of_image_branch(history):
    return sum(log["n_images"] * (1 - log["classification_fraction"]) for log in history)


@pytest.mark.parametrize(
    "generate",
    [
        lambda fitted, X, y: fitted.sample("one", n_steps=1),
        lambda fitted, X, y: list(fitted.iter_samples("one", 3, batch_size=1, n_steps=1)),
        lambda fitted, X, y: fitted.sample_trajectory("one", n_steps=1),
        lambda fitted, X, y: fitted.counterfactual(X, "one", n_steps=1),
        lambda fitted, X, y: augment_with_samples(fitted, X, y, n_per_class=2, n_steps=1),
    ],
    ids=["sample", "iter_samples", "sample_trajectory", "counterfactual", "augment_with_samples"],
)
def test_a_field_that_has_seen_few_images_warns_once_that_it_generates_blotches(
    fitted, digits, generate, recwarn
):
    warnings.simplefilter("always")
    seen = images_of_image_branch(fitted.history_)
    assert 0 < seen < 12_000
    generate(fitted, digits[0][:20], digits[1][:20])
    told = [w for w in recwarn.list if issubclass(w.category, ConvergenceWarning)]
    assert [w.filename for w in told] == [__file__]
    assert f"has seen {seen:,.0f} images" in str(told[0].message)


def test_what_is_refused_is_not_warned_of(fitted, digits, recwarn):
    for to_class in ("nine", ["one"] * 2):
        with pytest.raises(ValueError, match="to_class"):
            fitted.counterfactual(digits[0][:5], to_class)
    assert not recwarn.list


def test_images_of_fits_that_warm_start_has_continued_count(make_classifier, digits, tmp_path):
    X, y = digits[0][:60], digits[1][:60]
    trained = make_classifier(max_epochs=3, warm_start=True).fit(X, y)
    seen = images_of_image_branch(trained.history_)
    for method in (trained.fit, trained.fit, trained.partial_fit, trained.fit):
        before = list(trained.history_)
        method(X, y)
        new = trained.history_[len(before) :] if method == trained.partial_fit else trained.history_
        seen += images_of_image_branch(new)
        with pytest.warns(ConvergenceWarning, match=f"has seen {seen:,.0f} images"):
            trained.sample("one", n_steps=1)
    trained.save_pretrained(tmp_path)
    for opened in (type(trained).from_pretrained(tmp_path), pickle.loads(pickle.dumps(trained))):
        with pytest.warns(ConvergenceWarning, match=f"has seen {seen:,.0f} images"):
            opened.sample("one", n_steps=1)


def test_epochs_whose_weights_early_stopping_did_not_keep_do_not_count(
    make_classifier, digits, tmp_path
):
    X, y = digits[0][:60], digits[1][:60]
    settings = {"early_stopping": True, "n_iter_no_change": 50, "max_epochs": 12}
    trained = make_classifier(learning_rate=1e-9, **settings).fit(X, y)
    # Nothing is learned, so scores are equal and the weights of the first peak of the rate count.
    rates = [log["learning_rate"] for log in trained.history_]
    n_kept = rates.index(max(rates)) + 1
    assert n_kept < len(rates)
    seen = images_of_image_branch(trained.history_[:n_kept])
    trained.save_pretrained(tmp_path)
    for classifier in (trained, type(trained).from_pretrained(tmp_path)):
        with pytest.warns(ConvergenceWarning, match=f"has seen {seen:,.0f} images"):
            classifier.sample("one", n_steps=1)
    # Further epochs are added to those that count.
    trained.set_params(early_stopping=False).partial_fit(X, y)
    seen += images_of_image_branch(trained.history_[-1:])
    with pytest.warns(ConvergenceWarning, match=f"has seen {seen:,.0f} images"):
        trained.sample("one", n_steps=1)


def test_epochs_that_did_not_train_the_image_branch_do_not_count(make_classifier, digits):
    X, y = digits[0][:60], digits[1][:60]
    trained = make_classifier(max_epochs=2, warm_start=True, image_weight=0.0).fit(X, y)
    trained.set_params(flow_params={**trained.flow_params, "image_weight": 0.5}).fit(X, y)
    seen = images_of_image_branch(trained.history_)
    with pytest.warns(ConvergenceWarning, match=f"has seen {seen:,.0f} images"):
        trained.sample("one", n_steps=1)
    trained.set_params(flow_params={**trained.flow_params, "image_weight": 0.0}).fit(X, y)
    with pytest.warns(ConvergenceWarning, match=f"has seen {seen:,.0f} images"):
        trained.sample("one", n_steps=1)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize(("side", "fewest"), [(8, 12_000), (16, 20_000)])
def test_a_field_that_has_seen_images_enough_does_not_warn(
    make_classifier, fraction, side, fewest, recwarn
):
    X = np.random.default_rng(0).integers(0, 256, (12, side, side), dtype=np.uint8)
    trained = make_classifier(max_epochs=1).fit(X, np.arange(12) % 3)
    log = {**trained.history_[-1], "classification_fraction": fraction}
    trained.history_ = [{**log, "n_images": round(fewest / (1 - fraction))}]
    trained.sample(0, n_steps=1)
    assert not recwarn.list
    trained.history_ = [{**log, "n_images": round((fewest - 1000) / (1 - fraction))}]
    with pytest.warns(ConvergenceWarning, match=f"seen {fewest - 1000:,} images"):
        trained.sample(0, n_steps=1)


def test_a_field_that_is_not_asked_for_new_images_does_not_warn(fitted, recwarn):
    X = np.zeros((2, 8, 8))
    fitted.predict(X)
    fitted.reconstruct(X, n_steps=1)
    fitted.score_samples(X)
    assert not [w for w in recwarn.list if issubclass(w.category, ConvergenceWarning)]
