"""Conformal prediction by other packages over our probabilities."""

import numpy as np
import pytest
from imported_scripts import EXAMPLES, script_at

conformal = script_at(EXAMPLES / "conformal.py")


@pytest.fixture(scope="module")
def parts(digits):
    X, y = digits
    rows, labels = X.reshape(len(X), -1), np.unique(y, return_inverse=True)[1]
    return rows[:100], labels[:100], rows[100:], labels[100:]


@pytest.mark.parametrize("make", [conformal.mapie_sets, conformal.crepes_sets])
def test_conformal_sets_hold_the_label(make_classifier, parts, make):
    X, y, X_new, y_new = parts
    classifier = make_classifier(image_shape=(8, 8), max_epochs=20, channels=16).fit(X, y)
    sets = make(classifier, X_new[:70], y_new[:70], X_new[70:], 0.8)
    assert sets.shape == (70, 3)
    # 0.8 less what 70 calibration and 70 test samples may miss by chance.
    assert sets[np.arange(70), y_new[70:]].mean() > 0.6
    assert sets.sum(axis=1).mean() < 2.5


def test_the_script_makes_sets_of_retinas(monkeypatch, capsys):
    def fetch(name, *, split, return_X_y):
        rng = np.random.default_rng(len(split))
        X, y = rng.integers(0, 256, (100, 28, 28, 3), dtype=np.uint8), np.arange(100) % 5
        return X, y

    monkeypatch.setattr(conformal, "fetch_medmnist", fetch)
    network = {"channel_mult": (1,), "attention_levels": ()}
    sets = conformal.main(channels=8, network_params=network, max_epochs=1, augment=None)
    assert sets.shape == (100, 5)
    shown = capsys.readouterr().out
    assert shown.count("mean size") == 2
