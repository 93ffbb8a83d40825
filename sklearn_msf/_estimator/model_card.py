"""A short model card, which describes a saved model and how to open it.

It ends with a digest of itself, by which a changed card is recognised. Such a card is kept.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from sklearn_msf._estimator.fit_result import FitResult
from sklearn_msf.data.axes import NOUNS
from sklearn_msf.latent.latent_space import LatentSpace
from sklearn_msf.model.image_space import ImageSpace
from sklearn_msf.training.epoch_logs import count_images

__all__ = ["card_to_write", "is_card", "model_card"]

_START = b"---\nlibrary_name: sklearn_msf\n"
_END_OF_METADATA = b"\n---\n"
_START_OF_SEAL = b"<!-- sklearn_msf "

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
) -> bytes:
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

    Returns
    -------
    bytes
        In UTF-8, with a digest at the end.
    """
    classes = [str(label) for label in fit.model.classes.tolist()]
    listed = ", ".join(classes[:_MAX_LISTED]) + (", ..." if len(classes) > _MAX_LISTED else "")
    n_parameters = sum(p.numel() for p in fit.model.field.parameters())
    image_format = fit.model.image_format
    kind = NOUNS[image_format.n_spatial_dims].capitalize()
    last = fit.history[-1] if fit.history else {}
    seen = count_images(fit.history)
    earlier = ", the last of several calls of fit" if fit.continuation.lacks_epochs else ""
    encoders, passed = _encoders(fit.model.space, parameters.get("autoencoder"))
    draws = fit.model.generates and fit.model.space.makes_images
    abilities = (
        "classifies, tells how sure it\nis, and generates new images"
        if draws
        else "classifies and tells how\nsure it is"
    )
    text = f"""---
library_name: sklearn_msf
pipeline_tag: image-classification
tags: [medical-imaging, flow-matching]
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
    # A label may hold half of a surrogate pair, which UTF-8 lacks, and ends of lines, which may be
    # changed before the digest is read.
    return _sealed(text.replace("\r", "").encode(errors="backslashreplace"))


def is_card(content: bytes) -> bool:
    """Tell whether a README.md began as a model card of this package."""
    return _with_unix_lines(content).startswith(_START)


def card_to_write(new: bytes, old: bytes | None, license: str | None = None) -> bytes | None:
    """Return what to write in the place of a README.md, or None if that one is kept.

    Parameters
    ----------
    new : bytes
        A card that :func:`model_card` made.
    old : bytes or None
        What is there, if anything. Only unchanged cards of this package are replaced.
    license : str, optional
        Licence of the weights, as the hub names it. The default is what the old card states.

    Returns
    -------
    bytes or None
    """
    if old is not None:
        if not _is_unchanged(old):
            return None
        license = license or _license_of(old)
    if license is None:
        return new
    metadata, end, text = _without_seal(new).partition(_END_OF_METADATA)
    return _sealed(metadata + f"\nlicense: {license}".encode() + end + text)


def _is_unchanged(content: bytes) -> bool:
    """Tell whether a README.md is a model card of this package, as it was written."""
    content = _with_unix_lines(content)
    return content.startswith(_START) and content == _sealed(_without_seal(content))


def _license_of(card: bytes) -> str | None:
    metadata = _with_unix_lines(card).partition(_END_OF_METADATA)[0]
    stated = re.search(rb"^license: (\S+)$", metadata, re.MULTILINE)
    return None if stated is None else stated[1].decode()


def _sealed(text: bytes) -> bytes:
    """End a card with its digest."""
    digest = hashlib.sha256(text).hexdigest()[:16]
    return text + _START_OF_SEAL + f"{digest} -->\n".encode()


def _without_seal(card: bytes) -> bytes:
    return card.rpartition(_START_OF_SEAL)[0]


def _with_unix_lines(content: bytes) -> bytes:
    """Undo what git does to text files on Windows."""
    return content.replace(b"\r\n", b"\n")


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
