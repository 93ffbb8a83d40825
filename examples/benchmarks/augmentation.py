"""Do generated images help a plain classifier? Beside class weights and plain oversampling.

MedSymmFlowClassifier is fitted on the training images and generates more of the rare classes, up
to the size of the largest one and 500 at most. A ResNet-18 of a quarter of the width then trains on
the images as they are, with balanced class weights, with rare images repeated (to the same counts,
and until all classes are as large), and with the generated ones: all of them, or those that the
classifier with class weights takes for the class asked for and that are no copies, these also with
class weights. Each sees as many images. Test split; every seed has a generating model and
classifiers of its own. Runs that the JSON file has are not repeated.

    python examples/benchmarks/augmentation.py --datasets retinamnist --npz ham10000=PATH

Other settings of the classifier, also entries of its dict parameters: ``--set max_epochs=200
image_weight=0.5``, with another file, ``--output other.json``.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from _common import (
    DEFAULT_SAMPLER,
    Benchmark,
    Records,
    add_data_options,
    add_settings_option,
    asked_parameters,
    auc_score,
    describe_data,
    described,
    gemm_gflops,
    load,
    make_parser,
    mean_and_spread,
    read_settings,
    resolved_parameters,
    settings_of,
    shown_settings,
    split_settings,
)
from generation import Judge
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.sample_augmentation import augment_with_samples

N_IMAGES = 40_000
WIDTH = 16
LARGEST = 500
PLAIN = "as they are"


def parameters(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a record must have to count today."""
    constructor, sampling = split_settings(read_settings(record["settings"]))
    ours = asked_parameters(MedSymmFlowClassifier(**constructor))
    trained = {"images": N_IMAGES, "width": WIDTH, "largest": LARGEST}
    return {**ours, **sampling, **trained, "sampler": DEFAULT_SAMPLER}


def counts_to_add(y, at_most):
    """Images by class that bring each to the largest one, or to at_most."""
    counts = np.bincount(y)
    wanted = min(int(counts.max()), at_most)
    return {label: max(0, wanted - int(n)) for label, n in enumerate(counts)}


def balanced(y):
    """Class weights that make up for class sizes."""
    return compute_class_weight("balanced", classes=np.unique(y), y=y)


def oversampled(X, y, counts, seed):
    """Training images, and behind them some of each class once more."""
    rng = np.random.default_rng(seed)
    more = [rng.choice(np.flatnonzero(y == label), n) for label, n in counts.items()]
    rows = np.concatenate([np.arange(len(y)), *more])
    return X[rows], y[rows]


def scores_of(classifier, X, y):
    """Balanced accuracy and AUC, in percent."""
    p = classifier.predict_proba(X)
    return {
        "balanced_accuracy": 100 * float(balanced_accuracy_score(y, p.argmax(axis=1))),
        "auc": 100 * auc_score(y, p),
    }


def run(identity, data):
    """Train all classifiers; one record.

    The settings of `identity` are text of :func:`shown_settings`: entries of the dict parameters
    stand beside other parameters, and the guidance where it is not the classifier's own.
    """
    seed, settings = identity["seed"], read_settings(identity["settings"])
    gflops = gemm_gflops()
    X, y = data["train"]
    counts = counts_to_add(y, LARGEST)
    to_balance = counts_to_add(y, len(y))

    def train(X, y, class_weights=None):
        return Judge(X, y, seed, width=WIDTH, n_images=N_IMAGES, class_weights=class_weights)

    # This one is the judge too: a classifier without class weights hardly finds the rare classes.
    weighted = train(X, y, balanced(y))
    start = time.perf_counter()
    constructor, sampling = split_settings({**settings, "random_state": seed})
    ours = MedSymmFlowClassifier(**constructor).fit(X, y)
    seconds = time.perf_counter() - start
    common = {"n_per_class": counts, "random_state": seed, **sampling}
    unfiltered = augment_with_samples(ours, X, y, remove_copies=False, **common)
    filtered = augment_with_samples(ours, X, y, judge=weighted, **common)
    classifiers = {
        PLAIN: train(X, y),
        "class weights": weighted,
        "oversampling": train(*oversampled(X, y, counts, seed)),
        "generated": train(*unfiltered),
        "generated, filtered": train(*filtered),
        # Weights make up for classes of which too few images passed.
        "generated, filtered; class weights": train(*filtered, balanced(filtered[1])),
    }
    if to_balance != counts:
        classifiers["oversampling to balance"] = train(*oversampled(X, y, to_balance, seed))
    record = described(
        identity,
        parameters=parameters(identity),
        data=describe_data(identity["dataset"], data),
        gflops=gflops,
        seconds=seconds,
        seed=seed,
        resolved=resolved_parameters(ours, len(y)),
    )
    return record | {
        "n_added": [len(unfiltered[1]) - len(y), len(filtered[1]) - len(y)],
        "scores": {key: scores_of(c, *data["test"]) for key, c in classifiers.items()},
    }


def table(records):
    """Markdown: means and standard deviations over seeds, and of the gain of each seed."""
    lines = [
        "| data | training images | balanced accuracy | gain | AUC | gain |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["dataset"] for r in records):
        chosen = [r for r in records if r["dataset"] == name]
        for kind in chosen[0]["scores"]:
            cells = []
            for key in ("balanced_accuracy", "auc"):
                scores = [r["scores"][kind][key] for r in chosen]
                plain = [r["scores"][PLAIN][key] for r in chosen]
                gain = [score - other for score, other in zip(scores, plain, strict=True)]
                cells += [mean_and_spread(scores, 1), mean_and_spread(gain, 1)]
            lines.append(f"| {name} | {kind} | " + " | ".join(cells) + " |")
    seeds = sorted({r["seed"] for r in records})
    return "\n".join([*lines, "", f"Test splits, seeds {seeds}."]) + "\n"


BENCHMARK = Benchmark("augmentation", ("dataset", "seed"), parameters, table)


def main():
    parser = make_parser(__doc__, "augmentation.json", [0, 1, 2, 3, 4])
    add_data_options(parser, ["retinamnist"])
    add_settings_option(parser)
    arguments = parser.parse_args()

    files, settings = dict(arguments.npz), settings_of(arguments)
    records = Records(BENCHMARK, arguments.output)
    for seed in arguments.seeds:
        for name in [*arguments.datasets, *files]:
            data = load(name, files)
            identity = {"dataset": name, "seed": seed, "settings": shown_settings(settings)}
            if records.has(identity, describe_data(name, data)):
                continue
            records.add(run(identity, data))
            print(name, seed, flush=True)
    records.show()


if __name__ == "__main__":
    main()
