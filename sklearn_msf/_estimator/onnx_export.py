"""Checks of a request for an ONNX file, and what the file must know of the estimator."""

from dataclasses import replace
from typing import Any

from sklearn_msf._estimator.auto_settings import classification_settings
from sklearn_msf._estimator.parameters import Parameters
from sklearn_msf._estimator.rejection import RejectionRule, check_rule, prediction_parameters
from sklearn_msf._estimator.sampling_requests import sampling_ode
from sklearn_msf.exporting.onnx_files import export_classifier, export_sampler
from sklearn_msf.latent.latent_space import LatentSpace
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.image_space import PixelSpace
from sklearn_msf.persistence.json_data import labels_to_plain
from sklearn_msf.persistence.paths import as_path
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["check_kind_of_export", "export_model"]

_KINDS = ("classifier", "sampler")
# As the defaults of `sample`.
_N_STEPS, _ODE_SOLVER = 5, "midpoint"
# Probabilities of float32 near 1 differ by 6e-8 at least.
_ROUNDING = 1e-6


def check_kind_of_export(kind: Any) -> None:
    """Refuse what is not a kind of exported model."""
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, _KINDS))}, got {kind!r}.")


def export_model(
    path: Any, kind: str, model: FittedModel, p: Parameters, rule: RejectionRule | None
) -> None:
    """Export a fitted model.

    Parameters
    ----------
    path : str or Path
        File to write.
    kind : {"classifier", "sampler"}
        What to export.
    model : FittedModel
        The fitted model; for a sampler one that generates.
    p : Parameters
        Parameters of the estimator.
    rule : RejectionRule or None
        Rule for rejecting predictions, if one was learned.

    Raises
    ------
    ValueError
        For a model that cannot be exported, and for a rule that was learned with other parameters.
    """
    path = as_path("path", path)
    if isinstance(model.space, PixelSpace) and model.space.input_size is not None:
        raise ValueError(
            f"A model that was fitted with input_size={model.space.input_size!r} in network_params "
            "resizes images as Pillow does, which ONNX cannot: resize X, and fit with "
            "input_size=None."
        )
    # Before those of the rule, whose message is not about labels.
    labels_to_plain(model.classes)
    if kind == "classifier" and isinstance(model.space, LatentSpace):
        _check_encoders(model.space)
    if kind == "sampler":
        export_sampler(path, model, sampling_ode(model, _N_STEPS, _ODE_SOLVER, None), {})
        return
    settings = classification_settings(p, model.device)
    if rule is not None:
        check_rule(rule, None, prediction_parameters(p))
        _check_precision(rule.precision or settings.precision)
        _warn_of_low_threshold(rule)
    uncertainty = "margin" if rule is None else rule.kind
    # The settings are in the graph.
    rejection = None if rule is None else replace(rule, settings={}).to_plain()
    export_classifier(path, model, settings, uncertainty, {"rejection": rejection})


def _check_encoders(space: LatentSpace) -> None:
    """Refuse a backbone; a sampler needs only the autoencoder beside it."""
    if space.backbone is not None:
        and_one = "" if space.autoencoder is not None else " and an autoencoder"
        raise ValueError(
            f"A classifier with backbone={space.backbone.name} cannot be exported to "
            f"ONNX: fit with backbone=None{and_one}, or serve the estimator itself, saved by "
            "save_pretrained and opened by from_pretrained."
        )


def _check_precision(precision: str) -> None:
    """Refuse a threshold whose certificate is for other rounding than that of the file."""
    if precision != "float32":
        raise ValueError(
            f"fit_reject computed in {precision}, and an exported classifier computes in float32, "
            "where the threshold accepts other images than it was certified for: call "
            "set_params(precision='float32') and fit_reject again."
        )


def _warn_of_low_threshold(rule: RejectionRule) -> None:
    """Warn of a threshold at which rounding decides what is rejected."""
    if rule.threshold is not None and 0 < rule.threshold < _ROUNDING:
        warn_user(
            f"The threshold of fit_reject is {rule.threshold:.2g}, which is less than the rounding "
            "of float32: the exported classifier may reject other images than "
            "predict_with_reject. Compare both on calibration images."
        )
