"""AdrenalMNIST3D: what each variation of the volumes is worth, and the scores on the test split.

    python examples/benchmarks/volumes.py --folds 3 --variants none hflip+affine flip+affine
    python examples/benchmarks/volumes.py --variants default --seeds 0 1 2

With folds the training and the validation split are pooled and cross-validated, in shorter runs of
a narrower network, and no test volume is touched. Without folds the training split is trained on.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from _common import (
    Benchmark,
    Records,
    accuracy,
    asked_parameters,
    auc_score,
    describe_data,
    described,
    gemm_gflops,
    group_parameters,
    load,
    machines,
    make_parser,
    mean_and_spread,
    resolved_parameters,
)
from sklearn.model_selection import StratifiedKFold

from sklearn_msf import MedSymmFlowClassifier

DATASET = "adrenalmnist3d"
VOLUMES = {"n_spatial_dims": 3}
# Shorter runs, to compare variations; most volumes of a batch then teach classification.
SHORT = {
    "channels": 16,
    "classification_fraction": 0.8,
    "optimizer": "muon",
    "max_epochs": 27,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "24 channels": {"channels": 24},
    "none": {**SHORT, "augment": None},
    "hflip+affine": {**SHORT, "augment": "hflip+affine"},
    "flip": {**SHORT, "augment": "flip"},
    "flip+affine": {**SHORT, "augment": "flip+affine"},
}


def make(variant: str, settings: Mapping[str, Any]) -> MedSymmFlowClassifier:
    """Classifier of a variant."""
    return MedSymmFlowClassifier(**group_parameters({**VOLUMES, **VARIANTS[variant], **settings}))


def parameters(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings that a record must have to count today."""
    if record["variant"] not in VARIANTS:
        return None
    return asked_parameters(make(record["variant"], {"precision": record["precision"]}))


def fit_and_score(
    variant: str, seed: int, train: tuple, parts: dict[str, tuple], settings
) -> tuple:
    """Train on some volumes and score on others; returns the scores and what "auto" became."""
    start, cpu_start = time.perf_counter(), time.process_time()
    classifier = make(variant, settings).set_params(random_state=seed).fit(*train)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    # Of a run that goes on from a checkpoint only the end is in this process.
    whole = max(seconds, sum(epoch_log["seconds"] for epoch_log in classifier.history_))
    scores: dict[str, Any] = {
        "seconds": round(whole, 1),
        "core_seconds": round(cpu_seconds * whole / seconds),
    }
    for name, (X, y) in parts.items():
        p = classifier.predict_proba(X)
        scores[f"{name} AUC"] = round(100 * auc_score(y, p), 2)
        scores[f"{name} ACC"] = round(100 * accuracy(y, p), 2)
    return scores, resolved_parameters(classifier, len(train[1]))


def run(
    identity: Mapping[str, Any], data: dict[str, tuple], checkpoint_dir: str | None = None
) -> dict:
    """Train one variant, or one of each fold, and return the record."""
    variant, seed, n_folds = (identity[key] for key in ("variant", "seed", "n_folds"))
    settings = {"precision": identity["precision"], "checkpoint_dir": checkpoint_dir}
    gflops = gemm_gflops()
    if not n_folds:
        scores, resolved = fit_and_score(
            variant, seed, data["train"], {part: data[part] for part in ("val", "test")}, settings
        )
    else:
        X, y = (np.concatenate(arrays) for arrays in zip(data["train"], data["val"], strict=True))
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(y, y)
        of_folds = [
            fit_and_score(variant, seed, (X[a], y[a]), {"fold": (X[b], y[b])}, settings)
            for a, b in folds
        ]
        _, resolved = of_folds[-1]
        scores = {
            name: round(float(np.mean([s[name] for s, _ in of_folds])), 2)
            for name in of_folds[0][0]
        }
        scores["core_seconds"] *= n_folds
    record = described(
        identity,
        parameters=parameters(identity),
        data=describe_data(DATASET, data),
        gflops=gflops,
        seconds=scores.pop("seconds") * (n_folds or 1),
        seed=seed,
        resolved=resolved,
    )
    return record | scores


def table(records: list[dict]) -> str:
    """Markdown: a table of the variations, and one of the scores on the test split."""
    lines = []
    for n_folds in sorted({r["n_folds"] for r in records}, reverse=True):
        chosen = [r for r in records if r["n_folds"] == n_folds]
        parts = ["fold"] if n_folds else ["val", "test"]
        titles = {"fold": f"{n_folds} folds of training and validation split"}
        header = " | ".join(titles.get(part, f"{part} split") for part in parts)
        lines += [f"| variant | {header} | core minutes | seeds |"]
        lines += [f"|---|{'---|' * len(parts)}---|---|"]
        for key in dict.fromkeys((r["variant"], r["precision"]) for r in chosen):
            rows = [r for r in chosen if (r["variant"], r["precision"]) == key]
            variant = key[0] if key[1] == "auto" else ", ".join(key)
            cells = [
                " / ".join(
                    mean_and_spread([r[f"{part} {s}"] for r in rows], 1) for s in ("AUC", "ACC")
                )
                for part in parts
            ]
            minutes = np.mean([r["core_seconds"] for r in rows]) / 60
            seeds = ", ".join(str(r["seed"]) for r in rows)
            lines.append(f"| {variant} | {' | '.join(cells)} | {minutes:.0f} | {seeds} |")
        lines.append("")
    return "\n".join(lines) + f"\n{machines(records)}.\n"


BENCHMARK = Benchmark("volumes", ("variant", "seed", "n_folds", "precision"), parameters, table)


def main():
    parser = make_parser(__doc__, "volumes.json", [0])
    parser.add_argument("--variants", nargs="+", default=["default"], choices=list(VARIANTS))
    parser.add_argument("--folds", type=int, default=0, help="0: the official splits")
    parser.add_argument("--precision", default="auto", help="of the classifier")
    parser.add_argument("--checkpoints", help="folder in which an interrupted run is continued")
    arguments = parser.parse_args()
    if arguments.checkpoints and arguments.folds:
        parser.error("--checkpoints is for the official splits: leave --folds out")

    records = Records(BENCHMARK, arguments.output)
    data = load(DATASET, {})
    description = describe_data(DATASET, data)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            identity = {
                "variant": variant,
                "seed": seed,
                "n_folds": arguments.folds,
                "precision": arguments.precision,
            }
            if records.has(identity, description):
                continue
            checkpoint_dir = None
            if arguments.checkpoints:
                checkpoint_dir = f"{arguments.checkpoints}/{variant}-{seed}"
            records.add(run(identity, data, checkpoint_dir))
            print(records.current[-1], flush=True)
    records.show()


if __name__ == "__main__":
    main()
