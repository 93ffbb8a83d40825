"""Accuracy at equal time: our defaults, the paper's settings, a ResNet-18, boosted trees.

Budgets are reference seconds: seconds of a machine whose float32 matrix product reaches 150
GFLOP/s on all cores. The script measures its own machine and scales. Each run is added to a
JSON file as it ends, and runs that the file already has are not repeated, so the benchmark
can be stopped and continued.

    python examples/benchmarks/accuracy.py --datasets retinamnist breastmnist --seeds 0 1 2

Further data in MedMNIST's npz format: ``--npz bloodcells=PATH``.
"""

import time
from collections.abc import Mapping
from typing import Any

from _common import (
    SYSTEMS,
    Benchmark,
    Records,
    Task,
    accuracy,
    add_data_options,
    auc_score,
    describe_data,
    described,
    equal_seconds,
    gemm_gflops,
    load,
    local_seconds,
    machines,
    make_parser,
    mean_and_spread,
)

# Keys of the registry; earlier records call the paper's settings "paper".
COMPARED = ("defaults", "msf", "resnet18", "boosting")
TITLES = {key: SYSTEMS[key].title for key in COMPARED} | {"paper": SYSTEMS["msf"].title}


def parameters(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Settings that a record must have to count today."""
    system = SYSTEMS.get(record["system"])
    return None if system is None else system.parameters(record["dataset"])


def run(system, name, data, reference_seconds, seed):
    """One run: measure the machine, train for as many of its seconds, score on held-out splits."""
    gflops = gemm_gflops()
    seconds = local_seconds(reference_seconds, gflops)
    start = time.perf_counter()
    trained = SYSTEMS[system].train(Task(name, data["train"], data["val"], seconds, seed))
    identity = {
        "dataset": name,
        "system": system,
        "seed": seed,
        "reference_seconds": reference_seconds,
    }
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
        p = trained.predict_proba(X)
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
    order = list(TITLES)
    for dataset, seconds, system in sorted(keys, key=lambda k: (k[0], k[1], order.index(k[2]))):
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
    lines += ["", f"Test splits; mean ± standard deviation over seeds. {machines(records)}."]
    return "\n".join(lines) + "\n"


BENCHMARK = Benchmark(
    "accuracy", ("dataset", "system", "seed", "reference_seconds"), parameters, table
)


def main():
    parser = make_parser(__doc__, "accuracy.json", [0, 1, 2])
    add_data_options(parser, ["retinamnist", "breastmnist"])
    parser.add_argument("--systems", nargs="+", default=list(COMPARED), choices=list(COMPARED))
    parser.add_argument("--seconds", type=float, help="reference seconds for every data set")
    arguments = parser.parse_args()

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
                    records.add(run(system, name, data, seconds, seed))
                    print(records.current[-1], flush=True)
    records.show()


if __name__ == "__main__":
    main()
