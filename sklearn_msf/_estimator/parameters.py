"""Checks of constructor parameters, made when fit is called."""

from collections.abc import Mapping
from numbers import Integral
from os import PathLike
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from sklearn_msf._evaluation.validation import is_number
from sklearn_msf.data.augmentation import AUGMENTATIONS
from sklearn_msf.flow.label_codes import LABEL_ENCODINGS
from sklearn_msf.flow.ode_solver import ODE_SOLVERS
from sklearn_msf.flow.parameterizations import IMAGE_PREDICTIONS, LABEL_PREDICTIONS
from sklearn_msf.nn.precision import PRECISIONS
from sklearn_msf.training.optimizer import OPTIMIZERS

__all__ = [
    "check_ode_solver",
    "check_parameters",
    "check_positive_integer",
    "draw_seed",
    "make_random_state",
]

_MAX_SEED = np.iinfo(np.int32).max


def _fail(name: str, value: Any, expected: str) -> None:
    raise ValueError(f"{name} must be {expected}, got {value!r}.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))


def check_positive_integer(name: str, value: Any, *, least: int = 1) -> None:
    """Refuse what is not an integer of at least 1, or `least`."""
    if not _is_integer(value) or value < least:
        _fail(name, value, f"an integer >= {least}")


def check_ode_solver(value: Any) -> None:
    """Refuse what is no ODE solver."""
    _check_choice("ode_solver", value, ODE_SOLVERS)


def _is_text(value: Any, text: str) -> bool:
    """Compare with a string; an array compared with one would be an array."""
    return isinstance(value, str) and value == text


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        _fail(name, value, "True or False")


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        _fail(name, value, f"one of {', '.join(map(repr, choices))}")


def _check_real(name: str, value: Any, low: float, high: float, ends: str = "[]") -> None:
    """Refuse numbers outside an interval, whose ends are open or closed as `ends` writes them."""
    inside = is_number(value) and np.isfinite(value)
    inside = inside and (value > low if ends[0] == "(" else value >= low)
    inside = inside and (value < high if ends[1] == ")" else value <= high)
    if not inside:
        _fail(name, value, f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}")


def _check_integers(name: str, value: Any, low: int, *, empty: bool = False) -> None:
    """Refuse what is not a sequence of integers of at least `low`."""
    valid = isinstance(value, (tuple, list, np.ndarray)) and (empty or len(value) > 0)
    if not valid or not all(_is_integer(item) and item >= low for item in value):
        _fail(name, value, f"a {'' if empty else 'non-empty '}sequence of integers >= {low}")


def _check_image_shape(value: Any) -> None:
    if value is None:
        return
    _check_integers("image_shape", value, 1)
    if len(value) not in (2, 3):
        _fail("image_shape", value, "(height, width), (height, width, channels) or None")


def make_random_state(value: Any) -> np.random.RandomState:
    """Make a source of random numbers, or name what cannot be one."""
    try:
        return check_random_state(value)
    except ValueError as error:
        raise ValueError(
            "random_state must be an integer in [0, 2**32 - 1], a numpy RandomState or None, "
            f"got {value!r}."
        ) from error


def draw_seed(random_state: np.random.RandomState) -> int:
    """Draw a seed for another source of random numbers."""
    return int(random_state.randint(_MAX_SEED))


def _check_path(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, (str, PathLike)):
        _fail(name, value, "a path or None")


def _check_class_weight(value: Any) -> None:
    if not (value is None or isinstance(value, Mapping) or _is_text(value, "balanced")):
        _fail("class_weight", value, "a dict, 'balanced' or None")


def _check_latent_parameters(p: Mapping[str, Any]) -> None:
    """Check what only the estimator over latents has."""
    if p["autoencoder"] is None or p["autoencoder"] == "":
        _fail("autoencoder", p["autoencoder"], "'auto', 'fit', a hub id, a folder or an object")
    size = p["encoded_size"]
    if size is not None:
        sides = (size,) if _is_integer(size) else size
        _check_integers("encoded_size", sides, 1)
        if len(sides) > 2:
            _fail("encoded_size", size, "a side, (height, width) or None")
    _check_choice("label_decoding", p["label_decoding"], ("latent", "pixel"))
    if not _is_text(p["n_variations"], "auto"):
        check_positive_integer("n_variations", p["n_variations"])
    if not _is_integer(p["cache_bytes"]) or p["cache_bytes"] < 0:
        _fail("cache_bytes", p["cache_bytes"], "an integer >= 0")
    if p["label_prediction"] == "velocity" and p["label_encoding"] != "rgb":
        raise ValueError(
            f"label_encoding={p['label_encoding']!r} makes no images that an autoencoder could "
            "encode: over latents label_prediction='velocity' needs label_encoding='rgb'."
        )


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Check every constructor parameter of a MedSymmFlow estimator.

    Parameters
    ----------
    parameters : mapping
        Names and values, as `get_params` returns them.

    Raises
    ------
    ValueError
        For the first parameter of a wrong type or range, with its name and its value.
    """
    p = parameters
    _check_image_shape(p["image_shape"])
    _check_choice("label_encoding", p["label_encoding"], LABEL_ENCODINGS)
    _check_choice("label_prediction", p["label_prediction"], LABEL_PREDICTIONS)
    _check_choice("image_prediction", p["image_prediction"], IMAGE_PREDICTIONS)
    _check_real("beta", p["beta"], 0, 255)
    _check_real("t1_share", p["t1_share"], 0, 1)
    _check_real("class_dropout", p["class_dropout"], 0, 1, "[)")
    _check_real("guidance", p["guidance"], 0, 100)
    _check_real("image_weight", p["image_weight"], 0, 1, "[)")
    for name in ("channels", "n_blocks", "patch_size", "batch_size", "n_iter_no_change"):
        check_positive_integer(name, p[name])
    for name in ("n_draws", "n_steps", "checkpoint_every"):
        check_positive_integer(name, p[name])
    if p["channels"] % 2:
        _fail("channels", p["channels"], "an even integer")
    _check_integers("channel_mult", p["channel_mult"], 1)
    _check_integers("attention_levels", p["attention_levels"], 0, empty=True)
    _check_real("dropout", p["dropout"], 0, 1, "[)")
    if not _is_text(p["max_epochs"], "auto"):
        check_positive_integer("max_epochs", p["max_epochs"])
    if p["time_budget"] is not None:
        _check_real("time_budget", p["time_budget"], 0, np.inf, "()")
    _check_choice("optimizer", p["optimizer"], ("auto", *OPTIMIZERS))
    _check_real("learning_rate", p["learning_rate"], 0, np.inf, "()")
    _check_real("weight_decay", p["weight_decay"], 0, np.inf, "[)")
    if p["max_grad_norm"] is not None:
        _check_real("max_grad_norm", p["max_grad_norm"], 0, np.inf, "()")
    _check_real("ema_decay", p["ema_decay"], 0, 1, "[)")
    _check_choice("augment", p["augment"], ("auto", None, *AUGMENTATIONS))
    _check_class_weight(p["class_weight"])
    _check_path("checkpoint_dir", p["checkpoint_dir"])
    _check_choice("calibration", p["calibration"], (None, "temperature"))
    _check_real("validation_fraction", p["validation_fraction"], 0, 1, "()")
    _check_bool("early_stopping", p["early_stopping"])
    _check_bool("warm_start", p["warm_start"])
    check_ode_solver(p["ode_solver"])
    _check_choice("precision", p["precision"], PRECISIONS)
    if not _is_text(p["compile_network"], "auto"):
        _check_bool("compile_network", p["compile_network"])
    if "autoencoder" in p:
        _check_latent_parameters(p)
    if not _is_integer(p["verbose"]) and not isinstance(p["verbose"], bool):
        _fail("verbose", p["verbose"], "an integer")
