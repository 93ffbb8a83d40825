"""The benchmark of images generated over latents, with tiny encoders and features."""

import json
import sys

import numpy as np
import pytest
from conftest import TinyBackbone
from PIL import Image
from test_benchmarks import ShrinkingAutoencoder, script

CLASSES = np.arange(24) % 2


@pytest.fixture
def benchmark(monkeypatch):
    """The script, with networks that take no time."""
    module = script("latent_drawing")
    tiny = {"channels": 8, "network_params": {"channel_mult": (1,), "attention_levels": ()}}

    class TinyClassifier(module.LatentMedSymmFlowClassifier):
        def __init__(self, autoencoder="fit", **parameters):
            super().__init__(autoencoder, **tiny | parameters)

    monkeypatch.setattr(module, "TAEF2", lambda folder: ShrinkingAutoencoder())
    monkeypatch.setattr(module, "EfficientNetStage", TinyBackbone)
    monkeypatch.setattr(module, "make_imagenet_features", lambda side: brightness_features)
    monkeypatch.setattr(module, "gemm_gflops", lambda: 150.0)
    monkeypatch.setattr(module, "asked_parameters", lambda *_, **__: {"tiny": True})
    monkeypatch.setattr(module, "LatentMedSymmFlowClassifier", TinyClassifier)
    return module


def brightness_features(X):
    """Means of the quarters of images."""
    X = X[..., None] if X.ndim == 3 else X
    n, height, width, _ = X.shape
    quarters = X.reshape(n, 2, height // 2, 2, width // 2, -1).mean(axis=(2, 4))
    return quarters.reshape(n, -1) / 255


@pytest.fixture(params=[(), (3,)], ids=["gray", "RGB"])
def file(request, tmp_path):
    """Images whose brightness tells their class."""
    rng = np.random.default_rng(0)
    shape = (24, 16, 16, *request.param)
    images = rng.integers(0, 100, shape) + 100 * CLASSES.reshape(-1, *[1] * (len(shape) - 1))
    arrays = {}
    for split in ("train", "val", "test"):
        arrays |= {f"{split}_images": images.astype("u1"), f"{split}_labels": CLASSES}
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


def run(benchmark, monkeypatch, file, *arguments):
    output = file.parent / "latent_drawing.json"
    common = ["--npz", f"few={file}", "--max-epochs", "1", "--output", str(output)]
    common += ["--taef2", "folder", "--sides", "16", "--systems", "TAEF2", "TAEF2 and features"]
    monkeypatch.setattr(sys, "argv", ["latent_drawing.py", *common, *arguments])
    benchmark.main()
    return json.loads(output.read_text())


def test_generated_images_stand_beside_decoded_and_real_ones(benchmark, monkeypatch, file, capsys):
    records = run(benchmark, monkeypatch, file)
    assert [(record["system"], record["seed"]) for record in records] == [
        ("TAEF2", 0),
        ("TAEF2 and features", 0),
    ]
    for record in records:
        # Test images are the training images here.
        assert record["real"]["coverage"] == 1.0
        assert record["real"]["sharpness"] == pytest.approx(1.0)
        assert record["real"]["fidelity"] == 1.0
        # Means over squares of 2 x 2 pixels keep the brightness and lose detail.
        assert record["decoded"]["fidelity"] == 1.0
        assert record["decoded"]["sharpness"] < 1.0
        with Image.open(file.parent / record["picture"]) as picture:
            n_tiles = sum(benchmark.PICTURED)
            assert picture.size == (16 * n_tiles, 16 * 2)
    monkeypatch.setattr(benchmark, "measure", None)
    assert run(benchmark, monkeypatch, file) == records
    printed = capsys.readouterr().out
    assert "| few | 16 | TAEF2 and features | 1 epochs | 0 |" in printed
    assert "![few at 16 px, TAEF2](benchmarks/latent_drawing_few_16_TAEF2.jpg)" in printed


def test_only_the_first_seed_has_a_picture(benchmark, monkeypatch, file):
    records = run(benchmark, monkeypatch, file, "--seeds", "1", "2", "--systems", "TAEF2")
    assert ["picture" in record for record in records] == [True, False]


def test_sharpness_is_that_of_the_brightness(benchmark):
    board = np.indices((8, 8)).sum(axis=0) % 2 * 255
    images = np.stack([board, np.full((8, 8), 77)]).astype("u1")
    # A pixel of the board differs by 2 from each of its 4 neighbours; the second image is flat.
    assert benchmark.sharpness(images) == pytest.approx((4 * 2 + 0) / 2)
    coloured = np.repeat(images[..., None], 3, axis=3)
    assert benchmark.sharpness(coloured) == pytest.approx(benchmark.sharpness(images))
