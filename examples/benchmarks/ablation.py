"""What each default is worth: one parameter changed at a time, equal time, validation splits.

    python examples/benchmarks/ablation.py --datasets retinamnist breastmnist --seconds 60
    python examples/benchmarks/ablation.py --datasets breastmnist --folds 3 --seconds 200

Budgets are reference seconds, data and output as in accuracy.py. With folds the training and
the validation split are pooled and cross-validated: on some hundred images one split says
little. No test split is touched.
"""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from _common import (
    FOLLOWED,
    Benchmark,
    Records,
    accuracy,
    add_data_options,
    asked_parameters,
    auc_score,
    describe_data,
    described,
    followed_settings,
    gemm_gflops,
    group_parameters,
    load,
    local_seconds,
    make_parser,
    refuse_gpu,
    resolved_parameters,
)
from sklearn.model_selection import StratifiedKFold

from sklearn_msf import MedSymmFlowClassifier

# Entries of the dict parameters stand beside the other parameters. The recorded runs have the names
# of the variants, so these stay.
VARIANTS: dict[str, dict] = {
    "defaults": {},
    "velocity form, RGB codes, 8 draws": {"label_prediction": "velocity", "n_draws": 8},
    "velocity form, simplex codes, 8 draws": {
        "label_prediction": "velocity",
        "label_encoding": "simplex",
        "n_draws": 8,
    },
    "simplex codes": {"label_encoding": "simplex"},
    "no share at t = 1": {"classification_fraction": 0.0},
    "no share at t = 1, Muon": {"classification_fraction": 0.0, "optimizer": "muon"},
    "half of the batch at t = 1": {"classification_fraction": 0.5},
    "half of the batch at t = 1, Muon": {"classification_fraction": 0.5, "optimizer": "muon"},
    "no patches": {"patch_size": 1},
    "twice the channels": {"channels": 64},
    "1 draw": {"n_draws": 1},
    "no augmentation": {"augment": None},
    "no dropout": {"dropout": 0.0},
    "mirror images only": {"augment": "hflip"},
    "22,500 images": {"max_epochs": 22_500},
    "90,000 images": {"max_epochs": 90_000},
    "three levels": {"channel_mult": (1, 2, 2)},
    "two blocks a level": {"n_blocks": 2},
    "dropout 0.3": {"dropout": 0.3},
    "weight decay 0.1": {"weight_decay": 0.1},
    "batches of 64": {"batch_size": 64},
    "batches of 256": {"batch_size": 256},
    "average over 50 steps": {"ema_decay": 0.98},
    "average over 300 steps": {"ema_decay": 0.9967},
    "attention in the middle only": {"attention_levels": ()},
    "attention at two levels": {"attention_levels": (1, 2)},
    "image weight 0.3": {"image_weight": 0.3},
}


Arrays = tuple[np.ndarray, np.ndarray]


def parameters(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings that a record must have to count today."""
    if record["variant"] not in VARIANTS:
        return None
    constructor = group_parameters(VARIANTS[record["variant"]])
    return asked_parameters(MedSymmFlowClassifier(**constructor), has_budget=True)


def parts(data: dict[str, Arrays], n_folds: int, seed: int) -> Iterator[tuple[Arrays, Arrays]]:
    """Training and validation part: the official ones, or those of each fold of both."""
    if not n_folds:
        yield data["train"], data["val"]
        return
    X, y = (np.concatenate(arrays) for arrays in zip(data["train"], data["val"], strict=True))
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    for train, valid in folds.split(X.reshape(len(X), -1), y):
        yield (X[train], y[train]), (X[valid], y[valid])


def run(identity: Mapping[str, Any], data: dict) -> dict:
    """Train one variant for reference seconds and score it on images that it did not see.

    Scores of folds are averaged: probabilities of several models do not rank together.
    """
    seed = identity["seed"]
    gflops = gemm_gflops()
    budget = local_seconds(identity["reference_seconds"], gflops)
    scores, images_seen, rate, fit_seconds = [], [], [], 0.0
    for (X_train, y_train), (X, y) in parts(data, identity["n_folds"], seed):
        constructor = group_parameters(VARIANTS[identity["variant"]])
        if "max_epochs" in constructor:
            # The variant gives images seen, which means the same for every data set.
            constructor["max_epochs"] = math.ceil(constructor["max_epochs"] / len(X_train))
        classifier = MedSymmFlowClassifier(time_budget=budget, random_state=seed, **constructor)
        start = time.perf_counter()
        classifier.fit(X_train, y_train)
        fit_seconds += time.perf_counter() - start
        start = time.perf_counter()
        p = classifier.predict_proba(X)
        rate.append(len(X) / (time.perf_counter() - start))
        images_seen.append(sum(record["n_images"] for record in classifier.history_))
        log_loss = -np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean()
        scores.append((100 * auc_score(y, p), 100 * accuracy(y, p), log_loss))
    auc, acc, log_loss = np.mean(scores, axis=0)
    record = described(
        identity,
        parameters=parameters(identity),
        data=describe_data(identity["dataset"], data),
        gflops=gflops,
        seconds=fit_seconds,
        seed=seed,
        # Of the last fold; the others have as many images.
        resolved=resolved_parameters(classifier, len(y_train)),
    )
    return record | {
        "images_seen": round(np.mean(images_seen)),
        "classified_per_second": round(np.mean(rate)),
        "auc": round(auc, 2),
        "acc": round(acc, 2),
        "log_loss": round(log_loss, 4),
    }


def table(records: list[dict]) -> str:
    """Markdown tables, one a budget, a row a variant: AUC / ACC / log loss, means over seeds."""
    budgets = sorted({(r["n_folds"], r["reference_seconds"]) for r in records})
    return "\n".join(
        budget_table([r for r in records if (r["n_folds"], r["reference_seconds"]) == budget])
        for budget in budgets
    )


def budget_table(records: list[dict]) -> str:
    """Markdown table of the runs of one budget."""
    datasets = list(dict.fromkeys(r["dataset"] for r in records))
    # Earlier records do not say what followed.
    says_more = any("provenance" in r for r in records)
    columns = ["variant", *datasets, "images seen", *([FOLLOWED] if says_more else [])]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for variant in VARIANTS:
        cells, followed = [], []
        for dataset in datasets:
            chosen = [r for r in records if (r["variant"], r["dataset"]) == (variant, dataset)]
            if not chosen:
                cells.append("-")
                followed.append("-")
                continue
            auc, acc, loss = (
                np.mean([r[score] for r in chosen]) for score in ("auc", "acc", "log_loss")
            )
            cells.append(f"{auc:.1f} / {acc:.1f} / {loss:.2f}")
            followed.append(followed_settings(chosen))
        seen = [r["images_seen"] for r in records if r["variant"] == variant]
        if seen:
            cells.append(f"{np.mean(seen):,.0f}")
            if says_more:
                cells.append("; ".join(followed))
            lines.append(f"| {variant} | {' | '.join(cells)} |")
    seconds = records[0]["reference_seconds"]
    seeds = sorted({r["seed"] for r in records})
    n_folds = records[0]["n_folds"]
    where = f"{n_folds}-fold cross-validation" if n_folds else "Validation splits"
    lines += [
        "",
        f"{where}, AUC / ACC / log loss; {seconds:g} reference seconds, seeds {seeds}.",
    ]
    return "\n".join(lines) + "\n"


BENCHMARK = Benchmark(
    "ablation",
    ("dataset", "variant", "seed", "reference_seconds", "n_folds"),
    parameters,
    table,
)


def main():
    parser = make_parser(__doc__, "ablation.json", [0])
    add_data_options(parser, ["retinamnist", "breastmnist"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seconds", type=float, default=60.0, help="reference seconds")
    parser.add_argument("--folds", type=int, default=0, help="0: the official validation split")
    arguments = parser.parse_args()
    refuse_gpu()

    files = dict(arguments.npz)
    records = Records(BENCHMARK, arguments.output)
    for name in [*arguments.datasets, *files]:
        data = load(name, files)
        described_data = describe_data(name, data)
        for seed in arguments.seeds:
            for variant in arguments.variants:
                identity = {
                    "dataset": name,
                    "variant": variant,
                    "seed": seed,
                    "reference_seconds": arguments.seconds,
                    "n_folds": arguments.folds,
                }
                if records.has(identity, described_data):
                    continue
                records.add(run(identity, data))
                print(records.current[-1], flush=True)
    records.show()


if __name__ == "__main__":
    main()
