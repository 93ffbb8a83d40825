"""Tiny models and data that every test file shares."""

import atexit
import contextlib
import functools
import gc
import inspect
import json
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from hypothesis import settings
from sklearn.datasets import load_digits

from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf._estimator.parameters import PARAMETERS
from sklearn_msf.data.images import learn_format
from sklearn_msf.flow.velocity_field import FieldLayout, build_field
from sklearn_msf.latent.autoencoder import build_autoencoder
from sklearn_msf.model.classification import images_a_pass
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.image_space import PixelSpace
from sklearn_msf.runtime.device import resolve_device


def limit_full_passes(n_rows, patch=None):
    """Let full batches have so many rows, until `patch`, a MonkeyPatch, is undone."""
    *_, last = inspect.signature(images_a_pass).parameters
    assert last == "max_rows"
    defaults = (*images_a_pass.__defaults__[:-1], n_rows)
    if patch is None:
        images_a_pass.__defaults__ = defaults
    else:
        patch.setattr(images_a_pass, "__defaults__", defaults)


# A full batch, to which smaller ones are compared, need not be larger for networks this small.
limit_full_passes(64)


@contextlib.contextmanager
def torch_threads(n_threads):
    """Let torch use so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# The first call of a torch kernel can take longer than hypothesis allows an example.
settings.register_profile("package", deadline=None, derandomize=True)
settings.load_profile("package")

# Device of the tiny classifiers, "cuda" for the suite on a GPU. Tests with another device name it.
DEVICE = os.environ.get("SKLEARN_MSF_TEST_DEVICE", "cpu")
# Without it torch refuses products on a GPU in the tests that ask for deterministic algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

TINY = {
    "channels": 8,
    "channel_mult": (1,),
    "n_blocks": 1,
    "attention_levels": (),
    "max_epochs": 2,
    "augment": None,
    "dropout": 0.0,
    # Over so few steps the image branch would drown the label branch.
    "image_weight": 0.1,
    # The same for latents as for pixels.
    "time_shift": 1.0,
    "device": DEVICE,
    "precision": "float32",
    "random_state": 0,
}


def grouped(parameters):
    """Move the entries of the dict parameters, named like other parameters, into their dicts."""
    grouped = {}
    for name, value in parameters.items():
        group = PARAMETERS[name].group if name in PARAMETERS else None
        if group is None:
            grouped[name] = value
        else:
            grouped.setdefault(group, {})[name] = value
    return grouped


def tiny_classifier(**overrides):
    return MedSymmFlowClassifier(**grouped({**TINY, **overrides}))


class ShrinkingAutoencoder:
    """Latents are means of 2 x 2 squares."""

    def encode(self, x):
        return torch.nn.functional.avg_pool2d(x, 2)

    def decode(self, z):
        return torch.nn.functional.interpolate(z, scale_factor=2.0)


class Averages:
    """The simplest autoencoder: a latent is the mean of 4 x 4 pixels."""

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
    # Without training, posteriors of the one would be all noise, and images of the other black.
    torch.manual_seed({"AutoencoderKL": 0, "AutoencoderTiny": 4}[kind])
    module = build_autoencoder(kind, {**configs[kind], **overrides})
    if kind == "AutoencoderKL":
        n_channels = module.config.latent_channels
        module.quant_conv.bias.data[n_channels:] -= 10
    else:
        last = module.decoder.layers[-1]
        last.weight.data *= 4
        last.bias.data += 0.5
    return module


@functools.cache
def autoencoder_folder(kind="AutoencoderTiny"):
    """Where a tiny autoencoder with random weights is; the other kind takes three times as long."""
    folder = tempfile.mkdtemp(prefix="sklearn_msf")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tiny_autoencoder(kind).save_pretrained(folder)
    return folder


class TinyBackbone(torch.nn.Module):
    """One convolution: maps of 12 channels, at half of the sides, of images of any size."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 12, 2, 2)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, images):
        return self.conv(images).relu()


TINY_SIDES = {"hidden_size": 16, "intermediate_size": 16, "image_size": 32, "patch_size": 8}
TINY_VISION = {**TINY_SIDES, "num_hidden_layers": 1, "num_attention_heads": 2}


def tiny_vision_model(kind="Dinov2WithRegisters", **overrides):
    """A vision model of transformers with random weights, for images of 32 pixels."""
    import transformers

    hierarchical = {
        "ConvNext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
        "Swin": {
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 2,
            "image_size": 32,
            "patch_size": 4,
        },
    }
    config = {**hierarchical.get(kind, TINY_VISION), **overrides}
    torch.manual_seed(0)
    described = getattr(transformers, f"{kind}Config")(**config)
    return getattr(transformers, f"{kind}Model")(described).eval()


def save_vision_model(model, folder, **preprocessing):
    """Save a model of transformers beside a preprocessor_config.json."""
    model.save_pretrained(folder)
    entries = {
        "size": {"height": 32, "width": 32},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        **preprocessing,
    }
    Path(folder, "preprocessor_config.json").write_text(json.dumps(entries))


@functools.cache
def backbone_folder():
    """Where a tiny DINOv2 with registers and random weights is."""
    folder = tempfile.mkdtemp(prefix="sklearn_msf")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_vision_model(tiny_vision_model(), folder)
    return folder


def tiny_latent_classifier(**overrides):
    settings = {"autoencoder": autoencoder_folder(), **TINY, **overrides}
    return LatentMedSymmFlowClassifier(**grouped(settings))


def tiny_joint_classifier(**overrides):
    return tiny_latent_classifier(**{"backbone": TinyBackbone(), **overrides})


def tiny_feature_classifier(**overrides):
    return tiny_joint_classifier(**{"autoencoder": None, **overrides})


CLASSIFIERS = {"pixels": tiny_classifier, "latents": tiny_latent_classifier}
# With the features of a backbone: tests/test_joint_latents.py repeats tests of others over these.
JOINT_CLASSIFIERS = {"joint": tiny_joint_classifier, "features": tiny_feature_classifier}


@pytest.fixture(scope="session", params=CLASSIFIERS)
def make_classifier(request):
    """Factory of tiny classifiers of both classes."""
    return CLASSIFIERS[request.param]


@functools.cache
def three_digits():
    X, y = load_digits(n_class=3, return_X_y=True)
    return X.reshape(-1, 8, 8)[:240], np.array(["zero", "one", "two"])[y[:240]]


@pytest.fixture(scope="session")
def digits():
    """Images of the digits 0 to 2, (n, 8, 8) in 0 to 16, with string labels."""
    return three_digits()


@functools.cache
def fitted_classifier(kind):
    """One fit a process; pytest makes a fixture with parameters anew at each change of them."""
    make = {**CLASSIFIERS, **JOINT_CLASSIFIERS}[kind]
    return make(channels=16, max_epochs=30, classification_fraction=0.5).fit(*three_digits())


@pytest.fixture(scope="session", params=CLASSIFIERS)
def fitted(request):
    """A classifier that knows three digits; tests must not change it."""
    return fitted_classifier(request.param)


def tiny_layout(label_prediction="posterior", label_encoding="rgb", n_classes=3, **overrides):
    """Layout of a field over gray images."""
    layout = {
        "label_encoding": label_encoding,
        "beta": 4.0,
        "n_classes": n_classes,
        "label_prediction": label_prediction,
        "image_prediction": "velocity",
        "image_channels": 1,
        "channels": 8,
        "channel_mult": (1, 2),
        "n_blocks": 1,
        "attention_levels": (1,),
        "patch_size": 1,
        "dropout": 0.0,
    }
    return FieldLayout(**{**layout, **overrides})


@pytest.fixture
def make_tiny_field():
    """Factory of untrained fields over gray images with every weight drawn at random."""

    def make(label_prediction="posterior", label_encoding="rgb", n_classes=3, **layout):
        field = build_field(tiny_layout(label_prediction, label_encoding, n_classes, **layout), 0)
        torch.manual_seed(0)
        for parameter in field.parameters():
            if not parameter.abs().sum():
                torch.nn.init.normal_(parameter, std=0.1)
        return field.eval()

    return make


def tiny_model(field, model_class=FittedModel, **changes):
    """A fitted model of a field over gray images of 8 by 8 pixels."""
    image_format = learn_format(np.zeros((1, 64), dtype=np.uint8), (8, 8), flat=False)
    entries = {
        "classes": np.arange(field.codes.n_classes),
        "space": PixelSpace(image_format),
        "image_format": image_format,
        "noise_seed": 0,
        "temperature": 1.0,
        "flipped_axes": (),
        "ever_flipped_axes": (),
        "generates": True,
        "generates_unconditionally": False,
    }
    return model_class(field, **{**entries, **changes})


class TooLarge:
    """Lets the network run out of memory on more than so many rows."""

    def __init__(self, field, limit, error):
        self.encode, self.limit, self.error = field.encode, limit, error
        field.encode = self

    def __call__(self, x_t, *arguments):
        if len(x_t) > self.limit:
            raise self.error
        return self.encode(x_t, *arguments)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB)"),
    RuntimeError("Invalid buffer size: 9.02 GiB"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: out of memory"),
]


def pytest_configure():
    """Compute in one thread, as networks this small are no faster in more.

    Where the machine is busy threads that wait for each other take ten times as long, and so do
    the workers of xdist. What is about threads sets their number itself.
    """
    try:
        resolve_device(DEVICE)
    except ValueError as error:
        raise pytest.UsageError(f"SKLEARN_MSF_TEST_DEVICE: {error}") from error
    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One process more than there are cores, as many tests wait for other processes or the disk."""
    # With that variable xdist answers itself.
    is_set = "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ
    return None if is_set else joblib.cpu_count() + 1


def pytest_report_header():
    """Say which device the suite is about."""
    return f"tiny classifiers on: {DEVICE}"


def pytest_runtest_setup(item):
    """Give every test the same random numbers, whichever tests ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    module = getattr(item, "module", None) or SimpleNamespace()
    for value in vars(module).values():
        if isinstance(value, np.random.Generator):
            # Another seed than that of the modules, not their X once more.
            value.bit_generator.state = np.random.default_rng(1).bit_generator.state


def pytest_collection_modifyitems(items):
    """Refuse test ids that differ from run to run: workers of xdist and records compare them."""
    ids = [item.nodeid for item in items]
    unstable = [name for name in ids if tempfile.gettempdir() in name or " at 0x" in name]
    if unstable:
        raise pytest.UsageError(f"Ids with a path or an address of this run: {unstable[:3]}")


def pytest_collection_finish():
    """Let the garbage collector pass over half a million objects of imported modules."""
    gc.collect()
    gc.freeze()
