import pickle

import numpy as np
import pytest
import torch

from sklearn_msf._estimator import fit as fit_module
from sklearn_msf.training.early_stopping import BestWeights


def set_weights(field, value):
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.fill_(value)


def told(best, field, scores, rates=None):
    """Tell of epochs whose weights are their numbers; returns the answers."""
    answers, history = [], []
    for epoch, score in enumerate(scores, start=1):
        set_weights(field, float(epoch))
        rate = 1 / epoch if rates is None else rates[epoch - 1]
        history.append({"validation_score": score, "learning_rate": rate})
        answers.append(best.ends_with(history, field))
    return answers


def test_waiting_ends_after_so_many_epochs_without_a_better_score(make_tiny_field):
    answers = told(BestWeights(2), make_tiny_field(), [0.1, 0.5, 0.5, 0.6, 0.4, 0.6])
    assert answers == [False, False, False, False, False, True]


def test_epochs_in_which_the_learning_rate_rises_are_not_waited_for(make_tiny_field):
    scores, rates = [0.7] * 6, [0.1, 0.2, 0.3, 0.4, 0.3, 0.2]
    answers = told(BestWeights(2), make_tiny_field(), scores, rates)
    assert answers == [False, False, False, False, False, True]


def test_after_a_restart_in_the_warmup_the_rate_rises_to_a_lower_peak(make_tiny_field):
    # The first rate after the restart is a quarter of what it would have been.
    rates = [0.1, 0.2, 0.3, 0.1, 0.125, 0.15, 0.14, 0.13]
    best, field = BestWeights(2), make_tiny_field()
    assert told(best, field, [0.7] * 8, rates) == [False] * 7 + [True]
    assert best.n_epochs_since == 2


@pytest.mark.parametrize(
    "rates",
    [
        # The first epoch after the first one of the warm-up, and a later one, are repeated.
        [0.05, 0.0375, 0.0625, 0.0875, 0.08, 0.07],
        [0.05, 0.15, 0.0625, 0.0875, 0.08, 0.07],
        # A cosine rises by more at first.
        [0.0955, 0.0864, 0.164, 0.226, 0.2, 0.18],
    ],
)
def test_a_warmup_goes_on_after_a_restart_at_its_beginning(make_tiny_field, rates):
    assert told(BestWeights(2), make_tiny_field(), [0.7] * 6, rates) == [False] * 5 + [True]


def test_a_rate_that_rises_once_in_a_resumed_run_is_no_new_peak(make_tiny_field):
    best, rates = BestWeights(4), [0.1, 0.3, 0.29, 0.28, 0.285, 0.27]
    assert told(best, make_tiny_field(), [0.7] * 6, rates) == [False] * 5 + [True]
    assert best.n_epochs_since == 4


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        # Of the largest class everywhere: what has learned most has the best weights.
        ([0.7] * 6, 4),
        ([0.7, 0.7, 0.6, 0.5, 0.7, 0.7], 5),
        ([0.5, 0.8, 0.7, 0.7, 0.7, 0.7], 2),
        ([0.5, 0.5, 0.5, 0.5, 0.6, 0.6], 5),
    ],
)
def test_of_equal_scores_the_first_counts_that_is_not_before_the_peak_of_the_rate(
    make_tiny_field, scores, kept
):
    best, field = BestWeights(9), make_tiny_field()
    told(best, field, scores, [0.1, 0.2, 0.3, 0.4, 0.3, 0.2])
    assert best.n_epochs_since == 6 - kept
    best.restore(field)
    assert all((parameter == float(kept)).all() for parameter in field.parameters())


def test_the_best_weights_come_back(make_tiny_field):
    field, best = make_tiny_field(), BestWeights(9)
    told(best, field, [0.1, 0.9, 0.3])
    best.restore(field)
    assert all((parameter == 2.0).all() for parameter in field.parameters())


def test_training_goes_on_from_the_best_weights_and_not_from_later_ones(make_classifier):
    rng = np.random.default_rng(0)
    X, y = rng.random((60, 8, 8)), rng.integers(0, 2, 60)
    settings = {"early_stopping": True, "n_iter_no_change": 4, "max_epochs": 60}
    classifier = make_classifier(warm_start=True, **settings).fit(X, y)
    assert classifier.n_iter_ < 60
    before = classifier.predict_proba(X)
    classifier.set_params(learning_rate=1e-12, early_stopping=False)
    after = classifier.fit(X, y).predict_proba(X)
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.fixture
def held_out(monkeypatch):
    """The samples that each fit holds out."""
    of_fits, split = [], fit_module.hold_out

    def noted(*arguments):
        kept, held = split(*arguments)
        of_fits.append(held)
        return kept, held

    monkeypatch.setattr(fit_module, "hold_out", noted)
    return of_fits


def test_a_continued_fit_holds_out_the_same_images(make_classifier, held_out):
    rng = np.random.default_rng(0)
    X, y, weights = rng.random((60, 8, 8)), np.arange(60) % 2, np.linspace(1, 2, 60)
    settings = {"early_stopping": True, "max_epochs": 1, "random_state": None}
    classifier = make_classifier(warm_start=True, **settings)
    for _ in range(2):
        classifier.fit(X, y, sample_weight=weights)
        # The seed is kept by copies and pickles too.
        classifier = pickle.loads(pickle.dumps(classifier))
    assert held_out[0].weights.tolist() == held_out[1].weights.tolist()
    # A fit that trains on all images leaves none that were not trained on.
    classifier.set_params(early_stopping=False).fit(X, y, sample_weight=weights)
    classifier.set_params(early_stopping=True)
    with pytest.warns(UserWarning, match="may have been trained on"):
        classifier.fit(X, y, sample_weight=weights)


@pytest.mark.filterwarnings("error")
def test_a_model_of_a_file_goes_on_to_hold_out_the_same_images(make_classifier, held_out, tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.random((60, 8, 8)), rng.permutation(np.arange(60) % 3)
    settings = {"early_stopping": True, "max_epochs": 1, "random_state": None}
    classifier = make_classifier(**settings).fit(X, y)
    classifier.save_pretrained(tmp_path)
    opened = type(classifier).from_pretrained(tmp_path).set_params(warm_start=True)
    opened.fit(X, y)
    # Their classes are the same whatever is held out, because the split is stratified.
    np.testing.assert_array_equal(*(samples.rows[:] for samples in held_out))


def test_a_continued_fit_that_cannot_know_what_was_trained_on_says_so(make_classifier):
    X, y = np.random.default_rng(0).random((60, 8, 8)), np.arange(60) % 2
    classifier = make_classifier(warm_start=True, max_epochs=1).fit(X, y)
    classifier.set_params(early_stopping=True)
    with pytest.warns(UserWarning, match="may have been trained on"):
        classifier.fit(X, y)


@pytest.mark.parametrize(
    ("fraction", "chosen", "groups"),
    [
        (0.1, np.arange(60), None),
        (0.3, np.arange(40), None),
        (0.1, np.arange(20, 60), None),
        (0.1, np.arange(40), np.arange(40) // 2),
    ],
    ids=["more images", "a larger fraction", "other images", "groups"],
)
def test_a_continued_fit_that_holds_out_others_says_so(make_classifier, fraction, chosen, groups):
    X, y = np.random.default_rng(0).random((60, 8, 8)), np.arange(60) % 2
    settings = {"early_stopping": True, "warm_start": True, "max_epochs": 1}
    classifier = make_classifier(**settings).fit(X[:40], y[:40])
    classifier.set_params(validation_fraction=fraction)
    # The images that are held out from now on have been trained on, in later fits too.
    for _ in range(2):
        with pytest.warns(UserWarning, match="may have been trained on"):
            classifier.fit(X[chosen], y[chosen], groups=groups)


def test_the_fraction_to_hold_out_may_be_a_number_of_numpy(make_classifier):
    X, y = np.random.default_rng(0).random((60, 8, 8)), np.arange(60) % 2
    settings = {"early_stopping": True, "max_epochs": 1}
    classifier = make_classifier(**settings, validation_fraction=np.float32(0.5)).fit(X, y)
    assert classifier.history_[0]["n_images"] == 30


def test_without_scores_nothing_happens(make_tiny_field):
    field, best = make_tiny_field(), BestWeights(1)
    set_weights(field, 3.0)
    assert not best.ends_with([{"loss": 1.0}], field)
    best.restore(field)
    assert all((parameter == 3.0).all() for parameter in field.parameters())


def test_a_loaded_run_waits_for_as_long_as_the_first_would_have(make_tiny_field):
    first, second, field = BestWeights(2), BestWeights(2), make_tiny_field()
    told(first, field, [0.5, 0.4])
    second.load(first.tensors(), first.metadata())
    history = [{"learning_rate": rate} for rate in (3.0, 2.0, 1.0)]
    history[-1]["validation_score"] = 0.3
    assert second.ends_with(history, field)
    second.restore(field)
    assert all((parameter == 1.0).all() for parameter in field.parameters())


def test_a_run_without_any_score_can_be_loaded(make_tiny_field):
    second = BestWeights(1)
    second.load(BestWeights(1).tensors(), BestWeights(1).metadata())
    assert told(second, make_tiny_field(), [0.0, 0.0]) == [False, True]
