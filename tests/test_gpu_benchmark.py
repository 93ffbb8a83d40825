"""The checks and measurements of the benchmark for GPUs, on the CPU and with tiny problems."""

import contextlib
import importlib
import itertools
import json
import pickle
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, grouped, limit_full_passes
from forked_scripts import LIBRARIES, run_code
from imported_scripts import BENCHMARKS
from recorded_graphs import RecordedCuda

from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf.model import sampling
from sklearn_msf.runtime import cuda_graphs
from sklearn_msf.training.optimizer import AveragedOptimizer
from sklearn_msf.training.step import TrainingStep
from sklearn_msf.training.trainer import Trainer

CPU = torch.device("cpu")
NETWORK = {name: TINY[name] for name in ("channels", "channel_mult", "n_blocks", "dropout")}
NETWORK = {**NETWORK, "attention_levels": ()}


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patches:
        patches.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("gpu"), importlib.import_module("gpu_checks")


@pytest.fixture
def gpu(scripts):
    return scripts[0]


@pytest.fixture
def checks(scripts):
    return scripts[1]


@pytest.fixture
def size(checks):
    parameters = {
        **NETWORK,
        "precision": "float32",
        "augment": None,
        "optimizer": "muon",
        "classification_fraction": 0.25,
        "class_dropout": 0.0,
    }
    return checks.Size(
        side=8,
        n_images=24,
        n_epochs=4,
        batch_size=8,
        n_samples=6,
        parameters=grouped(parameters),
        backend="eager",
    )


@pytest.fixture(autouse=True)
def small_passes(monkeypatch):
    limit_full_passes(16, monkeypatch)
    monkeypatch.setattr(sampling, "_MAX_SAMPLED", 4)


# What a machine with a GPU has, and what goes wrong there


def with_graphs(monkeypatch, checks):
    RecordedCuda().install(monkeypatch)


def with_a_second_gpu(monkeypatch, checks):
    monkeypatch.setattr(checks, "second_device", lambda device: CPU)


def with_little_memory(monkeypatch, checks):
    """Batches of 100 images and more do not fit into the memory."""
    sample = TrainingStep._sample

    def limited(self, x, labels, division):
        if len(x) >= 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample(self, x, labels, division)

    @contextlib.contextmanager
    def little_memory(device):
        with monkeypatch.context() as patches:
            patches.setattr(TrainingStep, "_sample", limited)
            yield

    monkeypatch.setattr(checks, "little_memory", little_memory)


def replays_do_nothing(monkeypatch, checks):
    monkeypatch.setattr(cuda_graphs._Graph, "replay", lambda self, inputs: None)


def averages_stand_still(monkeypatch, checks):
    begin_step = AveragedOptimizer.begin_step

    def replacing(self, rate):
        begin_step(self, rate)
        # A graph goes on with the weight of its capture.
        self._gain = self._gain.clone()

    monkeypatch.setattr(AveragedOptimizer, "begin_step", replacing)


def nothing_is_captured(monkeypatch, checks):
    monkeypatch.setattr(cuda_graphs, "_can_capture", lambda device: False)


def predictions_capture_anew(monkeypatch, checks):
    predict_proba = MedSymmFlowClassifier.predict_proba
    monkeypatch.setattr(
        MedSymmFlowClassifier,
        "predict_proba",
        lambda self, X: predict_proba(pickle.loads(pickle.dumps(self)), X),
    )


def no_graph_is_allowed(monkeypatch, checks):
    monkeypatch.setattr(checks, "_MOST_GRAPHS", 0)


def fits_have_seeds(monkeypatch, seed):
    """Let fits whose `seed(estimator, X)` is not None begin with that seed."""
    fit = MedSymmFlowClassifier.fit

    def fit_with_another_seed(self, X, y):
        random_state = seed(self, X)
        if random_state is not None:
            self.set_params(random_state=random_state)
        return fit(self, X, y)

    monkeypatch.setattr(MedSymmFlowClassifier, "fit", fit_with_another_seed)


def each_fit_has_another_seed(monkeypatch, checks):
    seeds = itertools.count()
    fits_have_seeds(monkeypatch, lambda estimator, X: next(seeds))


def the_first_image_is_the_seed(monkeypatch, checks):
    fits_have_seeds(monkeypatch, lambda estimator, X: int(np.sum(X[0])))


def lists_have_another_seed(monkeypatch, checks):
    fits_have_seeds(monkeypatch, lambda estimator, X: 9 if isinstance(X, list) else None)


def the_layout_of_an_array_is_the_seed(monkeypatch, checks):
    fits_have_seeds(
        monkeypatch, lambda estimator, X: 9 if np.isfortran(np.asarray(X, order="K")) else None
    )


def threads_have_another_seed(monkeypatch, checks):
    main = threading.main_thread()
    fits_have_seeds(
        monkeypatch, lambda estimator, X: None if threading.current_thread() is main else 9
    )


def compiled_fits_have_another_seed(monkeypatch, checks):
    fits_have_seeds(
        monkeypatch, lambda estimator, X: 9 if estimator.compile_network is True else None
    )


def resumed_runs_have_other_noise(monkeypatch, checks):
    resume = Trainer.resume

    def other(self, state):
        resume(self, state)
        self._generator.manual_seed(99)

    monkeypatch.setattr(Trainer, "resume", other)


def another_device_has_another_model(monkeypatch, checks):
    def moved(fitted, device):
        X, y = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4)
        return MedSymmFlowClassifier(**fitted.get_params()).set_params(random_state=5).fit(X, y)

    monkeypatch.setattr(checks, "moved", moved)


def predictions_differ_by(monkeypatch, difference):
    """Add `difference(estimator, X)` to all probabilities."""
    predict_proba = MedSymmFlowClassifier.predict_proba
    monkeypatch.setattr(
        MedSymmFlowClassifier,
        "predict_proba",
        lambda self, X: predict_proba(self, X) + difference(self, X),
    )


def predictions_depend_on_the_other_images(monkeypatch, checks):
    predictions_differ_by(monkeypatch, lambda estimator, X: 1e-12 * len(X))


def predictions_change(monkeypatch, checks):
    calls = itertools.count()
    predictions_differ_by(monkeypatch, lambda estimator, X: 1e-12 * next(calls))


def predictions_in_bfloat16_are_coarse(monkeypatch, checks):
    predictions_differ_by(
        monkeypatch, lambda estimator, X: 0.02 * (estimator.precision == "bfloat16")
    )


def generated_images_differ_by(monkeypatch, difference):
    """Add `difference(n)` to all values of n generated images."""
    sample = MedSymmFlowClassifier.sample
    monkeypatch.setattr(
        MedSymmFlowClassifier,
        "sample",
        lambda self, class_id, n, **options: sample(self, class_id, n, **options) + difference(n),
    )


def generated_images_change(monkeypatch, checks):
    calls = itertools.count()
    generated_images_differ_by(monkeypatch, lambda n: next(calls))


def generated_images_depend_on_their_number(monkeypatch, checks):
    generated_images_differ_by(monkeypatch, lambda n: n)


def memory_never_runs_out(monkeypatch, checks):
    monkeypatch.setattr(checks, "little_memory", lambda device: contextlib.nullcontext())


def the_error_says_nothing(monkeypatch, checks):
    @contextlib.contextmanager
    def failing(device):
        raise MemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr(checks, "little_memory", failing)


def a_fit_after_an_error_has_another_seed(monkeypatch, checks):
    failed = []

    def seed(estimator, X):
        if len(X) >= 100:
            failed.append(True)
        return 9 if failed else None

    fits_have_seeds(monkeypatch, seed)


def the_model_is_on_another_device(monkeypatch, checks):
    class Elsewhere:
        def __str__(self):
            return "cpu"

    monkeypatch.setattr(checks, "second_device", lambda device: Elsewhere())


def nothing_is_compiled(monkeypatch, checks):
    monkeypatch.setattr("sklearn_msf.training.step.compile_or_not", lambda function: function)


def shapes_are_dynamic(monkeypatch, checks):
    compile_graph = torch.compile
    monkeypatch.setattr(
        "torch.compile",
        lambda *arguments, **options: compile_graph(*arguments, **{**options, "dynamic": True}),
    )


# The check, what it needs, and faults that it must find, with a word of what it says about each.
CASES = {
    "graphs train as eager steps do": (
        with_graphs,
        {
            nothing_is_captured: "no step was replayed",
            replays_do_nothing: "losses with graphs",
            averages_stand_still: "averaged weights",
        },
    ),
    "graphs are few, and are replayed": (
        with_graphs,
        {
            nothing_is_captured: "0 graphs of training steps",
            no_graph_is_allowed: "graphs of training steps",
            predictions_capture_anew: "predict_proba captured",
        },
    ),
    "two runs have the same bits": (
        None,
        {
            each_fit_has_another_seed: "weights of a second run",
            generated_images_change: "images of a second run",
        },
    ),
    "order and container of the images do not matter": (
        None,
        {
            the_first_image_is_the_seed: "another order",
            lists_have_another_seed: "a list of images",
            the_layout_of_an_array_is_the_seed: "Fortran's order",
        },
    ),
    "a resumed run has the same bits": (
        None,
        {resumed_runs_have_other_noise: "weights of a resumed run"},
    ),
    "predictions are those of the CPU": (
        None,
        {
            another_device_has_another_model: "probabilities in float32",
            predictions_in_bfloat16_are_coarse: "probabilities in bfloat16",
        },
    ),
    "a prediction is the same alone and among others": (
        None,
        {
            predictions_depend_on_the_other_images: "probabilities of 1 images",
            generated_images_depend_on_their_number: "the first of 1 generated",
        },
    ),
    "out of memory names batch_size": (
        with_little_memory,
        {
            memory_never_runs_out: "did not run out of memory",
            the_error_says_nothing: "does not name batch_size",
            a_fit_after_an_error_has_another_seed: "weights of a fit afterwards",
        },
    ),
    "a thread predicts while two others train": (
        None,
        {
            predictions_change: "probabilities beside threads",
            threads_have_another_seed: "weights of training beside others",
        },
    ),
    "a second GPU": (
        with_a_second_gpu,
        {
            the_model_is_on_another_device: "the model is on",
            each_fit_has_another_seed: "losses on",
            predictions_depend_on_the_other_images: "repeated probabilities",
        },
    ),
    "compiled training has the same losses": (
        None,
        {
            nothing_is_compiled: "0 graphs were compiled",
            shapes_are_dynamic: "of them with dynamic shapes",
            compiled_fits_have_another_seed: "losses compiled",
        },
    ),
}


def run(checks, name, size):
    _, check = {**checks.CHECKS, **checks.CHECKS_OF_COMPILATION}[name]
    with checks.no_fallbacks():
        check(CPU, size)


def test_every_check_is_tested(checks):
    assert {**checks.CHECKS, **checks.CHECKS_OF_COMPILATION}.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_check_passes_on_the_cpu(name, checks, size, monkeypatch):
    needed, _ = CASES[name]
    if needed is not None:
        needed(monkeypatch, checks)
    run(checks, name, size)


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, fault) for name, (_, faults) in CASES.items() for fault in faults],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_check_finds_what_is_wrong(name, fault, checks, size, monkeypatch):
    needed, faults = CASES[name]
    if needed is not None:
        needed(monkeypatch, checks)
    fault(monkeypatch, checks)
    with pytest.raises(checks.CheckError, match=faults[fault]):
        run(checks, name, size)


def test_a_check_that_needs_another_machine_says_so(checks, size, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(checks.NotHereError, match="no second GPU"):
        run(checks, "a second GPU", size)


@pytest.mark.parametrize("text", ["could not be captured as a CUDA graph", "could not be compiled"])
def test_falling_back_to_a_slower_way_is_an_error(checks, text):
    with pytest.raises(checks.CheckError, match=text), checks.no_fallbacks():
        warnings.warn(f"The network {text} and runs as it is", stacklevel=1)
    with pytest.warns(UserWarning, match="another"), checks.no_fallbacks():
        warnings.warn("another", stacklevel=1)


@pytest.mark.parametrize("dynamic", [False, True])
def test_graphs_with_dynamic_shapes_are_noticed(checks, dynamic):
    before = torch.compile
    with checks.watched_compilation("eager") as are_dynamic:
        compiled = torch.compile(lambda x: x.sin() + 1, dynamic=dynamic)
        for n in (3, 4):
            torch.testing.assert_close(compiled(torch.ones(n)), torch.ones(n).sin() + 1)
    assert are_dynamic == ([True] if dynamic else [False, False])
    assert torch.compile is before


def test_arrays_are_compared_to_the_last_bit_or_to_a_tolerance(checks):
    checks.same_bits("a", np.ones(3), np.ones(3))
    with pytest.raises(checks.CheckError, match=r"a: 50.00% of the values differ, by up to 0.25"):
        checks.same_bits("a", np.array([1, 1.25]), np.ones(2))
    with pytest.raises(checks.CheckError, match="shape"):
        checks.same_bits("a", np.ones(3), np.ones(2))
    checks.close("a", np.array([1.1]), np.ones(1), 0.2)
    for value in (1.5, np.nan):
        with pytest.raises(checks.CheckError, match="allowed are 0.2"):
            checks.close("a", np.array([value]), np.ones(1), 0.2)


def test_passes_are_checked_at_their_limits(checks):
    assert checks.sizes_of_passes(9) == [1, 2, 3, 4, 5, 7, 8, 9]


# The table


@pytest.fixture
def work(gpu):
    return gpu.Work(
        side=8,
        plain_side=8,
        batch_sizes=(4, 8),
        n_steps=4,
        n_epochs=2,
        n_eager_steps=2,
        n_images=8,
        n_measured_epochs=2,
        latent_side=32,
        latent_batch_size=4,
        n_ode_steps=1,
        n_repeats=1,
        gemm_side=64,
        seconds=0.0,
        parameters=grouped(NETWORK),
    )


@pytest.fixture
def results():
    about = {"device": "a GPU", "torch": "2", "package": "1", "minutes": 8}
    return {**about, "checks": {}, "table": {}, "left_out": {}, "failed": {}}


def test_every_measurement_has_its_line_in_the_table(
    gpu, checks, work, results, monkeypatch, tmp_path
):
    rng = np.random.default_rng(0)
    splits = ("train", "val", "test")
    arrays = {f"{s}_images": rng.integers(0, 256, (16, 8, 8, 3), np.uint8) for s in splits}
    arrays |= {f"{s}_labels": np.arange(16)[:, None] % 2 for s in splits}
    np.savez(tmp_path / "retinamnist.npz", **arrays)
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path))
    monkeypatch.setattr("sklearn_msf.nn.precision._bfloat16_speed_up", lambda: 0.5)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(gpu, "count_kernels", lambda device, call: 14 * call().n_iter_)
    # In the process of the test, with fewer epochs than the defaults have.
    short = {"max_epochs": 1}
    monkeypatch.setattr(
        gpu, "in_own_process", lambda measure, *a: measure(*a[:-1], {**a[-1], **short})
    )
    files = {"pbc": str(tmp_path / "retinamnist.npz")}
    jobs = gpu.make_jobs(CPU, checks.Size(), work, files)
    of_table = [job for job in jobs if job.kind == "table"]
    assert gpu.do_jobs(of_table, np.inf, results, lambda: None)
    assert list(results["table"]) == [job.name for job in of_table]
    json.dumps(results)
    rates = [r["images_per_second"] for r in results["table"].values() if "images_per_second" in r]
    assert len(rates) == 16
    assert min(rates) > 0
    # Two steps an epoch.
    assert results["table"]["a step"]["defaults"]["kernels"] == 7
    page = gpu.page(results, work)
    best = gpu.best_batch(results["table"], "defaults", work)
    for line in (
        "One run on a GPU, torch 2, sklearn_msf 1.",
        "| plain float32 loop, 8 px | 4 |",
        "| the paper's network | 4 |",
        f"| defaults | {best} |",
        "| retinamnist, defaults, `fit` in a new process |",
        "| pbc, defaults, `fit` in a new process |",
        "1000 epochs, graph, projected |",
        "1000 epochs, compiled, projected |",
        "| training over latents, graph |",
        "| one image classified |",
        "| kernels of a step, defaults |",
        "| bfloat16 product |",
    ):
        assert line in page


@pytest.mark.parametrize("mode", ["eager", "graph", "compiled"])
def test_a_measurement_of_training_is_of_its_mode(gpu, work, monkeypatch, mode):
    fits = []

    def fit(self, X, y):
        fits.append((self.compile_network, cuda_graphs._can_capture(CPU)))
        self.history_ = [{"n_images": len(X), "seconds": 1.0}]
        return self

    monkeypatch.setattr(cuda_graphs, "_can_capture", lambda device: True)
    monkeypatch.setattr(MedSymmFlowClassifier, "fit", fit)
    gpu.measure_training(CPU, work, "defaults", mode, 4)
    assert fits == [(mode == "compiled", mode != "eager")]


def test_steps_are_counted_and_latents_measured_without_compilation(gpu, work, monkeypatch):
    fits = []

    def fit(self, X, y):
        fits.append(self.compile_network)
        raise ZeroDivisionError

    for estimator in (MedSymmFlowClassifier, LatentMedSymmFlowClassifier):
        monkeypatch.setattr(estimator, "fit", fit)
    for measure in (gpu.measure_step, gpu.measure_latents):
        with pytest.raises(ZeroDivisionError):
            measure(CPU, work)
    for compiled in (False, True):
        with pytest.raises(ZeroDivisionError):
            gpu.measure_long_run(CPU, work, compiled=compiled)
    assert fits == [False, False, False, True]


def test_rates_stand_beside_the_plain_loop_and_the_peak(gpu, results):
    work = gpu.Work()
    results["table"] = {
        "plain loop": {"images_per_second": 2000.0},
        "matrix product": {"flop_per_second": 1e15},
        "a step": {"defaults": {"kernels": 1800.0, "flop_per_image": 1e10}},
        "defaults, eager, 128": {"images_per_second": 1000.0, "graphs": 0},
        "defaults, graph, 128": {"images_per_second": 15000.0, "graphs": 4},
        "defaults, graph, best batch": {"images_per_second": 50000.0, "batch_size": 1024},
    }
    lines = gpu.training_lines(results["table"], work)
    assert lines[3:] == [
        "| defaults | 128 | 1,000 (0.5x) | 15,000 (7.5x) | - | 15.0% |",
        "| defaults | 1024 | - | 50,000 (25.0x) | - | 50.0% |",
    ]
    assert "| kernels of a step, defaults | 1,800 (graphs of a fit: 4) |" in gpu.page(results, work)


def test_kernels_are_counted(gpu):
    x = torch.ones(3)
    counts = [gpu.count_kernels(CPU, lambda n=n: [x.sin() for _ in range(n)]) for n in (2, 5)]
    assert counts[1] - counts[0] == 3


def test_the_rate_is_that_of_the_fastest_epoch_of_the_second_half(gpu):
    logs = [{"n_images": 100, "seconds": seconds} for seconds in (0.5, 50.0, 2.0, 3.0)]
    assert gpu.fastest_rate(logs) == 50


def test_a_long_run_is_projected_from_its_first_epoch_and_the_others(gpu, work, monkeypatch):
    def fit(self, X, y):
        self.history_ = [{"seconds": seconds} for seconds in (61.0, 2.0, 2.0, 9.0)]
        return self

    monkeypatch.setattr(MedSymmFlowClassifier, "fit", fit)
    found = gpu.measure_long_run(CPU, replace(work, n_images=11_959 // 7), compiled=True)
    minutes = pytest.approx((61 + 999 * 2 * 11_959 / (11_959 // 7)) / 60)
    assert found == {"minutes": minutes, "first_epoch_seconds": 61.0}


# The command


def job(gpu, name, run, *, kind="table", seconds=1.0):
    return gpu.Job(kind, name, seconds, lambda table: run())


def fail():
    raise ZeroDivisionError("nothing to divide by")


def test_what_fails_or_does_not_fit_is_said_and_the_rest_is_done(gpu, checks, results, capsys):
    def not_here():
        raise checks.NotHereError("there is no file")

    jobs = [
        job(gpu, "bad check", fail, kind="checks"),
        job(gpu, "good check", lambda: None, kind="checks"),
        job(gpu, "bad figure", fail),
        job(gpu, "slow figure", fail, seconds=np.inf),
        job(gpu, "absent figure", not_here),
        job(gpu, "figure", lambda: {"minutes": 2.5}),
    ]
    saved = []
    assert not gpu.do_jobs(jobs, 1e300, results, lambda: saved.append(len(results["table"])))
    assert saved == [0, 0, 0, 0, 0, 1]
    assert results["table"] == {"figure": {"minutes": 2.5}}
    assert results["checks"] == {
        "bad check": "FAILED: ZeroDivisionError: nothing to divide by",
        "good check": "ok",
    }
    printed = capsys.readouterr().out
    for text in ("slow figure (0.0 s): left out: takes", "left out: there is no file", "minutes 2"):
        assert text in printed
    page = gpu.page(results, gpu.Work())
    assert "| bad check | FAILED: ZeroDivisionError: nothing to divide by |" in page
    assert "- slow figure: left out" in page
    assert "- bad figure: FAILED" in page
    assert gpu.do_jobs(jobs[1:2], 1e300, results, lambda: None)


def test_after_an_error_that_loses_the_gpu_nothing_is_tried_in_vain(gpu, results, monkeypatch):
    monkeypatch.setattr(gpu, "gpu_answers", lambda: False)
    jobs = [
        job(gpu, "figure", lambda: {"minutes": 2.5}),
        job(gpu, "bad figure", fail),
        job(gpu, "next figure", fail),
    ]
    assert not gpu.do_jobs(jobs, 1e300, results, lambda: None)
    assert results["table"] == {"figure": {"minutes": 2.5}}
    assert set(results["failed"]) == {"bad figure"}
    assert "lost the GPU" in results["left_out"]["next figure"]


def test_without_a_gpu_it_says_so_and_does_nothing(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--output", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("failing", "status"), [(False, 0), (True, 1)])
def test_the_command_writes_its_results_with_the_name_of_the_device(
    gpu, monkeypatch, tmp_path, failing, status
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")
    made = fail if failing else lambda: None
    monkeypatch.setattr(
        gpu, "make_jobs", lambda *arguments: [job(gpu, "check", made, kind="checks")]
    )
    assert gpu.main(["--output", str(tmp_path)]) == status
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["device"] == "card cuda:0"
    assert record["torch"] == torch.__version__
    assert "One run on card cuda:0, torch" in (tmp_path / "gpu.md").read_text()


def test_the_script_needs_no_package_that_downloads():
    folder = str(BENCHMARKS)
    code = f"import sys; sys.modules['pooch'] = None; sys.path.insert(0, {folder!r}); import gpu"
    ended = run_code(LIBRARIES, code)
    assert ended.code == 0, ended.errors
