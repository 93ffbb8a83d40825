"""A short model card, which describes a saved model and how to open it."""

from typing import Any

from sklearn_msf._estimator.fit import Fit
from sklearn_msf.data.axes import NOUNS
from sklearn_msf.latent.latent_space import LatentSpace
from sklearn_msf.model.image_space import ImageSpace

__all__ = ["CARD_START", "model_card"]

# A README.md that starts with this is a card of this package, and may be replaced.
CARD_START = b"---\nlibrary_name: sklearn_msf\n"

# Largest number of labels in a card.
_MAX_LISTED = 20


def model_card(
    name: str, fit: Fit, *, place: str = "path/to/this/folder", license: str | None = None
) -> str:
    """Describe a fitted model in Markdown.

    Parameters
    ----------
    name : str
        Name of the estimator class.
    fit : Fit
        The fitted model.
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
    seen = sum(epoch_log.get("n_images", 0) for epoch_log in fit.history)
    stated = "" if license is None else f"\nlicense: {license}"
    of_backbone, passed = _backbone(fit.model.space)
    return f"""---
library_name: sklearn_msf
pipeline_tag: image-classification
tags: [medical-imaging, flow-matching]{stated}
---

# {name}

Symmetrical flow matching over images: one velocity field that classifies, tells how sure it
is, and generates new images.

- {kind}s: {" x ".join(map(str, image_format.shape))}, {image_format.dtype} in
  [{image_format.low:g}, {image_format.high:g}]
- Classes ({len(classes)}): {listed}
- Parameters: {n_parameters:,}
- Training: {len(fit.history)} epochs, {seen:,} images seen, last loss
  {last.get("loss", float("nan")):.4g}{_fraction(last)}
{of_backbone}
```python
from sklearn_msf import {name}

clf = {name}.from_pretrained("{place}"{passed})
clf.predict_proba(X)
```

Not a medical device. This card contains no performance measurements: evaluate the model on your
own data before you rely on it.
"""


def _fraction(last: dict[str, Any]) -> str:
    """Say how many of the images taught classification; logs of older models do not have it."""
    fraction = last.get("classification_fraction")
    return "" if fraction is None else f", {100 * fraction:.0f} % of each batch at t = 1"


def _backbone(space: ImageSpace) -> tuple[str, str]:
    """Name the backbone and its licence, and the argument with which it is passed if it has to."""
    if not isinstance(space, LatentSpace) or space.features is None:
        return "", ""
    backbone = space.features.backbone
    source = backbone.source
    of_hub = source["kind"] == "hub"
    origin = f"{source['id']}, revision {source['revision']}" if of_hub else backbone.name
    licence = source.get("licence") or "unknown"
    line = f"- Backbone (frozen, not in these files): {origin}; licence: {licence}\n"
    return line, "" if of_hub else ", backbone=..."
