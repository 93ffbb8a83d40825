"""The constructor parameters of both estimators, in one table.

A parameter is written in three places: the signature of the estimator, its docstring and this
table. The table determines how a parameter is checked, which parameters form the layout of the
network, which a checkpoint must match, which invalidate a certified threshold if they change, and
which a saved file keeps.

Parameters that are rarely changed are entries of three dicts: `network_params`, `flow_params` and
`optimizer_params`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from types import SimpleNamespace
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from sklearn_msf._evaluation.validation import is_number
from sklearn_msf.data.augmentation import AUGMENTATIONS
from sklearn_msf.data.axes import NOUNS, OTHERS, shape_names
from sklearn_msf.flow.image_parameterizations import IMAGE_PREDICTIONS
from sklearn_msf.flow.label_codes import LABEL_ENCODINGS
from sklearn_msf.flow.ode_solver import ODE_SOLVERS
from sklearn_msf.flow.velocity_field import LABEL_PREDICTIONS
from sklearn_msf.nn.precision import PRECISIONS
from sklearn_msf.nn.unet import TIME_MODULATIONS, UPSAMPLINGS
from sklearn_msf.training.optimizer import OPTIMIZERS
from sklearn_msf.training.schedule import WARMUPS

__all__ = [
    "FEATURE_DEFAULTS",
    "GROUP_DEFAULTS",
    "LATENT_GROUP_DEFAULTS",
    "PARAMETERS",
    "START_ANEW",
    "Parameters",
    "affecting",
    "check_ode_solver",
    "check_positive_integer",
    "checked_entries",
    "draw_seed",
    "has_features_alone",
    "is_over_latents",
    "make_random_state",
    "resolve_parameters",
    "with_defaults",
]

_MAX_SEED = np.iinfo(np.int32).max

# Values of all parameters as attributes; the entries of the dicts are attributes too.
Parameters = SimpleNamespace


# Checks. Each takes the name and the value, and raises a ValueError that contains both.


def _fail(name: str, value: Any, expected: str) -> None:
    raise ValueError(f"{name} must be {expected}, got {value!r}.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))


def check_positive_integer(name: str, value: Any, *, least: int = 1) -> None:
    """Refuse a value that is not an integer >= `least`."""
    if not _is_integer(value) or value < least:
        _fail(name, value, f"an integer >= {least}")


def check_ode_solver(value: Any) -> None:
    """Refuse a value that is not the name of an ODE solver."""
    _one_of(*ODE_SOLVERS)("ode_solver", value)


Check = Callable[[str, Any], None]


def _one_of(*choices: Any) -> Check:
    def check(name: str, value: Any) -> None:
        if not any(_is_choice(value, choice) for choice in choices):
            _fail(name, value, f"one of {', '.join(map(repr, choices))}")

    return check


def _is_choice(value: Any, choice: Any) -> bool:
    """Tell whether a value is a choice, also in numpy's types; 1.0 and True are not 1."""
    if choice is None:
        return value is None
    is_same_kind = _is_integer(value) if _is_integer(choice) else isinstance(value, type(choice))
    return bool(is_same_kind and value == choice)


def _or(special: Any, check: Check) -> Check:
    """Allow one special value, a string or None, besides the values that a check allows."""

    def check_both(name: str, value: Any) -> None:
        # Compare strings only: comparing an array would give an array.
        same = value is None if special is None else isinstance(value, str) and value == special
        if not same:
            check(name, value)

    return check_both


def _real(interval: str) -> Check:
    """Allow numbers in an interval, written as "[0, 1)"."""
    low, high = (float(end) for end in interval[1:-1].split(","))

    def check(name: str, value: Any) -> None:
        inside = is_number(value) and np.isfinite(value)
        inside = inside and (value > low if interval[0] == "(" else value >= low)
        inside = inside and (value < high if interval[-1] == ")" else value <= high)
        if not inside:
            _fail(name, value, f"a number in {interval}")

    return check


def _integers(least: int, *, empty: bool = False) -> Check:
    """Allow sequences of integers of at least `least`."""

    def check(name: str, value: Any) -> None:
        valid = isinstance(value, (tuple, list, np.ndarray)) and (empty or len(value) > 0)
        if not valid or not all(_is_integer(item) and item >= least for item in value):
            _fail(name, value, f"a {'' if empty else 'non-empty '}sequence of integers >= {least}")

    return check


def _even(name: str, value: Any) -> None:
    check_positive_integer(name, value)
    if value % 2:
        _fail(name, value, "an even integer")


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        _fail(name, value, "True or False")


def _class_weight(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        _fail(name, value, "a dict, 'balanced' or None")


def _path(name: str, value: Any) -> None:
    if not isinstance(value, (str, PathLike)) or value == "":
        _fail(name, value, "a path ('.' for the working directory) or None")


def _verbosity(name: str, value: Any) -> None:
    if not _is_integer(value) and not isinstance(value, bool):
        _fail(name, value, "an integer")


# In messages: a way out for fit with warm_start=True and for partial_fit.
START_ANEW = "start anew with a clone of the estimator (sklearn.base.clone)"
_AUTOENCODERS = "'auto', 'fit', a hub id, a folder or an object"


def _autoencoder(name: str, value: Any) -> None:
    if isinstance(value, str) and value == "":
        _fail(name, value, f"{_AUTOENCODERS}, or None with a backbone")


def _backbone(name: str, value: Any) -> None:
    if isinstance(value, str) and value == "":
        _fail(name, value, "a hub id, a folder, a torch module or None")


def _size(name: str, value: Any) -> None:
    sides = (value,) if _is_integer(value) else value
    _integers(1)(name, sides)
    if len(sides) > 2:
        _fail(name, value, "a side, (height, width) or None")


def _bytes(name: str, value: Any) -> None:
    check_positive_integer(name, value, least=0)


def _checked_elsewhere(name: str, value: Any) -> None:
    """Accept any value; the code that uses it checks it (devices, seeds)."""


@dataclass(frozen=True)
class Parameter:
    """A constructor parameter, or an entry of one of the dicts.

    Attributes
    ----------
    check : callable
        Raises a ValueError for a value that cannot be used.
    affects : frozenset of str
        "network": layout of the network. "training": what is learned. "prediction": what a
        fitted model answers. "folder": files of this machine, which a saved model does not keep.
        Empty for those that only say where, how fast or how visibly something is computed.
    group : str or None
        Dict that contains the entry; None for a parameter of the constructor.
    default : object
        Of an entry, over pixels. Parameters of the constructor have theirs in its signature.
    """

    check: Check
    affects: frozenset[str]
    group: str | None = None
    default: Any = None


def _row(check: Check, *affects: str) -> Parameter:
    return Parameter(check, frozenset(affects))


def _entry(group: str, default: Any, check: Check, *affects: str) -> Parameter:
    return Parameter(check, frozenset(affects), group, default)


def _network(default: Any, check: Check) -> Parameter:
    return _entry("network_params", default, check, "network", "training")


def _flow(default: Any, check: Check, *affects: str) -> Parameter:
    return _entry("flow_params", default, check, *affects, "training")


def _optimizer(default: Any, check: Check) -> Parameter:
    return _entry("optimizer_params", default, check, "training")


_POSITIVE = check_positive_integer

PARAMETERS: dict[str, Parameter] = {
    # Parameters of LatentMedSymmFlowClassifier only
    "autoencoder": _row(_autoencoder, "training"),
    "backbone": _row(_backbone, "training"),
    "encoded_size": _row(_or(None, _size), "training"),
    "label_decoding": _row(_one_of("latent", "pixel"), "prediction"),
    "n_variations": _row(_or("auto", _POSITIVE), "training"),
    "cache_bytes": _row(_bytes),
    # Parameters of MedSymmFlowClassifier only
    "n_spatial_dims": _row(_one_of(*NOUNS), "network", "training"),
    # Parameters of both estimators
    "image_shape": _row(_or(None, _integers(1)), "training"),
    "classification_fraction": _row(_or("auto", _real("[0, 1]")), "training"),
    "channels": _row(_even, "network", "training"),
    "max_epochs": _row(_or("auto", _POSITIVE), "training"),
    "time_budget": _row(_or(None, _real("(0, inf)")), "training"),
    "batch_size": _row(_POSITIVE, "training"),
    "optimizer": _row(_one_of("auto", *OPTIMIZERS), "training"),
    "learning_rate": _row(_real("(0, inf)"), "training"),
    "augment": _row(_one_of("auto", None, *AUGMENTATIONS), "training"),
    "class_weight": _row(_or(None, _or("balanced", _class_weight)), "training"),
    "early_stopping": _row(_boolean, "training"),
    "calibration": _row(_one_of(None, "temperature"), "training"),
    "validation_fraction": _row(_real("(0, 1)"), "training"),
    "n_iter_no_change": _row(_POSITIVE, "training"),
    "n_draws": _row(_POSITIVE, "prediction"),
    "n_steps": _row(_POSITIVE, "prediction"),
    "ode_solver": _row(_one_of(*ODE_SOLVERS), "prediction"),
    "warm_start": _row(_boolean, "training"),
    "checkpoint_dir": _row(_or(None, _path), "folder"),
    "checkpoint_every": _row(_POSITIVE, "folder"),
    "device": _row(_checked_elsewhere),
    "precision": _row(_one_of(*PRECISIONS), "prediction"),
    "compile_network": _row(_or("auto", _boolean), "training"),
    "random_state": _row(_checked_elsewhere, "training"),
    "verbose": _row(_verbosity),
    # Entries of network_params
    "channel_mult": _network("auto", _or("auto", _integers(1))),
    "n_blocks": _network(1, _POSITIVE),
    "attention_levels": _network((1,), _integers(0, empty=True)),
    "patch_size": _network("auto", _or("auto", _POSITIVE)),
    "dropout": _network(0.2, _real("[0, 1)")),
    "time_scale": _network(1000.0, _real("(0, 1e6]")),
    "time_modulation": _network("scale_shift", _one_of(*TIME_MODULATIONS)),
    "upsampling": _network("light", _one_of(*UPSAMPLINGS)),
    # Not of the network itself, which takes images of any size.
    "input_size": _entry("network_params", None, _or(None, _size), "training"),
    # Entries of flow_params
    "label_encoding": _flow("rgb", _one_of(*LABEL_ENCODINGS), "network"),
    "label_prediction": _flow("posterior", _one_of(*LABEL_PREDICTIONS), "network"),
    "image_prediction": _flow("denoised", _one_of(*IMAGE_PREDICTIONS), "network"),
    "beta": _flow(4.0, _real("[0, 255]"), "network"),
    "class_dropout": _flow(0.1, _real("[0, 1)")),
    "time_shift": _flow(1.0, _real("[0.1, 10]")),
    "image_weight": _flow(0.7, _real("[0, 1)")),
    # Entries of optimizer_params
    "weight_decay": _optimizer(0.01, _real("[0, inf)")),
    "max_grad_norm": _optimizer(1.0, _or(None, _real("(0, inf)"))),
    "ema_decay": _optimizer(0.99, _real("[0, 1)")),
    "warmup": _optimizer("linear", _one_of(*WARMUPS)),
    "even_batches": _optimizer(True, _boolean),
}

GROUPS = tuple(dict.fromkeys(row.group for row in PARAMETERS.values() if row.group is not None))

# Entries of the dict parameters with their defaults, over pixels.
GROUP_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    group: {name: row.default for name, row in PARAMETERS.items() if row.group == group}
    for group in GROUPS
}
# Over latents `encoded_size` is the parameter for the size of the images, and with more noise in
# training they are drawn better (docs/trials.md).
LATENT_GROUP_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    **GROUP_DEFAULTS,
    "flow_params": {**GROUP_DEFAULTS["flow_params"], "time_shift": 3.0},
    "network_params": {
        name: value
        for name, value in GROUP_DEFAULTS["network_params"].items()
        if name != "input_size"
    },
}
# Other defaults over the features of a backbone alone (``autoencoder=None``), from which nothing is
# drawn: there the velocity classifies better than the denoised features (docs/trials.md).
FEATURE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "network_params": {"dropout": 0.1, "upsampling": "adm"},
    "flow_params": {
        "image_prediction": "velocity",
        "class_dropout": 0.0,
        "time_shift": 1.0,
        "image_weight": 0.5,
    },
}


def affecting(*what: str) -> list[str]:
    """List the parameters and entries that affect any of these, in the table's order."""
    return [name for name, row in PARAMETERS.items() if row.affects & set(what)]


def resolve_parameters(
    parameters: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]
) -> Parameters:
    """Check every constructor parameter and every entry of the dicts, and merge them.

    Parameters
    ----------
    parameters : mapping
        Names and values, as `get_params` returns them.
    defaults : mapping of str to mapping
        Entries of each dict with their defaults.

    Returns
    -------
    SimpleNamespace
        Every parameter and entry as an attribute.

    Raises
    ------
    ValueError
        For the first parameter of a wrong type or range, with its name and its value; for an
        unknown entry of a dict; for label codes that an autoencoder cannot encode; and if there is
        neither an autoencoder nor a backbone.
    """
    # Latents are those of images, so the latent class has no such parameter.
    values = {"n_spatial_dims": 2, **with_defaults(parameters, defaults)}
    for name, value in values.items():
        group = PARAMETERS[name].group
        PARAMETERS[name].check(name if group is None else f"{group}[{name!r}]", value)
    resolved = Parameters(**values)
    _check_image_shape(resolved)
    if is_over_latents(values):
        _check_encoders(resolved)
        _check_latent_codes(resolved)
    return resolved


def with_defaults(
    parameters: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Merge the entries of the dicts, or their defaults, with the parameters; check only names."""
    over_features = has_features_alone(parameters)
    values: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in GROUPS:
            values[name] = value
            continue
        others = FEATURE_DEFAULTS.get(name, {}) if over_features else {}
        values |= {**defaults[name], **others, **checked_entries(name, value, defaults[name])}
    return values


def is_over_latents(parameters: Mapping[str, Any]) -> bool:
    """Whether the parameters are those of the estimator over latents."""
    return "autoencoder" in parameters


def has_features_alone(parameters: Mapping[str, Any]) -> bool:
    """Whether the field works over the features of a backbone, without an autoencoder."""
    return is_over_latents(parameters) and parameters["autoencoder"] is None


def checked_entries(group: str, entries: Any, known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse what is no dict, and unknown entries of a dict; None has no entries."""
    if entries is None:
        return {}
    if not isinstance(entries, Mapping):
        _fail(group, entries, "a dict or None")
    unknown = [key for key in entries if key not in known]
    if unknown:
        # Over latents it is not the network that resizes.
        is_size = (group, unknown[0]) == ("network_params", "input_size")
        hint = " Set the parameter encoded_size." * is_size
        raise ValueError(
            f"{group} has no entry {unknown[0]!r}; its entries are {', '.join(sorted(known))}."
            f"{hint}"
        )
    return dict(entries)


def _check_image_shape(p: Parameters) -> None:
    """Refuse an image_shape without as many sides as images or volumes have."""
    n_sides = p.n_spatial_dims
    if p.image_shape is not None and len(p.image_shape) not in (n_sides, n_sides + 1):
        expected = f"{shape_names(n_sides)}, or None ({OTHERS[n_sides]})"
        _fail("image_shape", p.image_shape, expected)


def _check_encoders(p: Parameters) -> None:
    if p.autoencoder is not None:
        return
    if p.backbone is None:
        _fail("autoencoder", None, f"{_AUTOENCODERS}; None needs a backbone beside it")
    if p.label_prediction == "velocity":
        raise ValueError(
            "label_prediction='velocity' encodes masks of the classes, which a backbone cannot do: "
            "with autoencoder=None use label_prediction='posterior' in flow_params, or pass an "
            "autoencoder too."
        )


def _check_latent_codes(p: Parameters) -> None:
    if p.label_prediction == "velocity" and p.label_encoding != "rgb":
        raise ValueError(
            f"label_encoding={p.label_encoding!r} makes no images that an autoencoder could "
            "encode: over latents label_prediction='velocity' needs label_encoding='rgb' in "
            "flow_params."
        )


# Random numbers


def make_random_state(value: Any) -> np.random.RandomState:
    """Make a RandomState, or raise a ValueError that contains the value."""
    try:
        return check_random_state(value)
    except ValueError as error:
        raise ValueError(
            "random_state must be an integer in [0, 2**32 - 1], a numpy RandomState or None, "
            f"got {value!r}."
        ) from error


def draw_seed(random_state: np.random.RandomState) -> int:
    """Draw a seed for another random number generator."""
    return int(random_state.randint(_MAX_SEED))
