"""scikit-learn's callbacks, and what training tells them."""

import copy
import gc
import itertools
import math
import pickle
import weakref

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_classifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklearn_msf.exceptions import DivergenceError
from sklearn_msf.training.schedule import TimeBudget
from sklearn_msf.training.step import TrainingStep
from sklearn_msf.training.trainer import Trainer

callback = pytest.importorskip("sklearn.callback")

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (24, 8, 8), dtype=np.uint8)
Y = np.array(["a", "b", "c"] * 8)


class Recorder:
    """Writes down what it is told."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.events = []
        self.probabilities = []

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(f"begin {context.task_name} {context.task_id}")

    def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):
        self.events.append(f"end {context.task_name} {context.task_id}")
        self.probabilities.append(fitted_estimator.predict_proba(X))
        return context.task_name == "epoch" and context.task_id + 1 == self.stop_after


class Keeping(Recorder):
    """Keeps a model of each task, and a pickle of it and of the estimator."""

    def __init__(self, stop_after=None):
        super().__init__(stop_after)
        self.kept = []

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        pickled = [pickle.dumps(model) for model in (estimator, fitted_estimator)]
        self.kept.extend([fitted_estimator, *map(pickle.loads, pickled)])


def test_callbacks_are_told_of_every_epoch_and_see_a_model_that_predicts(make_classifier):
    recorder = Recorder()
    classifier = make_classifier(max_epochs=2).set_callbacks(recorder).fit(X, Y)
    assert recorder.events == [
        "setup",
        "begin fit 0",
        "begin epoch 0",
        "end epoch 0",
        "begin epoch 1",
        "end epoch 1",
        "end fit 0",
        "teardown",
    ]
    # The model of the first epoch, of the second, and of the whole fit.
    first = make_classifier(max_epochs=2).set_callbacks(Recorder(stop_after=1)).fit(X, Y)
    for found, wanted in zip(recorder.probabilities, [first, classifier, classifier], strict=True):
        np.testing.assert_array_equal(found, wanted.predict_proba(X))
    assert not np.array_equal(*recorder.probabilities[:2])


@pytest.mark.parametrize(
    "settings",
    [{}, {"early_stopping": True, "n_iter_no_change": 1}, {"X_val": X[::-1], "y_val": Y[::-1]}],
)
def test_at_the_end_of_a_fit_callbacks_see_the_calibrated_model(make_classifier, settings):
    given = {name: settings[name] for name in settings if name.endswith("_val")}
    settings = {name: settings[name] for name in settings if name not in given}
    seen = []

    class Seeing(Recorder):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            seen.append((context.task_name, fitted_estimator))

    classifier = make_classifier(max_epochs=4, calibration="temperature", **settings)
    classifier.set_callbacks(Seeing()).fit(X, Y, **given)
    (name, at_the_end), epochs = seen[-1], seen[:-1]
    assert name == "fit"
    np.testing.assert_array_equal(at_the_end.predict_proba(X), classifier.predict_proba(X))
    assert at_the_end.model_.temperature == classifier.model_.temperature != 1
    assert at_the_end.history_ == classifier.history_
    # The temperature of the result is not known earlier.
    assert {fitted.model_.temperature for _, fitted in epochs} == {1.0}


def test_what_a_callback_keeps_is_in_no_fit_of_a_pipeline(make_classifier):
    keeping = Keeping()
    classifier = make_classifier(max_epochs=1).set_callbacks(keeping)
    pipeline = make_pipeline("passthrough", classifier).set_callbacks(callback.ProgressBar())
    pipeline.fit(X, Y)
    for opened in keeping.kept:
        assert [type(each).__name__ for each in opened._skl_callbacks] == ["Keeping"]
    monitor = callback.ScoringMonitor(scoring="accuracy")
    for opened in keeping.kept:
        opened.set_callbacks(monitor).fit(X, Y)
    # A run of each, and none that goes on in the pipeline's.
    runs = monitor.get_logs("all")
    assert [len(run.data) for run in runs] == [2] * len(keeping.kept)


def test_an_epoch_for_which_there_is_no_time_has_not_ended(monkeypatch, make_classifier):
    # Before the second step, after the first epoch, and before the second epoch.
    answers = iter([False, False, True])
    monkeypatch.setattr(TimeBudget, "is_up", lambda self, n_running: next(answers))
    recorder = Recorder()
    classifier = make_classifier(max_epochs=9, batch_size=12, time_budget=600.0)
    classifier.set_callbacks(recorder).fit(X, Y)
    assert classifier.n_iter_ == 1
    epochs = [event for event in recorder.events if "epoch" in event]
    assert epochs == ["begin epoch 0", "end epoch 0", "begin epoch 1"]


@pytest.fixture
def kept(monkeypatch):
    """Seconds that budgets keep for later."""
    seconds_kept, reserve = [], TimeBudget.reserve

    def noted(self, seconds):
        seconds_kept.append(seconds)
        reserve(self, seconds)

    monkeypatch.setattr(TimeBudget, "reserve", noted)
    return seconds_kept


def test_a_calibration_run_leaves_time_for_the_call_at_the_end(kept, make_classifier):
    settings = {"max_epochs": 2, "time_budget": 600.0, "calibration": "temperature"}
    make_classifier(**settings).set_callbacks(Recorder()).fit(X, Y)
    # That of the training, and that of the calibration run, for its predictions and the call.
    assert len(kept) == 3
    assert kept[2] == kept[0] > 0


@pytest.mark.parametrize("seconds", [0.0, 1e4])
def test_the_calibration_run_has_no_time_that_callbacks_took_from_the_model(
    make_classifier, monkeypatch, seconds
):
    # Every look at the clock takes a second, and each call of the callback so many more.
    clock, limits = iter(range(10**9)), []
    waited = [0.0]

    class Slow(Recorder):
        def on_fit_task_begin(self, estimator, context):
            waited[0] += seconds

        def on_fit_task_end(self, estimator, context):
            waited[0] += seconds

    monkeypatch.setattr(
        "sklearn_msf.training.schedule.time.perf_counter", lambda: next(clock) + waited[0]
    )
    monkeypatch.setattr(TimeBudget, "limit", lambda self, most: limits.append(most))
    settings = {"max_epochs": 4, "time_budget": 1e6, "calibration": "temperature"}
    make_classifier(**settings).set_callbacks(Slow()).fit(X, Y)
    # Of two thirds of the images, in three fifths of the time: so much if there is no pause.
    (most,) = limits
    share = most / (2 / 3 * 3 / 5 * 1e6)
    assert 0 < share < 0.02 if seconds else 0.8 < share < 1


@pytest.mark.filterwarnings("ignore:None can be certified")
def test_what_a_callback_keeps_is_in_no_fit(make_classifier):
    keeping = Keeping()
    make_classifier(max_epochs=1).fit(X, Y).set_callbacks(keeping).fit(X, Y)
    assert len(keeping.kept) == 6
    for opened in keeping.kept:
        opened.fit_reject(X, Y, target_risk=0.5)
        assert copy.copy(opened).rejection_ is opened.rejection_


def test_time_is_kept_for_the_call_at_the_end_of_a_fit(kept, make_classifier):
    settings = {"max_epochs": 3, "time_budget": 600.0}
    make_classifier(**settings).fit(X, Y)
    assert kept == []
    make_classifier(**settings).set_callbacks(Recorder()).fit(X, Y)
    # As much as the first of three calls took.
    assert len(kept) == 1
    assert kept[0] > 0


def spoil_losses(monkeypatch, is_bad):
    """Make the losses NaN in the steps, counted from 0, that `is_bad` names."""
    losses, steps = TrainingStep._weighted_losses, itertools.count()

    def spoiled(self, *arguments):
        return losses(self, *arguments) * (math.nan if is_bad(next(steps)) else 1.0)

    monkeypatch.setattr(TrainingStep, "_weighted_losses", spoiled)


def test_after_a_divergence_the_estimator_has_the_result_of_its_whole_epochs(
    monkeypatch, make_classifier
):
    first = make_classifier(max_epochs=3).set_callbacks(Recorder(stop_after=1)).fit(X, Y)
    spoil_losses(monkeypatch, lambda step: step > 0)
    classifier = make_classifier(max_epochs=3)
    with (
        pytest.warns(UserWarning, match="epoch is repeated"),
        pytest.raises(DivergenceError, match="after 2 restarts"),
    ):
        classifier.fit(X, Y)
    assert classifier.n_iter_ == 1
    np.testing.assert_array_equal(classifier.predict_proba(X), first.predict_proba(X))


def test_after_a_divergence_the_memory_of_the_run_goes_with_the_error(monkeypatch):
    trainers, init = [], Trainer.__init__

    def noted(self, *arguments, **options):
        init(self, *arguments, **options)
        trainers.append(weakref.ref(self))

    spoil_losses(monkeypatch, lambda step: step > 0)
    monkeypatch.setattr(Trainer, "__init__", noted)
    gc.disable()
    try:
        with (
            pytest.warns(UserWarning, match="epoch is repeated"),
            pytest.raises(DivergenceError) as found,
        ):
            tiny_classifier(max_epochs=3).fit(X, Y)
        assert found.value.__context__ is None
        del found
        assert [trainer() for trainer in trainers] == [None]
    finally:
        gc.enable()


def test_a_callback_can_end_training(make_classifier):
    classifier = make_classifier(max_epochs=50).set_callbacks(Recorder(stop_after=3)).fit(X, Y)
    assert classifier.n_iter_ == 3


def test_a_callback_that_ends_training_ends_the_calibration_run_as_soon(
    monkeypatch, make_classifier
):
    fit, n_epochs = Trainer.fit, []

    def noted(self, *arguments, **options):
        fit(self, *arguments, **options)
        n_epochs.append(len(self.history))

    monkeypatch.setattr(Trainer, "fit", noted)
    classifier = make_classifier(max_epochs=9, calibration="temperature")
    classifier.set_callbacks(Recorder(stop_after=2)).fit(X, Y)
    assert n_epochs == [2, 2]
    make_classifier(max_epochs=4, calibration="temperature").fit(X, Y)
    assert n_epochs[2:] == [4, 4]


def test_callbacks_do_not_change_what_is_learned(make_classifier):
    plain = make_classifier(dropout=0.5).fit(X, Y)
    watched = make_classifier(dropout=0.5).set_callbacks(Recorder()).fit(X, Y)
    np.testing.assert_array_equal(plain.predict_proba(X), watched.predict_proba(X))


def test_callbacks_are_told_that_a_fit_failed(make_classifier):
    recorder = Recorder()
    classifier = make_classifier(max_epochs=3).set_callbacks(recorder)

    def fail(estimator, context, *, X, y, fitted_estimator):
        raise RuntimeError("no more")

    recorder.on_fit_task_end = fail
    with pytest.raises(RuntimeError, match="no more"):
        classifier.fit(X, Y)
    assert recorder.events[-1] == "teardown"
    assert not hasattr(classifier, "model_")


def test_the_scoring_monitor_writes_down_every_epoch(make_classifier):
    monitor = callback.ScoringMonitor(scoring="accuracy")
    classifier = make_classifier(max_epochs=3).set_callbacks(monitor).fit(X, Y)
    logs = [log for log in monitor.get_logs().data if log["task_name"] == "epoch"]
    assert [log["task_id"] for log in logs] == [0, 1, 2]
    assert logs[-1]["accuracy"] == classifier.score(X, Y)


def test_callbacks_reach_the_fits_of_a_search(make_classifier):
    monitor = callback.ScoringMonitor(scoring="accuracy")
    search = GridSearchCV(
        make_classifier(max_epochs=2).set_callbacks(monitor),
        {"learning_rate": [1e-3, 1e-2]},
        cv=2,
    )
    search.fit(X, Y)
    runs = monitor.get_logs("all")
    epochs = [log for run in runs for log in run.data if log["task_name"] == "epoch"]
    # Two candidates on two folds, and the best one on all images.
    assert len(epochs) == (2 * 2 + 1) * 2


def test_the_progress_bar_runs_smoke(make_classifier):
    make_classifier(max_epochs=2).set_callbacks(callback.ProgressBar()).fit(X, Y)


def test_an_epoch_that_has_to_be_repeated_is_one_epoch(monkeypatch, make_classifier):
    spoil_losses(monkeypatch, lambda step: step == 1)
    recorder = Recorder()
    with pytest.warns(UserWarning, match="epoch is repeated"):
        make_classifier(max_epochs=2).set_callbacks(recorder).fit(X, Y)
    epochs = [event for event in recorder.events if "epoch" in event]
    assert epochs == ["begin epoch 0", "end epoch 0", "begin epoch 1", "end epoch 1"]


def test_an_interrupted_epoch_is_ended(monkeypatch, make_classifier):
    losses, count = TrainingStep._weighted_losses, iter(range(1000))

    def interrupted(self, *arguments):
        if next(count) == 1:
            raise KeyboardInterrupt
        return losses(self, *arguments)

    monkeypatch.setattr(TrainingStep, "_weighted_losses", interrupted)
    recorder = Recorder()
    with pytest.warns(UserWarning, match="interrupted after 1 whole epochs"):
        make_classifier(max_epochs=5).set_callbacks(recorder).fit(X, Y)
    assert recorder.events[-4:] == ["begin epoch 1", "end epoch 1", "end fit 0", "teardown"]


def test_an_interrupt_in_the_last_callback_loses_no_model(make_classifier):
    class Interrupted(Recorder):
        def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):
            super().on_fit_task_end(estimator, context, X=X, y=y, fitted_estimator=fitted_estimator)
            if self.events[-1] == "end fit 0":
                raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="callbacks were interrupted at the end"):
        classifier = make_classifier(max_epochs=2).set_callbacks(Interrupted()).fit(X, Y)
    plain = make_classifier(max_epochs=2).fit(X, Y)
    np.testing.assert_array_equal(classifier.predict_proba(X), plain.predict_proba(X))


def test_an_interrupt_in_the_last_callback_loses_no_temperature(make_classifier):
    class Interrupted(Recorder):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            if context.task_name == "fit":
                raise KeyboardInterrupt

    settings = {"max_epochs": 2, "calibration": "temperature"}
    with pytest.warns(UserWarning, match="callbacks were interrupted at the end"):
        classifier = make_classifier(**settings).set_callbacks(Interrupted()).fit(X, Y)
    plain = make_classifier(**settings).fit(X, Y)
    assert classifier.model_.temperature == plain.model_.temperature != 1


@pytest.mark.parametrize(
    "arguments", [{"groups": np.arange(24) // 2}, {"X_val": X[::-1], "y_val": Y[::-1]}]
)
def test_callbacks_work_beside_groups_and_a_validation_set(make_classifier, arguments):
    monitor = callback.ScoringMonitor(scoring="accuracy")
    classifier = make_classifier(early_stopping=True, validation_fraction=0.25)
    classifier.set_callbacks(monitor).fit(X, Y, **arguments)
    logs = [log for log in monitor.get_logs().data if log["task_name"] == "epoch"]
    assert [log["task_id"] for log in logs] == list(range(classifier.n_iter_))


def test_callbacks_know_nothing_of_columns_of_an_earlier_fit(make_classifier, recwarn):
    monitor = callback.ScoringMonitor(scoring="accuracy")
    columns = [f"pixel_{i}" for i in range(64)]
    frame = pd.DataFrame(X.reshape(24, -1), columns=columns)
    classifier = make_classifier(max_epochs=2, image_shape=(8, 8)).fit(frame, Y)
    recwarn.clear()
    classifier.set_callbacks(monitor).fit(X.reshape(24, -1), Y)
    assert not [w for w in recwarn if "feature names" in str(w.message)]


def test_callbacks_make_no_pickle_of_the_model(make_classifier, monkeypatch):
    classifier = make_classifier(max_epochs=1).fit(X, Y)
    monkeypatch.setattr(type(classifier), "__getstate__", None)
    classifier.set_callbacks(callback.ScoringMonitor(scoring="accuracy")).fit(X, Y)


def test_a_copy_shares_the_model(make_classifier):
    classifier = make_classifier(max_epochs=1).fit(X, Y)
    copied = copy.copy(classifier).set_params(n_draws=4)
    assert copied.model_ is classifier.model_
    assert classifier.n_draws != 4


def test_callbacks_are_told_the_weights(make_classifier):
    told, weights = [], np.linspace(1, 2, 24)

    class Noting(Recorder):
        def on_fit_task_end(self, estimator, context, *, metadata):
            told.append(metadata)

    make_classifier(max_epochs=1).set_callbacks(Noting()).fit(X, Y, sample_weight=weights)
    assert len(told) == 2
    for metadata in told:
        np.testing.assert_array_equal(metadata["sample_weight"], weights)


def test_checkpoints_stay_in_their_folder_where_a_callback_changes_the_working_directory(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    class Moving(Recorder):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            monkeypatch.chdir(tmp_path / "elsewhere")

    settings = {"max_epochs": 3, "checkpoint_dir": "run", "checkpoint_every": 1}
    tiny_classifier(**settings).set_callbacks(Moving()).fit(X, Y)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert list((tmp_path / "run").glob("checkpoint-0000003*"))
