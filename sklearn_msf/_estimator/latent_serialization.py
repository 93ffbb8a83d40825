"""Fitted estimators over latents as files and pickles."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_msf._estimator.pickling import arrays_to_tensors, tensors_to_arrays
from sklearn_msf._estimator.serialization import PretrainedEstimator
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.latent.autoencoder import AutoencoderError, ImageAutoencoder
from sklearn_msf.latent.autoencoder_io import autoencoder_from_record, autoencoder_to_record
from sklearn_msf.latent.scaling import LatentFormat
from sklearn_msf.persistence.archives import RecordError, check_tensors
from sklearn_msf.training.state import part_of

__all__ = ["OBJECT", "LatentState"]

# Stands in files for an object.
OBJECT = "<object>"
# Other machines round differently.
_PROBE_TOLERANCE = 0.01
# Sizes to which nobody enlarges images.
_MAX_ENLARGED = 1024
_MAX_ENLARGEMENT = 16


class LatentState(PretrainedEstimator):
    """Saves an autoencoder and the scaling of its latents with a fitted estimator."""

    autoencoder: Any
    label_prediction: str
    _autoencoder: ImageAutoencoder
    _autoencoder_asked_for: Any
    _latent_format: LatentFormat
    _image_format: ImageFormat

    def _check_channels(self, autoencoder: ImageAutoencoder) -> None:
        n_channels = self._image_format.n_channels
        if self.label_prediction == "velocity" and autoencoder.image_channels != 3:
            raise ValueError(
                f"label_prediction='velocity' encodes colours, but the autoencoder takes images "
                f"of {autoencoder.image_channels} channels: use label_prediction='posterior'."
            )
        if n_channels not in (1, autoencoder.image_channels):
            raise ValueError(
                f"X has images of {n_channels} channels; the autoencoder takes "
                f"{autoencoder.image_channels} (gray images are repeated). Select or convert "
                "channels, or train one with autoencoder='fit'."
            )

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "_autoencoder" in state:
            document, tensors = autoencoder_to_record(self._autoencoder, by_name=False)
            module = None
            if document["kind"] == "object":
                module = self._autoencoder.module
                if isinstance(module, nn.Module):
                    # A model from a GPU opens on a machine without.
                    module = copy.deepcopy(module).cpu()
            state["_autoencoder"] = [document, tensors_to_arrays(tensors), module]
            state["_latent_format"] = tensors_to_arrays(vars(self._latent_format))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if isinstance(state.get("_autoencoder"), (list, tuple)):
            document, arrays, module = state["_autoencoder"]
            tensors = arrays_to_tensors(arrays)
            state["_autoencoder"] = autoencoder_from_record(document, tensors, module)
            plain = arrays_to_tensors(state["_latent_format"])
            state["_latent_format"] = LatentFormat(**{**plain, "size": tuple(plain["size"])})
        super().__setstate__(state)
        if "_autoencoder" in state and hasattr(self, "field_"):
            self._autoencoder.to(self.field_.device)

    def _saved_representation(self) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        document, weights = autoencoder_to_record(self._autoencoder, by_name=True)
        latents = self._latent_format
        tensors = {f"autoencoder.{name}": value for name, value in weights.items()}
        tensors |= {"shift": latents.shift, "scale": latents.scale}
        if latents.mask_codes is not None:
            tensors["mask_codes"] = latents.mask_codes
        _, tensors["probe"] = self._autoencoder.fingerprint()
        return {"autoencoder": document, "encoded_size": list(latents.size)}, tensors

    def _open_representation(
        self, plain: Any, tensors: dict[str, Tensor], image_format: ImageFormat, given: Any
    ) -> int:
        self._autoencoder = autoencoder_from_record(
            plain["autoencoder"], part_of(tensors, "autoencoder"), given
        )
        _check_probe(self._autoencoder, tensors["probe"])
        factor, n_channels = self._autoencoder.factor, self._autoencoder.latent_channels
        height, width = (int(n) for n in plain["encoded_size"])
        most = max(_MAX_ENLARGED, *(_MAX_ENLARGEMENT * n for n in image_format.size))
        if not all(0 < n <= most and n % factor == 0 for n in (height, width)):
            raise RecordError(f"The model has encoded_size={plain['encoded_size']!r}.")
        shift, scale, codes = tensors["shift"], tensors["scale"], tensors.get("mask_codes")
        wanted = {"shift": torch.empty(n_channels), "scale": torch.empty(n_channels)}
        found = {"shift": shift, "scale": scale, "probe": tensors["probe"]}
        wanted["probe"] = torch.empty_like(tensors["probe"], dtype=torch.float32)
        if codes is not None:
            found["mask_codes"] = codes
            wanted["mask_codes"] = torch.empty(
                len(codes), n_channels, height // factor, width // factor
            )
        check_tensors(found, wanted, "The scaling of the latents")
        if not bool((scale > 0).all()):
            raise RecordError("The model has a scaling of latents that is not positive.")
        self._latent_format = LatentFormat((height, width), shift, scale, codes)
        self._variation_seed = 0
        if self.autoencoder == OBJECT:
            self.autoencoder = self._autoencoder.module if given is None else given
        self._autoencoder_asked_for = self.autoencoder
        self._image_format = image_format
        self._check_channels(self._autoencoder)
        return n_channels

    @classmethod
    def from_pretrained(cls, folder: Any, autoencoder: Any = None) -> "LatentState":
        """Open a model that :meth:`save_pretrained` saved.

        Nothing in the files is executed. An autoencoder that was trained with the model, or
        came from a folder or as an object of diffusers, is in the files; one from the hub is
        named by id and revision, and opened from there.

        Parameters
        ----------
        folder : str or Path
            Folder of the model.
        autoencoder : str or object, optional
            The autoencoder of a model whose files do not hold it: a folder, an id on the hub,
            or an object with `encode` and `decode`.

        Returns
        -------
        LatentMedSymmFlowClassifier
            Fitted; predicts what the saved one did, to the last bit on the same machine.

        Raises
        ------
        FileNotFoundError
            Where the folder holds no model.
        ValueError
            For files that were cut off, changed or exchanged, for models of another class, and
            for an autoencoder that cannot be had or makes other latents.
        """
        return cls._open(folder, autoencoder)


def _check_probe(autoencoder: ImageAutoencoder, wanted: Tensor) -> None:
    """Refuse an autoencoder that makes other latents of a fixed image."""
    _, found = autoencoder.fingerprint()
    same = found.shape == wanted.shape
    # Written so that numbers that are none do not pass.
    if not same or not bool((found - wanted).abs().max() <= _PROBE_TOLERANCE * wanted.std()):
        raise AutoencoderError(
            "The autoencoder makes other latents than the one that the model was fitted with "
            f"({tuple(found.shape)} and {tuple(wanted.shape)}, or other values): pass that one, "
            "from_pretrained(folder, autoencoder=...)."
        )
