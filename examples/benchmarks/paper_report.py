"""The paper's tables and Figure 2 from records of paper.py, and the table of the README."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    NOT_RUN,
    SYSTEMS,
    System,
    equal_seconds,
    frozen_backbone,
    grouped,
    machines,
    markdown,
    mean_and_spread,
)

__all__ = ["about", "images_a_second", "paper_tables", "save_figure_2", "summary_table"]

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
# Sets of MedMNIST that stand in the tables, measured or not.
SHOWN = {
    "retinamnist": "RetinaMNIST",
    "breastmnist": "BreastMNIST",
    "pneumoniamnist": "PneumoniaMNIST",
    "bloodmnist": "BloodMNIST",
    "dermamnist": "DermaMNIST",
}
# Training images of these (MedMNIST's splits), for the time of runs that were not made.
N_TRAIN = {
    "retinamnist": 1080,
    "breastmnist": 546,
    "pneumoniamnist": 4708,
    "bloodmnist": 11959,
    "dermamnist": 7007,
}
PAPERS_SYSTEM = "MSF (28)"
RUNS = ("equal", "complete")
# A run that used less than this fraction of its budget says how much.
_MOST_USED = 0.9


def about(reference_seconds: float) -> str:
    """Time in minutes, or in hours where there are many."""
    minutes = reference_seconds / 60
    return f"about {minutes:.0f} min" if minutes < 90 else f"about {minutes / 60:.0f} h"


def system_of(key: str) -> System:
    """System of the key of a record."""
    return SYSTEMS[key] if key in SYSTEMS else frozen_backbone(key.partition(":")[2])


def images_a_second(records: Sequence[dict], system: str, dataset: str) -> float | None:
    """Training images in a reference second of a system, from its runs on CPUs.

    Its runs on the same data count, else those on other images of the same size; None where there
    are none.
    """
    on_cpu = [r for r in records if r["provenance"]["machine"]["gpu"] is None]
    of_system = [r for r in on_cpu if r["system"] == system and r["images_seen"]]
    of_data = [r for r in of_system if r["dataset"] == dataset]
    chosen = of_data or [r for r in of_system if ("@" in r["dataset"]) == ("@" in dataset)]
    if not chosen:
        return None
    rates = [r["images_seen"] / r["provenance"]["reference_seconds"] for r in chosen]
    return float(np.median(rates))


def titled(dataset: str, records: Sequence[dict]) -> str:
    """Name of a data set in tables; that of a rebuilt one says so."""
    name, _, size = dataset.partition("@")
    title = SHOWN.get(name, name) + (f", {size} px" if size else "")
    return title if is_official(dataset, records) else f"{title} (rebuilt, own split)"


def is_official(dataset: str, records: Sequence[dict]) -> bool:
    """Whether these are MedMNIST's own images, so that published figures may stand beside."""
    of_data = [r for r in records if r["dataset"] == dataset]
    return all(r["official"] for r in of_data) if of_data else True


def datasets_of(records: Sequence[dict]) -> list[str]:
    """Sets of MedMNIST, measured or not, and then all others that have records."""
    return list(dict.fromkeys([*SHOWN, *(r["dataset"] for r in records)]))


# Table 2


def published(system: str | None, dataset: str) -> tuple[str, str, str]:
    """Published AUC and accuracy, and on what was chosen; empty where there are none."""
    entries = [e for e in PUBLISHED["classification"] if e["system"] == system and dataset in e]
    if not entries:
        return "", "", ""
    (entry,) = entries
    auc, acc, *spreads = entry[dataset]
    cells = ["-" if value is None else _shown(value) for value in (auc, acc)]
    if spreads:
        cells = [f"{c} ± {_shown(s)}" for c, s in zip(cells, spreads, strict=True)]
    return cells[0], cells[1], entry["chosen_on"]


def _shown(value: float) -> str:
    """Value with one decimal, or with those that it has."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:g}"


def score_cell(records: Sequence[dict], score: str) -> str:
    """Mean and deviation over seeds (two deviations over inference runs) [interval]."""
    spread = float(np.mean([r[f"test_{score}_spread"] for r in records]))
    low, high = np.mean([r[f"test_{score}_interval"] for r in records], axis=0)
    of_noise = f" ({spread:.1f})" if spread else ""
    mean = mean_and_spread([r[f"test_{score}"] for r in records], 1)
    return f"{mean}{of_noise} [{low:.1f}, {high:.1f}]"


def not_run(key: str, kind: str, dataset: str, n_train: int, records: Sequence[dict]) -> str:
    """Cell of a run that was not made, with its time where a rate was measured."""
    if kind == "equal":
        return f"{NOT_RUN}, {about(equal_seconds(dataset))}"
    images_of_complete = system_of(key).images_of_complete
    rate = images_a_second(records, key, dataset)
    if images_of_complete is None or rate is None:
        return NOT_RUN
    return f"{NOT_RUN}, {about(images_of_complete(dataset, n_train) / rate)}"


def trained_as(kind: str, dataset: str, records: Sequence[dict]) -> str:
    """What ended the training: a given time, or the system's own end."""
    if kind == "complete":
        return "to its end"
    equal = [r for r in records if r["run"] == "equal"]
    seconds = {r["reference_seconds"] for r in equal} or {equal_seconds(dataset)}
    text = " and ".join(f"{s:g} s" for s in sorted(seconds))
    used = np.mean([r["provenance"]["reference_seconds"] for r in equal]) if equal else math.inf
    # Some systems end by themselves, and where steps are long another one would not have fitted.
    return f"{text}, of which {used:.0f} used" if used < _MOST_USED * min(seconds) else text


def _training_of(record: dict) -> str:
    return trained_as(record["run"], record["dataset"], [record])


def classification_table(dataset: str, records: Sequence[dict]) -> str:
    """Table 2 of one data set: every system, and published figures beside."""
    of_data = [r for r in records if r["dataset"] == dataset]
    official = is_official(dataset, records)
    side = of_data[0]["side"] if of_data else int(dataset.partition("@")[2] or 28)
    n_train = of_data[0]["n_train"] if of_data else N_TRAIN.get(dataset.partition("@")[0], 0)
    name = dataset.partition("@")[0] if official else ""
    rows, beside = [], set()
    for key in dict.fromkeys([*SYSTEMS, *(r["system"] for r in of_data)]):
        system = system_of(key)
        for kind in RUNS:
            if kind not in system.runs or not system.works_on(side):
                continue
            chosen = [r for r in of_data if (r["system"], r["run"]) == (key, kind)]
            for same in _by_seconds(chosen) or [[]]:
                if same:
                    cells = [str(len(same)), score_cell(same, "auc"), score_cell(same, "acc")]
                else:
                    cells = ["", not_run(key, kind, dataset, n_train, records), ""]
                # Published systems were trained to their end.
                beside.add(system.published)
                *figures, chosen_on = published(
                    system.published if kind == "complete" else None, name
                )
                training = trained_as(kind, dataset, same)
                rows.append([system.title, training, system.chosen_on, *cells, *figures, chosen_on])
    for entry in PUBLISHED["classification"]:
        if entry["system"] not in beside and name in entry:
            rows.append([entry["system"], *[""] * 5, *published(entry["system"], name)])
    header = ["system", "trained", "chosen on", "seeds", "AUC", "ACC"]
    header += ["published AUC", "ACC", "chosen on"]
    return f"### {titled(dataset, records)}\n\n" + markdown(header, rows)


def _by_seconds(records: Sequence[dict]) -> list[list[dict]]:
    """Records of each budget, and of CPUs and GPUs apart: they are not averaged."""

    def kind(record: Mapping[str, Any]) -> tuple[float, str]:
        return record["reference_seconds"] or 0, record["provenance"]["machine"]["gpu"] or ""

    return [[r for r in records if kind(r) == k] for k in sorted(set(map(kind, records)))]


def distance_table(records: Sequence[dict]) -> str:
    """Scores as the published code computes them, where masks are regressed."""
    rows = []
    for r in records:
        if "test_auc_by_distance" in r:
            cells = [f"{r['test_auc']:.1f}", f"{r['test_auc_by_distance']:.1f}"]
            names = [titled(r["dataset"], records), system_of(r["system"]).title]
            rows.append([*names, _training_of(r), str(r["seed"]), *cells])
    if not rows:
        return ""
    header = ["data", "system", "trained", "seed", "AUC by probabilities", "AUC by distances"]
    return markdown(header, rows)


# Table 6


def computation_table(records: Sequence[dict]) -> str:
    """Table 6: time and memory of each run that was made, and the published figures."""
    rows = []
    for dataset in dict.fromkeys(r["dataset"] for r in records):
        for key in dict.fromkeys([*SYSTEMS, *(r["system"] for r in records)]):
            for kind in RUNS:
                of_place = [r for r in records if _place(r) == (dataset, key, kind)]
                rows += [
                    _computation_row(dataset, key, kind, same, records)
                    for same in _by_seconds(of_place)
                ]
    own = "*No run yet.*"
    if rows:
        header = ["data", "system", "trained", "minutes", "reference minutes", "peak memory, MiB"]
        own = markdown([*header, "one image classified, ms", "one image generated, ms"], rows)
    of_paper = PUBLISHED["computation"]
    published_rows = [
        [row["system"], *("-" if v is None else f"{v:g}" for v in row["values"])]
        for row in of_paper["rows"]
    ]
    beside = markdown(["published", *of_paper["columns"]], published_rows)
    return f"{own}\n\nPublished ({of_paper['where']}; memory of inference):\n\n{beside}"


def _place(record: Mapping[str, Any]) -> tuple[str, str, str]:
    return record["dataset"], record["system"], record["run"]


def _reference_minutes(records: Sequence[dict]) -> float:
    return float(np.mean([r["provenance"]["reference_seconds"] for r in records])) / 60


def _computation_row(
    dataset: str, key: str, kind: str, same: Sequence[dict], records: Sequence[dict]
) -> list[str]:
    sampling = [r["milliseconds_to_sample_one"] for r in same if "milliseconds_to_sample_one" in r]
    return [
        titled(dataset, records),
        system_of(key).title,
        trained_as(kind, dataset, same),
        f"{np.mean([r['provenance']['seconds'] for r in same]) / 60:.1f}",
        "-" if same[0]["provenance"]["machine"]["gpu"] else f"{_reference_minutes(same):.1f}",
        f"{np.max([r['peak_memory_mib'] for r in same]):.0f}",
        f"{np.median([r['milliseconds_for_one'] for r in same]):.1f}",
        f"{np.median(sampling):.0f}" if sampling else "-",
    ]


# Figures


def figure_2_name(dataset: str) -> str:
    """File of Figure 2 of a data set."""
    return f"paper_rejection_{dataset.replace('@', '_')}.png"


def save_figure_2(records: Sequence[dict], folder: Path) -> None:
    """Accuracy against the rejected fraction, all systems of a data set in one axes."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    for dataset in dict.fromkeys(r["dataset"] for r in records):
        figure, axes = plt.subplots(figsize=(12, 5), layout="constrained")
        of_data = [r for r in records if r["dataset"] == dataset]
        curves = grouped(of_data, "system", "run", "reference_seconds")
        colors = plt.get_cmap("tab20")
        # The best one comes first in the legend.
        for i, ((key, kind, _), same) in enumerate(sorted(curves.items(), key=_mean_aurc)):
            of_seeds, title = [r["rejection"] for r in same], system_of(key).title
            areas = {name: np.mean([r[name] for r in of_seeds]) for name in ("aurc", "augrc")}
            axes.plot(
                of_seeds[0]["rejected"],
                np.mean([r["accuracy"] for r in of_seeds], axis=0),
                "-" if kind == "equal" else "--",
                color=colors(i % colors.N),
                linewidth=3 if title.startswith("ours") else 1.5,
                label=f"{title}, {trained_as(kind, dataset, same)}: "
                "AURC {aurc:.3f}, AUGRC {augrc:.3f}".format(**areas),
            )
        axes.set(xlabel="rejected fraction", ylabel="accuracy of the others")
        axes.set_title(titled(dataset, records))
        figure.legend(loc="outside right upper", fontsize=7)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / figure_2_name(dataset), dpi=90)
        plt.close(figure)


def _mean_aurc(curve: tuple[tuple, list[dict]]) -> float:
    return float(np.mean([record["rejection"]["aurc"] for record in curve[1]]))


def figures(records: Sequence[dict]) -> str:
    """Markdown of Figure 2 and Figure 3 of what was measured."""
    lines = []
    for dataset in dict.fromkeys(r["dataset"] for r in records):
        title = titled(dataset, records)
        lines.append(f"![Figure 2, {title}](benchmarks/{figure_2_name(dataset)})")
        lines += [
            f"![Figure 3, {title}, {system_of(r['system']).title}, {_training_of(r)}]"
            f"(benchmarks/{r['picture']['file']})"
            for r in records
            if r["dataset"] == dataset and "picture" in r
        ]
    return "\n\n".join(lines) or "*No run yet.*"


# Everything


def paper_tables(records: Sequence[dict]) -> str:
    """Tables 2 and 6, Figures 2 and 3."""
    explanation = (
        "Test splits: mean ± standard deviation over seeds (two standard deviations over five "
        "inference runs of one model, where predictions depend on noise) [95 % interval of the "
        "test set, by resampling single images, of the first inference run]. Chosen on: the data "
        "on which settings and weights were chosen. "
        "Trained: within so many reference seconds (and how many of them were used, where a run "
        "ended by itself, or one more step would not have fitted), or to the end of the system's "
        "own recipe."
    )
    parts = ["## Table 2", explanation]
    parts += [classification_table(dataset, records) for dataset in datasets_of(records)]
    parts += [
        "Sources of the published figures: " + " ".join(PUBLISHED["sources"].values()),
        distance_table(records),
        "## Table 6",
        computation_table(records),
        "## Figures 2 and 3",
        figures(records),
    ]
    if records:
        parts.append(f"Machines: {machines(records)}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_table(records: Sequence[dict]) -> str:
    """The one table of the README."""
    small = [dataset for dataset in datasets_of(records) if "@" not in dataset]
    rows = [_summary_row(dataset, records) for dataset in small]
    header = ["data", "ours", "ResNet-18, the same time", "the paper (MSF, 28 px)"]
    header += ["minutes on two cores", "coverage of generated images (of training images)"]
    return markdown(header, rows) + "\n"


def _summary_row(dataset: str, records: Sequence[dict]) -> list[str]:
    budget = equal_seconds(dataset)

    def of(system: str) -> list[dict]:
        chosen = [r for r in records if _place(r) == (dataset, system, "equal")]
        return [r for r in chosen if r["reference_seconds"] == budget]

    def scores(chosen: Sequence[Mapping[str, Any]]) -> str:
        cells = [
            mean_and_spread([r[f"test_{score}"] for r in chosen], 1) for score in ("auc", "acc")
        ]
        return " / ".join(cells)

    ours, resnet = of("defaults"), of("resnet18")
    seen = [r["imagenet"] for r in ours if r.get("imagenet")]
    generated = mean_and_spread([r["generated"]["coverage"] for r in seen], 2) if seen else ""
    # The same training images for every seed.
    training = f"{np.mean([r['training']['coverage'] for r in seen]):.2f}" if seen else ""
    auc, acc, _ = published(PAPERS_SYSTEM, dataset if is_official(dataset, records) else "")
    return [
        titled(dataset, records),
        scores(ours) if ours else NOT_RUN,
        scores(resnet) if resnet else NOT_RUN,
        f"{auc} / {acc}" if auc else "",
        f"{_reference_minutes(ours):.1f}" if ours else NOT_RUN,
        f"{generated} ({training})" if seen else NOT_RUN,
    ]
