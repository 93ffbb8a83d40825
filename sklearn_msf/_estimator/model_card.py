"""A short model card, which describes a saved model and how to open it."""

from sklearn_msf._estimator.fit import Fit
from sklearn_msf.data.axes import NOUNS

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
    kind = NOUNS[image_format.n_spatial_dims].capitalize()
    last = fit.history[-1] if fit.history else {}
    seen = sum(epoch_log.get("n_images", 0) for epoch_log in fit.history)
    return f"""---
library_name: sklearn_msf
tags: [image-classification, medical-imaging, flow-matching]
---

# {name}

Symmetrical flow matching over images: one velocity field that classifies, tells how sure it
is, and generates new images.

- {kind}s: {" x ".join(map(str, image_format.shape))}, {image_format.dtype} in
  [{image_format.low:g}, {image_format.high:g}]
- Classes ({len(classes)}): {listed}
- Parameters: {n_parameters:,}
- Training: {len(fit.history)} epochs, {seen:,} images seen, last loss
  {last.get("loss", float("nan")):.4g}

```python
from sklearn_msf import {name}

clf = {name}.from_pretrained("path/to/this/folder")
clf.predict_proba(X)
```

Not a medical device. This card contains no performance measurements: evaluate the model on your
own data before you rely on it.
"""
