"""Records: what was measured, and everything that it depends on.

A benchmark keeps its records in a JSON file, docs/benchmarks/NAME.json. A record has the keys that
tell the runs of the benchmark apart, what was measured, and its `provenance`: version and commit
of the package, parameters (as they were asked for, and what "auto" became), a digest of the data,
machine, precision, time and seed. The number of its recipe (`sklearn_msf._version.RECIPES`) is one
of the parameters of an estimator of the package. What the package does not train has none.

Only records that today's code would make again count as current: those of the parameters that the
script asks for today, and of the same data. The others stay in the file, and are neither shown nor
averaged nor continued from. A record without provenance is an earlier one, of the defaults of
before records were kept in this way.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch

import sklearn_msf
from _common.machine import describe_machine, reference_seconds
from sklearn_msf._estimator.auto_settings import (
    default_levels,
    resolve_augmentation,
    training_settings,
)
from sklearn_msf._estimator.parameters import PARAMETERS, with_defaults
from sklearn_msf._version import RECIPES, __version__
from sklearn_msf.training.fraction import FRACTION_AIMS

__all__ = [
    "FOLLOWED",
    "SET_BY_THE_RUN",
    "Benchmark",
    "Records",
    "asked_parameters",
    "describe_picture",
    "described",
    "followed_settings",
    "grouped",
    "is_earlier",
    "machines",
    "resolved_parameters",
]

# Parameters that a budget or a seed sets: the record has them apart.
SET_BY_THE_RUN = ("time_budget", "random_state")
_LIST_OF_NUMBERS = re.compile(r'\[\n *([^\[\]{}"]*?)\n *\]')


# Parameters


def asked_parameters(estimator: Any, *, has_budget: bool = False) -> dict[str, Any]:
    """Parameters of an estimator of the package that change what is learned or predicted.

    The number of its recipe is one of them. Entries of the dict parameters stand beside the others.
    Time budget and seed are left out: they are of a run, and the first depends on the machine. What
    "auto" aims at within a budget, and when its schedule begins, is part of those of a run that
    `has_budget`.
    """
    values = with_defaults(estimator.get_params(deep=False), estimator._group_defaults)
    kept = {
        name: value
        for name, value in values.items()
        if PARAMETERS[name].affects - {"folder"} and name not in SET_BY_THE_RUN
    }
    names = [cls.__name__ for cls in type(estimator).__mro__]
    recipe = next(RECIPES[name] for name in names if name in RECIPES)
    if isinstance(kept["channel_mult"], str):
        # Records of before have the levels themselves.
        kept["channel_mult"] = default_levels(values)
    if has_budget and kept["classification_fraction"] == "auto":
        kept["fraction_aims"] = FRACTION_AIMS
    if has_budget and isinstance(estimator, sklearn_msf.LatentMedSymmFlowClassifier):
        # Before, learning rates fell while images were encoded.
        kept["schedule_begins"] = "with the first step"
    return {"estimator": names[0], "recipe": recipe, **_plain(kept)}


def resolved_parameters(estimator: Any, n_images: int) -> dict[str, Any]:
    """What "auto" became in a fit to `n_images` images.

    Returns
    -------
    dict
        Settings of the training, precision and epochs among them; augmentation and device.
    """
    p, device = estimator._parameters(), estimator.model_.device
    settings = training_settings(p, n_images, device, estimator._continuation.optimizer)
    return _plain(
        {
            **asdict(settings),
            "classification_fraction": estimator.history_[-1]["classification_fraction"],
            "patch_size": estimator.model_.field.layout.patch_size,
            "channel_mult": estimator.model_.field.layout.channel_mult,
            "augment": resolve_augmentation(p, estimator.model_.image_format),
            "device": device.type,
            "epochs": estimator.n_iter_,
            "images_seen": sum(epoch["n_images"] for epoch in estimator.history_),
        }
    )


# Title of the column of :func:`followed_settings`.
FOLLOWED = "optimizer, fraction at t = 1"


def followed_settings(records: Sequence[Mapping[str, Any]]) -> str:
    """Optimizer and mean fraction at t = 1 of runs, which may follow other settings by "auto".

    Returns
    -------
    str
        Cell of a table; "-" where records do not say it, or systems have neither.
    """
    resolved = [r.get("provenance", {}).get("resolved", {}) for r in records]
    if not all("optimizer" in settings for settings in resolved):
        return "-"
    optimizers = sorted({settings["optimizer"] for settings in resolved})
    fraction = np.mean([settings["classification_fraction"] for settings in resolved])
    return f"{' and '.join(optimizers)}, {fraction:.2f}"


def _plain(value: Any) -> Any:
    """Value as JSON gives it back; of an object only the name of its class."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return type(value).__name__


# Records


def described(
    identity: Mapping[str, Any],
    *,
    parameters: Mapping[str, Any],
    data: Mapping[str, Any],
    gflops: float,
    seconds: float,
    seed: int | None,
    resolved: Mapping[str, Any] | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """Begin a record: its identity and its provenance.

    Parameters
    ----------
    identity : mapping
        Keys that tell the runs of the benchmark apart.
    parameters : mapping
        As they were asked for, and the same on every machine, see :func:`asked_parameters`.
    data : mapping
        Result of :func:`describe_data`.
    gflops : float
        Measured rate of the machine.
    seconds : float
        Time of the training.
    seed : int or None
        Seed of the training; None where there is none.
    resolved : mapping, optional
        What "auto" became, see :func:`resolved_parameters`.
    precision : str, optional
        Precision of the training; by default that of `resolved`, else float32.
    """
    resolved = dict(resolved or {})
    provenance = {
        "version": __version__,
        "commit": _commit(),
        "software": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
        },
        "machine": describe_machine(gflops),
        "data": data,
        "parameters": parameters,
        "resolved": resolved,
        "precision": precision or resolved.get("precision", "float32"),
        "seconds": round(seconds, 2),
        "reference_seconds": round(reference_seconds(seconds, gflops), 2),
        "seed": seed,
    }
    return {**identity, "provenance": _plain(provenance)}


def _commit() -> str | None:
    """Commit of the package, with a mark if its files differ; None outside of a repository."""
    package = Path(sklearn_msf.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def is_earlier(record: Mapping[str, Any]) -> bool:
    """Whether a record is of the defaults of before records had a provenance."""
    return "provenance" not in record


@dataclass(frozen=True)
class Benchmark:
    """What records of a script are, and how they are shown.

    Attributes
    ----------
    name : str
        Name of the table.
    identity : tuple of str
        Keys that tell runs apart. Those but "seed" tell apart what is averaged.
    parameters : callable
        Of a record (or of the identity of a run to come): the parameters that the script asks for
        today; None for something that it no longer measures.
    table : callable
        Markdown of a list of records, all of today or all earlier.
    call : str
        Script that measures it, with its options; by default that of the same name.
    file : str
        Name of the JSON file without .json; by default that of the benchmark.
    shows_missing : bool
        Whether the table says by itself what is missing, so that it is made of no records too.
    """

    name: str
    identity: tuple[str, ...]
    parameters: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
    table: Callable[[list[dict]], str]
    call: str = ""
    file: str = ""
    shows_missing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "call", self.call or f"{self.name}.py")
        object.__setattr__(self, "file", self.file or self.name)

    def current(self, records: Sequence[dict]) -> list[dict]:
        """Records that today's code would make again.

        The last record decides where there are several contents of a data set, several settings
        of what would be averaged, or several runs of one identity.
        """
        kept = [r for r in records if not is_earlier(r) and self._asked_today(r)]
        kept = _like_the_last(kept, lambda r: r["provenance"]["data"]["name"], _digest)
        kept = _like_the_last(kept, self._averaged_with, lambda r: r["provenance"]["parameters"])
        return _like_the_last(kept, self._values, id)

    def chosen(self, records: Sequence[dict], *, earlier: bool = False) -> list[dict]:
        """Records to show: the current ones, or those of the earlier defaults as they are."""
        return list(filter(is_earlier, records)) if earlier else self.current(records)

    def markdown(self, records: Sequence[dict], *, earlier: bool = False) -> str:
        """Table of the records, or a line that says that there are none."""
        chosen = self.chosen(records, earlier=earlier)
        if chosen or self.shows_missing:
            return self.table(chosen)
        command = f"python examples/benchmarks/{self.call}"
        return f"*Not measured yet with today's settings: `{command}` measures it.*\n"

    def _asked_today(self, record: Mapping[str, Any]) -> bool:
        asked = self.parameters(record)
        return asked is not None and record["provenance"]["parameters"] == _plain(asked)

    def _values(self, record: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(record.get(key) for key in self.identity)

    def _averaged_with(self, record: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(record.get(key) for key in self.identity if key != "seed")


def _like_the_last(
    records: Sequence[dict], group: Callable[[dict], Any], value: Callable[[dict], Any]
) -> list[dict]:
    """Keep the records of each group that have the value of its last one."""
    last = {group(record): value(record) for record in records}
    return [record for record in records if last[group(record)] == value(record)]


def _digest(record: Mapping[str, Any]) -> str:
    return str(record["provenance"]["data"]["digest"])


def grouped(records: Iterable[dict], *names: str) -> dict[tuple, list[dict]]:
    """Records by the values of these entries, in the order in which the values come."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in names), []).append(record)
    return groups


def machines(records: Sequence[Mapping[str, Any]]) -> str:
    """Say in one line on which machines records were made; of earlier ones only what they have."""
    rates: dict[str, list[float]] = {}
    for record in records:
        provenance = record.get("provenance")
        if provenance is None:
            rates.setdefault("earlier", []).append(record.get("gemm_gflops", np.nan))
            continue
        m = provenance["machine"]
        parts = [m["cpu"], m["instructions"], f"{m['threads']} threads", m["gpu"]]
        parts += [provenance["precision"], f"torch {provenance['software']['torch']}"]
        where = ", ".join(part for part in parts if part)
        rates.setdefault(where, []).append(m["gflops"])
    return "; ".join(
        f"{'' if where == 'earlier' else where + ', '}float32 matrix product "
        f"{min(values):.0f} to {max(values):.0f} GFLOP/s"
        for where, values in rates.items()
    )


class Records:
    """The records of a benchmark in a JSON file.

    Each is written as its run ends, and a script skips the runs that the file has, so that a
    benchmark can be stopped and continued.

    Parameters
    ----------
    benchmark : Benchmark
        What the records are.
    path : Path
        The JSON file.
    """

    def __init__(self, benchmark: Benchmark, path: Path):
        self._benchmark, self._path = benchmark, path
        self._all = read_records(path)

    @property
    def current(self) -> list[dict]:
        """Records that today's code would make again."""
        return self._benchmark.current(self._all)

    def has(self, identity: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
        """Tell whether a run is recorded, of today's parameters and of these data."""
        return bool(self._runs(identity, data))

    def has_picture(self, identity: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
        """Tell whether a run of any seed has a picture, which that of another would replace."""
        same = {key: value for key, value in identity.items() if key != "seed"}
        return any("picture" in record for record in self._runs(same, data))

    def _runs(self, identity: Mapping[str, Any], data: Mapping[str, Any]) -> list[dict]:
        """Records of an identity, or of a part of one, that are of these data."""
        return [
            record
            for record in self.current
            if identity.items() <= record.items() and _digest(record) == data["digest"]
        ]

    def add(self, record: dict) -> None:
        """Add a record and write the file, with what another script has added to it meanwhile."""
        self._all = [*read_records(self._path), record]
        write_json(self._path, self._all)

    def show(self) -> None:
        """Print the table of the current records."""
        print(self._benchmark.markdown(self._all))


def describe_picture(path: Path) -> dict[str, str]:
    """Name and digest of a picture, for the record of its run."""
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}


def read_records(path: Path) -> list[dict]:
    """Records of a JSON file; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all, so that a run that is stopped leaves no half of a file.

    A list of numbers has a line of its own, not a line for each number.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    # Text in JSON has no line breaks, so only lists match.
    text = _LIST_OF_NUMBERS.sub(_on_one_line, json.dumps(content, indent=1))
    part.write_text(text + "\n", encoding="utf-8", newline="\n")
    os.replace(part, path)


def _on_one_line(found: re.Match[str]) -> str:
    return "[" + re.sub(r",\n *", ", ", found[1]) + "]"
