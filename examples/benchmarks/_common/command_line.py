"""Command lines of the scripts: seeds, data sets, output, parameters of the classifier."""

import argparse
import ast
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from _common.machine import local_seconds
from _common.records import SET_BY_THE_RUN
from sklearn_msf._estimator.parameters import GROUPS, PARAMETERS

__all__ = [
    "RECORDS_FOLDER",
    "add_budget_options",
    "add_data_options",
    "add_npz_option",
    "add_settings_option",
    "budget_of",
    "group_parameters",
    "make_parser",
    "read_settings",
    "refuse_gpu",
    "settings_of",
    "shown_settings",
    "split_settings",
]

# Wherever a script is started from.
RECORDS_FOLDER = Path(__file__).resolve().parents[3] / "docs" / "benchmarks"


def make_parser(doc: str, output: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """Parser with the options of nearly every script: seeds, and the file of the records.

    Parameters
    ----------
    doc : str
        Docstring of the script; its first line is the description.
    output : str
        Name of the JSON file in docs/benchmarks.
    seeds : sequence of int
        Seeds by default.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    parser.add_argument("--output", type=Path, default=RECORDS_FOLDER / output)
    return parser


def add_data_options(parser: argparse.ArgumentParser, datasets: Sequence[str]) -> None:
    """Options for the data sets: names of MedMNIST, and files of other ones."""
    parser.add_argument("--datasets", nargs="*", default=list(datasets))
    add_npz_option(parser)


def add_npz_option(parser: argparse.ArgumentParser) -> None:
    """Option for npz files, see :func:`load`; ``dict(arguments.npz)`` has name and path."""
    parser.add_argument("--npz", nargs="*", type=_name_and_path, default=[], metavar="NAME=PATH")


def add_budget_options(parser: argparse.ArgumentParser, seconds: float) -> None:
    """Options for the length of a fit; :func:`budget_of` reads them.

    Parameters
    ----------
    parser : ArgumentParser
        Parser of the script.
    seconds : float
        Reference seconds by default.
    """
    parser.add_argument("--seconds", type=float, default=seconds, help="reference seconds of a fit")
    parser.add_argument("--max-epochs", type=int, help="instead of a budget in seconds")
    parser.add_argument("--n-images", type=int, help="of each split; all by default")


def budget_of(arguments: argparse.Namespace) -> tuple[str, Callable[[float], dict[str, Any]]]:
    """Name of the budget, and what keeps a classifier to it.

    Returns
    -------
    name : str
    limits : callable
        From the GFLOP/s of the machine to parameters of the classifier. They are measured for each
        run, and its record has them: the speed of a machine changes.
    """
    if arguments.max_epochs is not None:
        return f"{arguments.max_epochs} epochs", lambda _: {"max_epochs": arguments.max_epochs}
    refuse_gpu()
    name = f"{arguments.seconds:g} s"
    return name, lambda gflops: {"time_budget": local_seconds(arguments.seconds, gflops)}


def refuse_gpu() -> None:
    """End the script where a GPU would train for the seconds of a CPU.

    Raises
    ------
    SystemExit
        If torch sees a GPU.
    """
    if torch.cuda.is_available():
        raise SystemExit(
            "Reference seconds are those of a CPU: set CUDA_VISIBLE_DEVICES= so that torch sees no "
            "GPU."
        )


def add_settings_option(parser: argparse.ArgumentParser) -> None:
    """Options for parameters of the classifier and for the guidance of the generated images.

    Entries of the dict parameters are named like other parameters. :func:`settings_of` collects
    what was given.
    """
    parser.add_argument(
        "--set", nargs="*", type=_name_and_value, default=[], metavar="PARAMETER=VALUE"
    )
    parser.add_argument("--guidance", type=float, help="of the images; the classifier's by default")


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Parameters, entries and the guidance that were given, side by side."""
    guidance = {} if arguments.guidance is None else {"guidance": arguments.guidance}
    return {**dict(arguments.set), **guidance}


def shown_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as text, which a record has; :func:`read_settings` reads it."""
    return {name: repr(value) for name, value in settings.items()}


def read_settings(shown: Mapping[str, str]) -> dict[str, Any]:
    """Settings from the text that :func:`shown_settings` made of them."""
    return {name: ast.literal_eval(value) for name, value in shown.items()}


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split settings into constructor parameters and arguments of the sampling methods."""
    parameters = {name: value for name, value in settings.items() if name != "guidance"}
    return group_parameters(parameters), {"guidance": settings.get("guidance")}


def _name_and_path(item: str) -> tuple[str, str]:
    name, separator, path = item.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"must be NAME=PATH, got {item!r}")
    return name, path


def _name_and_value(item: str) -> tuple[str, Any]:
    name, separator, value = item.partition("=")
    if not separator or name not in (*PARAMETERS, *GROUPS):
        raise argparse.ArgumentTypeError(
            f"must be PARAMETER=VALUE with a parameter of the classifier, got {item!r}"
        )
    if name in SET_BY_THE_RUN:
        raise argparse.ArgumentTypeError(
            f"{name} is of a run and not of its settings, and runs that differ in it would be "
            f"averaged; got {item!r}"
        )
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise argparse.ArgumentTypeError(
            f"{name} must have a Python literal, strings in quotes, got {value!r}"
        ) from error


def group_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor parameters of a classifier from parameters and entries side by side.

    Entries move into their dict parameters: ``image_weight=0.5`` becomes
    ``flow_params={"image_weight": 0.5}``.
    """
    grouped: dict[str, Any] = {}
    for name, value in parameters.items():
        group = PARAMETERS[name].group if name in PARAMETERS else None
        if name in GROUPS:
            grouped[name] = {**grouped.get(name, {}), **(value or {})}
        elif group is None:
            grouped[name] = value
        else:
            grouped[group] = {**grouped.get(group, {}), name: value}
    return grouped
