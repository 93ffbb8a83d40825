"""A short model card, which describes a saved model and how to open it."""

from sklearn_msf._estimator.fit import Fit
from sklearn_msf.latent.latent_space import LatentSpace
from sklearn_msf.model.image_space import ImageSpace

__all__ = ["CARD_START", "model_card"]

# A README.md that starts with this is a card of this package, and may be replaced.
CARD_START = b"---\nlibrary_name: sklearn_msf\n"

# Largest number of labels in a card.
_MAX_LISTED = 20


def model_card(name: str, fit: Fit) -> str:
    """Describe a fitted model in Markdown.

    Parameters
    ----------
    name : str
        Name of the estimator class.
    fit : Fit
        The fitted model.

    Returns
    -------
    str
    """
    classes = [str(label) for label in fit.model.classes.tolist()]
    listed = ", ".join(classes[:_MAX_LISTED]) + (", ..." if len(classes) > _MAX_LISTED else "")
    n_parameters = sum(p.numel() for p in fit.model.field.parameters())
    image_format = fit.model.image_format
    last = fit.history[-1] if fit.history else {}
    seen = sum(epoch_log.get("n_images", 0) for epoch_log in fit.history)
    of_backbone, passed = _backbone(fit.model.space)
    return f"""---
library_name: sklearn_msf
tags: [image-classification, medical-imaging, flow-matching]
---

# {name}

Symmetrical flow matching over images: one velocity field that classifies, tells how sure it
is, and generates new images.

- Images: {" x ".join(map(str, image_format.shape))}, {image_format.dtype} in
  [{image_format.low:g}, {image_format.high:g}]
- Classes ({len(classes)}): {listed}
- Parameters: {n_parameters:,}
- Training: {len(fit.history)} epochs, {seen:,} images seen, last loss
  {last.get("loss", float("nan")):.4g}
{of_backbone}
```python
from sklearn_msf import {name}

clf = {name}.from_pretrained("path/to/this/folder"{passed})
clf.predict_proba(X)
```

Not a medical device. This card contains no performance measurements: evaluate the model on your
own data before you rely on it.
"""


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
