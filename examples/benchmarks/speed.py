"""Images a second: our engine beside plain loops, in one run on one machine.

    python examples/benchmarks/speed.py             # the table, docs/benchmarks/speed.json
    python examples/benchmarks/speed.py --sweep     # cost against number and size of images

A call measures everything anew; the last record of a device counts. Every measurement has a process
of its own, so that its peak memory is its own too. The plain loop is written here from the paper's
description, with torch's own modules; the ResNet-18 is that of the other benchmarks.
"""

import argparse
import copy
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import (
    COUNTED,
    DEFAULT_SAMPLER,
    RECORDS_FOLDER,
    Benchmark,
    Records,
    as_tensor,
    asked_parameters,
    counted_flops,
    describe_data,
    described,
    gemm_gflops,
    in_own_process,
    make_resnet,
    median_milliseconds,
    product_gflops,
    sampler_of,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.flow.ode_solver import OdeSettings
from sklearn_msf.flow.path import sample_path
from sklearn_msf.nn.precision import resolve_precision
from sklearn_msf.runtime.device import resolve_device, worker_threads
from sklearn_msf.training.losses import field_losses

N_CLASSES = 8
# How the defaults classify: a single Euler step.
CLASSIFICATION = OdeSettings(1.0, 0.0)
# Side of the images that the paper's network sees: its code enlarges those of 28 px.
PAPER_SIDE = 32
# After this time the measurement of one peak begins no further product.
PEAK_SECONDS = 5.0


# A plain loop, from the paper's description


class PlainBlock(nn.Module):
    """ADM's residual block."""

    def __init__(self, n_in, n_out, n_time):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, n_in), nn.Conv2d(n_in, n_out, 3, padding=1)
        self.time = nn.Linear(n_time, 2 * n_out)
        self.norm2, self.conv2 = nn.GroupNorm(32, n_out), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, h, t):
        r = self.conv1(F.silu(self.norm1(h)))
        scale, shift = self.time(F.silu(t))[:, :, None, None].chunk(2, dim=1)
        r = self.norm2(r) * (1 + scale) + shift
        return self.skip(h) + self.conv2(F.silu(r))


class PlainAttention(nn.Module):
    """Self-attention with 64 channels a head."""

    def __init__(self, n):
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.GroupNorm(32, n),
            nn.Conv2d(n, 3 * n, 1),
            nn.Conv2d(n, n, 1),
        )
        self.n_heads = n // 64

    def forward(self, h):
        n, c, height, width = h.shape
        qkv = self.qkv(self.norm(h)).reshape(n, 3, self.n_heads, c // self.n_heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v)
        return h + self.out(attended.transpose(-1, -2).reshape(n, c, height, width))


class PlainUNet(nn.Module):
    """The paper's network: 64 channels, multipliers 1, 2, 2, 2, two blocks a level."""

    def __init__(self, n_channels, width=64, multipliers=(1, 2, 2, 2), n_blocks=2):
        super().__init__()
        n_time = 4 * width
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, n_time), nn.SiLU(), nn.Linear(n_time, n_time))
        self.first = nn.Conv2d(n_channels, width, 3, padding=1)
        self.down, self.up, n, skips = nn.ModuleList(), nn.ModuleList(), width, [width]
        for level, multiplier in enumerate(multipliers):
            for _ in range(n_blocks):
                block = [PlainBlock(n, width * multiplier, n_time)]
                n = width * multiplier
                self.down.append(nn.ModuleList(block + [PlainAttention(n)] * (level == 1)))
                skips.append(n)
            if level < len(multipliers) - 1:
                self.down.append(nn.ModuleList([nn.Conv2d(n, n, 3, stride=2, padding=1)]))
                skips.append(n)
        self.middle = nn.ModuleList(
            [PlainBlock(n, n, n_time), PlainAttention(n), PlainBlock(n, n, n_time)]
        )
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(n_blocks + 1):
                block = [PlainBlock(n + skips.pop(), width * multiplier, n_time)]
                n = width * multiplier
                self.up.append(nn.ModuleList(block + [PlainAttention(n)] * (level == 1)))
            if level:
                self.up.append(nn.ModuleList([nn.Conv2d(n, n, 3, padding=1)]))
        self.last = nn.Sequential(
            nn.GroupNorm(32, n), nn.SiLU(), nn.Conv2d(n, n_channels, 3, padding=1)
        )

    @staticmethod
    def run(modules, h, t):
        for module in modules:
            h = module(h, t) if isinstance(module, PlainBlock) else module(h)
        return h

    def forward(self, z, t):
        angles = (
            1000
            * t[:, None]
            * torch.exp(-math.log(10_000) * torch.arange(self.width // 2) / (self.width // 2)).to(
                t.device
            )
        )
        t = self.time(torch.cat([angles.cos(), angles.sin()], dim=1))
        h = self.first(z)
        skips = [h]
        for modules in self.down:
            h = self.run(modules, h, t)
            skips.append(h)
        h = self.run(self.middle, h, t)
        for modules in self.up:
            if isinstance(modules[0], PlainBlock):
                h = self.run(modules, torch.cat([h, skips.pop()], dim=1), t)
            else:
                h = modules[0](F.interpolate(h, size=skips[-1].shape[-2:]))
        return self.last(h)


def palette():
    """The paper's colours of K classes."""
    levels = torch.tensor([0.0, 75.0, 150.0, 225.0])
    colours = torch.cartesian_prod(levels, levels, levels) / 127.5 - 1
    return colours[torch.linspace(0, 63, N_CLASSES).long()]


def plain_loop(X, y, device, batch_size, seconds):
    """Train as a research script does: DataLoader, float32, one loss.item() a step."""
    net = PlainUNet(X.shape[-1] + 3).to(device)
    average = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-4)
    loader = DataLoader(
        TensorDataset(as_tensor(X), torch.from_numpy(y)), batch_size, shuffle=True, drop_last=True
    )
    colours = palette().to(device)

    def step(x, labels):
        x, labels = x.to(device), labels.to(device)
        mask = colours[labels][:, :, None, None].expand(-1, -1, *x.shape[2:])
        mask = mask + 4 * (torch.rand_like(mask) - 0.5) / 127.5
        e_x, e_y = torch.randn_like(x), torch.randn_like(mask)
        t = torch.rand(len(x), device=device)
        time_ = t[:, None, None, None]
        x_t = (1 - (1 - 1e-4) * time_) * e_x + time_ * x
        y_t = (1 - (1 - 1e-4) * time_) * mask + time_ * e_y
        v = net(torch.cat([x_t, y_t], dim=1), t)
        u_x, u_y = x - (1 - 1e-4) * e_x, e_y - (1 - 1e-4) * mask
        n = x.shape[1]
        loss = 0.7 * F.mse_loss(v[:, :n], u_x) + 0.3 * F.mse_loss(v[:, n:], u_y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), net.parameters(), strict=True):
                mean.mul_(0.7).add_(parameter, alpha=0.3)
        return loss.item()

    return steady_rate(step, loader, batch_size, seconds)


def resnet_loop(X, y, device, batch_size, seconds):
    """A classifier's step: ResNet-18 over ready batches."""
    net = make_resnet(X.shape[-1], N_CLASSES, X.shape[1]).to(
        device, memory_format=torch.channels_last
    )
    optimizer = torch.optim.Adam(net.parameters())
    loader = DataLoader(
        TensorDataset(as_tensor(X), torch.from_numpy(y)), batch_size, shuffle=True, drop_last=True
    )

    def step(x, labels):
        loss = F.cross_entropy(net(x.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return steady_rate(step, loader, batch_size, seconds)


def steady_rate(step, loader, batch_size, seconds):
    """Images a second after the first two steps."""
    n_steps, start = 0, None
    while True:
        for batch in loader:
            step(*batch)
            n_steps += 1
            if n_steps == 2:
                start = time.perf_counter()
            elif n_steps > 4 and time.perf_counter() - start > seconds:
                return (n_steps - 2) * batch_size / (time.perf_counter() - start)


# Our engine


def images(n, size, seed=0):
    """Random images and labels: speed does not depend on what they show."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, 3), np.uint8), np.arange(n) % N_CLASSES


def fitted(X, y, epochs, **parameters):
    """A classifier after a number of epochs."""
    return MedSymmFlowClassifier(max_epochs=epochs, random_state=0, **parameters).fit(X, y)


def training_rate(history):
    """Images a second after the first epoch."""
    rest = history[1:]
    return sum(r["n_images"] for r in rest) / sum(r["seconds"] for r in rest)


def step_flops(classifier, X, y):
    """FLOP of one training step per image."""
    field = copy.deepcopy(classifier.model_.field).requires_grad_(True)
    field = field.move_to(torch.device("cpu"))
    n = len(X)
    x = F.interpolate(as_tensor(X), classifier.model_.space.shape[1:])
    labels = torch.from_numpy(y)
    masks = field.codes.masks(labels, x.shape[2:])
    n_at_one = int(classifier.history_[-1]["classification_fraction"] * n)
    t = torch.rand(n)
    sample = sample_path(x, masks, torch.randn_like(x), torch.randn_like(masks), t)
    with counted_flops() as counter:
        sum(field_losses(field, sample, labels, n_at_one)).backward()
    return counter.get_total_flops() / n


def classify_flops(field, X):
    """FLOP of the one pass that classifies an image."""
    field = copy.deepcopy(field).move_to(torch.device("cpu"))
    x = as_tensor(X)
    e_y = torch.randn(len(x), field.codes.n_channels, *x.shape[2:])
    with torch.no_grad(), counted_flops() as counter:
        field.class_evidence(x, e_y, CLASSIFICATION)
    return counter.get_total_flops() / len(x)


def bare_rate(field, X, seconds, precision):
    """Classify ready tensors with the same blocks and nothing else around them."""
    device = field.device
    x = as_tensor(X[:256]).to(device)
    e_y = torch.randn(len(x), field.codes.n_channels, *x.shape[2:], device=device)

    @torch.inference_mode()
    def run(_):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return field.class_evidence(x, e_y, CLASSIFICATION).cpu()

    n_threads = torch.get_num_threads() if device.type == "cpu" else 1
    with worker_threads(n_threads) as executor:
        list(executor.map(run, range(2 * n_threads)))
        start, n_batches = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            n_batches += len(list(executor.map(run, range(8 * n_threads))))
    return n_batches * len(x) / (time.perf_counter() - start)


def classification_rate(classifier, X, seconds):
    """Images a second of predict_proba."""
    classifier.predict_proba(X[:128])
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        n += len(classifier.predict_proba(X))
    return n / (time.perf_counter() - start)


# Measurements, each in a process of its own


def measure_plain(seconds, device):
    X, y = images(1024, PAPER_SIDE)
    return {"images_per_second": plain_loop(X, y, device, 128, seconds)}


def measure_resnet(seconds, device):
    X, y = images(1024, 28)
    return {"images_per_second": resnet_loop(X, y, device, 128, seconds)}


def measure_paper(seconds, device):
    """Our engine with the paper's network and the plain loop's batch."""
    X, y = images(1024, 28)
    parameters = {"batch_size": 128, "device": device}
    rate = None
    for epochs in (2, 4, 8, 16, 32, 64):
        classifier = MedSymmFlowClassifier.from_paper(
            "bloodmnist", max_epochs=epochs, random_state=0, **parameters
        ).fit(X, y)
        rate = training_rate(classifier.history_)
        if epochs * len(X) / rate > seconds:
            break
    return {
        "images_per_second": rate,
        "flop_per_image": step_flops(classifier, X[:8], y[:8]),
        "precision": resolve_precision("auto", resolve_device(device)),
    }


def measure_defaults(seconds, device):
    X, y = images(2048, 28)
    epochs = 3
    while True:
        classifier = fitted(X, y, epochs, device=device)
        rate = training_rate(classifier.history_)
        if epochs * len(X) / rate > seconds:
            break
        epochs = max(2 * epochs, math.ceil(1.2 * seconds * rate / len(X)))
    result = {"images_per_second": rate, "flop_per_image": step_flops(classifier, X[:40], y[:40])}
    precision = resolve_precision("auto", resolve_device(device))
    classifier.set_params(n_draws=1)
    result["classified_per_second"] = classification_rate(
        classifier, np.concatenate([X] * 4), seconds
    )
    result["classify_flop_per_image"] = classify_flops(classifier.model_.field, X[:8])
    result["bare_per_second"] = bare_rate(classifier.model_.field, X, seconds, precision)
    result["milliseconds_for_one"] = median_milliseconds(
        lambda i: classifier.predict_proba(X[i : i + 1]), 20
    )

    def seconds_to_draw(n):
        return median_milliseconds(lambda i: classifier.sample(0, n, random_state=i), 5) / 1000

    result |= {f"seconds_to_draw_{n}": seconds_to_draw(n) for n in (1, 64)}
    result["precision"] = precision
    return result


MEASUREMENTS = {
    "plain loop, the paper's network, float32": measure_plain,
    "ResNet-18, float32": measure_resnet,
    "our engine, the paper's network": measure_paper,
    "our engine, defaults": measure_defaults,
}


def measure_size(n, size, device):
    """Cost of an image of a size, in steady epochs over n of them."""
    X, y = images(n, size)
    batch_size = max(8, min(128, 128 * 28**2 // size**2))
    classifier = fitted(X, y, 3, batch_size=batch_size, device=device, augment=None)
    n_classified = min(n, 2048)
    # The first call of a number of images prepares.
    classifier.set_params(n_draws=1).predict_proba(X[:n_classified])
    start = time.perf_counter()
    classifier.predict_proba(X[:n_classified])
    return {
        "n_images": n,
        "size": size,
        "epoch_seconds": n / training_rate(classifier.history_),
        "classify_seconds_per_image": (time.perf_counter() - start) / n_classified,
    }


def measure_peaks(device):
    """Best rate of a matrix product in each precision, in GFLOP/s.

    The best of twelve products, of which none is begun after PEAK_SECONDS: CPUs without bfloat16
    instructions compute one more than a hundred times as slowly. There the products are small.
    """
    size = 8192 if device != "cpu" else 1024
    return {
        name: product_gflops(device, getattr(torch, name), size, 12, PEAK_SECONDS)
        for name in ("float32", "bfloat16")
    }


def table(records):
    """Markdown of each device."""
    return "\n".join(engine_table(record) for record in records)


def engine_table(results):
    """Markdown of one record."""
    plain = results["plain loop, the paper's network, float32"]["images_per_second"]
    lines = ["| training | images/s | of the plain loop | peak memory (MiB) |", "|---|---|---|---|"]
    for name in MEASUREMENTS:
        r = results[name]
        lines.append(
            f"| {name} | {r['images_per_second']:.0f} | {r['images_per_second'] / plain:.2f}x | "
            f"{r['peak_memory_mib']:.0f} |"
        )
    d = results["our engine, defaults"]
    sampler = sampler_of(results)
    lines += ["", "| defaults, 28 px | |", "|---|---|"]
    lines += [
        f"| classified, 1 draw | {d['classified_per_second']:.0f} images/s, "
        f"{d['classified_per_second'] / d['images_per_second']:.1f}x of training |",
        f"| the same blocks over ready tensors | {d['bare_per_second']:.0f} images/s; "
        f"predict_proba reaches {d['classified_per_second'] / d['bare_per_second']:.0%} of it |",
        f"| one image classified, 1 draw | {d['milliseconds_for_one']:.1f} ms |",
        f"| one image drawn, {sampler} | {d['seconds_to_draw_1']:.2f} s |",
        f"| 64 images drawn, {sampler} | {d['seconds_to_draw_64']:.2f} s |",
    ]
    lines += [
        "",
        "| share of the matrix product's peak | GFLOP/image | GFLOP/s | share |",
        "|---|---|---|---|",
    ]
    for name in ("our engine, the paper's network", "our engine, defaults"):
        r = results[name]
        peak = results["peaks"][r["precision"]]
        rate = r["flop_per_image"] * r["images_per_second"] / 1e9
        lines.append(
            f"| {name}, training, {r['precision']} | {r['flop_per_image'] / 1e9:.2f} | "
            f"{rate:.0f} | {rate / peak:.0%} |"
        )
    rate = d["classify_flop_per_image"] * d["classified_per_second"] / 1e9
    lines.append(
        f"| our engine, defaults, classification | {d['classify_flop_per_image'] / 1e9:.3f} | "
        f"{rate:.0f} | {rate / results['peaks'][d['precision']]:.0%} |"
    )
    lines += ["", f"{where(results)}; batch 128, {results['seconds']:g} s a measurement."]
    return "\n".join(lines) + "\n"


def where(results):
    """Machine of a record, and its peaks; earlier records have it as a text."""
    if "provenance" not in results:
        return results["machine"]
    provenance, peaks = results["provenance"], results["peaks"]
    m = provenance["machine"]
    name = m["gpu"] if results["device"] != "cpu" else m["cpu"] + ", " + m["instructions"]
    return (
        f"{name}, {m['threads']} CPU threads, matrix product float32 {peaks['float32']:.0f}, "
        f"bfloat16 {peaks['bfloat16']:.0f} GFLOP/s, torch {provenance['software']['torch']}"
    )


def sweep_table(records):
    lines = [
        "| images | size | ms an image and epoch | ms to classify one | peak memory (MiB) |",
        "|---|---|---|---|---|",
    ]
    for r in records:
        lines.append(
            f"| {r['n_images']} | {r['size']} | {1000 * r['epoch_seconds'] / r['n_images']:.2f} | "
            f"{1000 * r['classify_seconds_per_image']:.2f} | {r['peak_memory_mib']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def plot_sweep(records, path):
    """Seconds an epoch and memory against the number and the size of the images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    by_n = [r for r in records if r["n_images"] >= 500]
    by_size = [r for r in records if r["n_images"] < 500]
    axes[0].loglog([r["n_images"] for r in by_n], [r["epoch_seconds"] for r in by_n], "o-")
    axes[0].set(xlabel="images of 28 px", ylabel="seconds for one epoch")
    pixels = [r["size"] ** 2 for r in by_size]
    cost = [1000 * r["epoch_seconds"] / r["n_images"] for r in by_size]
    axes[1].loglog(pixels, cost, "o-")
    axes[1].set(xlabel="pixels of an image", ylabel="ms an image and epoch")
    for chosen, label in ((by_n, "28 px, 500 to 50,000"), (by_size, "28 to 224 px")):
        pixels = [r["n_images"] * r["size"] ** 2 for r in chosen]
        axes[2].semilogx(pixels, [r["peak_memory_mib"] for r in chosen], "o-", label=label)
    axes[2].set(xlabel="pixels in all", ylabel="peak memory (MiB)", ylim=0)
    axes[2].legend()
    figure.savefig(path, dpi=110)


def parameters(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a record must have to count today."""
    papers = asked_parameters(MedSymmFlowClassifier.from_paper("bloodmnist"))
    ours = asked_parameters(MedSymmFlowClassifier())
    return {
        "defaults": ours,
        "the paper's": papers,
        "sampler": DEFAULT_SAMPLER,
        "plain side": PAPER_SIDE,
        "counted": COUNTED,
    }


BENCHMARK = Benchmark("speed", ("device",), parameters, table)
SWEEP = Benchmark(
    "speed_sweep", ("device", "n_images", "size"), parameters, sweep_table, call="speed.py --sweep"
)


def begin(identity, data_name, X, y, gflops, seconds, precision):
    """Begin a record of random images."""
    return described(
        identity,
        parameters=parameters(identity),
        data=describe_data(data_name, {"train": (X, y)}),
        gflops=gflops,
        seconds=seconds,
        seed=0,
        precision=precision,
    )


def sweep(device, folder, gflops):
    """Measure the cost of an image by number and size of the images."""
    records = Records(SWEEP, folder / "speed_sweep.json")
    precision = resolve_precision("auto", resolve_device(device))
    cells = [(n, 28) for n in (500, 2000, 10_000, 50_000)]
    cells += [(128, size) for size in (28, 64, 128, 224)]
    for n, size in cells:
        measured = in_own_process(measure_size, n, size, device)
        identity = {"device": device, "n_images": n, "size": size}
        data_name = f"{n} random images of {size} px"
        seconds = measured["epoch_seconds"]
        record = begin(identity, data_name, *images(n, size), gflops, seconds, precision)
        records.add({**record, **measured})
        print(measured, flush=True)
    of_device = [r for r in records.current if r["device"] == device]
    plot_sweep(of_device, folder / "speed_sweep.png")
    records.show()


def engine(device, folder, gflops, seconds):
    """Measure the engine beside plain loops."""
    records = Records(BENCHMARK, folder / "speed.json")
    results = {"seconds": seconds, "peaks": in_own_process(measure_peaks, device)}
    start = time.perf_counter()
    for title, measure in MEASUREMENTS.items():
        results[title] = in_own_process(measure, seconds, device)
        print(title, results[title], flush=True)
    precision = results["our engine, defaults"]["precision"]
    took = time.perf_counter() - start
    name, arrays = "2048 random images of 28 px", images(2048, 28)
    record = begin({"device": device}, name, *arrays, gflops, took, precision)
    records.add({**record, **results})
    records.show()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--output", type=Path, default=RECORDS_FOLDER, help="folder")
    arguments = parser.parse_args()
    device = str(resolve_device(arguments.device))
    if arguments.sweep:
        sweep(device, arguments.output, gemm_gflops())
    else:
        engine(device, arguments.output, gemm_gflops(), arguments.seconds)


if __name__ == "__main__":
    main()
