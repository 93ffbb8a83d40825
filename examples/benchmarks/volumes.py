"""AdrenalMNIST3D: what each variation of the volumes is worth, and the scores on the test split.

    python examples/benchmarks/volumes.py --folds 3 --variants none hflip+affine flip+affine
    python examples/benchmarks/volumes.py --variants default --seeds 0 1 2

With folds the training and the validation split are pooled and cross-validated, in shorter runs of
a narrower network, and no test volume is touched. Without folds the training split is trained on.
"""

import time
from typing import Any

import numpy as np
from _common import (
    Runs,
    accuracy,
    auc_score,
    group_parameters,
    load,
    make_parser,
    mean_and_spread,
)
from sklearn.model_selection import StratifiedKFold

from sklearn_msf import MedSymmFlowClassifier

DATASET = "adrenalmnist3d"
# Cubes of 4 x 4 x 4 voxels are folded into channels: see docs/volumes.md.
VOLUMES = {"n_spatial_dims": 3, "patch_size": 4}
# Shorter runs, to compare variations; most volumes of a batch then teach classification.
SHORT = {
    "channels": 16,
    "classification_fraction": 0.8,
    "optimizer": "muon",
    "max_epochs": 27,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "none": {**SHORT, "augment": None},
    "hflip+affine": {**SHORT, "augment": "hflip+affine"},
    "flip": {**SHORT, "augment": "flip"},
    "flip+affine": {**SHORT, "augment": "flip+affine"},
}


def fit_and_score(variant: str, seed: int, train: tuple, parts: dict[str, tuple], settings) -> dict:
    """Train on some volumes and score the model on others."""
    start = time.process_time()
    parameters = {**VOLUMES, **VARIANTS[variant], **settings, "random_state": seed}
    classifier = MedSymmFlowClassifier(**group_parameters(parameters)).fit(*train)
    scores: dict[str, Any] = {
        "epochs": classifier.n_iter_,
        "volumes_seen": sum(log["n_images"] for log in classifier.history_),
        "core_seconds": round(time.process_time() - start),
    }
    for name, (X, y) in parts.items():
        p = classifier.predict_proba(X)
        scores[f"{name} AUC"] = round(100 * auc_score(y, p), 2)
        scores[f"{name} ACC"] = round(100 * accuracy(y, p), 2)
    return scores


def run(variant: str, seed: int, n_folds: int, data: dict[str, tuple], settings: dict) -> dict:
    """Train one variant, or one of each fold, and return the record."""
    if not n_folds:
        scores = fit_and_score(
            variant, seed, data["train"], {part: data[part] for part in ("val", "test")}, settings
        )
    else:
        X, y = (np.concatenate(arrays) for arrays in zip(data["train"], data["val"], strict=True))
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(y, y)
        of_folds = [
            fit_and_score(variant, seed, (X[a], y[a]), {"fold": (X[b], y[b])}, settings)
            for a, b in folds
        ]
        scores = {
            name: round(float(np.mean([s[name] for s in of_folds])), 2) for name in of_folds[0]
        }
    return {"variant": variant, "seed": seed, "n_folds": n_folds, **scores}


def table(records: list[dict]) -> str:
    """Markdown: a table of the variations, and one of the scores on the test split."""
    lines = []
    for n_folds in sorted({r["n_folds"] for r in records}, reverse=True):
        chosen = [r for r in records if r["n_folds"] == n_folds]
        parts = ["fold"] if n_folds else ["val", "test"]
        titles = {"fold": f"{n_folds} folds of training and validation split"}
        header = " | ".join(titles.get(part, f"{part} split") for part in parts)
        lines += [f"| variant | {header} | seeds |", f"|---|{'---|' * len(parts)}---|"]
        for variant in dict.fromkeys(r["variant"] for r in chosen):
            rows = [r for r in chosen if r["variant"] == variant]
            cells = [
                " / ".join(
                    mean_and_spread([r[f"{part} {s}"] for r in rows], 1) for s in ("AUC", "ACC")
                )
                for part in parts
            ]
            seeds = ", ".join(str(r["seed"]) for r in rows)
            lines.append(f"| {variant} | {' | '.join(cells)} | {seeds} |")
        lines.append("")
    return "\n".join(lines)


def main():
    parser = make_parser(__doc__, "volumes.json", [0])
    parser.add_argument("--variants", nargs="+", default=["default"], choices=list(VARIANTS))
    parser.add_argument("--folds", type=int, default=0, help="0: the official splits")
    parser.add_argument("--precision", default="auto", help="of the classifier")
    parser.add_argument("--checkpoints", help="folder in which an interrupted run is continued")
    arguments = parser.parse_args()

    runs = Runs(arguments.output, ("variant", "seed", "n_folds"), table)
    data = load(DATASET, {})
    settings: dict[str, Any] = {"precision": arguments.precision}
    for seed in arguments.seeds:
        for variant in arguments.variants:
            if (variant, seed, arguments.folds) in runs:
                continue
            if arguments.checkpoints and not arguments.folds:
                settings["checkpoint_dir"] = f"{arguments.checkpoints}/{variant}-{seed}"
            runs.add(run(variant, seed, arguments.folds, data, settings))
            print(runs.records[-1], flush=True)
    runs.show()


if __name__ == "__main__":
    main()
