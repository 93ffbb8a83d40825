"""The benchmark of the paper's variants: one setting each, equal steps, no test split."""

import numpy as np
import pytest
from imported_scripts import benchmark_script

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.training.optimizer import AveragedOptimizer

SMALL = {
    "folds": 2,
    "steps": 12,
    "batch_size": 9,
    "channels": 4,
    "blocks": 1,
    "patch_size": 4,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def script():
    return benchmark_script("paper_variants")


@pytest.fixture
def data():
    """Forty images of two classes; what is no array fails if anything reads the test split."""
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), np.arange(40) % 2
    return {"train": (X[:30], y[:30]), "val": (X[30:], y[30:]), "test": None}


def test_a_variant_changes_the_settings_that_it_names_and_no_others(script):
    published = MedSymmFlowClassifier.from_paper(script.NAME).get_params()
    for changes in script.VARIANTS.values():
        grouped = script.group_parameters(changes)
        variant = MedSymmFlowClassifier.from_paper(script.NAME, **grouped).get_params()
        found = {
            entry: value
            for group in ("network_params", "optimizer_params")
            for entry, value in variant[group].items()
            if value != published[group][entry]
        }
        assert found == changes
        others = published.keys() - {"network_params", "optimizer_params"}
        assert all(variant[name] == published[name] for name in others)


def test_all_variants_make_the_same_number_of_steps_on_the_same_folds(script, data, monkeypatch):
    monkeypatch.setattr(script, "N_RUNS", 1)
    steps, begin_step = [], AveragedOptimizer.begin_step

    def counted(self, *arguments, **named):
        steps.append(self)
        return begin_step(self, *arguments, **named)

    monkeypatch.setattr(AveragedOptimizer, "begin_step", counted)
    folds = list(script.parts(data, 2, 0))
    description = script.describe_data("toy", {"train": data["train"], "val": data["val"]})
    assert [len(y) for _, (_, y) in folds] == [20, 20]
    # 20 images: 3 uneven batches (9, 9, 2) or 2 even ones of 10 in each epoch.
    for variant in (script.PUBLISHED, "even batches"):
        identity = {"dataset": script.NAME, "variant": variant, "seed": 0, "fold": 1, **SMALL}
        steps.clear()
        record = script.run(identity, folds[1], description)
        assert len(steps) == 12
        assert script.BENCHMARK.current([record]) == [record]
        assert (record["variant"], record["fold"], record["n_steps"]) == (variant, 1, 12)
        assert 0 <= record["auc"] <= 100
        assert np.isfinite([record["log_loss"], record["label_loss"], record["image_loss"]]).all()


def test_the_table_has_means_and_paired_differences(script):
    def record(variant, fold, auc):
        zeros = dict.fromkeys(script.SCORES, 0.0)
        return {"variant": variant, "seed": 0, "fold": fold, **SMALL, **zeros, "auc": auc}

    records = [
        record(script.PUBLISHED, 0, 60.0),
        record(script.PUBLISHED, 1, 70.0),
        record("28 px", 0, 61.0),
        record("28 px", 1, 73.0),
        # Of a fold that the published settings lack.
        record("28 px", 2, 99.0),
        record("even batches", 0, 58.0),
    ]
    table = script.table(records)
    # Means of 60 and 70; differences +1 and +3, whose standard error is sqrt(2) / sqrt(2).
    assert f"| {script.PUBLISHED} | 2 | 65.0 |" in table
    assert "| 28 px | 2 | +2.0 ± 1.0 |" in table
    assert "| even batches | 1 | -2.0 |" in table
    assert "time times 1000" not in table
