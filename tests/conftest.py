"""Tiny models and data that every test file shares."""

import atexit
import functools
import shutil
import tempfile

import numpy as np
import pytest
import torch
from hypothesis import settings
from sklearn.datasets import load_digits

from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf.flow.label_codes import make_label_codes
from sklearn_msf.flow.parameterizations import make_field
from sklearn_msf.latent.autoencoder import build_autoencoder

# The first call of a torch kernel can take longer than hypothesis allows an example.
settings.register_profile("package", deadline=None, derandomize=True)
settings.load_profile("package")

TINY = {
    "channels": 8,
    "channel_mult": (1,),
    "n_blocks": 1,
    "attention_levels": (),
    "max_epochs": 2,
    "augment": None,
    "dropout": 0.0,
    # Over so few steps the image half would drown the label half.
    "image_weight": 0.1,
    "device": "cpu",
    "precision": "float32",
    "random_state": 0,
}


def tiny_classifier(**overrides):
    return MedSymmFlowClassifier(**{**TINY, **overrides})


class Averages:
    """The simplest autoencoder: means over squares of four pixels."""

    gain = 1.0

    def encode(self, images):
        return self.gain * torch.nn.functional.avg_pool2d(images, 4)

    def decode(self, latents):
        return latents.repeat_interleave(4, 2).repeat_interleave(4, 3) / self.gain


def tiny_autoencoder(kind="AutoencoderKL", **overrides):
    """An autoencoder of diffusers with random weights."""
    configs = {
        "AutoencoderKL": {
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "block_out_channels": [8, 8],
            "norm_num_groups": 4,
            "scaling_factor": 6.0,
        },
        "AutoencoderTiny": {
            "encoder_block_out_channels": [8, 8],
            "decoder_block_out_channels": [8, 8],
            "num_encoder_blocks": [1, 1],
            "num_decoder_blocks": [1, 1],
        },
    }
    torch.manual_seed(0)
    module = build_autoencoder(kind, {**configs[kind], **overrides})
    if kind == "AutoencoderKL":
        # Without training its posteriors would be all noise.
        n_channels = module.config.latent_channels
        module.quant_conv.bias.data[n_channels:] -= 10
    return module


@functools.cache
def autoencoder_folder():
    """Where a tiny autoencoder with random weights is."""
    folder = tempfile.mkdtemp(prefix="sklearn_msf")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tiny_autoencoder().save_pretrained(folder)
    return folder


def tiny_latent_classifier(**overrides):
    settings = {"autoencoder": autoencoder_folder(), **TINY, **overrides}
    return LatentMedSymmFlowClassifier(**settings)


CLASSIFIERS = {"pixels": tiny_classifier, "latents": tiny_latent_classifier}


@pytest.fixture(scope="session", params=CLASSIFIERS)
def make_classifier(request):
    """Factory of tiny classifiers of both classes."""
    return CLASSIFIERS[request.param]


@pytest.fixture(scope="session")
def digits():
    """Images of the digits 0 to 2, (n, 8, 8) in 0 to 16, with string labels."""
    X, y = load_digits(n_class=3, return_X_y=True)
    return X.reshape(-1, 8, 8)[:240], np.array(["zero", "one", "two"])[y[:240]]


@pytest.fixture(scope="session", params=CLASSIFIERS)
def fitted(digits, request):
    """A classifier that knows three digits; tests must not change it."""
    X, y = digits
    make = CLASSIFIERS[request.param]
    return make(channels=16, max_epochs=30, t1_share=0.5).fit(X, y)


@pytest.fixture
def make_tiny_field():
    """Factory of untrained fields over gray images with every weight drawn at random."""

    def make(form="posterior", encoding="rgb", n_classes=3, **unet):
        torch.manual_seed(0)
        layout = {"channels": 8, "channel_mult": (1, 2), "n_blocks": 1, **unet}
        field = make_field(form, make_label_codes(encoding, n_classes, 4.0), 1, **layout)
        for parameter in field.parameters():
            if not parameter.abs().sum():
                torch.nn.init.normal_(parameter, std=0.1)
        return field.eval()

    return make
