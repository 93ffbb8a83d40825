"""Latency of exported models in onnxruntime, beside the estimator in torch.

    python examples/benchmarks/onnx_latency.py
    python examples/benchmarks/onnx_latency.py --side 64 --channels 3 --threads 1

Fits the default classifier for one epoch on random images, because what it has learned does not
change the time, exports its classifier and its sampler, and times batches of 1 and 256 images, in
turns, with as many threads for both. Prints the median of a batch and writes nothing: latencies
belong to the machine that serves.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sklearn.exceptions import ConvergenceWarning

from sklearn_msf import MedSymmFlowClassifier

N_CLASSES = 4
N_TRAINED = 64


def main():
    # What an untrained model generates does not matter here.
    warnings.simplefilter("ignore", ConvergenceWarning)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=28, help="side of the images in pixels")
    parser.add_argument("--channels", type=int, default=3, help="channels of the images")
    parser.add_argument("--threads", type=int, default=None, help="threads; torch's by default")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 256], metavar="N")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each batch")
    parser.add_argument("--kinds", nargs="+", default=list(CALLS), choices=list(CALLS))
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    classifier = fitted(arguments.side, arguments.channels)
    print(f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads, images of {classifier.image_shape_}")
    print("| what | images | onnxruntime, ms | torch, ms | file, MB |")
    print("|---|---|---|---|---|")
    for kind in arguments.kinds:
        session, n_bytes = exported(classifier, kind)
        for n in arguments.batches:
            calls = CALLS[kind](classifier, session, n)
            milliseconds = [f"{1000 * s:.1f}" for s in medians(calls, arguments.repeats)]
            print(f"| {kind} | {n} | {' | '.join(milliseconds)} | {n_bytes / 1e6:.1f} |")


def fitted(side, channels):
    """The default classifier after one epoch, in float32 as the exported one."""
    X, y = random_images(N_TRAINED, side, channels), np.arange(N_TRAINED) % N_CLASSES
    settings = {"max_epochs": 1, "precision": "float32", "device": "cpu", "random_state": 0}
    return MedSymmFlowClassifier(**settings).fit(X, y)


def random_images(n, side, channels):
    shape = (n, side, side, channels) if channels > 1 else (n, side, side)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def exported(classifier, kind):
    """Open the exported model with as many threads as torch has; also return its size in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        classifier.export_onnx(path, kind)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
        return session, path.stat().st_size


def classifications(classifier, session, n):
    X = random_images(n, *classifier.image_shape_[1:2], (*classifier.image_shape_, 1)[2])
    return lambda: session.run(None, {"images": X}), lambda: classifier.predict_proba(X)


def samples(classifier, session, n):
    """Sampling of n images of the first class; torch draws its noise too."""
    shape = session.get_inputs()[1].shape[1:]
    noise = np.random.default_rng(0).standard_normal((n, *shape), dtype=np.float32)
    inputs = {"labels": np.zeros(n, dtype=np.int64), "noise": noise}
    return lambda: session.run(None, inputs), lambda: classifier.sample(0, n, random_state=0)


CALLS = {"classifier": classifications, "sampler": samples}


def medians(calls, n_repeats):
    """Median seconds of each function, called in turns after a first call that is not counted."""
    seconds = [[] for _ in calls]
    for repeat in range(n_repeats + 1):
        for of_call, call in zip(seconds, calls, strict=True):
            start = time.perf_counter()
            call()
            if repeat:
                of_call.append(time.perf_counter() - start)
    return [statistics.median(of_call) for of_call in seconds]


if __name__ == "__main__":
    main()
