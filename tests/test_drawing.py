"""Drawing new images, and others made of given ones."""

import copy
import types

import numpy as np
import pytest
from conftest import tiny_classifier

from sklearn_msf.flow.ode_solver import ODE_SOLVERS


def test_all_classes_are_drawn_where_none_is_named(fitted):
    together = fitted.sample(n_samples=2, n_steps=2, random_state=0)
    named = fitted.sample(fitted.classes_, 2, n_steps=2, random_state=0)
    np.testing.assert_array_equal(together, named)
    assert len(together) == 6


@pytest.mark.parametrize("solver", ODE_SOLVERS)
def test_every_solver_draws(fitted, solver):
    images = fitted.sample("two", 2, n_steps=2, ode_solver=solver, random_state=0)
    assert images.shape == (2, 8, 8)
    assert np.isfinite(images).all()


@pytest.mark.parametrize("form", ["posterior", "velocity"])
def test_a_mean_image_is_learned_and_kept_instead_of_a_velocity(
    make_classifier, digits, form, tmp_path
):
    classifier = make_classifier(label_prediction=form, image_prediction="image").fit(*digits)
    drawn = classifier.sample(n_samples=2, n_steps=3, random_state=0)
    assert np.isfinite(drawn).all()
    other = make_classifier(label_prediction=form, image_prediction="velocity").fit(*digits)
    assert (other.sample(n_samples=2, n_steps=3, random_state=0) != drawn).any()
    classifier.save_pretrained(tmp_path)
    opened = type(classifier).from_pretrained(tmp_path)
    np.testing.assert_array_equal(opened.sample(n_samples=2, n_steps=3, random_state=0), drawn)


@pytest.mark.parametrize("form", ["posterior", "velocity"])
def test_guidance_changes_what_is_drawn(make_classifier, digits, form):
    classifier = make_classifier(label_prediction=form, class_dropout=0.2).fit(*digits)
    drawn = classifier.sample("one", 2, n_steps=3, random_state=0)
    guided = classifier.set_params(guidance=1.0).sample("one", 2, n_steps=3, random_state=0)
    assert np.isfinite(guided).all()
    assert not np.array_equal(guided, drawn)
    images, _, _ = classifier.sample_trajectory("one", n_steps=3, random_state=0)
    np.testing.assert_allclose(images[-1], guided[0], atol=1e-3)


def test_guidance_needs_a_field_that_draws_without_a_class(make_classifier, digits):
    X = digits[0][:2]
    classifier = make_classifier(class_dropout=0.0, guidance=0.0).fit(*digits)
    reconstructed = classifier.reconstruct(X)
    # What is set now has trained nothing.
    classifier.set_params(guidance=0.5, class_dropout=0.1)
    for draw in (lambda: classifier.sample("one"), lambda: classifier.counterfactual(X, "one")):
        with pytest.raises(ValueError, match="guidance=0.5 needs .* class_dropout=0.1"):
            draw()
    # There and back is never guided.
    np.testing.assert_array_equal(classifier.reconstruct(X), reconstructed)


def test_guidance_goes_further_into_the_other_class(digits):
    X = digits[0][digits[1] != "two"][:20]
    classifier = tiny_classifier(class_dropout=0.2, channels=16, max_epochs=60).fit(*digits)
    p = []
    for guidance in (0.0, 2.0):
        images = classifier.set_params(guidance=guidance).counterfactual(X, "two", n_steps=8)
        p.append(classifier.predict_proba(images)[:, 1].mean())
    assert p[0] < p[1]


def test_what_a_field_can_draw_is_saved_with_it(make_classifier, digits, tmp_path):
    classifier = make_classifier(class_dropout=0.2, max_epochs=1).fit(*digits)
    classifier.set_params(guidance=0.5, class_dropout=0.0).save_pretrained(tmp_path)
    opened = type(classifier).from_pretrained(tmp_path)
    drawn = classifier.sample("one", n_steps=2, random_state=0)
    np.testing.assert_array_equal(opened.sample("one", n_steps=2, random_state=0), drawn)


@pytest.mark.parametrize("image_prediction", ["velocity", "image"])
def test_going_on_does_not_forget_how_to_draw(make_classifier, digits, image_prediction):
    classifier = make_classifier(
        warm_start=True, max_epochs=1, image_prediction=image_prediction
    ).fit(*digits)
    drawn = classifier.sample("one", n_steps=2, random_state=0)
    classifier.set_params(t1_share=1.0).fit(*digits)
    again = classifier.sample("one", n_steps=2, random_state=0)
    # The way down classifies too and has learned on.
    assert np.isfinite(again).all()
    assert np.abs(again.astype(float) - drawn).mean() < 4


def test_one_step_is_enough_to_draw(fitted):
    assert fitted.sample("one", 3, n_steps=1, random_state=0).shape == (3, 8, 8)


def test_an_image_of_a_seed_is_the_same_however_many_are_drawn(fitted):
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


def test_verbose_shows_how_many_images_are_drawn(fitted, capsys):
    talkative = copy.copy(fitted).set_params(verbose=1)
    drawn = talkative.sample("one", 20, n_steps=1, random_state=0)
    assert "20/20" in capsys.readouterr().err
    np.testing.assert_array_equal(drawn, fitted.sample("one", 20, n_steps=1, random_state=0))
    assert capsys.readouterr().err == ""


def test_large_numbers_are_drawn_only_as_they_are_taken(fitted):
    batches = fitted.iter_samples(n_samples=10**9, batch_size=2, n_steps=1, random_state=0)
    assert next(batches).shape == (2, 8, 8)


@pytest.mark.parametrize("form", ["posterior", "velocity"])
def test_a_trajectory_ends_at_the_image_that_sample_draws(make_classifier, digits, form):
    classifier = make_classifier(label_prediction=form).fit(*digits)
    images, masks, times = classifier.sample_trajectory("two", n_steps=6, random_state=3)
    np.testing.assert_allclose(times, np.arange(7) / 6)
    assert images.shape == (7, 8, 8)
    drawn = classifier.sample("two", n_steps=6, random_state=3)
    np.testing.assert_allclose(images[-1], drawn[0], atol=1e-3)
    assert len(masks) == 7
    if not (form == "velocity" and hasattr(classifier, "autoencoder_")):
        # Of one colour; encoded masks are decoded, and have several.
        assert masks[0].std(axis=(0, 1)).max() < 1e-6
    assert not np.allclose(masks[-1], masks[0], atol=1e-3)


@pytest.mark.parametrize("ode_solver", ODE_SOLVERS)
@pytest.mark.parametrize("n_steps", [1, 2, 25])
def test_every_solver_shows_the_way(fitted, ode_solver, n_steps):
    images, masks, times = fitted.sample_trajectory("two", n_steps=n_steps, ode_solver=ode_solver)
    assert len(images) == len(masks) == len(times) == n_steps + 1
    assert np.isfinite(images).all()


def test_batches_come_from_the_model_that_was_asked(make_classifier, digits):
    classifier = make_classifier().fit(*digits)
    wanted = classifier.sample("one", 4, n_steps=2, random_state=0)
    batches = classifier.iter_samples("one", 4, batch_size=2, n_steps=2, random_state=0)
    first = next(batches)
    classifier.set_params(random_state=9).fit(*digits)
    np.testing.assert_array_equal(np.concatenate([first, next(batches)]), wanted)


@pytest.mark.parametrize(("name", "value"), [("image_weight", 0), ("t1_share", 1)])
def test_an_untrained_image_half_does_not_draw(make_classifier, digits, name, value):
    X, y = digits
    classifier = make_classifier(max_epochs=1, **{name: value}).fit(X, y)
    for draw in (classifier.sample, lambda: classifier.reconstruct(X)):
        with pytest.raises(ValueError, match=f"Drawing asks the image half.*{name}={value}"):
            draw()


def test_there_and_back_under_one_class_gives_the_image(fitted, digits):
    X = digits[0][:6]
    # Over latents what the autoencoder itself makes of the image.
    made = fitted._representation.images(fitted._checked_inputs(X).batch(0, 6, mirrored=False))
    wanted = fitted._image_format.from_tensor(made)
    coarse, fine = (np.abs(fitted.reconstruct(X, n_steps=n) - wanted).mean() for n in (4, 32))
    assert fine < coarse
    assert fine < 0.15 * np.abs(wanted - wanted.mean(axis=0)).mean()


def test_a_counterfactual_of_the_own_class_is_the_reconstruction(fitted, digits):
    X = digits[0][:6]
    own = fitted.predict(X)
    unguided = copy.copy(fitted).set_params(guidance=0.0)
    np.testing.assert_array_equal(
        unguided.counterfactual(X, own, n_steps=4), fitted.reconstruct(X, n_steps=4)
    )


def test_one_class_for_all_is_as_that_class_for_each(fitted, digits):
    X = digits[0][:5]
    one, each = (fitted.counterfactual(X, to, n_steps=2) for to in ("one", ["one"] * 5))
    np.testing.assert_array_equal(one, each)
    assert one.shape == X.shape


def test_a_counterfactual_does_not_depend_on_the_other_rows(fitted, digits):
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
    ],
)
def test_what_cannot_be_drawn_is_named(fitted, digits, call, message):
    with pytest.raises(ValueError, match=message):
        call(fitted, digits[0][:5])
