"""Searches and predictions by two workers of dask and of ray.

ray is no part of the extra "test": it is too large for what it tests. "Tests" in
docs/CONTRIBUTING.md has the command that installs it and runs this file.
"""

import importlib
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cluster_tasks import Logged, die_once, n_threads, process_of_scorer
from conftest import three_digits, tiny_classifier, torch_threads
from imported_scripts import EXAMPLES
from joblib import Parallel, delayed, parallel_config
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_validate

# Workers import the example by its name, as they do any module.
sys.path.append(str(EXAMPLES))
example = importlib.import_module("cluster")

X, Y = three_digits()
X_NEW, X, Y = X[80:], X[:80], Y[:80]
GRID = {"classification_fraction": [0.15, 0.8]}
N_CHUNKS = 8
# The default of both, where no such variables are set.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def classifier(**settings):
    return tiny_classifier(device="cpu", **settings)


def start_dask():
    distributed = pytest.importorskip("distributed", reason="dask's distributed is not installed")
    stack = ExitStack()
    cluster = stack.enter_context(
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, env=ONE_THREAD
        )
    )
    stack.enter_context(distributed.Client(cluster))
    return stack


def start_ray():
    ray = pytest.importorskip("ray", reason="ray is not installed, see docs/CONTRIBUTING.md")
    stack = ExitStack()
    # Workers of ray do not look for modules where this process does.
    variables = {"PYTHONPATH": os.pathsep.join(sys.path), **ONE_THREAD}
    runtime = {"env_vars": variables}
    stack.enter_context(ray.init(num_cpus=2, include_dashboard=False, runtime_env=runtime))
    importlib.import_module("ray.util.joblib").register_ray()
    return stack


RUN = {"dask": example.on_dask, "ray": example.on_ray}


@pytest.fixture(scope="module", params=[start_dask, start_ray], ids=["dask", "ray"])
def backend(request):
    """Name of a joblib backend with two workers in processes of their own."""
    with request.param():
        yield request.param.__name__.removeprefix("start_")


@pytest.fixture(autouse=True)
def one_thread():
    """Compute here with one thread, as the workers do."""
    with torch_threads(1):
        yield


def on_workers(backend):
    return parallel_config(backend, n_jobs=-1)


def scores(results):
    return {
        name: values
        for name, values in results.items()
        if "test_accuracy" in name or name.endswith("test_score")
    }


def assert_equal_scores(results, wanted):
    assert scores(results).keys() == scores(wanted).keys() != set()
    for name, values in scores(wanted).items():
        np.testing.assert_array_equal(results[name], values, err_msg=name)


def test_the_example_gives_the_bits_of_one_process(backend):
    alone = GridSearchCV(classifier(), GRID, cv=2, n_jobs=1).fit(X, Y)
    search = GridSearchCV(classifier(), GRID, cv=2)
    probabilities = RUN[backend](search, X, Y, X_NEW, N_CHUNKS)
    assert_equal_scores(search.cv_results_, alone.cv_results_)
    np.testing.assert_array_equal(probabilities, alone.predict_proba(X_NEW))


def test_halving_on_workers_scores_as_in_one_process(backend):
    settings = {"param_grid": GRID, "cv": 2, "factor": 2, "min_resources": 40, "random_state": 0}
    alone = HalvingGridSearchCV(classifier(), n_jobs=1, **settings).fit(X, Y)
    with on_workers(backend):
        search = HalvingGridSearchCV(classifier(), **settings).fit(X, Y)
    assert search.n_resources_ == [40, 80]
    assert_equal_scores(search.cv_results_, alone.cv_results_)
    assert search.best_params_ == alone.best_params_


def test_models_are_fitted_by_the_workers_and_come_back(backend):
    arguments = {"cv": 4, "return_estimator": True}
    arguments["scoring"] = {"accuracy": "accuracy", "process": process_of_scorer}
    alone = cross_validate(classifier(), X, Y, n_jobs=1, **arguments)
    with on_workers(backend):
        found = cross_validate(classifier(), X, Y, **arguments)
    assert set(alone["test_process"]) == {os.getpid()}
    assert os.getpid() not in found["test_process"]
    assert_equal_scores(found, alone)
    for fitted, wanted in zip(found["estimator"], alone["estimator"], strict=True):
        np.testing.assert_array_equal(fitted.predict_proba(X_NEW), wanted.predict_proba(X_NEW))


def test_the_model_does_not_travel_with_each_chunk(backend, tmp_path):
    model = Logged(**classifier().get_params()).fit(X, Y)
    model.log = str(tmp_path / "log")
    search = SimpleNamespace(fit=lambda X, y: None, best_estimator_=model)
    probabilities = RUN[backend](search, X, Y, X_NEW, N_CHUNKS)
    np.testing.assert_array_equal(probabilities, model.predict_proba(X_NEW))
    here, lines = str(os.getpid()), Path(model.log).read_text().splitlines()
    opened = [line for line in lines if line.startswith("opened ") and line != f"opened {here}"]
    if backend == "dask":
        # Each worker keeps it. Now and then one gets a second copy when dask spreads the first.
        assert len(set(opened)) == 2
        assert len(opened) <= 3
    else:
        # Its bytes are stored once, and each task makes the model from them.
        assert lines.count(f"pickled {here}") == 1
        assert len(opened) == N_CHUNKS


def test_workers_have_one_thread(backend):
    with on_workers(backend):
        assert Parallel(batch_size=1)(delayed(n_threads)(i) for i in range(4)) == [1] * 4


def test_a_worker_that_dies_is_replaced_by_dask_and_an_error_of_ray(backend, tmp_path):
    markers = [str(tmp_path / "marker")] * 2
    with on_workers(backend):
        tasks = Parallel(batch_size=1)
        if backend == "dask":
            assert os.getpid() not in tasks(delayed(die_once)(marker) for marker in markers)
        else:
            with pytest.raises(importlib.import_module("ray.exceptions").ActorDiedError):
                tasks(delayed(die_once)(marker) for marker in markers)
