"""A short model card: what a saved model is and how to open it."""

from typing import Any

__all__ = ["CARD_START", "model_card"]

# By this a card is known as ours, and may be replaced.
CARD_START = b"---\nlibrary_name: sklearn_msf\n"

# Labels that a card lists before it gets long.
_MAX_LISTED = 20


def model_card(estimator: Any) -> str:
    """Describe a fitted estimator in Markdown.

    Parameters
    ----------
    estimator : BaseMedSymmFlowClassifier
        Fitted.

    Returns
    -------
    str
    """
    name = type(estimator).__name__
    classes = [str(label) for label in estimator.classes_.tolist()]
    listed = ", ".join(classes[:_MAX_LISTED]) + (", ..." if len(classes) > _MAX_LISTED else "")
    n_parameters = sum(p.numel() for p in estimator.field_.parameters())
    image_format = estimator._image_format
    last = estimator.history_[-1] if estimator.history_ else {}
    seen = sum(record.get("n_images", 0) for record in estimator.history_)
    return f"""---
library_name: sklearn_msf
tags: [image-classification, medical-imaging, flow-matching]
---

# {name}

Symmetrical flow matching over images: one velocity field that classifies, tells how sure it
is, and draws new images.

- Images: {" x ".join(map(str, image_format.shape))}, {image_format.dtype} in
  [{image_format.low:g}, {image_format.high:g}]
- Classes ({len(classes)}): {listed}
- Parameters: {n_parameters:,}
- Training: {len(estimator.history_)} epochs, {seen:,} images seen, last loss
  {last.get("loss", float("nan")):.4g}

```python
from sklearn_msf import {name}

clf = {name}.from_pretrained("path/to/this/folder")
clf.predict_proba(X)
```

Not a medical device. How well the model does was not measured by what wrote this card; look
at it on data of your own before you rely on it.
"""
