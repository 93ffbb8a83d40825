"""Records of benchmarks: what one holds, and which count today."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_classifier
from imported_scripts import BENCHMARKS, benchmark_script

from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf._version import RECIPES, __version__
from sklearn_msf.training.fraction import FRACTION_AIMS

common = benchmark_script("_common")

X = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
Y = np.arange(12) % 2
DATA = {"train": (X, Y)}
SETTINGS = {"width": 4}


def benchmark(settings=SETTINGS):
    return common.Benchmark(
        "toy", ("dataset", "seed"), lambda record: settings, lambda rs: f"{len(rs)} runs\n"
    )


def record(seed=0, settings=SETTINGS, data=DATA, **measured):
    begun = common.described(
        {"dataset": "toy", "seed": seed},
        parameters=settings,
        data=common.describe_data("toy", data),
        gflops=300.0,
        seconds=30.0,
        seed=seed,
    )
    return {**begun, **measured}


def changed(record, **provenance):
    return {**record, "provenance": {**record["provenance"], **provenance}}


def other_data():
    images = X.copy()
    images[0, 0, 0] ^= 1
    return {"train": (images, Y)}


# What a record holds


def test_a_record_of_a_classifier_holds_all_that_it_depends_on(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "DEFAULT")
    classifier = tiny_classifier(optimizer="auto", max_epochs=3).fit(X, Y)
    classifier.history_[-1]["classification_fraction"] = 0.6
    begun = common.described(
        {"dataset": "toy"},
        parameters=common.asked_parameters(classifier),
        data=common.describe_data("toy", DATA),
        gflops=300.0,
        seconds=30.0,
        seed=7,
        resolved=common.resolved_parameters(classifier, len(Y)),
    )
    provenance = json.loads(json.dumps(begun))["provenance"]
    assert provenance["version"] == __version__
    assert provenance["parameters"]["recipe"] == RECIPES["MedSymmFlowClassifier"]
    assert provenance["parameters"]["optimizer"] == "auto"
    assert provenance["parameters"]["channel_mult"] == [1]
    assert provenance["resolved"]["optimizer"] == "adamw"
    assert provenance["resolved"]["max_epochs"] == provenance["resolved"]["epochs"] == 3
    assert provenance["resolved"]["images_seen"] == 36
    # What the run has chosen within a time budget, as its history says.
    assert provenance["resolved"]["classification_fraction"] == 0.6
    assert provenance["precision"] == "float32"
    # The machine has twice the rate of the reference.
    assert (provenance["seconds"], provenance["reference_seconds"]) == (30.0, 60.0)
    assert provenance["seed"] == 7
    machine = provenance["machine"]
    assert machine["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert machine["threads"] == torch.get_num_threads()
    assert machine["limits"]["ONEDNN_MAX_CPU_ISA"] == "DEFAULT"
    assert machine["gflops"] == 300.0
    assert machine["cpu"]
    assert provenance["data"]["arrays"] == {
        "train_images": "(12, 8, 8) uint8",
        "train_labels": "(12,) int64",
    }


def test_parameters_that_do_not_move_results_are_no_part_of_a_record():
    asked = common.asked_parameters(MedSymmFlowClassifier(time_budget=3, random_state=1))
    elsewhere = MedSymmFlowClassifier(device="cpu", verbose=1, checkpoint_dir="runs")
    assert asked == common.asked_parameters(elsewhere)
    assert asked != common.asked_parameters(MedSymmFlowClassifier(n_draws=1))
    wider = MedSymmFlowClassifier(network_params={"dropout": 0.1})
    assert asked != common.asked_parameters(wider)


def test_what_auto_aims_at_within_a_budget_is_part_of_a_record_that_has_one():
    of_budget = common.asked_parameters(MedSymmFlowClassifier(), has_budget=True)
    aims = of_budget.pop("fraction_aims")
    assert aims == [list(aim) for aim in FRACTION_AIMS]
    assert of_budget == common.asked_parameters(MedSymmFlowClassifier())
    over_latents = common.asked_parameters(LatentMedSymmFlowClassifier(), has_budget=True)
    assert over_latents["schedule_begins"] == "with the first step"
    named = MedSymmFlowClassifier(classification_fraction=0.8)
    assert "fraction_aims" not in common.asked_parameters(named, has_budget=True)


@pytest.mark.parametrize(
    "other",
    [
        other_data(),
        {"train": (X.astype(np.int16), Y)},
        {"train": (X.reshape(12, 64), Y)},
        {"train": (X, Y[::-1])},
        {"val": (X, Y)},
    ],
    ids=["a bit", "dtype", "shape", "labels", "name"],
)
def test_the_digest_of_data_tells_any_difference(other):
    digest = common.describe_data("toy", DATA)["digest"]
    assert digest == common.describe_data("renamed", {"train": (X.copy(), Y)})["digest"]
    assert digest != common.describe_data("toy", other)["digest"]


# Which records count


def test_records_of_the_same_recipe_parameters_and_data_are_shown_and_not_repeated(tmp_path):
    records = common.Records(benchmark(), tmp_path / "toy.json")
    for seed in (0, 1):
        records.add(record(seed))
    again = common.Records(benchmark(), tmp_path / "toy.json")
    data = common.describe_data("toy", DATA)
    assert again.current == [record(0), record(1)]
    assert again.has({"dataset": "toy", "seed": 1}, data)
    assert not again.has({"dataset": "toy", "seed": 2}, data)


@pytest.mark.parametrize(
    "outdated",
    [
        record(settings={"width": 8}),
        {"dataset": "toy", "seed": 0},
    ],
    ids=["parameters", "no provenance"],
)
def test_records_of_other_parameters_do_not_count(tmp_path, outdated):
    path = tmp_path / "toy.json"
    path.write_text(json.dumps([outdated]))
    records = common.Records(benchmark(), path)
    data = common.describe_data("toy", DATA)
    assert records.current == []
    assert not records.has({"dataset": "toy", "seed": 0}, data)
    records.add(record(1))
    assert records.current == [record(1)]
    # They are kept: nothing that was measured is lost.
    assert json.loads(path.read_text()) == [outdated, record(1)]


def test_records_of_two_scripts_that_run_together_are_kept(tmp_path):
    one, other = (common.Records(benchmark(), tmp_path / "records.json") for _ in range(2))
    for seed, records in enumerate((one, other, one)):
        records.add(record(seed))
    assert [r["seed"] for r in one.current] == [0, 1, 2]


def test_each_list_of_numbers_is_a_line_and_nothing_changes(tmp_path):
    path = tmp_path / "toy.json"
    rows = [[0.25, None, -1e-7], [1, True, 0]]
    measured = {"rows": rows, "names": ["a, b", "[1,\n 2]"], "none": [], "nested": [1, [2]]}
    wanted = record(**measured)
    common.Records(benchmark(), path).add(wanted)
    assert json.loads(path.read_text()) == [wanted]
    lines = [line.strip() for line in path.read_text().splitlines()]
    assert "[0.25, null, -1e-07]," in lines
    assert "[1, true, 0]" in lines


def test_a_new_recipe_makes_records_of_its_estimator_outdated_and_no_others(monkeypatch):
    estimators = {"pixels": MedSymmFlowClassifier(), "latents": LatentMedSymmFlowClassifier()}

    def settings(record):
        return common.asked_parameters(estimators[record["system"]])

    by_estimator = common.Benchmark("toy", ("system", "seed"), settings, lambda rs: "")
    runs = [record(0, settings({"system": name}), system=name) for name in estimators]
    assert by_estimator.current(runs) == runs
    monkeypatch.setitem(RECIPES, "MedSymmFlowClassifier", RECIPES["MedSymmFlowClassifier"] + 1)
    assert by_estimator.current(runs) == runs[1:]


def test_records_of_other_data_under_the_same_name_do_not_count(tmp_path):
    records = common.Records(benchmark(), tmp_path / "toy.json")
    records.add(record(0))
    now = common.describe_data("toy", other_data())
    assert not records.has({"dataset": "toy", "seed": 0}, now)
    records.add(record(1, data=other_data()))
    assert records.current == [record(1, data=other_data())]


def test_the_commit_is_only_information():
    before = changed(record(), commit="before", version="0.0.1")
    assert benchmark().current([before]) == [before]


def test_what_is_averaged_has_one_setting_the_last_one():
    by_settings = common.Benchmark(
        "toy", ("dataset", "seed"), lambda r: {"width": r["width"]}, lambda rs: ""
    )
    narrow = [record(seed, {"width": 4}, width=4) for seed in (0, 1)]
    wide = record(2, {"width": 8}, width=8)
    assert by_settings.current([*narrow, wide]) == [wide]


def test_of_a_repeated_run_the_last_record_counts():
    runs = [record(0, score=1), record(0, score=2)]
    assert benchmark().current(runs) == runs[1:]


def test_what_a_script_no_longer_measures_does_not_count():
    gone = common.Benchmark("toy", ("dataset",), lambda record: None, lambda rs: "")
    assert gone.current([record()]) == []


def test_records_without_provenance_are_those_of_the_earlier_defaults():
    earlier = {"dataset": "toy", "seed": 0}
    assert common.is_earlier(earlier)
    assert not common.is_earlier(record())
    assert benchmark().chosen([earlier, record()], earlier=True) == [earlier]
    assert benchmark().markdown([earlier, record()], earlier=True) == "1 runs\n"


def test_a_table_without_records_says_how_to_measure_it():
    text = benchmark().markdown([{"dataset": "toy", "seed": 0}])
    assert "Not measured yet with today's settings" in text
    assert "python examples/benchmarks/toy.py" in text


def test_a_write_that_fails_leaves_the_records_whole(tmp_path, monkeypatch):
    path = tmp_path / "toy.json"
    records = common.Records(benchmark(), path)
    records.add(record(0))

    def half(path, text, **keywords):
        path.write_bytes(text[: len(text) // 2].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        records.add(record(1))
    monkeypatch.undo()
    assert json.loads(path.read_text()) == [record(0)]


# Every script


def scripts_with_records():
    files = sorted(BENCHMARKS.glob("*.py"))
    return [path.stem for path in files if "\nBENCHMARK = " in path.read_text()]


@pytest.mark.parametrize("name", scripts_with_records())
def test_every_script_describes_its_records(name):
    assert benchmark_script(name).BENCHMARK.call == f"{name}.py"


@pytest.mark.parametrize(
    ("name", "benchmark", "option"),
    [("speed", "SWEEP", "--sweep"), ("scaling", "PAPER", "--count")],
)
def test_a_missing_table_names_the_option_that_fills_it(name, benchmark, option):
    module = benchmark_script(name)
    missing = getattr(module, benchmark).markdown([])
    assert f"`python examples/benchmarks/{name}.py {option}`" in missing
    assert option in module.__doc__


def test_settings_of_a_variant_are_part_of_its_record():
    parameters = benchmark_script("ablation").BENCHMARK.parameters
    assert parameters({"variant": "1 draw"})["n_draws"] == 1
    assert parameters({"variant": "dropped from the script"}) is None


def test_what_a_measurement_in_its_own_process_raises_is_raised_here():
    with pytest.raises(ValueError, match="cannot be measured"):
        common.in_own_process(fail_in_child)


def fail_in_child():
    raise ValueError("cannot be measured")
