"""The benchmark of backbones, with a tiny one in the place of the network in the wheel."""

import json
import sys
from functools import partial
from unittest.mock import MagicMock

import numpy as np
import pytest
from conftest import TinyBackbone
from imported_scripts import benchmark_script

from sklearn_msf import LatentMedSymmFlowClassifier

CLASSES = np.arange(30) % 3


@pytest.fixture(scope="module")
def benchmark():
    return benchmark_script("backbone")


@pytest.fixture
def file(tmp_path):
    """Images whose brightness tells their class."""
    rng = np.random.default_rng(0)
    images = (60 * CLASSES[:, None, None, None] + rng.integers(0, 60, (30, 8, 8, 3))).astype("u1")
    splits = ("train", "val", "test")
    arrays = {f"{split}_{key}": v for split in splits for key, v in (("images", images),)}
    np.savez(tmp_path / "data.npz", **arrays, **{f"{split}_labels": CLASSES for split in splits})
    return tmp_path / "data.npz"


def call(benchmark, monkeypatch, file, *arguments):
    """Call the script; the path of its records."""
    output = file.parent / "backbone.json"
    common = ["--npz", f"few={file}", "--max-epochs", "1", "--output", str(output)]
    common += ["--least-side", "8"]
    monkeypatch.setattr(sys, "argv", ["backbone.py", *common, *arguments])
    # The speed of the machine takes seconds to measure.
    monkeypatch.setattr(benchmark, "gemm_gflops", lambda: 150.0)
    benchmark.main()
    return output


def run(benchmark, monkeypatch, file, *arguments):
    return json.loads(call(benchmark, monkeypatch, file, *arguments).read_text())


def test_all_systems_run_end_to_end_and_are_not_repeated(benchmark, monkeypatch, file, capsys):
    monkeypatch.setattr(benchmark, "EfficientNetStage", TinyBackbone)
    small = partial(LatentMedSymmFlowClassifier, channels=8, network_params={"channel_mult": (1,)})
    monkeypatch.setattr(benchmark, "LatentMedSymmFlowClassifier", small)
    monkeypatch.setattr(benchmark, "SIDES_OF_PIXELS", {"pixels at 4": (4,)})
    monkeypatch.setattr(benchmark, "N_VOTING", 2)
    monkeypatch.setattr(benchmark, "VOTING", "2 fields over features that vote")
    records = run(benchmark, monkeypatch, file, "--seeds", "1")
    assert [record["system"] for record in records] == [
        "logistic regression, plain",
        "logistic regression, views",
        "field over features",
        "field over features, flips",
        "field over features, temperature",
        "2 fields over features that vote",
        "2 fields over features that vote, flips",
        "pixels at 4",
    ]
    assert [record["acc"] for record in records[:2]] == [100.0, 100.0]
    assert [sorted(record["unusual_auroc"]) for record in records[1:3]] == [[], ["digits", "noise"]]
    for record in records:
        np.testing.assert_allclose(np.sum(record["probabilities"], axis=1), 1, atol=1e-4)
    monkeypatch.setattr(benchmark, "measure", None)
    assert run(benchmark, monkeypatch, file, "--seeds", "1") == records
    printed = capsys.readouterr().out
    assert "| few | 1 epochs | field over features |" in printed
    assert "| data | system | noise | digits |" in printed
    provenance = records[-1]["provenance"]
    assert (provenance["seed"], provenance["resolved"]["epochs"]) == (1, 1)


def noted_measurements(benchmark, monkeypatch, file, *arguments):
    """Identity and training images of each measurement that a call makes."""
    noted, kept = [], MagicMock()
    kept.has.return_value = False
    monkeypatch.setattr(benchmark, "Records", lambda *_: kept)
    monkeypatch.setattr(
        benchmark, "measure", lambda identity, data, *_: noted.append((identity, data["train"][0]))
    )
    call(benchmark, monkeypatch, file, *arguments)
    return noted


def test_the_logistic_regression_has_no_seed(benchmark, monkeypatch, file):
    systems = [benchmark.REFERENCE, benchmark.FEATURES]
    arguments = ["--systems", *systems, "--seeds", "0", "1"]
    noted = noted_measurements(benchmark, monkeypatch, file, *arguments)
    found = [(identity["system"], identity["seed"]) for identity, _ in noted]
    assert found == [(systems[0], 0), (systems[1], 0), (systems[1], 1)]


@pytest.mark.parametrize(("is_flipped", "n_views"), [(False, 1), (True, 4)])
def test_the_logistic_regression_takes_the_views_that_are_best_on_validation_images(
    benchmark, monkeypatch, is_flipped, n_views
):
    """The class is where an image is bright: flips contradict it, unless they alone are seen."""
    rng = np.random.default_rng(0)
    images, y = rng.integers(0, 60, (60, 8, 8, 3)), np.arange(60) % 2

    class Corner(TinyBackbone):
        def forward(self, images):
            return images[:, :1, :2, :2]

    monkeypatch.setattr(benchmark, "EfficientNetStage", Corner)
    images[y == 1, :2, :2] += 150
    train = images.astype(np.uint8)
    of_validation = train[:, ::-1, ::-1] if is_flipped else train
    data = {"train": (train, y), "val": (np.ascontiguousarray(of_validation), y)}
    _, _, resolved = benchmark.logistic_regression(data, 0, {}, views=benchmark.VIEWS)
    assert resolved["views"] == n_views


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("field over features", {"augment": "auto", "n_variations": "auto", "n_draws": 2}),
        ("field over features, flips", {"augment": "flip", "n_variations": 4, "n_draws": 4}),
    ],
)
def test_records_hold_the_views_that_a_system_is_fitted_with(
    benchmark, monkeypatch, title, expected
):
    fitted = []
    monkeypatch.setattr(benchmark, "EfficientNetStage", TinyBackbone)
    # Nothing is fitted.
    monkeypatch.setattr(
        benchmark.LatentMedSymmFlowClassifier, "fit", lambda self, *_: fitted.append(self) or self
    )
    monkeypatch.setattr(benchmark, "resolved_parameters", lambda *_: {})
    data = {"train": (np.zeros((4, 8, 8), "u1"), np.arange(4) % 2)}
    benchmark.make_systems(None)[title](data, 0, {"max_epochs": 1})
    recorded = benchmark.parameters({"system": title})
    assert {name: fitted[0].get_params()[name] for name in expected} == expected
    assert {name: recorded[name] for name in expected} == expected


def test_fields_that_vote_share_the_seconds_of_one(benchmark, monkeypatch):
    made = []
    data = {"train": (np.zeros((4, 8, 8), "u1"), np.arange(4) % 2)}
    monkeypatch.setattr(benchmark, "field_classifier", lambda *given: made.append(given))
    # Nothing is fitted.
    monkeypatch.setattr(benchmark, "VotingClassifier", MagicMock())
    monkeypatch.setattr(benchmark, "resolved_parameters", lambda *_: {})
    n = benchmark.N_VOTING
    benchmark.voting_fields(data, 2, {"time_budget": 100.0})
    assert made == [(2 * n + i, {"time_budget": 100 / n}) for i in range(n)]
    made.clear()
    benchmark.voting_fields(data, 0, {"max_epochs": 3})
    assert made == [(i, {"max_epochs": 3}) for i in range(n)]


def test_small_images_are_enlarged_for_encoders_only(benchmark, monkeypatch, file):
    monkeypatch.setattr(benchmark, "SIDES_OF_PIXELS", {"pixels at 4": (4,)})
    only = ["--systems", benchmark.REFERENCE, "pixels at 4", "--least-side", "16"]
    noted = noted_measurements(benchmark, monkeypatch, file, *only)
    shapes = {identity["system"]: X.shape for identity, X in noted}
    assert shapes == {benchmark.REFERENCE: (30, 16, 16, 3), "pixels at 4": (30, 8, 8, 3)}
    data = {"train": (np.zeros((2, 20, 20), "u1"), np.zeros(2))}
    assert benchmark.enlarged(data, 16) is data


def test_records_of_enlarged_images_say_so(benchmark, monkeypatch, file):
    monkeypatch.setattr(benchmark, "EfficientNetStage", TinyBackbone)
    only = ["--systems", benchmark.REFERENCE, "--least-side", "16"]
    (record,) = run(benchmark, monkeypatch, file, *only)
    assert record["provenance"]["data"]["arrays"]["test_images"] == "(30, 16, 16, 3) uint8"
    # Records of the usual side are of other images.
    assert record["dataset"] == record["provenance"]["data"]["name"] == "few at 16"


@pytest.mark.parametrize("shape", [(30, 12, 12), (30, 12, 12, 3)], ids=["gray", "RGB"])
def test_other_images_have_the_size_and_colours_of_those_of_training(benchmark, shape):
    X = np.zeros(shape, "u1")
    others = {"gray": np.full((5, 20, 20), 7, "u1"), "RGB": np.full((5, 20, 20, 3), 7, "u1")}
    kinds = benchmark.other_images(X, others)
    assert {kind: images.shape[1:] for kind, images in kinds.items()} == dict.fromkeys(
        ["noise", "digits", "gray", "RGB"], shape[1:]
    )
    assert {images.dtype for images in kinds.values()} == {X.dtype}
    assert (kinds["gray"] == 7).all()
    assert (kinds["RGB"] == 7).all()


def test_images_that_are_less_usual_are_told_apart(benchmark):
    typical, other = np.full((4, 2, 2), 9, "u1"), np.zeros((4, 2, 2), "u1")
    found = benchmark.separation(lambda X: X.mean(axis=(1, 2)), typical, {"dark": other})
    assert found == {"dark": 1.0}


def test_the_first_images_of_each_class_are_taken(benchmark):
    images = np.arange(30)
    X, y = benchmark.first_images({"test": (images, CLASSES)}, 5)["test"]
    assert X.tolist() == [0, 1, 2, 3, 4, 5]
    assert y.tolist() == [0, 1, 2, 0, 1, 2]


def test_an_interval_of_equal_predictions_is_zero_and_of_better_ones_above(benchmark):
    certain = np.eye(3)[CLASSES]
    unsure = np.full((30, 3), 1 / 3)

    def aucs(*predictions):
        return benchmark.mean_resampled_auc(
            [{"labels": CLASSES.tolist(), "probabilities": p.tolist()} for p in predictions]
        )

    same = benchmark.paired_interval(aucs(certain, certain), aucs(certain))
    assert same.tolist() == [0.0, 0.0]
    better = benchmark.paired_interval(aucs(certain), aucs(unsure))
    assert better.tolist() == [50.0, 50.0]


def test_the_auc_of_repeated_images_is_that_of_their_copies(benchmark):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 30).round(1)
    counts = np.array([np.ones(30, dtype=int), rng.integers(1, 4, 30)])
    wanted = [benchmark.auc_score(CLASSES.repeat(n), p.repeat(n, axis=0)) for n in counts]
    np.testing.assert_allclose(benchmark.resampled_auc(CLASSES, p, counts), wanted)


def test_the_most_certain_predictions_are_scored_apart(benchmark):
    """Nine of ten images are certain and right, the last is unsure and wrong."""
    y = np.arange(10) % 2
    p = np.where(np.eye(2, dtype=bool)[y], 1.0, 0.0)
    p[9] = [0.6, 0.4]
    record = {"labels": y.tolist(), "probabilities": p.tolist()}
    error, by_chance, area, at_90, at_80 = benchmark.certainty_scores(record)
    assert error == pytest.approx(0.06)
    assert by_chance == pytest.approx(0.05, abs=0.01)
    assert 0 < area < 1
    assert (at_90, at_80) == (100.0, 100.0)
    keys = {"dataset": "a", "system": "field", "budget": "900 s", "n_images": None}
    lines = benchmark.selective_table([{**record, **keys}] * 2)
    row = "| a | field | 0.060 ± 0.000 |"
    assert [line.startswith(row) for line in "\n".join(lines).splitlines()].count(True) == 1
    assert benchmark.selective_table([]) == []


def test_the_probabilities_of_seeds_are_averaged(benchmark):
    record = {"dataset": "toy", "system": "field over features", "budget": "9 s", "n_images": None}
    record["labels"] = [0, 0, 1, 1]
    wrong = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.6, 0.4]], [[0.8, 0.2]] * 2 + [[0.3, 0.7]] * 2
    records = [record | {"seed": seed, "probabilities": p} for seed, p in enumerate(wrong)]
    table = "\n".join(benchmark.averaged_table(records))
    # The means .85, .6 of the first class, and .75, .55 of the second.
    loss = -np.log([0.85, 0.6, 0.75, 0.55]).mean()
    assert f"| toy | field over features | 2 | 100.0 | 100.0 | {loss:.2f} |" in table
    assert benchmark.averaged_table(records[:1]) == []
    # Records have five digits, so a zero there is none.
    rounded = [record | {"seed": seed, "probabilities": [[0.0, 1.0]] * 4} for seed in range(2)]
    loss = -np.log(5e-6) / 2
    assert f"| 2 | 50.0 | 50.0 | {loss:.2f} |" in "\n".join(benchmark.averaged_table(rounded))


def record(system, auc, acc, dataset="busi", budget="900 s"):
    provenance = {"reference_seconds": 90.0}
    values = {"auc": auc, "acc": acc, "n_images": None, "provenance": provenance}
    return {"dataset": dataset, "system": system, "budget": budget, **values}


def test_the_summary_has_a_row_for_each_data_set_that_was_measured(benchmark):
    records = [
        record(benchmark.FEATURES, 93.0, 87.0),
        record(benchmark.FEATURES, 95.0, 89.0),
        record(benchmark.REFERENCE, 92.0, 88.0),
        record(benchmark.FEATURES, 10.0, 10.0, budget="1 epochs"),
        record("pixels at 64", 80.0, 80.0, dataset="ham"),
    ]
    (row,) = benchmark.summary_table(records).splitlines()[2:]
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells == ["94.0 ± 1.4 / 88.0 ± 1.4", "not run", "92.0 / 88.0", "not run", "1.5"]


def test_sizes_beyond_those_of_the_images_are_not_called_missing_runs(benchmark):
    records = [record("pixels at 28", 99.0, 96.0, dataset=dataset) for dataset in ("ham", "pbc")]
    of_ham, of_pbc = (
        [cell.strip() for cell in row.split("|")[2:6]]
        for row in benchmark.comparison_table(records).splitlines()[2:]
    )
    assert of_ham == ["99.0 / 96.0, 1.5 min", "not run", "not run", "not run"]
    assert of_pbc == ["99.0 / 96.0, 1.5 min", "not run", "larger than the images", "not run"]


def test_rows_of_a_data_set_stand_together_in_the_order_of_the_systems(benchmark):
    records = [
        {"dataset": dataset, "system": system}
        for dataset, system in [
            ("b", "pixels at 28"),
            ("a", "something else"),
            ("b", benchmark.FEATURES),
            ("a", benchmark.REFERENCE),
        ]
    ]
    assert benchmark.in_order(records) == [records[2], records[0], records[3], records[1]]
