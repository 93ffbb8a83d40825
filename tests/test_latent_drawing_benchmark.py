"""The benchmark of images generated over latents, with tiny encoders and features."""

import json
import sys

import numpy as np
import pytest
from conftest import ShrinkingAutoencoder, TinyBackbone
from imported_scripts import benchmark_script
from PIL import Image

describe_picture = benchmark_script("_common").describe_picture

CLASSES = np.arange(24) % 2


@pytest.fixture
def benchmark(monkeypatch):
    """The script, with networks that take no time."""
    module = benchmark_script("latent_drawing")
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
        with Image.open(file.parent / record["picture"]["file"]) as picture:
            n_tiles = sum(benchmark.PICTURED)
            assert picture.size == (16 * n_tiles, 16 * 2)
    monkeypatch.setattr(benchmark, "measure", None)
    assert run(benchmark, monkeypatch, file) == records
    assert all(
        describe_picture(file.parent / r["picture"]["file"]) == r["picture"] for r in records
    )
    printed = capsys.readouterr().out
    assert "| few | 16 | TAEF2 and features | 1 epochs | 0 |" in printed
    assert "![few at 16 px, TAEF2](benchmarks/latent_drawing_few_16_TAEF2_1_epochs.jpg)" in printed


def test_each_sampler_is_measured_and_stands_in_its_column(benchmark, monkeypatch, file, capsys):
    asked = []

    def sample_images(classifier, counts, **sampling):
        asked.append(sampling)
        labels = np.repeat([0, 1], counts)
        shape = (len(labels), *classifier.image_shape_)
        # Nearly white images, which are those of class 1.
        return np.full(shape, 250 - len(asked), "u1"), labels

    monkeypatch.setattr(benchmark, "sample_images", sample_images)
    (record,) = run(benchmark, monkeypatch, file, "--systems", "TAEF2")
    assert asked == [{}, {"n_steps": 25, "ode_solver": "euler"}]
    assert record["midpoint 5"]["fidelity"] == record["euler 25"]["fidelity"] == 0.5
    assert record["midpoint 5"]["sharpness"] == pytest.approx(0, abs=1e-4)
    assert record["near_duplicates"] == 0.0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| few"))
    assert (
        f"| 0.00, 0.00, {record['decoded']['sharpness']:.2f}, 1.00 | 0.50, 0.50, 1.00, 1.00 |"
        in row
    )


@pytest.mark.parametrize("file", [()], indirect=True, ids=["gray"])
def test_a_run_has_one_picture_of_all_seeds(benchmark, monkeypatch, file):
    system = ("--systems", "TAEF2")
    first = run(benchmark, monkeypatch, file, "--seeds", "1", "2", *system)
    assert ["picture" in record for record in first] == [True, False]
    content = (file.parent / first[0]["picture"]["file"]).read_bytes()
    again = run(benchmark, monkeypatch, file, "--seeds", "1", "2", "3", *system)
    assert ["picture" in record for record in again] == [True, False, False]
    # Another budget has a picture of its own.
    other = run(benchmark, monkeypatch, file, "--max-epochs", "2", *system)[-1]
    assert other["picture"]["file"] != first[0]["picture"]["file"]
    assert (file.parent / first[0]["picture"]["file"]).read_bytes() == content


@pytest.mark.parametrize("file", [()], indirect=True, ids=["gray"])
def test_a_trial_with_few_images_leaves_the_other_records_in_place(benchmark, monkeypatch, file):
    system = ("--systems", "TAEF2")
    run(benchmark, monkeypatch, file, *system)
    records = run(benchmark, monkeypatch, file, "--n-images", "20", *system)
    assert len(benchmark.BENCHMARK.current(records)) == 2


def test_a_picture_is_white_where_a_class_has_too_few_images(benchmark, tmp_path):
    labels = np.array([0, 1, 1])
    parts = [(np.zeros((3, 4, 4), "u1"), labels)] * 3
    benchmark.save_picture(tmp_path / "new" / "few.jpg", parts, 4)
    with Image.open(tmp_path / "new" / "few.jpg") as picture:
        tiles = np.asarray(picture).reshape(2, 4, sum(benchmark.PICTURED), 4).mean(axis=(1, 3))
    # Five generated, two decoded and two real images in each row.
    few, two = [1, 0, 0, 0, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1, 1, 1, 1]
    assert (tiles < 128).astype(int).tolist() == [few, two]


def test_without_anything_to_measure_it_says_so(benchmark, monkeypatch, capsys):
    for arguments in (["--systems", "TAEF2", "--npz", "few=file.npz"], ["--systems", "fit"]):
        monkeypatch.setattr(sys, "argv", ["latent_drawing.py", *arguments])
        with pytest.raises(SystemExit):
            benchmark.main()
        assert "nothing to measure" in capsys.readouterr().err


def test_sharpness_is_that_of_the_brightness(benchmark):
    board = np.indices((8, 8)).sum(axis=0) % 2 * 255
    images = np.stack([board, np.full((8, 8), 77)]).astype("u1")
    # A pixel of the board differs by 2 from each of its 4 neighbours; the second image is flat.
    assert benchmark.sharpness(images) == pytest.approx((4 * 2 + 0) / 2)
    coloured = np.repeat(images[..., None], 3, axis=3)
    assert benchmark.sharpness(coloured) == pytest.approx(benchmark.sharpness(images))
