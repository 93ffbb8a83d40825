"""Accuracy at equal time: our defaults, the paper's settings, a ResNet-18, boosted trees.

Budgets are reference seconds: seconds of a machine whose float32 matrix product reaches 150
GFLOP/s on all cores. The script measures its own machine and scales. Each run is added to a
JSON file as it ends, and runs that the file already has are not repeated, so the benchmark
can be stopped and continued; a Markdown table is written beside it.

    python examples/benchmarks/accuracy.py --datasets retinamnist breastmnist --seeds 0 1 2

Further data in MedMNIST's npz format: ``--npz bloodcells=PATH``.
"""

import platform
import time
from collections.abc import Callable

import sklearn
import torch
from _common import (
    Runs,
    accuracy,
    add_data_options,
    auc_score,
    gemm_gflops,
    load,
    local_seconds,
    make_parser,
    mean_and_spread,
    resnet18,
)
from sklearn.ensemble import HistGradientBoostingClassifier

from sklearn_msf import MedSymmFlowClassifier

SECONDS = {"retinamnist": 200.0}
DEFAULT_SECONDS = 300.0
# Data sets that the paper did not train on borrow the settings of the most similar one.
PAPER_SETTINGS = {"breastmnist": "pneumoniamnist"}


# Systems: each takes training data, seconds and a seed and returns a function of images


def defaults(name, X, y, seconds, seed):
    """MedSymmFlowClassifier as it comes."""
    classifier = MedSymmFlowClassifier(time_budget=seconds, random_state=seed)
    return classifier.fit(X, y).predict_proba


def paper(name, X, y, seconds, seed):
    """MedSymmFlowClassifier with the paper's settings, stopped after the same time."""
    settings = PAPER_SETTINGS.get(name, name)
    known = {"pneumoniamnist", "bloodmnist", "dermamnist", "retinamnist"}
    classifier = MedSymmFlowClassifier.from_paper(
        settings if settings in known else "bloodmnist", time_budget=seconds, random_state=seed
    )
    return classifier.fit(X, y).predict_proba


def boosting(name, X, y, seconds, seed):
    """Histogram gradient boosting on pixels, a round at a time until the time is up."""
    start = time.perf_counter()
    rows = X.reshape(len(X), -1)
    model = HistGradientBoostingClassifier(
        max_iter=1, warm_start=True, early_stopping=False, random_state=seed
    )
    round_seconds = 0.0
    while True:
        now = time.perf_counter() - start
        if model.max_iter > 1 and (now + round_seconds > seconds or model.max_iter > 500):
            return lambda images: model.predict_proba(images.reshape(len(images), -1))
        model.fit(rows, y)
        model.max_iter += 1
        round_seconds = time.perf_counter() - start - now


SYSTEMS: dict[str, Callable] = {
    "defaults": defaults,
    "paper": paper,
    "resnet18": resnet18,
    "boosting": boosting,
}
TITLES = {
    "defaults": "MedSymmFlowClassifier()",
    "paper": "the paper's settings",
    "resnet18": "ResNet-18",
    "boosting": "gradient boosting on pixels",
}


# Measuring


def run(system, name, data, reference_seconds, seed):
    """One run: measure the machine, train for as many of its seconds, score on held-out splits."""
    gflops = gemm_gflops()
    seconds = local_seconds(reference_seconds, gflops)
    start = time.perf_counter()
    predict_proba = SYSTEMS[system](name, *data["train"], seconds, seed)
    fit_seconds = time.perf_counter() - start
    record = {
        "dataset": name,
        "system": system,
        "seed": seed,
        "reference_seconds": reference_seconds,
        "gemm_gflops": round(gflops, 1),
        "budget_seconds": round(seconds, 2),
        "fit_seconds": round(fit_seconds, 2),
    }
    for split in ("val", "test"):
        X, y = data[split]
        p = predict_proba(X)
        record[f"{split}_auc"] = round(100 * auc_score(y, p), 2)
        record[f"{split}_acc"] = round(100 * accuracy(y, p), 2)
    return record


def table(records: list[dict]) -> str:
    """Markdown table of mean and standard deviation over seeds of the test scores."""
    lines = [
        "| data | reference seconds | system | seeds | AUC | ACC |",
        "|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((r["dataset"], r["reference_seconds"], r["system"]) for r in records)
    for dataset, seconds, system in sorted(
        keys, key=lambda k: (k[0], k[1], list(SYSTEMS).index(k[2]))
    ):
        chosen = [
            r
            for r in records
            if (r["dataset"], r["reference_seconds"], r["system"]) == (dataset, seconds, system)
        ]
        cells = [mean_and_spread([r[key] for r in chosen], 1) for key in ("test_auc", "test_acc")]
        title = TITLES[system]
        lines.append(
            f"| {dataset} | {seconds:g} | {title} | {len(chosen)} | {cells[0]} | {cells[1]} |"
        )
    gflops = [r["gemm_gflops"] for r in records]
    machine = (
        f"{platform.machine()}, {torch.get_num_threads()} CPU threads, float32 matrix product "
        f"{min(gflops):.0f} to {max(gflops):.0f} GFLOP/s before the runs, torch "
        f"{torch.__version__}, scikit-learn {sklearn.__version__}"
    )
    lines += ["", f"Test splits; mean ± standard deviation over seeds. {machine}."]
    return "\n".join(lines) + "\n"


def main():
    parser = make_parser(__doc__, "accuracy.json", [0, 1, 2])
    add_data_options(parser, ["retinamnist", "breastmnist"])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--seconds", type=float, help="reference seconds for every data set")
    arguments = parser.parse_args()

    files = dict(arguments.npz)
    runs = Runs(arguments.output, ("dataset", "system", "seed", "reference_seconds"), table)
    for seed in arguments.seeds:
        for name in [*arguments.datasets, *files]:
            data = load(name, files)
            seconds = arguments.seconds or SECONDS.get(name, DEFAULT_SECONDS)
            for system in arguments.systems:
                if (name, system, seed, seconds) not in runs:
                    runs.add(run(system, name, data, seconds, seed))
                    print(runs.records[-1], flush=True)
    runs.show()


if __name__ == "__main__":
    main()
