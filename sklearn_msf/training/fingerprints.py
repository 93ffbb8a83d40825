"""Fingerprints: plain data that tell one run from another, and how they are compared."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sklearn_msf.persistence.archives import UNEXPECTED_VALUE_ERRORS
from sklearn_msf.persistence.measured_values import same_but_for_rounding

__all__ = ["START", "differences", "measured"]

# Entry of a fingerprint: the weights of the model that a run continues.
START = "weights to start from"

# Key of measured values, and how many of them a message shows.
_MEASURED = "measured"
_N_SHOWN = 3


def measured(values: list[float]) -> dict[str, Any]:
    """Make an entry of a fingerprint that another machine may round otherwise."""
    return {_MEASURED: values}


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, str]:
    """Tell in what the fingerprint of another run differs from that of this one.

    Parameters
    ----------
    found : mapping
        Fingerprint in a file, which may have been changed.
    wanted : mapping
        Fingerprint of this run.

    Returns
    -------
    dict of str to str
        Each entry that differs, with what it is "here" and "there", for a message.
    """
    # Names that only the file has are quoted, because they can hold anything.
    names = {**{name: repr(name) for name in found}, **{name: name for name in wanted}}
    return {
        name: f"{shown} is {_shown(wanted.get(name))} here and {_shown(found.get(name))} there"
        for name, shown in names.items()
        if not _agree(found.get(name), wanted.get(name))
    }


def _agree(found: Any, wanted: Any) -> bool:
    """Compare two entries of fingerprints."""
    pair = [_measured_values(entry) for entry in (found, wanted)]
    if pair[0] is None or pair[1] is None:
        return bool(found == wanted)
    return same_but_for_rounding(pair[0], pair[1])


def _measured_values(entry: Any) -> np.ndarray | None:
    if not isinstance(entry, dict) or entry.keys() != {_MEASURED}:
        return None
    try:
        values = np.asarray(entry[_MEASURED], np.float64)
    except UNEXPECTED_VALUE_ERRORS:
        return None
    return values if values.ndim == 1 else None


def _shown(entry: Any) -> str:
    """Write an entry for a message; of what was measured the first values."""
    values = _measured_values(entry)
    if values is None:
        return repr(entry)
    return f"[{', '.join(f'{value:.4g}' for value in values[:_N_SHOWN])}, ...]"
