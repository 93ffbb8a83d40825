"""What each of the settings that only the paper's code has is worth, at an equal number of steps.

    python examples/benchmarks/paper_variants.py --steps 10000 --seeds 0 1 2
    python examples/benchmarks/paper_variants.py --steps 90 --folds 2 --batch-size 64 \
        --channels 16 --blocks 1 --patch-size 2 --learning-rate 2e-3

Each variant is `from_paper("retinamnist")` with one setting changed back to our default. The
training and the validation split of RetinaMNIST are pooled and cross-validated, and all variants
have the same folds, seeds and number of steps, so that they are compared in pairs. No test split is
touched. Without further options the network is the paper's, which is for a GPU: the second line is
a smaller network that a CPU can train.

Each run is added to a JSON file as it ends, and runs that the file has are not repeated. The table
has the means, and the differences to the published settings with their standard errors.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    make_parser,
    resolved_parameters,
)
from ablation import parts

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.training.batches import count_batches

Part = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

NAME = "retinamnist"
PUBLISHED = "as published"
VARIANTS: dict[str, dict] = {
    PUBLISHED: {},
    "time times 1000": {"time_scale": 1000.0},
    "time scales and shifts": {"time_modulation": "scale_shift"},
    "time times 1000, scales and shifts": {
        "time_scale": 1000.0,
        "time_modulation": "scale_shift",
    },
    "28 px": {"input_size": None},
    "weight decay 0.01": {"weight_decay": 0.01},
    "even batches": {"even_batches": True},
    "linear warm-up": {"warmup": "linear"},
}
# Inference runs over which scores are averaged, as in the paper: each has other mask noise.
N_RUNS = 5
SCORES = {"auc": 1, "acc": 1, "log_loss": 3, "label_loss": 4, "image_loss": 4}
OF_THE_RUN = ("folds", "steps", "batch_size", "channels", "blocks", "patch_size", "learning_rate")


def make(variant: str, settings: Mapping[str, Any]) -> MedSymmFlowClassifier:
    """Classifier of a variant; its number of epochs follows from the steps and the data."""
    network = {
        "channels": settings["channels"],
        "n_blocks": settings["blocks"],
        "patch_size": settings["patch_size"],
        "batch_size": settings["batch_size"],
        "learning_rate": settings["learning_rate"],
        "precision": "float32",
    }
    constructor = group_parameters({**network, **VARIANTS[variant]})
    return MedSymmFlowClassifier.from_paper(NAME, **constructor)


def parameters(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings that a record must have to count today."""
    if record["variant"] not in VARIANTS:
        return None
    return {**asked_parameters(make(record["variant"], record)), "runs": N_RUNS}


def run(identity: Mapping[str, Any], part: Part, data: Mapping[str, Any]) -> dict:
    """Train one variant on a fold, and score it on the images that the fold leaves out.

    `identity` has the settings of the run too, `data` describes the images of all folds.
    """
    gflops = gemm_gflops()
    (X_train, y_train), (X, y) = part
    classifier = make(identity["variant"], identity).set_params(random_state=identity["seed"])
    even = classifier.optimizer_params["even_batches"]
    steps_an_epoch = count_batches(len(y_train), identity["batch_size"], even=even)
    classifier.set_params(max_epochs=max(1, round(identity["steps"] / steps_an_epoch)))
    start = time.perf_counter()
    classifier.fit(X_train, y_train)
    last = classifier.history_[-1]
    record = described(
        identity,
        parameters=parameters(identity),
        data=data,
        gflops=gflops,
        seconds=time.perf_counter() - start,
        seed=identity["seed"],
        resolved=resolved_parameters(classifier, len(y_train)),
    )
    return record | {
        "n_steps": classifier.n_iter_ * steps_an_epoch,
        **scores(classifier, X, y),
        # Of the training images, in the last epoch.
        "label_loss": last["label_loss"],
        "image_loss": last["image_loss"],
    }


def scores(classifier: MedSymmFlowClassifier, X: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """AUC, accuracy in percent and log loss, averaged over inference runs with other noise."""
    found = []
    for noise_seed in range(N_RUNS):
        classifier.model_ = replace(classifier.model_, noise_seed=noise_seed)
        p = classifier.predict_proba(X)
        log_loss = -np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean()
        found.append((100 * auc_score(y, p), 100 * accuracy(y, p), log_loss))
    return dict(zip(("auc", "acc", "log_loss"), np.mean(found, axis=0).tolist(), strict=True))


def table(records: list[dict]) -> str:
    """Markdown tables, one for each number of steps, network and number of folds."""
    settings = list(dict.fromkeys(tuple(r[key] for key in OF_THE_RUN) for r in records))
    return "\n".join(
        settings_table([r for r in records if tuple(r[key] for key in OF_THE_RUN) == chosen])
        for chosen in settings
    )


def settings_table(records: list[dict]) -> str:
    """Markdown table of the variants: scores as published, then differences to them."""
    published = scores_by_pair(records, PUBLISHED)
    lines = [
        "| variant | pairs | AUC | ACC | log loss | label loss | image loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        found = scores_by_pair(records, variant)
        pairs = sorted(found.keys() & published.keys())
        if variant == PUBLISHED:
            cells = [
                f"{np.mean([found[pair][score] for pair in pairs]):.{digits}f}"
                for score, digits in SCORES.items()
            ]
        else:
            cells = [
                difference([found[p][score] - published[p][score] for p in pairs], digits)
                for score, digits in SCORES.items()
            ]
        if pairs:
            lines.append(f"| {variant} | {len(pairs)} | {' | '.join(cells)} |")
    shown = ", ".join(f"{key} {records[0][key]:g}" for key in OF_THE_RUN)
    seeds = sorted({r["seed"] for r in records})
    return "\n".join(
        [
            *lines,
            "",
            f"Training and validation split, cross-validated ({shown}; seeds {seeds}). The first "
            "row has scores, the others differences to it in the same folds and seeds, ± standard "
            "error. Losses are those of the last epoch of training.",
            "",
        ]
    )


def scores_by_pair(records: list[dict], variant: str) -> dict[tuple[int, int], dict]:
    """Runs of a variant by seed and fold, which are what variants are compared in."""
    return {(r["seed"], r["fold"]): r for r in records if r["variant"] == variant}


def difference(differences: Sequence[float], digits: int) -> str:
    """Mean difference ± its standard error; of one pair the difference alone."""
    if not differences:
        return "-"
    error = ""
    if len(differences) > 1:
        error = f" ± {np.std(differences, ddof=1) / np.sqrt(len(differences)):.{digits}f}"
    return f"{np.mean(differences):+.{digits}f}{error}"


BENCHMARK = Benchmark("paper_variants", ("variant", "seed", "fold", *OF_THE_RUN), parameters, table)


def main():
    parser = make_parser(__doc__, "paper_variants.json", [0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--patch-size", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    arguments = parser.parse_args()

    data = load(NAME, {})
    description = describe_data(NAME, {part: data[part] for part in ("train", "val")})
    settings = {key: getattr(arguments, key) for key in OF_THE_RUN}
    records = Records(BENCHMARK, arguments.output)
    for seed in arguments.seeds:
        for variant in arguments.variants:
            for fold, part in enumerate(parts(data, arguments.folds, seed)):
                of_run = {"variant": variant, "seed": seed, "fold": fold}
                identity = {"dataset": NAME, **of_run, **settings}
                if not records.has(identity, description):
                    records.add(run(identity, part, description))
                    print(records.current[-1], flush=True)
    records.show()


if __name__ == "__main__":
    main()
