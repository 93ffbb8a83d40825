"""Tiny models and data that every test file shares."""

import numpy as np
import pytest
import torch
from hypothesis import settings
from sklearn.datasets import load_digits

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.fields import make_field
from sklearn_msf.label_codes import make_label_codes

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
    "device": "cpu",
    "precision": "float32",
    "random_state": 0,
}


def tiny_classifier(**overrides):
    return MedSymmFlowClassifier(**{**TINY, **overrides})


@pytest.fixture(scope="session")
def digits():
    """Images of the digits 0 to 2, (n, 8, 8) in 0 to 16, with string labels."""
    X, y = load_digits(n_class=3, return_X_y=True)
    return X.reshape(-1, 8, 8)[:240], np.array(["zero", "one", "two"])[y[:240]]


@pytest.fixture(scope="session")
def fitted(digits):
    """A classifier that knows three digits; tests must not change it."""
    X, y = digits
    return tiny_classifier(channels=16, max_epochs=30, t1_share=0.5).fit(X, y)


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
