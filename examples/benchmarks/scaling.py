"""Training by several processes: what was measured here, and what the code needs for a large run.

    python examples/benchmarks/scaling.py           # images a second
    python examples/benchmarks/scaling.py --count   # bytes and FLOP of a large run

The first measures the defaults, with one share of samples at t = 1, on random images of 28 px: one
process with all threads, one with a single thread, and as many processes with one thread each,
which torchrun starts. The second times nothing: it counts for eight GPUs and a million images of
224 px, with the assumptions that are constants below, and its table shows. Records are scaling.json
and scaling_paper.json in docs/benchmarks.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _common import (
    COUNTED,
    RECORDS_FOLDER,
    Benchmark,
    Records,
    asked_parameters,
    counted_flops,
    describe_data,
    described,
    gemm_gflops,
    machines,
)

from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf._estimator.auto_settings import field_layout, training_settings
from sklearn_msf.flow.path import sample_path
from sklearn_msf.flow.velocity_field import build_field
from sklearn_msf.latent.autoencoder import build_autoencoder
from sklearn_msf.training.losses import field_losses

N_CLASSES = 8

# The run on paper
N_IMAGES, SIDE, N_GPUS = 1_000_000, 224, 8
# Dense bfloat16 products of an H100 SXM in FLOP/s, from NVIDIA's data sheet.
PEAK = 989e12
# Assumptions: the fraction of this peak that is reached, the shortest step (a small network is
# thousands of short kernels), and the price of an hour of a GPU.
FIELD_UTILISATION, ENCODER_UTILISATION = 0.02, 0.1
SECONDS_PER_STEP = 0.01
DOLLARS_PER_GPU_HOUR = 3.0
# Configuration of stabilityai/sd-vae-ft-mse, the autoencoder of "auto".
AUTOENCODER = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
}
AUTOENCODER_FACTOR = 8
# "auto" variations of so many images: the image and its mirror image.
N_VARIATIONS = 2


# Measured


def images(n, seed=0):
    """Random images and labels: speed does not depend on what they show."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 28, 28, 3), np.uint8), np.arange(n) % N_CLASSES


# Within a budget "auto" would give slower processes samples that cost less.
TRAINED = {"classification_fraction": 0.15, "max_epochs": 10**6}


def work(n_images, seconds, path):
    """Train as one process of a group, or alone; the first one writes what it measured."""
    classifier = MedSymmFlowClassifier(
        **TRAINED, time_budget=seconds, device="cpu", random_state=0
    ).fit(*images(n_images))
    # The first epoch makes buffers, and the first step waits for all processes.
    rest = classifier.history_[1:]
    if not rest:
        raise SystemExit(f"--seconds {seconds:g} was over before a second epoch: give more.")
    measured = {
        "images_per_second": sum(e["n_images"] for e in rest) / sum(e["seconds"] for e in rest),
        "precision": training_settings(
            classifier._parameters(), n_images, torch.device("cpu")
        ).precision,
    }
    if int(os.environ.get("RANK", "0")) == 0:
        path.write_text(json.dumps(measured), encoding="utf-8")


def in_processes(n_processes, n_threads, n_images, seconds):
    """Measure by a number of processes with some threads each."""
    launcher = [sys.executable]
    if n_processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(n_processes)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.json"
        options = ["--images", str(n_images), "--seconds", str(seconds), "--worker", str(path)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}
        subprocess.run([*launcher, __file__, *options], env=environment, check=True)
        return json.loads(path.read_text(encoding="utf-8"))


def measure(n_images, seconds, n_cores, folder):
    """Measure one process with all threads, one with a single thread, a process for each core."""
    records, gflops = Records(BENCHMARK, folder / "scaling.json"), gemm_gflops()
    data = describe_data(f"{n_images} random images of 28 px", {"train": images(n_images)})
    for n_processes, n_threads in [(1, n_cores), (1, 1), (n_cores, 1)]:
        start = time.perf_counter()
        measured = in_processes(n_processes, n_threads, n_images, seconds)
        identity = {"processes": n_processes, "threads": n_threads}
        record = described(
            identity,
            parameters=parameters(identity),
            data=data,
            gflops=gflops,
            seconds=time.perf_counter() - start,
            seed=0,
            precision=measured["precision"],
        )
        records.add({**record, "images_per_second": measured["images_per_second"]})
    records.show()


def parameters(record):
    """Settings that a record must have to count today."""
    return asked_parameters(MedSymmFlowClassifier(**TRAINED))


def _measured_on(record):
    provenance = record["provenance"]
    return provenance["machine"]["cpu"], provenance["data"]["name"]


def table(records):
    # Rates of one machine, and of the same images, are compared.
    records = [r for r in records if _measured_on(r) == _measured_on(records[-1])]
    records = sorted(records, key=lambda r: (r["processes"], r["threads"]))
    alone = next((r["images_per_second"] for r in records if _workers(r) == 1), None)
    lines = [
        "| processes | threads of each | images a second | to one thread |",
        "|---|---|---|---|",
    ]
    for r in records:
        rate = r["images_per_second"]
        share = "-" if alone is None else f"{rate / alone:.2f}"
        lines.append(f"| {r['processes']} | {r['threads']} | {rate:.0f} | {share} |")
    lines += [
        "",
        f"Defaults with a fraction of {TRAINED['classification_fraction']} at t = 1, "
        f"{records[0]['provenance']['data']['name']}. {machines(records)}",
    ]
    return "\n".join(lines) + "\n"


def _workers(record):
    return record["processes"] * record["threads"]


# Counted


def count_field(classifier, channels, side):
    """Count parameters, and GFLOP of an image in training and in classification."""
    p = classifier._parameters()
    settings = training_settings(p, N_IMAGES, torch.device("cpu"))
    layout = field_layout(p, N_CLASSES, (channels, side, side))
    field = build_field(layout, 0)
    fraction = settings.classification_fraction
    at_one, general = (step_gflop(field, channels, side, at_one=x) for x in (True, False))
    return {
        "input": [channels, side, side],
        "patch_size": layout.patch_size,
        "parameters": sum(weights.numel() for weights in field.parameters()),
        "train_gflop": fraction * at_one + (1 - fraction) * general,
        "epochs": settings.max_epochs,
        "batch_size": settings.batch_size,
    }


def step_gflop(field, channels, side, *, at_one, n=2):
    """Count forward and backward of one image, which is at t = 1 or between 0 and 1."""
    x, labels = torch.randn(n, channels, side, side), torch.arange(n)
    masks = field.codes.masks(labels, x.shape[2:])
    t = torch.full((n,), 1.0 if at_one else 0.5)
    sample = sample_path(x, masks, torch.randn_like(x), torch.randn_like(masks), t)
    with counted_flops() as counter:
        sum(field_losses(field, sample, labels, n if at_one else 0)).backward()
    return counter.get_total_flops() / n / 1e9


def encoder_gflop():
    """Count the encoding of an image by the autoencoder of "auto", without its weights."""
    with torch.device("meta"):
        module = build_autoencoder("AutoencoderKL", AUTOENCODER)
        image = torch.empty(1, 3, SIDE, SIDE)
    with torch.no_grad(), counted_flops() as counter:
        module.encode(image)
    return counter.get_total_flops() / 1e9


def count(folder):
    """Write the record of what was counted."""
    records = Records(PAPER, folder / "scaling_paper.json")
    grid = SIDE // AUTOENCODER_FACTOR
    channels = AUTOENCODER["latent_channels"]
    counted = {
        "latents": count_field(LatentMedSymmFlowClassifier(), channels, grid),
        "pixels": count_field(MedSymmFlowClassifier(), 3, SIDE),
        "encoder_gflop": encoder_gflop(),
    }
    identity = {"images": N_IMAGES, "side": SIDE, "gpus": N_GPUS}
    data = {"name": f"{N_IMAGES} images of {SIDE} px", "digest": "none"}
    # Counted, not timed: there is neither a rate nor a time.
    record = described(
        identity, parameters=paper_parameters({}), data=data, gflops=0.0, seconds=0.0, seed=None
    )
    records.add({**record, **counted})
    records.show()


def paper_parameters(record):
    """Settings that the record of the run on paper must have to count today."""
    return {
        "latents": asked_parameters(LatentMedSymmFlowClassifier()),
        "pixels": asked_parameters(MedSymmFlowClassifier()),
        "autoencoder": AUTOENCODER,
        "counted": COUNTED,
    }


def paper_table(records):
    (r,) = records
    kinds = [r["latents"], r["pixels"]]
    encoding = N_VARIATIONS * N_IMAGES * r["encoder_gflop"] * 1e9
    training = [k["train_gflop"] * 1e9 * N_IMAGES * k["epochs"] for k in kinds]
    hours_encoding = encoding / (PEAK * ENCODER_UTILISATION) / 3600
    by_flop = [flop / (N_GPUS * PEAK * FIELD_UTILISATION) / 3600 for flop in training]
    steps = [N_IMAGES * k["epochs"] / k["batch_size"] for k in kinds]
    by_steps = [n * SECONDS_PER_STEP / 3600 for n in steps]
    hours = [max(pair) for pair in zip(by_flop, by_steps, strict=True)]
    total = [hours_encoding + hours[0], hours[1]]
    pixels = N_IMAGES * SIDE**2 * 3
    # float16, with a mean and a deviation for each value.
    latents = np.prod(kinds[0]["input"]) * 2 * 2 * N_VARIATIONS * N_IMAGES
    rows = [
        ("channels and sides of what the field sees", [_by(k["input"]) for k in kinds]),
        ("patch size", [f"{k['patch_size']}" for k in kinds]),
        ("epochs of the defaults", [f"{k['epochs']}" for k in kinds]),
        ("X, uint8", [f"{_gb(pixels)} GB"] * 2),
        (
            "copy for training, in each process",
            [f"{_gb(latents)} GB of latents, in a file", f"{_gb(pixels)} GB, in memory"],
        ),
        (
            f"these copies of {N_GPUS} processes on one machine",
            [f"{_gb(N_GPUS * latents)} GB", f"{_gb(N_GPUS * pixels)} GB"],
        ),
        ("parameters", [f"{k['parameters'] / 1e6:.2f} M" for k in kinds]),
        ("gradients, averaged over processes in a step", [f"{_mb(k)} MB" for k in kinds]),
        ("checkpoint, at most", [f"{_mb(k, 4)} MB" for k in kinds]),
        ("GFLOP an image, training", [f"{k['train_gflop']:.2f}" for k in kinds]),
        ("FLOP of training", [f"{flop:.1e}" for flop in training]),
        (f"FLOP of encoding, {N_VARIATIONS} variations", [f"{encoding:.1e}, in each process", "-"]),
        ("hours of encoding", [f"{hours_encoding:.1f}", "-"]),
        ("steps, at the default batch_size", [f"{n:,.0f}" for n in steps]),
        ("hours of training by its FLOP", [f"{h:.2f}" for h in by_flop]),
        ("hours of training by its steps", [f"{h:.2f}" for h in by_steps]),
        ("dollars in all", [f"{h * N_GPUS * DOLLARS_PER_GPU_HOUR:.0f}" for h in total]),
    ]
    lines = ["| computed, not measured | over latents | over pixels |", "|---|---|---|"]
    lines += [f"| {name} | {' | '.join(values)} |" for name, values in rows]
    lines += [
        "",
        f"Computed for {N_GPUS} GPUs with a published peak of {PEAK / 1e12:.0f} TFLOP/s (H100 SXM, "
        f"bfloat16, dense). **Assumed**: the field reaches {FIELD_UTILISATION:.0%} of it and the "
        f"encoder {ENCODER_UTILISATION:.0%}; no step is shorter than {1000 * SECONDS_PER_STEP:g} "
        f"ms; a GPU costs {DOLLARS_PER_GPU_HOUR:g} dollars an hour.",
    ]
    return "\n".join(lines) + "\n"


def _by(shape):
    return " x ".join(map(str, shape))


def _gb(n_bytes):
    return f"{n_bytes / 1e9:.0f}"


def _mb(kind, n_arrays=1):
    """Megabytes of arrays as large as the parameters: weights, average and two moments are four."""
    return f"{n_arrays * kind['parameters'] * 4 / 1e6:.1f}"


BENCHMARK = Benchmark("scaling", ("processes", "threads"), parameters, table)
PAPER = Benchmark(
    "scaling_paper",
    ("images", "side", "gpus"),
    paper_parameters,
    paper_table,
    call="scaling.py --count",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2048, help="number of images")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--cores", type=int, default=2, help="threads, or processes, at most")
    parser.add_argument("--count", action="store_true", help="count for the run on paper")
    parser.add_argument("--output", type=Path, default=RECORDS_FOLDER, help="folder")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments.images, arguments.seconds, arguments.worker)
    elif arguments.count:
        count(arguments.output)
    else:
        measure(arguments.images, arguments.seconds, arguments.cores, arguments.output)


if __name__ == "__main__":
    main()
