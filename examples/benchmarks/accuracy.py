"""Accuracy at equal time: our defaults, the paper's settings, a ResNet-18, boosted trees.

Beside them our settings for classification alone: what learning to draw costs the classifier at a
budget shows a second table, of the same seeds.

Budgets are reference seconds: seconds of a machine whose float32 matrix product reaches 150
GFLOP/s on all cores. The script measures its own machine and scales. Each run is added to a
JSON file as it ends, and runs that the file already has are not repeated, so the benchmark
can be stopped and continued.

    python examples/benchmarks/accuracy.py --datasets retinamnist breastmnist --seeds 0 1 2

Further data in MedMNIST's npz format: ``--npz bloodcells=PATH``. ``pneumoniamnist_unbalanced`` is
PneumoniaMNIST with a third of its normal training images.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _common import (
    ADJUSTED,
    ALONE_MUON,
    BALANCED,
    FOLLOWED,
    SYSTEMS,
    VOTING,
    Benchmark,
    Records,
    Task,
    accuracy,
    add_data_options,
    auc_score,
    describe_data,
    described,
    equal_seconds,
    followed_settings,
    gemm_gflops,
    grouped,
    load,
    local_seconds,
    machines,
    make_parser,
    mean_and_spread,
    refuse_gpu,
)
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, log_loss

STANDARD = ("defaults", "msf", "resnet18", "boosting")
# Systems that learn to classify and nothing else, or hardly anything else.
ALONE = ("alone_08", "alone_08_muon", "alone")
COMPARED = {
    **{key: SYSTEMS[key] for key in ("defaults", "alone_08")},
    "alone_08_muon": ALONE_MUON,
    **{key: SYSTEMS[key] for key in ("alone", "wide")},
    "voting": VOTING,
    "balanced": BALANCED,
    "adjusted": ADJUSTED,
    **{key: SYSTEMS[key] for key in STANDARD[1:]},
}
# Earlier records call the paper's settings "paper".
TITLES = {key: system.title for key, system in COMPARED.items()} | {"paper": SYSTEMS["msf"].title}


def parameters(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Settings that a record must have to count today."""
    system = COMPARED.get(record["system"])
    return None if system is None else system.parameters(record["dataset"])


def run(identity, data):
    """One run: measure the machine, train for as many of its seconds, score on held-out splits."""
    name, seed = identity["dataset"], identity["seed"]
    gflops = gemm_gflops()
    seconds = local_seconds(identity["reference_seconds"], gflops)
    start = time.perf_counter()
    task = Task(name, data["train"], data["val"], seconds, seed)
    trained = COMPARED[identity["system"]].train(task)
    record = described(
        identity,
        parameters=parameters(identity),
        data=describe_data(name, data),
        gflops=gflops,
        seconds=time.perf_counter() - start,
        seed=seed,
        resolved=trained.resolved,
    )
    for split in ("val", "test"):
        X, y = data[split]
        p = trained.predict_proba(X).astype(np.float64)
        p /= p.sum(axis=1, keepdims=True)
        record[f"{split}_auc"] = round(100 * auc_score(y, p), 2)
        record[f"{split}_acc"] = round(100 * accuracy(y, p), 2)
        record[f"{split}_balanced_acc"] = round(
            100 * balanced_accuracy_score(y, p.argmax(axis=1)), 2
        )
        record[f"{split}_log_loss"] = round(float(log_loss(y, p, labels=range(p.shape[1]))), 4)
    return record


# Column and digits of each score of the test split; earlier records lack the last two.
SCORES = {
    "test_auc": ("AUC", 1),
    "test_acc": ("ACC", 1),
    "test_balanced_acc": ("balanced ACC", 1),
    "test_log_loss": ("log loss", 3),
}


def table(records: list[dict]) -> str:
    """Markdown: test scores of all systems, and the differences from classification alone."""
    shown = {key: column for key, column in SCORES.items() if any(key in r for r in records)}
    # Earlier records do not say it.
    says_more = any("provenance" in r for r in records)
    columns = ["data", "budget, reference seconds", *(["used"] if says_more else []), "system"]
    columns += [*([FOLLOWED] if says_more else []), "seeds", *(t for t, _ in shown.values())]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    groups = grouped(records, "dataset", "reference_seconds", "system")
    order = list(TITLES)
    for key in sorted(groups, key=lambda k: (k[0], k[1], order.index(k[2]))):
        dataset, seconds, system = key
        cells = [dataset, f"{seconds:g}"]
        if says_more:
            used = np.mean([r["provenance"]["reference_seconds"] for r in groups[key]])
            cells.append(f"{used:.0f}")
        cells.append(TITLES[system])
        if says_more:
            cells.append(followed_settings(groups[key]))
        cells.append(str(len(groups[key])))
        cells += [
            mean_and_spread([r[score] for r in groups[key]], digits)
            if all(score in r for r in groups[key])
            else "-"
            for score, (_, digits) in shown.items()
        ]
        lines.append(f"| {' | '.join(cells)} |")
    used = ""
    if says_more:
        used = " Used: until the budget or the number of epochs ended it. With fewer epochs "
        used += '`optimizer="auto"` may take another optimizer.'
    explanation = f"Test splits; mean ± standard deviation over seeds.{used} {machines(records)}."
    return "\n".join([*lines, "", explanation, *difference_lines(groups)]) + "\n"


def difference_lines(groups: Mapping[tuple[str, float, str], list[dict]]) -> list[str]:
    """Markdown: what the defaults score more than each system mostly for classification."""
    rows = []
    for (dataset, seconds, system), alone in sorted(groups.items()):
        ours = {r["seed"]: r for r in groups.get((dataset, seconds, "defaults"), [])}
        pairs = [(ours[r["seed"]], r) for r in alone if r["seed"] in ours]
        if system not in ALONE or not pairs:
            continue
        cells = [
            paired_difference([first[key] - second[key] for first, second in pairs], digits)
            if all(key in record for pair in pairs for record in pair)
            else "-"
            for key, digits in (("test_auc", 1), ("test_acc", 1), ("test_log_loss", 3))
        ]
        seeds = str(len(pairs))
        rows.append(f"| {' | '.join([dataset, f'{seconds:g}', TITLES[system], seeds, *cells])} |")
    if not rows:
        return []
    return [
        "",
        "Defaults minus the system beside them, within the same budget and with the same seeds; "
        "mean difference [95 % interval of the seeds]:",
        "",
        "| data | reference seconds | beside | seeds | AUC | ACC | log loss |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def paired_difference(differences: Sequence[float], digits: int) -> str:
    """Mean difference with its 95 % interval by Student's t; of one seed the difference alone."""
    mean, n = float(np.mean(differences)), len(differences)
    if n == 1:
        return f"{mean:+.{digits}f}"
    half = stats.t.ppf(0.975, n - 1) * float(np.std(differences, ddof=1)) / math.sqrt(n)
    return f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"


BENCHMARK = Benchmark(
    "accuracy", ("dataset", "system", "seed", "reference_seconds"), parameters, table
)


def main():
    parser = make_parser(__doc__, "accuracy.json", [0, 1, 2])
    add_data_options(parser, ["retinamnist", "breastmnist"])
    parser.add_argument("--systems", nargs="+", default=list(STANDARD), choices=list(COMPARED))
    parser.add_argument("--seconds", type=float, help="reference seconds for every data set")
    arguments = parser.parse_args()
    refuse_gpu()

    files = dict(arguments.npz)
    records = Records(BENCHMARK, arguments.output)
    for seed in arguments.seeds:
        for name in [*arguments.datasets, *files]:
            data = load(name, files)
            described_data = describe_data(name, data)
            seconds = arguments.seconds or equal_seconds(name)
            for system in arguments.systems:
                identity = {
                    "dataset": name,
                    "system": system,
                    "seed": seed,
                    "reference_seconds": seconds,
                }
                if not records.has(identity, described_data):
                    records.add(run(identity, data))
                    print(records.current[-1], flush=True)
    records.show()


if __name__ == "__main__":
    main()
