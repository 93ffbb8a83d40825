"""The paper's tables by one command: what is run, what is measured, what is shown."""

import argparse
import io
import itertools
import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_classifier
from imported_scripts import benchmark_script
from PIL import Image
from torch import nn

paper = benchmark_script("paper")
report = benchmark_script("paper_report")
common = benchmark_script("_common")
systems = benchmark_script("_common.systems")
networks = benchmark_script("_common.networks")
data_module = benchmark_script("_common.data")
scores = benchmark_script("_common.scores")

X = np.random.default_rng(0).integers(0, 128, (24, 8, 8), dtype=np.uint8)
Y = np.arange(24) % 2
X[Y == 1] += 100
DATA = dict.fromkeys(("train", "val", "test"), (X, Y))
# More time than the tiny systems need: tests do not depend on the speed of the machine.
EQUAL = {"dataset": "toy", "run": "equal", "reference_seconds": 2000.0, "seed": 0}


@pytest.fixture
def quick(monkeypatch):
    """Tiny systems, few images and few resamples."""
    monkeypatch.setattr(paper, "gemm_gflops", lambda: 300.0)
    monkeypatch.setattr(scores, "N_RESAMPLES", 40)
    for name, value in {"N_SINGLE_IMAGES": 1, "N_SINGLE_SAMPLES": 1, "N_GENERATED": 24}.items():
        monkeypatch.setattr(paper, name, value)
    made = {
        "defaults": lambda name: tiny_classifier(augment="hflip"),
        "msf": lambda name: tiny_classifier(label_prediction="velocity", max_epochs=4),
    }
    for key, make in made.items():
        tiny = systems._estimator_system("tiny", make, runs=("equal", "complete"))
        monkeypatch.setitem(systems.SYSTEMS, key, tiny)


# One run


def test_a_run_measures_what_tables_and_figures_show(quick, monkeypatch, tmp_path):
    def features(images):
        return images.reshape(len(images), -1).astype(float)

    monkeypatch.setattr(paper, "make_imagenet_features", lambda: features)
    record = paper.run({**EQUAL, "system": "defaults"}, DATA, official=False, pictures=tmp_path)
    assert record["provenance"]["parameters"] == json.loads(
        json.dumps(paper.parameters({**EQUAL, "system": "defaults"}))
    )
    assert record["provenance"]["resolved"]["images_seen"] == record["images_seen"] == 48
    low, high = record["test_auc_interval"]
    assert 0 <= low <= record["test_auc"] <= high <= 100
    assert record["rejection"]["kind"] == "margin"
    assert record["rejection"]["accuracy"][0] == pytest.approx(record["test_acc"] / 100, abs=1e-4)
    # As many training images cover each other.
    assert record["imagenet"]["training"]["coverage"] == 1
    assert record["milliseconds_for_one"] > 0
    assert record["milliseconds_to_sample_one"] > 0
    picture = record["picture"]
    with Image.open(tmp_path / picture["file"]) as image:
        assert image.size[0] > 0
    json.dumps(record)


def test_scores_of_regressed_masks_are_also_those_of_the_published_code(quick):
    record = paper.run({**EQUAL, "system": "msf"}, DATA, official=True, pictures=None)
    assert record["rejection"]["kind"] == "distance"
    assert "imagenet" not in record
    # Five inference runs with noise of their own.
    assert record["test_auc_spread"] > 0


def test_the_nearest_mask_is_the_most_probable_one(quick, monkeypatch):
    p = np.eye(2)[Y]
    runs = [(p, 1 - p.max(axis=1), 1 - p)], "distance"
    monkeypatch.setattr(paper, "inference_runs", lambda trained, images: runs)
    perfect = systems.Trained(lambda images: p)
    assert paper.test_scores(perfect, X, Y)["test_auc_by_distance"] == 100


@pytest.mark.parametrize("make", [partial(common.make_resnet, width=4), common.make_vit])
def test_a_system_without_noise_has_one_inference_run(make):
    system = systems._network_system("tiny", make, common.Recipe(epochs=2), {})
    trained = system.train(common.Task("toy", (X, Y), (X, Y), None, 0))
    assert trained.images_seen == system.images_of_complete("toy", len(Y)) == 48
    predictions, kind = paper.inference_runs(trained, X)
    ((p, uncertainty, _),) = predictions
    assert kind == "1 - max p"
    np.testing.assert_allclose(uncertainty, 1 - p.max(axis=1))


def test_with_the_estimators_own_noise_predictions_are_its_own(monkeypatch):
    classifier = tiny_classifier(label_prediction="velocity", n_draws=1).fit(X, Y)
    noise = classifier.model_.noise(1, 3)
    monkeypatch.setattr(paper.torch, "randn", lambda shape, generator: noise.expand(shape))
    p, _ = paper.predict_with_fresh_noise(classifier, X, seed=0)
    np.testing.assert_allclose(p, classifier.predict_proba(X), rtol=1e-5)


def test_mirror_images_are_averaged_as_in_its_own_predictions():
    classifier = tiny_classifier(augment="hflip", n_draws=2).fit(X, Y)
    p, _ = paper.predict_with_fresh_noise(classifier, X, seed=0)
    np.testing.assert_allclose(p, classifier.predict_proba(X), rtol=1e-5)
    assert not np.allclose(p, classifier.set_params(n_draws=1).predict_proba(X), rtol=1e-3)


def test_each_image_and_each_inference_run_has_noise_of_its_own():
    classifier = tiny_classifier(label_prediction="velocity", n_draws=1).fit(X, Y)
    same = np.repeat(X[:1], 6, axis=0)
    first, again, other = (
        paper.predict_with_fresh_noise(classifier, same, seed)[0][:, 0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert len({*first, *other}) == 12


def test_perfect_predictions_have_perfect_scores_and_no_interval(quick):
    perfect = systems.Trained(lambda images: np.eye(2)[Y])
    found = paper.test_scores(perfect, X, Y)
    assert found["test_auc"] == found["test_acc"] == 100
    assert found["test_auc_interval"] == found["test_acc_interval"] == [100, 100]
    assert found["test_auc_spread"] == found["rejection"]["aurc"] == 0


def test_the_interval_of_an_accuracy_is_that_of_the_binomial():
    y = np.arange(400) % 2
    p = np.eye(2)[np.where(np.arange(400) < 320, y, 1 - y)]
    low, high = common.resampled_interval(common.accuracy, y, p)
    # Standard error of 320 right ones among 400: 0.02.
    assert (low, high) == pytest.approx((0.8 - 1.96 * 0.02, 0.8 + 1.96 * 0.02), abs=0.006)


# Opponents


@pytest.mark.parametrize(("depth", "n_parameters"), [(18, 11_689_512), (50, 25_557_032)])
def test_resnets_have_the_published_number_of_parameters(depth, n_parameters):
    with torch.device("meta"):
        net = common.make_resnet(3, 1000, 224, depth)
    assert sum(p.numel() for p in net.parameters()) == n_parameters


@pytest.mark.parametrize("side", [28, 224])
def test_resnets_are_of_their_images_size(side):
    net = common.make_resnet(3, 5, side, 50, width=4)
    assert (net[0].stride == (1, 1)) == (side == 28)
    assert net(torch.zeros(2, 3, side, side)).shape == (2, 5)


def test_a_complete_run_sees_every_image_in_each_epoch_and_has_the_weights_of_the_best(monkeypatch):
    nets, seen = [], []

    def make(n_channels, n_classes, side):
        nets.append(nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes)))
        return nets[0]

    def auc(*labels_and_probabilities):
        seen.append(nets[0][1].weight.detach().clone())
        return (0.5, 0.9, 0.1)[len(seen) - 1]

    monkeypatch.setattr(networks, "auc_score", auc)
    recipe = common.Recipe(batch_size=10, epochs=3)
    trained = common.train_network(make, X, Y, 0, recipe=recipe, validation=(X, Y))
    assert trained.images_seen == 3 * 24
    assert len(seen) == 3
    assert torch.equal(trained.net[1].weight, seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_enlarged_images_have_the_nearest_pixels():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert networks._enlarged(x, 4)[0, 0].tolist() == expected


def test_validation_chooses_the_strength_of_the_regression_on_frozen_features():
    def features(images):
        return images.reshape(len(images), -1).astype(float)

    # With the labels of validation turned around a stronger regression is worse.
    for labels, chosen in ((Y, systems._STRENGTHS[-1]), (1 - Y, systems._STRENGTHS[0])):
        task = common.Task("toy", (X, Y), (X, labels), None, 0)
        trained = systems._train_on_features(features, task)
        assert trained.resolved["C"] == chosen
    assert (trained.predict_proba(X).argmax(axis=1) == Y).all()


def test_validation_chooses_how_many_rounds_of_boosting_are_used(monkeypatch):
    monkeypatch.setattr(systems, "_MOST_ROUNDS", 7)
    # A leaf holds twenty images at least.
    many, labels = np.concatenate([X] * 4), np.tile(Y, 4)
    # With the labels of validation turned around every round is worse than the one before.
    for validation, n_used in ((Y, 7), (1 - Y, 1)):
        task = common.Task("toy", (many, labels), (X, validation), 60.0, 0)
        trained = common.SYSTEMS["boosting"].train(task)
        assert trained.resolved == {"rounds": 7, "rounds used": n_used}


def test_boosting_ends_with_its_time(monkeypatch):
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr("_common.systems.time", clock)
    # A leaf holds twenty images at least.
    many, labels = np.concatenate([X] * 4), np.tile(Y, 4)
    task = common.Task("toy", (many, labels), (X, Y), 3.0, 0)
    trained = common.SYSTEMS["boosting"].train(task)
    # A second for each look: after one round two more fit, then one, then none.
    assert trained.resolved["rounds"] == 4


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("retinamnist@224", "retinamnist"),
        ("ham10000", "dermamnist"),
        ("BUSI 224", "pneumoniamnist"),
        ("bloodcells_pbc", "bloodmnist"),
    ],
)
def test_other_data_take_the_papers_settings_of_the_most_similar_set(name, like):
    assert common.paper_name(name) == like


def test_encoded_images_of_an_npz_file_are_read_by_their_split(tmp_path):
    content = b""
    offsets = [0]
    for image in X[:5]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        content += buffer.getvalue()
        offsets.append(len(content))
    arrays = {
        "bytes": np.frombuffer(content, np.uint8),
        "offsets": np.array(offsets),
        "labels": Y[:5],
        "split": np.array([0, 2, 0, 1, 0], np.uint8),
    }
    np.savez(tmp_path / "toy.npz", **arrays)
    found = common.load("toy", {"toy": str(tmp_path / "toy.npz")})
    np.testing.assert_array_equal(found["train"][0], X[[0, 2, 4]])
    np.testing.assert_array_equal(found["val"][1], Y[[3]])
    np.testing.assert_array_equal(found["test"][0], X[[1]])


def test_another_size_of_a_set_is_named_after_it(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "sklearn_msf.datasets.fetch_medmnist", lambda name, **how: asked.append((name, how))
    )
    common.load("retinamnist@224", {})
    assert {(name, how["size"]) for name, how in asked} == {("retinamnist", 224)}
    assert [how["split"] for _, how in asked] == ["train", "val", "test"]


# What is run


def test_systems_run_on_images_of_their_size_first_for_equal_time():
    def wanted(side):
        return list(paper.wanted_runs(list(common.SYSTEMS), ("equal", "complete"), "d", side, 0, 9))

    small, large = wanted(28), wanted(224)
    keys = [(w["system"], w["run"], w["reference_seconds"]) for w in small]
    assert keys.index(("resnet50", "equal", 9)) < keys.index(("symmflow", "complete", None))
    assert ("frozen", "complete", None) in keys
    assert ("defaults", "complete", None) not in keys
    assert {w["system"] for w in large} & {w["system"] for w in small} == {
        *("resnet18_224", "resnet50_224", "frozen")
    }
    assert ("latmsf", "equal") in {(w["system"], w["run"]) for w in large}


def arguments(**values):
    defaults = {"systems": ["msf"], "backbones": [], "runs": ["equal", "complete"], "seeds": [0]}
    return argparse.Namespace(
        **{**defaults, "seconds": 60.0, "hours": 0.5, "list": False, **values}
    )


def made(system="msf", kind="equal", seed=0, dataset="toy", official=True, **measured):
    """A record of a run that saw 6,000 images in 600 reference seconds."""
    identity = {"dataset": dataset, "system": system, "run": kind, "seed": seed}
    identity["reference_seconds"] = 60.0 if kind == "equal" else None
    begun = common.described(
        identity,
        parameters=paper.parameters(identity),
        data=common.describe_data(dataset, DATA),
        gflops=150.0,
        seconds=600.0,
        seed=seed,
    )
    usual = {"test_auc": 70.0, "test_auc_spread": 0.0, "test_auc_interval": [65.0, 75.0]}
    usual |= {"test_acc": 50.0, "test_acc_spread": 0.4, "test_acc_interval": [45.0, 55.0]}
    usual |= {"official": official, "side": 28, "n_train": 1080, "images_seen": 6000}
    usual |= {"peak_memory_mib": 900.0, "milliseconds_for_one": 12.34}
    areas = {"rejected": [0.0, 0.5], "accuracy": [0.5, 0.7], "aurc": 0.3, "augrc": 0.2}
    return {**begun, **usual, "rejection": areas, **measured}


def missing(tmp_path, capsys, *runs, **values):
    records = common.Records(paper.BENCHMARK, tmp_path / "paper.json")
    for run in runs:
        records.add(run)
    toy = paper.DataSet("toy", common.describe_data("toy", DATA), 28, 1080)
    found = list(paper.missing_runs(records, [toy], arguments(**values)))
    return [(i["run"], i["seed"], e) for i, e in found], capsys.readouterr().out


def test_runs_that_are_recorded_are_not_made_again(tmp_path, capsys):
    found, _ = missing(tmp_path, capsys, made(), runs=["equal"], seeds=[0, 1])
    assert found == [("equal", 1, 60.0)]


def test_a_complete_run_that_takes_too_long_is_named_with_its_time(tmp_path, capsys):
    # 10 images a reference second; 1,000 epochs of 1,080 images are 108,000 s, 30 h.
    found, printed = missing(tmp_path, capsys, made())
    assert found == []
    assert "toy, msf, complete, seed 0: about 30 h, more than --hours" in printed
    found, _ = missing(tmp_path, capsys, hours=31)
    assert found == [("complete", 0, pytest.approx(108_000))]


def test_a_complete_run_waits_for_a_measured_rate(tmp_path, capsys):
    found, printed = missing(tmp_path, capsys, runs=["complete"])
    assert found == []
    assert "known after a run of equal time" in printed


def test_a_system_whose_package_is_not_there_is_named(tmp_path, capsys, monkeypatch):
    absent = replace(common.SYSTEMS["automl"], package="a_package_that_is_not_there")
    monkeypatch.setitem(systems.SYSTEMS, "automl", absent)
    found, printed = missing(tmp_path, capsys, systems=["automl"])
    assert found == []
    assert "needs the package a_package_that_is_not_there" in printed


def test_data_that_cannot_be_had_are_named_and_left_out(monkeypatch, capsys):
    def load(name, files):
        if name == "gone":
            raise OSError("no network\nand more")
        return DATA

    monkeypatch.setattr(paper, "load", load)
    (found,) = paper.data_at_hand(["gone", "toy", "toy"], {})
    assert (found.name, found.side, found.n_train) == ("toy", 8, 24)
    assert "left out: gone: no network\n" in capsys.readouterr().out


def test_the_command_runs_what_is_missing_and_writes_all(tmp_path, capsys, monkeypatch):
    arrays = {f"{split}_images": X for split in DATA} | {f"{split}_labels": Y for split in DATA}
    np.savez(tmp_path / "toy.npz", **arrays)
    argv = ["--datasets", "--npz", f"toy={tmp_path / 'toy.npz'}", "--systems", "boosting"]
    argv += ["--seeds", "0", "--runs", "equal", "--seconds", "0.1"]
    argv += ["--output", str(tmp_path / "out" / "paper.json")]
    paper.main(argv)
    (record,) = json.loads((tmp_path / "out" / "paper.json").read_text())
    assert not record["official"]
    # A process of its own measured it, and its memory.
    assert record["peak_memory_mib"] > 1
    assert (tmp_path / "out" / "paper_rejection_toy.png").stat().st_size > 1000
    assert "### toy (rebuilt, own split)" in capsys.readouterr().out
    monkeypatch.setattr(paper, "in_own_process", lambda *a: pytest.fail("the run is recorded"))
    paper.main(argv)
    paper.main([*argv, "--seeds", "0", "1", "--list"])
    assert "missing: toy, boosting, equal, seed 1: about 0 min" in capsys.readouterr().out


def test_a_run_that_fails_does_not_end_the_command(tmp_path, capsys, monkeypatch):
    def fail(*arguments):
        raise OSError("the hub cannot be reached")

    monkeypatch.setattr(paper, "in_own_process", fail)
    records = common.Records(paper.BENCHMARK, tmp_path / "paper.json")
    paper.measure(records, {**EQUAL, "system": "latmsf"}, {}, None)
    assert "failed: toy, latmsf, equal, seed 0: OSError: the hub" in capsys.readouterr().out
    assert records.current == []


def test_a_rebuilt_set_may_not_have_the_name_of_an_official_one(capsys):
    with pytest.raises(SystemExit):
        paper.main(["--npz", "retinamnist=elsewhere.npz", "--runs", "complete"])
    assert "another name" in capsys.readouterr().err


# What is shown


def row(text, title):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(text, title):
    lines = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


MSF = common.SYSTEMS["msf"].title


def test_table_2_has_spreads_intervals_and_the_published_figures_beside():
    records = [made(seed=s, dataset="retinamnist", test_auc=auc) for s, auc in ((0, 69), (1, 73))]
    text = report.classification_table("retinamnist", records)
    equal, complete = rows(text, MSF)
    assert equal[1:6] == [
        "60 s",
        "unknown",
        "2",
        "71.0 ± 2.8 [65.0, 75.0]",
        "50.0 ± 0.0 (0.4) [45.0, 55.0]",
    ]
    assert equal[6:] == ["", "", ""]
    # 2,000 epochs of 1,080 images at 10 images a second.
    assert complete[1:6] == ["to its end", "unknown", "", "not run, about 60 h", ""]
    assert complete[6:] == ["73.1 ± 0.4", "51.4 ± 2.1", "unknown"]
    assert row(text, "MedViTV2-L (224)")[6:] == ["-", "57.8", "test"]


def test_no_published_figure_stands_beside_a_rebuilt_set():
    records = [made(dataset="retinamnist", official=False)]
    text = report.classification_table("retinamnist", records)
    assert "own split" in text
    assert all(cells[6:] == ["", "", ""] for cells in rows(text, MSF))
    assert "MedViT" not in text.replace(common.SYSTEMS["vit"].title, "")


def test_runs_of_other_budgets_are_not_averaged():
    short = made(test_auc=60.0)
    long = made(seed=1, test_auc=80.0) | {"reference_seconds": 600.0}
    first, second, _ = rows(report.classification_table("toy", [short, long]), MSF)
    assert (first[1], first[4]) == ("60 s", "60.0 [65.0, 75.0]")
    assert (second[1], second[4]) == ("600 s", "80.0 [65.0, 75.0]")


def test_a_set_without_records_says_that_nothing_was_run():
    text = report.paper_tables([])
    assert text.count("not run") > 50
    assert "*No run yet.*" in text
    cells = row(report.summary_table([]), "RetinaMNIST")
    assert cells[1:3] == ["not run", "not run"]
    assert cells[3] == "73.1 ± 0.4 / 51.4 ± 2.1"


def test_the_page_shows_the_figures_of_what_was_run(tmp_path):
    picture = {"file": "paper_samples_toy_msf.png", "sha256": "0"}
    records = [made(picture=picture, test_auc_by_distance=68.5)]
    text = report.paper_tables(records)
    assert "](benchmarks/paper_rejection_toy.png)" in text
    assert f"![Figure 3, toy, {MSF}, 60 s](benchmarks/paper_samples_toy_msf.png)" in text
    assert f"| toy | {MSF} | 60 s | 0 | 70.0 | 68.5 |" in text
    assert "150 to 150 GFLOP/s" in text
    report.save_figure_2(records, tmp_path)
    with Image.open(tmp_path / "paper_rejection_toy.png") as image:
        assert image.size[0] > image.size[1]


def test_the_summary_has_ours_and_the_same_time_of_a_resnet():
    seen = {"generated": {"coverage": 0.7}, "training": {"coverage": 0.96}}
    time = {"reference_seconds": common.equal_seconds("retinamnist")}
    records = [
        made("defaults", dataset="retinamnist", imagenet=seen) | time,
        made("resnet18", dataset="retinamnist", test_auc=68.0) | time,
        made("resnet18", dataset="retinamnist", test_auc=98.0),
        made("resnet18", "complete", dataset="retinamnist", test_auc=99.0),
    ]
    assert row(report.summary_table(records), "RetinaMNIST")[1:] == [
        *("70.0 / 50.0", "68.0 / 50.0", "73.1 ± 0.4 / 51.4 ± 2.1", "10.0", "0.70 (0.96)")
    ]


def test_a_picture_of_another_budget_has_a_name_of_its_own(quick, tmp_path):
    usual = common.equal_seconds("toy")
    names = []
    for seconds in (usual, 60.0):
        identity = {**EQUAL, "system": "defaults", "reference_seconds": seconds}
        record = paper.run(identity, DATA, official=False, pictures=tmp_path)
        names.append(record["picture"]["file"])
    assert names == ["paper_samples_toy_defaults.png", "paper_samples_toy_defaults_60s.png"]


def test_table_6_keeps_runs_on_a_gpu_apart():
    on_gpu = made(seed=1, peak_memory_mib=100.0)
    on_gpu["provenance"]["machine"]["gpu"] = "any GPU"
    assert rows(report.computation_table([made(), on_gpu]), "toy") == [
        ["toy", MSF, "60 s", "10.0", "10.0", "900", "12.3", "-"],
        ["toy", MSF, "60 s", "10.0", "-", "100", "12.3", "-"],
    ]


def test_table_6_has_time_memory_and_latencies():
    cells = rows(report.computation_table([made()]), "toy")
    assert cells == [["toy", MSF, "60 s", "10.0", "10.0", "900", "12.3", "-"]]


@pytest.mark.parametrize("entry", report.PUBLISHED["classification"], ids=lambda e: e["system"])
def test_published_figures_have_a_source_and_say_what_was_chosen_on(entry):
    assert entry["source"] in report.PUBLISHED["sources"]
    assert entry["chosen_on"] in ("validation", "test", "unknown")
    figures = [v for name in report.SHOWN for v in entry.get(name, [])]
    assert figures
    assert all(value is None or 0 <= value <= 100 for value in figures)


def test_every_system_with_published_figures_finds_them():
    named = {s.published for s in common.SYSTEMS.values() if s.published}
    assert named <= {entry["system"] for entry in report.PUBLISHED["classification"]}
    assert named <= {entry["system"] for entry in report.PUBLISHED["computation"]["rows"]}
