"""A short model card, which describes a saved model and how to open it."""

from collections.abc import Mapping
from typing import Any

from sklearn_msf._estimator.fit_result import FitResult
from sklearn_msf.data.axes import NOUNS
from sklearn_msf.latent.latent_space import LatentSpace
from sklearn_msf.model.image_space import ImageSpace
from sklearn_msf.training.epoch_logs import count_images

__all__ = ["CARD_START", "model_card"]

# A README.md that starts with this is a card of this package, and may be replaced.
CARD_START = b"---\nlibrary_name: sklearn_msf\n"

# Classes that a card can import; users may have subclasses of their own.
_PUBLIC_CLASSES = ("MedSymmFlowClassifier", "LatentMedSymmFlowClassifier")
# Largest number of labels in a card.
_MAX_LISTED = 20


def model_card(
    name: str,
    fit: FitResult,
    parameters: Mapping[str, Any],
    *,
    place: str = "path/to/this/folder",
    license: str | None = None,
) -> str:
    """Describe a fitted model in Markdown.

    Parameters
    ----------
    name : str
        Name of the estimator class.
    fit : FitResult
        The fitted model.
    parameters : mapping
        Constructor parameters of the estimator.
    place : str, default="path/to/this/folder"
        What the example opens: a folder, or an id on the hub.
    license : str, optional
        Licence of the weights, as the hub names it.

    Returns
    -------
    str
    """
    classes = [str(label) for label in fit.model.classes.tolist()]
    listed = ", ".join(classes[:_MAX_LISTED]) + (", ..." if len(classes) > _MAX_LISTED else "")
    n_parameters = sum(p.numel() for p in fit.model.field.parameters())
    image_format = fit.model.image_format
    kind = NOUNS[image_format.n_spatial_dims].capitalize()
    last = fit.history[-1] if fit.history else {}
    seen = count_images(fit.history)
    earlier = ", the last of several calls of fit" if fit.continuation.lacks_epochs else ""
    stated = "" if license is None else f"\nlicense: {license}"
    encoders, passed = _encoders(fit.model.space, parameters.get("autoencoder"))
    draws = fit.model.generates and fit.model.space.makes_images
    abilities = (
        "classifies, tells how sure it\nis, and generates new images"
        if draws
        else "classifies and tells how\nsure it is"
    )
    return f"""---
library_name: sklearn_msf
pipeline_tag: image-classification
tags: [medical-imaging, flow-matching]{stated}
---

# {name}

Symmetrical flow matching over images: one velocity field that {abilities}.

- {kind}s: {" x ".join(map(str, image_format.shape))}, {image_format.dtype} in
  [{image_format.low:g}, {image_format.high:g}]
- Classes ({len(classes)}): {listed}
- Parameters: {n_parameters:,}
- Training{earlier}: {len(fit.history)} epochs, {seen:,} images seen, last loss
  {last.get("loss", float("nan")):.4g}{_fraction(last)}
{encoders}
```python
{_import_of(name)}

clf = {name}.from_pretrained("{place}"{passed})
clf.predict_proba(X)
```

Not a medical device. This card contains no performance measurements: evaluate the model on your
own data before you rely on it.
"""


def _import_of(name: str) -> str:
    """Write the line that imports the class, or says whose it is."""
    if name in _PUBLIC_CLASSES:
        return f"from sklearn_msf import {name}"
    return f"# {name} is a subclass of one of sklearn_msf: import it from the code of its author."


def _fraction(last: dict[str, Any]) -> str:
    """Say how many of the images taught classification; logs of older models do not have it."""
    fraction = last.get("classification_fraction")
    return "" if fraction is None else f", {100 * fraction:.0f} % of each batch at t = 1"


def _encoders(space: ImageSpace, asked: Any) -> tuple[str, str]:
    """Name encoders and their licences, and the arguments with which they are passed if needed.

    `asked` is the parameter `autoencoder`.
    """
    lines, passed = "", ""
    source = space.autoencoder_source
    if source is not None:
        kind, of_class = source["kind"], source["class"]
        if kind == "embedded" and isinstance(asked, str) and asked in ("auto", "fit"):
            lines += f"- Autoencoder: {of_class}, fitted to the training images\n"
        else:
            where = "frozen" if kind == "embedded" else "frozen, not in these files"
            lines += f"- Autoencoder ({where}): {_origin(source, of_class)}\n"
        passed += ", autoencoder=..." if kind == "object" else ""
    backbone = space.backbone if isinstance(space, LatentSpace) else None
    if backbone is not None:
        origin = _origin(backbone.source, backbone.name)
        lines += f"- Backbone (frozen, not in these files): {origin}\n"
        passed += "" if backbone.source["kind"] == "hub" else ", backbone=..."
    return lines, passed


def _origin(source: Mapping[str, Any], name: str) -> str:
    """Say where an encoder comes from, and the licence of its weights."""
    if source["kind"] == "hub":
        name = f"{source['id']}, revision {source['revision']}"
    return f"{name}; licence: {source.get('licence') or 'unknown'}"
