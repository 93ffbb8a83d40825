"""Checks that encoders take the channels of images and masks."""

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.latent.autoencoder import ImageAutoencoder
from sklearn_msf.latent.backbone import ImageBackbone

__all__ = ["check_channels", "check_colours"]


def check_channels(
    image_format: ImageFormat, encoder: ImageAutoencoder | ImageBackbone, *, encodes_masks: bool
) -> None:
    """Refuse images or masks whose channels an encoder does not take.

    Raises
    ------
    ValueError
        If the channels do not fit. The message says what to change.
    """
    n_channels = image_format.n_channels
    if encodes_masks and encoder.image_channels != 3:
        raise ValueError(
            f"label_prediction='velocity' encodes colours, but the autoencoder takes images "
            f"of {encoder.image_channels} channels: use label_prediction='posterior' "
            "in flow_params."
        )
    if n_channels in (1, encoder.image_channels):
        return
    named, remedy = "backbone", "pass a backbone for such images"
    if isinstance(encoder, ImageAutoencoder):
        named, remedy = "autoencoder", "train one with autoencoder='fit'"
        if encodes_masks:
            remedy += " and label_prediction='posterior' in flow_params"
    raise ValueError(
        f"X has images of {n_channels} channels; the {named} takes {encoder.image_channels} (gray "
        f"images are repeated). Select or convert channels, or {remedy}."
    )


def check_colours(image_format: ImageFormat, *, encodes_masks: bool) -> None:
    """Refuse images for which no autoencoder that encodes colours can be trained.

    Raises
    ------
    ValueError
        If masks are to be encoded, and the images are neither gray nor of three channels.
    """
    n_channels = image_format.n_channels
    if encodes_masks and n_channels not in (1, 3):
        raise ValueError(
            f"label_prediction='velocity' encodes colours beside images, but X has images of "
            f"{n_channels} channels: use label_prediction='posterior' in flow_params, or gray or "
            "RGB images."
        )
