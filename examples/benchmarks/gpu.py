"""One command for a machine with a GPU: checks, then a table of speeds.

    python examples/benchmarks/gpu.py                        # docs/benchmarks/gpu.json and gpu.md
    python examples/benchmarks/gpu.py --minutes 4            # only what is most important
    python examples/benchmarks/gpu.py --npz pbc=blood.npz    # also fits other data sets

The checks (`gpu_checks.py`) are of what cannot be seen on a CPU: whether CUDA graphs train the same
model, whether bits repeat, whether threads disturb each other. The table has the speeds of training
without graphs, with graphs and compiled, beside the plain float32 loop of `speed.py`. Everything is
in order of importance, and what no longer fits into the minutes is left out. The exit status is 1
if a check or a measurement failed. Without a GPU nothing is done.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import (
    RECORDS_FOLDER,
    accuracy,
    add_npz_option,
    auc_score,
    in_own_process,
    load,
    median_milliseconds,
    product_gflops,
)
from gpu_checks import (
    CHECKS,
    CHECKS_OF_COMPILATION,
    NotHereError,
    Size,
    counted_graphs,
    no_fallbacks,
    without_graphs,
)
from speed import PAPER_SIDE, images, plain_loop, step_flops
from torch import nn
from torch.nn import functional as F

from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier, __version__

# Of the data set and the run whose time is projected.
_BLOOD_IMAGES, _BLOOD_EPOCHS = 11_959, 1000
# Whole batches of the paper, so that one shape is compiled and not two.
_MEASURED_IMAGES = 46 * 256
_HOURS_OF_THE_PAPER = 3.0

Result = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Attributes
    ----------
    side, plain_side : int
        Sides in pixels of the images, and of those of the plain loop. The paper's code, and so
        `from_paper`, enlarges images of 28 pixels to 32.
    batch_sizes : tuple of int
        Batch sizes that are compared; the first one is that of the plain loop.
    n_steps, n_epochs : int
        Steps of an epoch, and epochs, of whose second half the fastest one counts.
    n_eager_steps : int
        Steps of an epoch without graphs, which are slow.
    n_images, n_measured_epochs : int
        Size of the data set of which a long run is projected, and epochs that are run.
    latent_side, latent_batch_size : int
        Side of the encoded images, eight times that of the latents; and batch size over latents.
    n_ode_steps, n_repeats : int
        Steps of sampling, and number of calls of which the median counts.
    gemm_side : int
        Side of the matrices that are multiplied.
    seconds : float
        Time of the plain loop.
    parameters : mapping
        Further parameters of the classifiers.
    """

    side: int = 28
    plain_side: int = PAPER_SIDE
    batch_sizes: tuple[int, ...] = (128, 256, 512, 1024)
    n_steps: int = 32
    n_epochs: int = 4
    n_eager_steps: int = 12
    n_images: int = _MEASURED_IMAGES
    n_measured_epochs: int = 20
    latent_side: int = 256
    latent_batch_size: int = 64
    n_ode_steps: int = 25
    n_repeats: int = 50
    gemm_side: int = 8192
    seconds: float = 3.0
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Pooling(nn.Module):
    """Latents of four channels without weights: means of squares, and the mean of their colours."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(x, 8)
        return torch.cat([x, x.mean(dim=1, keepdim=True)], dim=1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return F.interpolate(latents[:, :3], scale_factor=8)


def paper(**parameters: Any) -> MedSymmFlowClassifier:
    """A classifier with the paper's network and settings."""
    return MedSymmFlowClassifier.from_paper("bloodmnist", **parameters)


def defaults(**parameters: Any) -> MedSymmFlowClassifier:
    """A classifier with the defaults, and the optimizer that they choose for longer runs."""
    return MedSymmFlowClassifier(optimizer="muon", **parameters)


NETWORKS: dict[str, Callable[..., MedSymmFlowClassifier]] = {
    "the paper's network": paper,
    "defaults": defaults,
}
MODES = ("eager", "graph", "compiled")


# Measurements


def measure_plain(device: torch.device, work: Work) -> Result:
    """The plain float32 loop, with the first of the batch sizes."""
    batch_size = work.batch_sizes[0]
    X, y = images(8 * batch_size, work.plain_side)
    return {"images_per_second": plain_loop(X, y, device, batch_size, work.seconds)}


def measure_products(device: torch.device, work: Work) -> Result:
    """Best rate of a bfloat16 matrix product."""
    return {"flop_per_second": 1e9 * product_gflops(device, torch.bfloat16, work.gemm_side, 20)}


def measure_training(
    device: torch.device, work: Work, network: str, mode: str, batch_size: int
) -> Result:
    """Images a second of training, after everything was captured or compiled."""
    is_eager = mode == "eager"
    n_steps = work.n_eager_steps if is_eager else work.n_steps
    X, y = images(n_steps * batch_size, work.side)
    make = NETWORKS[network](
        max_epochs=2 if is_eager else work.n_epochs,
        batch_size=batch_size,
        device=str(device),
        compile_network=mode == "compiled",
        random_state=0,
        **work.parameters,
    )
    start = time.perf_counter()
    if is_eager:
        with without_graphs():
            fitted = make.fit(X, y)
        n_graphs = 0
    else:
        with counted_graphs() as counts:
            fitted = make.fit(X, y)
        n_graphs = counts.n_captured
    return {
        "images_per_second": fastest_rate(fitted.history_),
        "graphs": n_graphs,
        "seconds": time.perf_counter() - start,
    }


def fastest_rate(history: list[dict[str, Any]]) -> float:
    """Images a second in the fastest epoch of the second half: others may still capture a graph."""
    return max(log["n_images"] / log["seconds"] for log in history[len(history) // 2 :])


def measure_long_run(device: torch.device, work: Work, *, compiled: bool) -> Result:
    """Hours of the paper's 1,000 epochs on images as many as BloodMNIST's, from a few of them."""
    X, y = images(work.n_images, work.side)
    clf = MedSymmFlowClassifier.from_paper(
        "bloodmnist",
        max_epochs=work.n_measured_epochs,
        device=str(device),
        compile_network=compiled,
        random_state=0,
        **work.parameters,
    ).fit(X, y)
    first, *rest = (log["seconds"] for log in clf.history_)
    size = _BLOOD_IMAGES / work.n_images
    seconds = first + (_BLOOD_EPOCHS - 1) * size * statistics.median(rest)
    return {"minutes": seconds / 60, "first_epoch_seconds": first}


def measure_latents(device: torch.device, work: Work) -> Result:
    """Images a second of training the paper's field over latents, once these are encoded."""
    batch_size = work.latent_batch_size
    X, y = images(work.n_steps // 2 * batch_size, work.latent_side)
    clf = LatentMedSymmFlowClassifier.from_paper(
        "bloodmnist",
        autoencoder=Pooling(),
        encoded_size=work.latent_side,
        augment=None,
        max_epochs=work.n_epochs,
        batch_size=batch_size,
        compile_network=False,
        device=str(device),
        random_state=0,
        **work.parameters,
    ).fit(X, y)
    return {"images_per_second": fastest_rate(clf.history_)}


def measure_answers(device: torch.device, work: Work) -> Result:
    """Milliseconds of classifying one image, and of generating one and 64, from and to numpy."""
    X, y = images(4 * work.batch_sizes[0], work.side)
    clf = defaults(
        max_epochs=1,
        batch_size=work.batch_sizes[0],
        device=str(device),
        random_state=0,
        n_draws=1,
        **work.parameters,
    ).fit(X, y)

    def sample(n: int) -> np.ndarray:
        return clf.sample(
            0, n, n_steps=work.n_ode_steps, ode_solver="euler", guidance=0.5, random_state=0
        )

    # Two calls prepare everything, graphs too.
    milliseconds = partial(median_milliseconds, n_preparing=2)
    n_samplings = max(1, work.n_repeats // 5)
    return {
        "classify_1": milliseconds(lambda _: clf.predict_proba(X[:1]), work.n_repeats),
        "sample_1": milliseconds(lambda _: sample(1), n_samplings),
        "sample_64": milliseconds(lambda _: sample(64), n_samplings),
    }


def measure_step(device: torch.device, work: Work) -> Result:
    """Kernels of a training step, and floating-point operations of an image in it.

    The kernels are the difference of fits of two epochs and of one.
    """
    result = {}
    n_steps, batch_size = max(2, work.n_steps // 4), work.batch_sizes[0]
    X, y = images(n_steps * batch_size, work.side)
    for name, make in NETWORKS.items():
        counts = []
        for n_epochs in (1, 2):
            clf = make(
                max_epochs=n_epochs,
                batch_size=batch_size,
                device=str(device),
                compile_network=False,
                random_state=0,
                **work.parameters,
            )
            counts.append(count_kernels(device, lambda clf=clf: clf.fit(X, y)))
        result[name] = {
            "kernels": (counts[1] - counts[0]) / n_steps,
            "flop_per_image": step_flops(clf, X[:20], y[:20]),
        }
    return result


def count_kernels(device: torch.device, call: Callable[[], object]) -> int:
    """Kernels that a call runs on a GPU; on a CPU operations of torch."""
    on_cuda = device.type == "cuda"
    activities = torch.profiler.ProfilerActivity
    wanted = torch.autograd.DeviceType.CUDA if on_cuda else torch.autograd.DeviceType.CPU
    with torch.profiler.profile(
        activities=[activities.CUDA if on_cuda else activities.CPU]
    ) as profile:
        call()
        if on_cuda:
            torch.cuda.synchronize(device)
    return sum(
        event.device_type == wanted
        and not event.name.startswith(("Memcpy", "Memset"))
        and not getattr(event, "is_user_annotation", False)
        for event in profile.events()
    )


def measure_data_set(device: str, path: str, parameters: Mapping[str, Any]) -> Result:
    """Seconds of a fit with the defaults, and scores on the test images of a file."""
    data = load(path, {path: path})
    (X, y, *_), (X_test, y_test, *_) = data["train"], data["test"]
    start = time.perf_counter()
    with no_fallbacks():
        clf = MedSymmFlowClassifier(device=device, random_state=0, **parameters).fit(X, y)
    seconds = time.perf_counter() - start
    p = clf.predict_proba(X_test)
    return {
        "seconds": seconds,
        "epochs": clf.n_iter_,
        "auc": 100 * auc_score(y_test, p),
        "acc": 100 * accuracy(y_test, p),
    }


def find_retina() -> Path:
    """The file of RetinaMNIST, in the folder that MEDMNIST_ROOT names or in medmnist's cache."""
    for folder in (os.environ.get("MEDMNIST_ROOT"), "~/.medmnist"):
        path = Path(folder or ".").expanduser() / "retinamnist.npz"
        if folder and path.exists():
            return path
    raise NotHereError("there is no retinamnist.npz in MEDMNIST_ROOT")


# The list of all that is done


@dataclass(frozen=True)
class Job:
    """A check or a measurement.

    Attributes
    ----------
    kind : {"checks", "table"}
        What its result belongs to.
    name : str
        Name of the result.
    seconds : float
        Time that it takes on an H100 at most.
    run : callable
        Takes the results of the table so far; returns its own, a check None.
    """

    kind: str
    name: str
    seconds: float
    run: Callable[[Mapping[str, Result]], Result | None]


def training_name(network: str, mode: str, batch: int | str) -> str:
    """Name of a measurement of training, with a batch size or "best batch"."""
    return f"{network}, {mode}, {batch}"


def best_batch(table: Mapping[str, Result], network: str, work: Work) -> int:
    """The batch size with most images a second, of those that were measured with graphs."""
    rates = {
        size: table[name]["images_per_second"]
        for size in work.batch_sizes
        if (name := training_name(network, "graph", size)) in table
    }
    if not rates:
        raise NotHereError("no batch size was measured with graphs")
    return max(rates, key=lambda size: rates[size])


def make_jobs(device: torch.device, size: Size, work: Work, files: Mapping[str, str]) -> list[Job]:
    """Everything, in order of importance."""

    def check(name: str, checks: Mapping[str, Any]) -> Job:
        seconds, function = checks[name]
        return Job("checks", name, seconds, lambda table: function(device, size))

    def job(name: str, seconds: float, measure: Callable[..., Result], *given: Any) -> Job:
        return Job("table", name, seconds, lambda table: measure(device, work, *given))

    def training(network: str, mode: str, batch_size: int, seconds: float) -> Job:
        name = training_name(network, mode, batch_size)
        return job(name, seconds, measure_training, network, mode, batch_size)

    def best(network: str, mode: str, seconds: float) -> Job:
        def run(table: Mapping[str, Result]) -> Result:
            batch_size = best_batch(table, network, work)
            known = training_name(network, mode, batch_size)
            measured = table.get(known) or measure_training(device, work, network, mode, batch_size)
            return {**measured, "batch_size": batch_size}

        return Job("table", training_name(network, mode, "best batch"), seconds, run)

    def data_set(name: str, seconds: float, find: Callable[[], Path]) -> Job:
        # In a process of its own, which has prepared nothing.
        return Job(
            "table",
            name,
            seconds,
            lambda table: in_own_process(
                measure_data_set, str(device), str(find()), dict(work.parameters)
            ),
        )

    papers, ours = NETWORKS
    first, *larger = work.batch_sizes
    return [
        *(check(name, CHECKS) for name in CHECKS),
        job("plain loop", 10, measure_plain),
        job("matrix product", 5, measure_products),
        training(papers, "graph", first, 12),
        training(ours, "graph", first, 12),
        job("one image and 64", 25, measure_answers),
        data_set("retinamnist", 40, find_retina),
        *(check(name, CHECKS_OF_COMPILATION) for name in CHECKS_OF_COMPILATION),
        training(papers, "compiled", first, 130),
        Job(
            "table",
            "1000 epochs, compiled",
            150,
            lambda table: measure_long_run(device, work, compiled=True),
        ),
        *(training(network, "graph", n, 18) for n in larger for network in NETWORKS),
        *(best(network, "graph", 0) for network in NETWORKS),
        job("latents", 20, measure_latents),
        *(training(network, "eager", first, 8) for network in NETWORKS),
        job("a step", 30, measure_step),
        Job(
            "table",
            "1000 epochs, graph",
            60,
            lambda table: measure_long_run(device, work, compiled=False),
        ),
        best(papers, "compiled", 90),
        *(data_set(name, 120, lambda path=path: Path(path)) for name, path in files.items()),
        *(best(network, "eager", 15) for network in NETWORKS),
        training(ours, "compiled", first, 180),
        best(ours, "compiled", 180),
    ]


def do_jobs(
    jobs: Iterable[Job], deadline: float, results: dict[str, Any], save: Callable[[], None]
) -> bool:
    """Do what fits into the time, and tell whether nothing failed.

    Parameters
    ----------
    jobs : iterable of Job
        In order of importance.
    deadline : float
        On `time.perf_counter`'s clock.
    results : dict
        Gets the results: `checks`, `table` and `left_out`.
    save : callable
        Called after each job.
    """
    succeeded, is_lost = True, False
    for job in jobs:
        start = time.perf_counter()
        if is_lost:
            text = "left out: this process lost the GPU in a job before"
            results["left_out"][job.name] = text
        elif start + job.seconds > deadline:
            text = f"left out: takes up to {job.seconds:g} s"
            results["left_out"][job.name] = text
        else:
            try:
                with no_fallbacks():
                    found = job.run(results["table"])
                text = "ok" if found is None else ", ".join(map(shown, found.items()))
                if found is not None:
                    results["table"][job.name] = found
            except NotHereError as error:
                text = f"left out: {error}"
                results["left_out"][job.name] = text
            # The other jobs do not depend on this one, so whatever it raised must not end them.
            except Exception as error:
                succeeded = False
                text = f"FAILED: {type(error).__name__}: {error}"
                is_lost = not gpu_answers()
                if job.kind == "table":
                    results["failed"][job.name] = text
            if job.kind == "checks" and job.name not in results["left_out"]:
                results["checks"][job.name] = text
        print(f"{job.name} ({time.perf_counter() - start:.1f} s): {text}", flush=True)
        save()
    return succeeded


def gpu_answers() -> bool:
    """Whether this process can still use CUDA, which some errors end for good."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def shown(entry: tuple[str, Any]) -> str:
    """A figure as text."""
    name, value = entry
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


# The page


def page(results: Mapping[str, Any], work: Work) -> str:
    """Markdown of a run."""
    lines = [
        f"One run on {results['device']}, torch {results['torch']}, sklearn_msf "
        f"{results['package']}.",
        "",
        "| check | result |",
        "|---|---|",
    ]
    lines += [f"| {name} | {cell(text)} |" for name, text in results["checks"].items()]
    lines += ["", *training_lines(results["table"], work), "", *other_lines(results["table"])]
    unfinished = {**results["left_out"], **results["failed"]}
    lines += ["", *(f"- {name}: {cell(text)}" for name, text in unfinished.items())]
    return "\n".join(lines).rstrip() + "\n"


def cell(text: str) -> str:
    """A text in one line of a table."""
    return " ".join(text.split()).replace("|", "\\|")[:200]


def training_lines(table: Mapping[str, Result], work: Work) -> list[str]:
    """Table of training: images a second, and how many times as many as the plain loop."""
    plain = table.get("plain loop", {}).get("images_per_second")
    lines = [
        "| training, images/s | batch | eager | graph | compiled | peak |",
        "|---|---|---|---|---|---|",
    ]
    if plain is not None:
        loop = f"plain float32 loop, {work.plain_side} px"
        lines.append(f"| {loop} | {work.batch_sizes[0]} | {plain:,.0f} | - | - | - |")
    peak, steps = table.get("matrix product"), table.get("a step", {})
    for network in NETWORKS:
        for batch in (work.batch_sizes[0], "best batch"):
            found = {mode: table.get(training_name(network, mode, batch)) for mode in MODES}
            present = [result for result in found.values() if result]
            if not present:
                continue
            cells = [rate_cell(result, plain) for result in found.values()]
            size = present[0].get("batch_size", batch)
            fastest = max(present, key=lambda result: result["images_per_second"])
            share = peak_share(fastest, steps.get(network), peak)
            lines.append(f"| {network} | {size} | {' | '.join(cells)} | {share} |")
    return lines


def rate_cell(result: Result | None, plain: float | None) -> str:
    """Images a second, and of the plain loop."""
    if result is None:
        return "-"
    rate = result["images_per_second"]
    return f"{rate:,.0f}" + ("" if plain is None else f" ({rate / plain:.1f}x)")


def peak_share(training: Result, step: Result | None, product: Result | None) -> str:
    """Share of the bfloat16 matrix product's rate."""
    if step is None or product is None:
        return "-"
    rate = training["images_per_second"] * step["flop_per_image"]
    return f"{rate / product['flop_per_second']:.1%}"


def other_lines(table: Mapping[str, Result]) -> list[str]:
    """Table of everything but the speed of training."""
    lines = ["| | |", "|---|---|"]
    for name, result in table.items():
        if "auc" in result:
            lines.append(
                f"| {name}, defaults, `fit` in a new process | {result['seconds']:.1f} s, "
                f"{result['epochs']} epochs, test AUC {result['auc']:.1f}, "
                f"ACC {result['acc']:.1f} |"
            )
    for mode in ("graph", "compiled"):
        if (run := table.get(f"1000 epochs, {mode}")) is not None:
            lines.append(
                f"| BloodMNIST's size, paper's settings, 1000 epochs, {mode}, projected | "
                f"{run['minutes']:.0f} min (paper: {60 * _HOURS_OF_THE_PAPER:.0f} min) |"
            )
    if (latents := table.get("latents")) is not None:
        lines.append(
            f"| training over latents, graph | {latents['images_per_second']:,.0f} images/s |"
        )
    if (answers := table.get("one image and 64")) is not None:
        lines += [
            f"| one image classified | {answers['classify_1']:.2f} ms |",
            f"| one image, 64 images generated, 25 Euler steps with guidance | "
            f"{answers['sample_1']:.0f} ms, {answers['sample_64']:.0f} ms |",
        ]
    for name, step in table.get("a step", {}).items():
        first = next((r for key, r in table.items() if key.startswith(f"{name}, graph")), {})
        lines.append(
            f"| kernels of a step, {name} | {step['kernels']:,.0f} "
            f"(graphs of a fit: {first.get('graphs', '-')}) |"
        )
    if (product := table.get("matrix product")) is not None:
        lines.append(f"| bfloat16 product | {product['flop_per_second'] / 1e12:,.0f} TFLOP/s |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Do everything; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--output", type=Path, default=RECORDS_FOLDER)
    add_npz_option(parser)
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("There is no GPU that torch can use here, so nothing was done.")
        return 0
    deadline = time.perf_counter() + 60 * given.minutes
    device, work = torch.device("cuda", torch.cuda.current_device()), Work()
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "package": __version__,
        "minutes": given.minutes,
        "checks": {},
        "table": {},
        "left_out": {},
        "failed": {},
    }
    given.output.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        (given.output / "gpu.json").write_text(
            json.dumps(results, indent=1) + "\n", encoding="utf-8"
        )
        (given.output / "gpu.md").write_text(page(results, work), encoding="utf-8")

    jobs = make_jobs(device, Size(), work, dict(given.npz))
    succeeded = do_jobs(jobs, deadline, results, save)
    print(page(results, work))
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
