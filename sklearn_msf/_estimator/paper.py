"""The paper's settings: its Tables 3 to 5, and what only the published code says.

docs/paper.md lists each setting with its source, and what is not copied.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["latent_paper_settings", "paper_settings"]

# Of the published code, but for the one step, which follows from the times of Table 6.
_COMMON: dict[str, Any] = {
    "classification_fraction": 0.0,
    "optimizer": "adamw",
    "n_draws": 1,
    "n_steps": 1,
    "ode_solver": "euler",
}
# Shared by Tables 3 to 5, except the last entries, which are of the published code.
_NETWORK: dict[str, Any] = {
    "channel_mult": (1, 2, 2, 2),
    "n_blocks": 2,
    "attention_levels": (1,),
    "dropout": 0.0,
    "patch_size": 1,
    "time_scale": 1.0,
    "time_modulation": "shift",
    "upsampling": "adm",
}
# The published code resizes pixels to this size, whatever the size of the files.
_INPUT_SIZE = 32
# Image weight, weight decay and EMA decay are those of the only published command, which is for
# latents of BloodMNIST. No table has them.
_FLOW: dict[str, Any] = {
    "label_prediction": "velocity",
    "image_prediction": "velocity",
    "class_dropout": 0.0,
    "time_shift": 1.0,
    "image_weight": 0.7,
}
_OPTIMIZER: dict[str, Any] = {
    "weight_decay": 0.0,
    "max_grad_norm": None,
    "ema_decay": 0.7,
    "warmup": "cosine",
    "even_batches": False,
}

# Tables 3 and 4: batch size, epochs, learning rate. The published code: augmentation.
_PIXELS: dict[str, tuple[int, int, float, str | None]] = {
    "pneumoniamnist": (128, 1000, 5e-4, None),
    "bloodmnist": (256, 1000, 5e-4, "flip"),
    "dermamnist": (256, 1000, 3e-4, "flip"),
    "retinamnist": (256, 2000, 5e-4, "flip"),
}
# Table 5, and the published code for the augmentation.
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
    """Parameters of SymmFlow (grayscale codes, Table 3) or MSF (RGB codes, Table 4)."""
    key = _key(name, _PIXELS)
    beta = _GRAYSCALE_BETA[key] if label_encoding == "grayscale" else _BETA
    flow = {**_FLOW, "label_encoding": label_encoding, "beta": beta}
    return {
        **_COMMON,
        **_row(_PIXELS[key]),
        "channels": 64,
        "network_params": {**_NETWORK, "input_size": _INPUT_SIZE},
        "flow_params": flow,
        "optimizer_params": _OPTIMIZER,
    }


def latent_paper_settings(name: Any) -> dict[str, Any]:
    """Parameters of LatMSF (Table 5)."""
    return {
        **_COMMON,
        **_row(_LATENTS[_key(name, _LATENTS)]),
        "channels": 128,
        "network_params": _NETWORK,
        "optimizer_params": _OPTIMIZER,
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
