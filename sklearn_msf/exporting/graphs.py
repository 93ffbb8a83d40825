"""Torch modules whose graphs are exported: a classifier, and the three parts of a sampler."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_msf.exporting.image_conversion import exact, from_field, to_field
from sklearn_msf.flow.velocity_field import ClassPosteriorField, VelocityField
from sklearn_msf.model.classification import ClassificationSettings
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.nn.convolution import (
    InputConvolution,
    convolve_with_constants,
    summed_weights,
)
from sklearn_msf.nn.unet import GroupNorm

__all__ = [
    "EXPORTED_UNCERTAINTIES",
    "ClassifierGraph",
    "SamplerEnd",
    "SamplerStart",
    "SamplerStep",
    "for_graphs",
]

# Far below what changes an entropy, and within float32, to which numbers of a graph are rounded.
_TINY = 1e-30


def for_graphs(model: FittedModel) -> FittedModel:
    """Copy a model to the CPU, with layers that ONNX has and without splitting of batches."""
    field = copy.deepcopy(model.field).move_to(torch.device("cpu"))
    space = model.space.for_graphs()
    autoencoder = getattr(space, "autoencoder", None)
    if autoencoder is not None and isinstance(autoencoder.module, nn.Module):
        _make_upsampling_plain(autoencoder.module)
    return replace(model, field=_with_plain_layers(field), space=space)


class _PlainGroupNorm(nn.Module):
    """Torch's group normalisation, which ONNX has, with the weights of ours.

    Ours is faster in training on a CPU, but would be exported as fifteen operations.
    """

    def __init__(self, norm: GroupNorm):
        super().__init__()
        self.n_groups = norm.n_groups
        self.weight, self.bias = norm.weight, norm.bias

    def forward(
        self, h: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """Normalise (n, C, H, W), then scale by 1 + scale and shift, each (n, C)."""
        h = F.group_norm(h, self.n_groups, self.weight, self.bias)
        if scale is None or shift is None:
            return h
        spatial = (..., *[None] * (h.ndim - 2))
        return h * (1 + scale[spatial]) + shift[spatial]


class _SummedConvolution(nn.Module):
    """The first convolution with the summed weights of the mask as a constant of the graph."""

    weight: Tensor

    def __init__(self, convolution: InputConvolution, n_constants: int, n_folded: int):
        super().__init__()
        n_channels = convolution.weight.shape[1] - n_constants * n_folded
        weight = summed_weights(convolution.weight.detach(), n_channels, n_constants)
        self.register_buffer("weight", weight.contiguous())
        self.bias = convolution.bias

    def forward(self, z: Tensor, constant: Tensor) -> Tensor:
        """Map z, (n, C, H, W), and constants, (n, C'), to (n, C_out, H, W)."""
        return convolve_with_constants(z, constant, self.weight, self.bias)


def _with_plain_layers(field: VelocityField) -> VelocityField:
    first = field.unet.conv_in
    if isinstance(field, ClassPosteriorField):
        n_folded = field.unet.patch_size ** (first.weight.ndim - 2)
        summed = _SummedConvolution(first, field.codes.n_channels, n_folded)
        setattr(field.unet, "conv_in", summed)  # noqa: B010
    for parent in list(field.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GroupNorm):
                setattr(parent, name, _PlainGroupNorm(child))
    return field


class _PlainUpsampling(nn.Module):
    """Upsampling of diffusers, which has a branch for 64 images and more: a graph has one branch.

    Without this a graph would be limited to 63 images.
    """

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(
        self, h: Tensor, output_size: tuple[int, int] | None = None, *args: Any, **others: Any
    ) -> Tensor:
        """Double the sides of (n, C, H, W), or bring it to a size, and smooth."""
        scale = None if output_size is not None else 2.0
        h = F.interpolate(h, size=output_size, scale_factor=scale, mode="nearest")
        smooth: Tensor = self.conv(h)
        return smooth


def _make_upsampling_plain(module: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if _is_upsampling_of_diffusers(child):
                setattr(parent, name, _PlainUpsampling(child.get_submodule("conv")))


def _is_upsampling_of_diffusers(module: nn.Module) -> bool:
    """Tell whether a module does what `_PlainUpsampling` does."""
    kind = type(module)
    if kind.__name__ != "Upsample2D" or not kind.__module__.startswith("diffusers."):
        return False
    wanted = {"use_conv": True, "use_conv_transpose": False, "interpolate": True, "norm": None}
    found = {name: getattr(module, name, None) for name in (*wanted, "name")}
    return found == {**wanted, "name": "conv"}


# Uncertainties, see `sklearn_msf.model.uncertainty`. Each takes the probabilities (n, K), the
# distances (n, K) and the probabilities of the draws (n_draws, n, K), all float64.


def _margin(p: Tensor, distances: Tensor, draws: Tensor) -> Tensor:
    largest = p.topk(2, dim=1).values
    return 1 - (largest[:, 0] - largest[:, 1])


def _entropy(p: Tensor, distances: Tensor, draws: Tensor) -> Tensor:
    return _entropy_of(p)


def _distance(p: Tensor, distances: Tensor, draws: Tensor) -> Tensor:
    return distances.gather(1, p.argmax(dim=1, keepdim=True))[:, 0]


def _draws(p: Tensor, distances: Tensor, draws: Tensor) -> Tensor:
    between = _entropy_of(draws.mean(dim=0)) - _entropy_of(draws).mean(dim=0)
    return between.clamp_min(0)


def _entropy_of(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(_TINY).log()).sum(dim=-1)


EXPORTED_UNCERTAINTIES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "margin": _margin,
    "entropy": _entropy,
    "distance": _distance,
    "draws": _draws,
}


class ClassifierGraph(nn.Module):
    """Images of X to class probabilities and uncertainties, in one step of the ODE.

    Parameters
    ----------
    model : FittedModel
        Result of :func:`for_graphs`.
    settings : ClassificationSettings
        Settings of classification, with a single Euler step, in float32.
    kind : str
        Kind of the uncertainty, a key of `EXPORTED_UNCERTAINTIES`.
    """

    noise: Tensor

    def __init__(self, model: FittedModel, settings: ClassificationSettings, kind: str):
        super().__init__()
        self.field, self._model, self._settings = model.field, model, settings
        self._uncertainty = EXPORTED_UNCERTAINTIES[kind]
        self._needs_draws = kind == "draws"
        self._reader = model.space.reader(model.field.codes, settings.label_decoding)
        self.register_buffer("noise", model.mask_noise(settings.n_draws, settings.ode))

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Classify images as :func:`~sklearn_msf.model.classification.predict` does.

        Parameters
        ----------
        X : Tensor of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images in the dtype, layout and range of the training X.

        Returns
        -------
        probabilities : Tensor of shape (n, K), float32
        uncertainty : Tensor of shape (n,), float64
        """
        n, n_draws = X.shape[0], self.noise.shape[0]
        images = self._views(to_field(X, self._model.image_format), n_draws)
        masks = self.noise[:, None].expand(-1, n, *self.noise.shape[1:]).flatten(0, 1)
        evidence = self.field.class_evidence(images, masks, self._settings.ode)
        by_draw = evidence.float().unflatten(0, (n_draws, n))
        if n_draws < self._settings.n_draws:
            by_draw = by_draw[[i % n_draws for i in range(self._settings.n_draws)]]
        p, distances = self._decode(by_draw.mean(dim=0), n)
        draws = p[None]
        if self._needs_draws:
            draws = torch.stack([self._decode(by_draw[i], n)[0] for i in range(len(by_draw))])
        if self._model.temperature != 1:
            logits = p.clamp_min(exact(torch.finfo(p.dtype).tiny)).log()
            p = torch.softmax(logits / exact(self._model.temperature), dim=1)
        return p.float(), self._uncertainty(p, distances, draws)

    def _views(self, images: Tensor, n_draws: int) -> Tensor:
        """Stack the images of all draws: they see the flips of training in turn."""
        views = [images.flip(flip) if flip else images for flip in self._model.flips(n_draws)]
        encoded = [self._model.space.encode(view, "float32") for view in views]
        return torch.cat([encoded[draw % len(views)] for draw in range(n_draws)])

    def _decode(self, evidence: Tensor, n: int) -> tuple[Tensor, Tensor]:
        return self.field.decode(self._reader.prepare(evidence, n).double(), self._reader)


class SamplerStart(nn.Module):
    """Class indices and noise to the state at t = 0 and the ends of the path of the masks."""

    def __init__(self, model: FittedModel):
        super().__init__()
        self.field, self._shape = model.field, model.space.shape

    def forward(self, labels: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """Start from labels (n,), int64, and noise (n, C_x + n_mask_noise, H, W), float32.

        The state comes twice: as the beginning of a step, and as what is evaluated first.
        """
        n_channels, *size = self._shape
        masks, e_y = self.field.masks_and_noise(labels, size, noise[:, n_channels:])
        masks = masks.contiguous()
        state = self.field.generation_start(noise[:, :n_channels], masks)
        # A graph cannot return one value under two names.
        twice = [part.clone() for part in state for _ in range(2)]
        return *twice, masks, e_y


class SamplerStep(nn.Module):
    """One guided evaluation of the velocity, see :class:`Evaluation`."""

    def __init__(self, model: FittedModel, guidance: float):
        super().__init__()
        self.field, self._guidance = model.field, guidance

    # No variable arguments, which the tracer of torch 2.9 cannot guard.
    def forward(
        self,
        time: Tensor,
        ahead: Tensor,
        moved: Tensor,
        masks: Tensor,
        e_y: Tensor,
        from_x: Tensor,
        x: Tensor,
        from_y: Tensor | None = None,
        y: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Move the beginning of a step, (from_x, from_y), and the state of the evaluation, (x, y).

        Without masks in the state there is no y; `time`, `ahead` and `moved` are 0-d.
        """
        beginning = (from_x,) if from_y is None else (from_x, from_y)
        state = (x,) if y is None else (x, y)
        v = self.field.generation_velocity(time, state, masks, e_y, self._guidance)
        return tuple(
            part + factor * of_part
            for part, of_part in zip(beginning, v, strict=True)
            for factor in (moved, ahead)
        )


class SamplerEnd(nn.Module):
    """Outputs of the field at t = 1 to images in the dtype, layout and range of X."""

    def __init__(self, model: FittedModel):
        super().__init__()
        self._model = model

    def forward(self, x: Tensor) -> Tensor:
        """Convert (n, C_x, H, W) to images of X."""
        return from_field(self._model.space.images(x).float(), self._model.image_format)
