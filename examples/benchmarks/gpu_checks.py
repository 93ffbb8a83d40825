"""What must hold on a GPU and cannot be seen on a CPU. `gpu.py` runs these checks.

A check takes a device and the size of its problem. It returns nothing, or raises a CheckError that
says what differs. The tests run every check on the CPU.
"""

import contextlib
import functools
import itertools
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.runtime import cuda_graphs

N_CLASSES = 4
# Memory that a fit may take when it is to run out of it.
_LITTLE_MEMORY = 2**30
# Fits keep so many graphs at most.
_MOST_GRAPHS = 16
_FALLBACKS = ("could not be captured", "could not be compiled")


class CheckError(Exception):
    """Something that must hold does not."""


class NotHereError(Exception):
    """A machine lacks what a check needs."""


Check = Callable[[torch.device, "Size"], None]


@dataclass(frozen=True)
class Size:
    """How large the problem of a check is.

    Attributes
    ----------
    side : int
        Side of the images in pixels.
    n_images : int
        Number of images: for training a multiple of the batch size, for predictions more than one
        pass.
    n_epochs, batch_size : int
        Of each fit.
    n_samples : int
        Number of images to generate, more than one pass.
    parameters : mapping
        Further parameters of the classifiers.
    backend : str
        Backend of `torch.compile`.
    """

    side: int = 28
    n_images: int = 512
    n_epochs: int = 4
    batch_size: int = 64
    n_samples: int = 70
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"optimizer": "muon"})
    backend: str = "inductor"


@contextlib.contextmanager
def no_fallbacks() -> Iterator[None]:
    """Raise a CheckError if training or a prediction fell back to a slower way, with a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if any(text in str(warning.message) for text in _FALLBACKS):
            raise CheckError(str(warning.message))
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def problem(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Images whose brightness says something about their class, and labels."""
    rng = np.random.default_rng(0)
    y = np.arange(size.n_images) % N_CLASSES
    shape = (size.n_images, size.side, size.side, 3)
    return (rng.integers(0, 160, shape) + 30 * y[:, None, None, None]).astype(np.uint8), y


def classifier(device: torch.device, size: Size, **parameters: Any) -> MedSymmFlowClassifier:
    """A small classifier on a device; entries of dict parameters are added to those of the size."""
    merged = {**size.parameters, **parameters}
    for name, value in size.parameters.items():
        if isinstance(value, Mapping):
            merged[name] = {**value, **parameters.get(name, {})}
    return MedSymmFlowClassifier(
        max_epochs=size.n_epochs,
        batch_size=size.batch_size,
        device=str(device),
        random_state=0,
        **merged,
    )


def weights(fitted: MedSymmFlowClassifier) -> np.ndarray:
    """All weights of a fitted model."""
    parameters = fitted.model_.field.parameters()
    return np.concatenate([p.detach().cpu().numpy().ravel() for p in parameters])


def same_bits(what: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Raise an error unless two arrays have the same bits."""
    if found.shape != expected.shape:
        raise CheckError(f"{what}: shape {found.shape}, not {expected.shape}")
    differ = found != expected
    if differ.any():
        most = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
        raise CheckError(f"{what}: {differ.mean():.2%} of the values differ, by up to {most:.2g}")


def close(what: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Raise an error if two arrays differ by more than a tolerance, or are not finite."""
    most = np.abs(np.subtract(found, expected)).max()
    # "not <=" instead of ">", so that NaN is refused too.
    if not most <= tolerance:
        raise CheckError(f"{what}: differs by up to {most:.2g}, allowed are {tolerance:g}")


# The engine with another setting


@contextlib.contextmanager
def without_graphs() -> Iterator[None]:
    """Run everything without CUDA graphs."""
    before = cuda_graphs._can_capture
    cuda_graphs._can_capture = lambda device: False
    try:
        yield
    finally:
        cuda_graphs._can_capture = before


@dataclass
class GraphCounts:
    """Number of graphs that were captured, and of their replays."""

    n_captured: int = 0
    n_replayed: int = 0


@contextlib.contextmanager
def counted_graphs() -> Iterator[GraphCounts]:
    """Count graphs and their replays while the context lasts."""
    graph, counts = cuda_graphs._Graph, GraphCounts()
    before = graph.__init__, graph.replay

    def capture(self: Any, *arguments: Any, **options: Any) -> None:
        before[0](self, *arguments, **options)
        counts.n_captured += 1

    def replay(self: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        before[1](self, inputs)
        counts.n_replayed += 1

    graph.__init__, graph.replay = capture, replay
    try:
        yield counts
    finally:
        graph.__init__, graph.replay = before


@contextlib.contextmanager
def watched_compilation(backend: str) -> Iterator[list[bool]]:
    """Let `torch.compile` use a backend, and note of each graph whether it has dynamic shapes."""
    compile_graph, before = torch._dynamo.lookup_backend(backend), torch.compile
    are_dynamic: list[bool] = []

    def watching(graph: Any, inputs: list[Any], **options: Any) -> Any:
        sizes = [n for value in inputs for n in getattr(value, "shape", (value,))]
        are_dynamic.append(any(isinstance(n, torch.SymInt) for n in sizes))
        return compile_graph(graph, inputs, **options)

    torch.compile = functools.partial(before, backend=watching)
    try:
        yield are_dynamic
    finally:
        torch.compile = before


@contextlib.contextmanager
def little_memory(device: torch.device) -> Iterator[None]:
    """Let this process have 1 GiB more of the GPU's memory than it has now."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    allowed = torch.cuda.memory_reserved(device) + _LITTLE_MEMORY
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def second_device(device: torch.device) -> torch.device:
    """Another GPU than the first."""
    if torch.cuda.device_count() < 2:
        raise NotHereError("there is no second GPU")
    return torch.device("cuda", 1)


# The checks


def check_graphs_train_as_eager(device: torch.device, size: Size) -> None:
    """Training by graphs has the losses of training without."""
    X, y = problem(size)
    with counted_graphs() as counts:
        captured = classifier(device, size).fit(X, y)
    if not counts.n_replayed:
        raise CheckError("no step was replayed")
    with without_graphs():
        eager = classifier(device, size).fit(X, y)
    ratio = np.divide(captured.loss_curve_, eager.loss_curve_)
    close("losses with graphs / losses without", ratio, np.ones_like(ratio), 1e-3)
    # The averaged weights are the model, and no loss shows them.
    expected = weights(eager)
    distance = np.linalg.norm(weights(captured) - expected) / np.linalg.norm(expected)
    close("averaged weights with graphs and without, relatively", distance, 0.0, 3e-4)


def check_graphs_are_few(device: torch.device, size: Size) -> None:
    """Training, classification and sampling capture some graphs, not many, and replay them."""
    X, y = problem(size)
    with counted_graphs() as training:
        fitted = classifier(device, size).fit(X, y)
    n_steps = size.n_epochs * round(size.n_images / size.batch_size)
    if not 1 <= training.n_captured <= _MOST_GRAPHS:
        raise CheckError(f"{training.n_captured} graphs of training steps were captured")
    if training.n_replayed < n_steps / 3:
        raise CheckError(f"{training.n_replayed} of {n_steps} training steps were replays")
    for name, use in (
        ("predict_proba", lambda: fitted.predict_proba(X)),
        ("sample", lambda: fitted.sample(0, 2, n_steps=2, random_state=0)),
    ):
        with counted_graphs() as first:
            use()
        with counted_graphs() as second:
            use()
        if not first.n_captured or second.n_captured or not second.n_replayed:
            raise CheckError(
                f"{name} captured {first.n_captured} graphs in the first call, "
                f"{second.n_captured} in the second, and replayed {second.n_replayed} there"
            )


def check_two_runs_are_the_same(device: torch.device, size: Size) -> None:
    """The same seed gives the same bits."""
    X, y = problem(size)
    first, second = (classifier(device, size).fit(X, y) for _ in range(2))
    same_bits("weights of a second run", weights(second), weights(first))
    images = [fitted.sample(0, 3, n_steps=2, random_state=0) for fitted in (first, second)]
    same_bits("images of a second run", images[1], images[0])


def check_order_of_rows(device: torch.device, size: Size) -> None:
    """Order and container of the images do not matter."""
    X, y = problem(size)
    order = np.random.default_rng(1).permutation(len(X))
    expected = weights(classifier(device, size).fit(X, y))
    for name, images, labels in (
        ("rows in another order", X[order], y[order]),
        ("a list of images", list(X), list(y)),
        ("an array in Fortran's order", np.asfortranarray(X), y),
    ):
        found = weights(classifier(device, size).fit(images, labels))
        same_bits(f"weights from {name}", found, expected)


def check_resumed_run(device: torch.device, size: Size) -> None:
    """A run that goes on from its last checkpoint but one ends with the same bits."""
    X, y = problem(size)
    expected = weights(classifier(device, size).fit(X, y))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"checkpoint_dir": folder, "checkpoint_every": 1}
        classifier(device, size, **settings).fit(X, y)
        last = max(path.stem for path in Path(folder).glob("checkpoint-*.json"))
        for path in Path(folder).glob(f"{last}*"):
            path.unlink()
        resumed = classifier(device, size, **settings).fit(X, y)
    same_bits("weights of a resumed run", weights(resumed), expected)


def check_predictions_of_the_cpu(device: torch.device, size: Size) -> None:
    """Probabilities on the GPU are those on the CPU in float32."""
    X, y = problem(size)
    fitted = classifier(device, size, precision="float32").fit(X, y)
    expected = moved(fitted, "cpu").predict_proba(X)
    for precision, tolerance in (("float32", 1e-5), ("bfloat16", 1e-2)):
        found = fitted.set_params(precision=precision).predict_proba(X)
        close(f"probabilities in {precision}", found, expected, tolerance)


def check_predictions_alone(device: torch.device, size: Size) -> None:
    """A prediction does not depend on the images beside it, at any size of a padded pass."""
    X, y = problem(size)
    fitted = classifier(device, size).fit(X, y)
    expected = fitted.predict_proba(X)
    for n in sizes_of_passes(len(X)):
        same_bits(f"probabilities of {n} images", fitted.predict_proba(X[-n:]), expected[-n:])
    images = fitted.sample(0, size.n_samples, n_steps=2, random_state=0)
    for n in sizes_of_passes(size.n_samples):
        found = fitted.sample(0, n, n_steps=2, random_state=0)
        same_bits(f"the first of {n} generated images", found, images[:n])


def check_out_of_memory(device: torch.device, size: Size) -> None:
    """A batch that is too large is an error that names batch_size; a normal fit works after it."""
    X, y = problem(size)
    expected = weights(classifier(device, size).fit(X, y))
    large = classifier(device, size).set_params(batch_size=8 * len(X))
    try:
        with little_memory(device):
            large.fit(np.concatenate([X] * 8), np.concatenate([y] * 8))
    except MemoryError as error:
        if "batch_size" not in str(error):
            raise CheckError(f"the error does not name batch_size: {error}") from error
    else:
        raise CheckError(f"a batch of {8 * len(X)} images did not run out of memory")
    same_bits("weights of a fit afterwards", weights(classifier(device, size).fit(X, y)), expected)


def check_threads(device: torch.device, size: Size) -> None:
    """A thread predicts while two others train, and all have the results they have alone.

    Each prediction is of other numbers of images, so that captures of the threads meet.
    """
    X, y = problem(size)
    known = classifier(device, size).fit(X, y)
    expected = known.predict_proba(X)
    numbers = itertools.cycle(sizes_of_passes(len(X)))
    with ThreadPoolExecutor(2) as executor:
        trainings = [executor.submit(classifier(device, size).fit, X, y) for _ in range(2)]
        is_last = False
        while not is_last:
            is_last = all(training.done() for training in trainings)
            n = next(numbers)
            found = known.predict_proba(X[-n:])
            same_bits("probabilities beside threads that train", found, expected[-n:])
    for training in trainings:
        same_bits("weights of training beside others", weights(training.result()), weights(known))


def check_second_gpu(device: torch.device, size: Size) -> None:
    """Another GPU trains and predicts, and tensors stay on it."""
    other = second_device(device)
    X, y = problem(size)
    here, there = (classifier(place, size).fit(X, y) for place in (device, other))
    if there.model_.device != other:
        raise CheckError(f"the model is on {there.model_.device}, not on {other}")
    ratio = np.divide(there.loss_curve_, here.loss_curve_)
    close(f"losses on {other} / losses on {device}", ratio, np.ones_like(ratio), 1e-3)
    same_bits("repeated probabilities", there.predict_proba(X[:3]), there.predict_proba(X)[:3])


def check_compiled_training(device: torch.device, size: Size) -> None:
    """Compiled training has the losses of training that is not, and no dynamic shapes."""
    X, y = problem(size)
    settings = {
        # The number of samples at t = 1 alternates, so there are two divisions of a batch. Dropout
        # has other random numbers when it is compiled.
        "classification_fraction": (size.batch_size // 4 + 0.5) / size.batch_size,
        "flow_params": {"class_dropout": 0.0},
        "network_params": {"dropout": 0.0, "channel_mult": (1, 2), "n_blocks": 1},
    }
    plain = classifier(device, size, **settings).fit(X, y)
    with watched_compilation(size.backend) as are_dynamic:
        compiled = classifier(device, size, **settings, compile_network=True).fit(X, y)
    if len(are_dynamic) != 2 or any(are_dynamic):
        raise CheckError(
            f"{len(are_dynamic)} graphs were compiled for 2 divisions of a batch, "
            f"{sum(are_dynamic)} of them with dynamic shapes"
        )
    ratio = np.divide(compiled.loss_curve_, plain.loss_curve_)
    close("losses compiled / losses not compiled", ratio, np.ones_like(ratio), 1e-2)


def moved(fitted: MedSymmFlowClassifier, device: str) -> MedSymmFlowClassifier:
    """Copy a fitted classifier to another device, through a pickle."""
    before = fitted.device
    try:
        return pickle.loads(pickle.dumps(fitted.set_params(device=device)))
    finally:
        fitted.set_params(device=before)


def sizes_of_passes(most: int) -> list[int]:
    """Every power of two up to a number, and the numbers beside it."""
    powers = [2**k for k in range(most.bit_length())]
    return sorted({n for power in powers for n in (power - 1, power, power + 1) if 0 < n <= most})


# The name of each check, and seconds that it takes on an H100 at most. Compilation is last, because
# it takes longest.
CHECKS: dict[str, tuple[float, Check]] = {
    "graphs train as eager steps do": (15, check_graphs_train_as_eager),
    "graphs are few, and are replayed": (10, check_graphs_are_few),
    "two runs have the same bits": (10, check_two_runs_are_the_same),
    "order and container of the images do not matter": (15, check_order_of_rows),
    "a resumed run has the same bits": (15, check_resumed_run),
    "predictions are those of the CPU": (15, check_predictions_of_the_cpu),
    "a prediction is the same alone and among others": (15, check_predictions_alone),
    "out of memory names batch_size": (10, check_out_of_memory),
    "a thread predicts while two others train": (15, check_threads),
    "a second GPU": (10, check_second_gpu),
}
CHECKS_OF_COMPILATION: dict[str, tuple[float, Check]] = {
    "compiled training has the same losses": (90, check_compiled_training),
}
