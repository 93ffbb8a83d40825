"""Settings of the paper's Tables 3 to 5."""

from collections.abc import Mapping
from typing import Any

__all__ = ["latent_paper_settings", "paper_settings"]

# Settings that Tables 3 to 5 share, and settings of the method of section 3 of the paper.
_COMMON: dict[str, Any] = {
    "classification_fraction": 0.0,
    "optimizer": "adamw",
    "n_draws": 1,
    "n_steps": 1,
    "ode_solver": "euler",
    "precision": "bfloat16",
}
_NETWORK: dict[str, Any] = {
    "channel_mult": (1, 2, 2, 2),
    "n_blocks": 2,
    "attention_levels": (1,),
    "patch_size": 1,
    "dropout": 0.0,
}
_FLOW: dict[str, Any] = {
    "label_prediction": "velocity",
    "image_prediction": "velocity",
    "class_dropout": 0.0,
    "image_weight": 0.7,
}
_OPTIMIZER: dict[str, Any] = {"weight_decay": 0.01, "max_grad_norm": None, "ema_decay": 0.7}
_GROUPS = {"network_params": _NETWORK, "optimizer_params": _OPTIMIZER}

# Tables 3 and 4: batch size, epochs, learning rate, augmentation.
_PIXELS: dict[str, tuple[int, int, float, str | None]] = {
    "pneumoniamnist": (128, 1000, 5e-4, None),
    "bloodmnist": (256, 1000, 5e-4, "flip"),
    "dermamnist": (256, 1000, 3e-4, "flip"),
    "retinamnist": (256, 2000, 5e-4, "flip"),
}
# Table 5.
_LATENTS: dict[str, tuple[int, int, float, str | None]] = {
    "pneumoniamnist": (64, 2000, 3e-4, None),
    "bloodmnist": (64, 1000, 4e-4, "flip"),
    "dermamnist": (128, 1000, 5e-4, "flip"),
    "retinamnist": (128, 2000, 5e-4, "flip"),
}
# beta of Table 3 (SymmFlow, grayscale); in Table 4 (MedSymmFlow, RGB) it is always 4.
_GRAYSCALE_BETA = {
    "pneumoniamnist": 1.0,
    "bloodmnist": 4.0,
    "dermamnist": 4.0,
    "retinamnist": 3.0,
}
_BETA = 4.0


def paper_settings(name: Any, label_encoding: str) -> dict[str, Any]:
    """Parameters of Table 3 (grayscale codes) or Table 4 (RGB codes) for a data set."""
    key = _key(name, _PIXELS)
    beta = _GRAYSCALE_BETA[key] if label_encoding == "grayscale" else _BETA
    flow = {**_FLOW, "label_encoding": label_encoding, "beta": beta}
    return {**_COMMON, **_row(_PIXELS[key]), **_GROUPS, "channels": 64, "flow_params": flow}


def latent_paper_settings(name: Any) -> dict[str, Any]:
    """Parameters of Table 5 for a data set."""
    return {
        **_COMMON,
        **_row(_LATENTS[_key(name, _LATENTS)]),
        **_GROUPS,
        "channels": 128,
        "flow_params": {**_FLOW, "label_encoding": "rgb", "beta": _BETA},
        "autoencoder": "stabilityai/sd-vae-ft-mse",
        "encoded_size": 256,
        "label_decoding": "pixel",
    }


def _row(row: tuple[int, int, float, str | None]) -> dict[str, Any]:
    names = ("batch_size", "max_epochs", "learning_rate", "augment")
    return dict(zip(names, row, strict=True))


def _key(name: Any, table: Mapping[str, Any]) -> str:
    """Find a data set in a table, or raise a ValueError that lists those it has."""
    key = name.lower() if isinstance(name, str) else name
    if key not in table:
        raise ValueError(f"name must be one of {sorted(table)}, got {name!r}.")
    return str(key)
