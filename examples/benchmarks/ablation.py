"""What each default is worth: one parameter changed at a time, equal time, validation splits.

    python examples/benchmarks/ablation.py --datasets retinamnist breastmnist --seconds 60

Budgets are reference seconds, data and output as in accuracy.py. No test split is touched.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from accuracy import REFERENCE_GFLOPS, accuracy, auc_score, gemm_gflops, load

from sklearn_msf import MedSymmFlowClassifier

VARIANTS: dict[str, dict] = {
    "defaults": {},
    "velocity form, RGB codes, 8 draws": {"label_prediction": "velocity", "n_draws": 8},
    "velocity form, simplex codes, 8 draws": {
        "label_prediction": "velocity",
        "label_encoding": "simplex",
        "n_draws": 8,
    },
    "simplex codes": {"label_encoding": "simplex"},
    "no share at t = 1": {"t1_share": 0.0},
    "half of the batch at t = 1": {"t1_share": 0.5},
    "no patches": {"patch_size": 1},
    "twice the channels": {"channels": 64},
    "1 draw": {"n_draws": 1},
    "no augmentation": {"augment": None},
    "no dropout": {"dropout": 0.0},
}


def run(name: str, variant: str, data: dict, reference_seconds: float, seed: int) -> dict:
    """Train one variant for its share of seconds and score it on the validation split."""
    seconds = reference_seconds * REFERENCE_GFLOPS / gemm_gflops()
    classifier = MedSymmFlowClassifier(
        time_budget=seconds, random_state=seed, **VARIANTS[variant]
    ).fit(*data["train"])
    X, y = data["val"]
    start = time.perf_counter()
    p = classifier.predict_proba(X)
    return {
        "dataset": name,
        "variant": variant,
        "seed": seed,
        "reference_seconds": reference_seconds,
        "images_seen": sum(record["n_images"] for record in classifier.history_),
        "classified_per_second": round(len(X) / (time.perf_counter() - start)),
        "auc": round(100 * auc_score(y, p), 2),
        "acc": round(100 * accuracy(y, p), 2),
        "log_loss": round(float(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean()), 4),
    }


def table(records: list[dict]) -> str:
    """Markdown tables, one a budget, a row a variant: AUC / ACC / log loss, means over seeds."""
    budgets = sorted({r["reference_seconds"] for r in records})
    return "\n".join(
        budget_table([r for r in records if r["reference_seconds"] == budget]) for budget in budgets
    )


def budget_table(records: list[dict]) -> str:
    """Markdown table of the runs of one budget."""
    datasets = list(dict.fromkeys(r["dataset"] for r in records))
    lines = [
        f"| variant | {' | '.join(datasets)} | images seen |",
        f"|---|{'---|' * len(datasets)}---|",
    ]
    for variant in VARIANTS:
        cells = []
        for dataset in datasets:
            chosen = [r for r in records if (r["variant"], r["dataset"]) == (variant, dataset)]
            if not chosen:
                cells.append("-")
                continue
            auc, acc, loss = (
                np.mean([r[score] for r in chosen]) for score in ("auc", "acc", "log_loss")
            )
            cells.append(f"{auc:.1f} / {acc:.1f} / {loss:.2f}")
        seen = [r["images_seen"] for r in records if r["variant"] == variant]
        if seen:
            lines.append(f"| {variant} | {' | '.join(cells)} | {np.mean(seen):,.0f} |")
    seconds = records[0]["reference_seconds"]
    seeds = sorted({r["seed"] for r in records})
    lines += [
        "",
        f"Validation splits, AUC / ACC / log loss; {seconds:g} reference seconds, seeds {seeds}.",
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["retinamnist", "breastmnist"])
    parser.add_argument("--npz", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seconds", type=float, default=60.0, help="reference seconds")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/ablation.json"))
    arguments = parser.parse_args()

    files = dict(item.split("=", 1) for item in arguments.npz)
    records = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    done = {(r["dataset"], r["variant"], r["seed"], r["reference_seconds"]) for r in records}
    for seed in arguments.seeds:
        for variant in arguments.variants:
            for name in [*arguments.datasets, *files]:
                if (name, variant, seed, arguments.seconds) in done:
                    continue
                data = load(name, files)
                records.append(run(name, variant, data, arguments.seconds, seed))
                print(records[-1], flush=True)
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                arguments.output.write_text(json.dumps(records, indent=1) + "\n")
                arguments.output.with_suffix(".md").write_text(table(records))
    print(table(records))


if __name__ == "__main__":
    main()
