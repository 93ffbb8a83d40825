import json
import os
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CLASSIFIERS, tiny_classifier
from forked_scripts import LIBRARIES, run_code
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import VICTIMS, class_of, open_mutated, rewrite, save_victim, use
from sklearn.exceptions import NotFittedError

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf._estimator.model_card import card_to_write
from sklearn_msf.persistence.archives import ArchiveError
from sklearn_msf.persistence.limits import MAX_METADATA_BYTES
from sklearn_msf.training.step import TrainingStep

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
LABELS = {
    "strings": np.array(["a", "bb", "ccc"] * 8),
    "objects": np.array(["a", "bb", "ccc"] * 8, dtype=object),
    "integers": np.array([-3, 7, 2**40] * 8),
    "small integers": np.array([0, 1, 2] * 8, dtype=np.uint8),
    "floats": np.array([-1.0, 0.0, 1e6] * 8),
    "booleans": np.array([True, False] * 12),
}


def make_like(classifier):
    """Factory of tiny classifiers of the same class."""
    (name,) = {name for name, make in CLASSIFIERS.items() if type(make()) is type(classifier)}
    return CLASSIFIERS[name]


@pytest.fixture(scope="module", params=CLASSIFIERS)
def saved(tmp_path_factory, request):
    """A fitted classifier and the folder it was saved to."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    classifier = CLASSIFIERS[request.param](n_draws=3).fit(X, LABELS["strings"])
    classifier.save_pretrained(folder)
    return classifier, folder


def edit(folder, change):
    """Change a model on purpose, with digests that fit."""
    metadata = json.loads((folder / "model.json").read_text())["metadata"]
    change(metadata)
    rewrite(folder, metadata=metadata)


@pytest.mark.parametrize(
    ("kind", "form"), [*[(kind, "posterior") for kind in LABELS], ("strings", "velocity")]
)
def test_a_saved_model_predicts_the_same_bits(tmp_path, kind, form, make_classifier):
    y = LABELS[kind]
    classifier = make_classifier(label_prediction=form, max_epochs=1).fit(X, y)
    classifier.save_pretrained(tmp_path)
    opened = type(classifier).from_pretrained(tmp_path)
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    np.testing.assert_array_equal(opened.predict(X), classifier.predict(X))
    assert opened.predict(X).dtype.kind == classifier.predict(X).dtype.kind
    label = y[0]
    sampled = [model.sample(label, 2, n_steps=2, random_state=1) for model in (opened, classifier)]
    np.testing.assert_array_equal(*sampled)
    assert sampled[0].dtype == np.uint8


def test_everything_that_was_learned_comes_back(saved):
    classifier, folder = saved
    opened = type(classifier).from_pretrained(str(folder))
    assert opened.get_params() == classifier.get_params()
    assert opened.history_ == classifier.history_
    assert opened.n_iter_ == classifier.n_iter_
    assert opened.image_shape_ == classifier.image_shape_
    assert opened.n_features_in_ == classifier.n_features_in_
    assert opened.loss_curve_ == classifier.loss_curve_


def test_a_folder_has_weights_plain_data_and_a_card(saved):
    _, folder = saved
    suffixes = sorted(path.name.split(".")[-1] for path in folder.iterdir())
    assert suffixes == ["json", "md", "safetensors"]
    card = (folder / "README.md").read_text()
    assert "from_pretrained" in card
    assert "8 x 8 x 3" in card
    assert "a, bb, ccc" in card


def test_the_card_says_what_the_model_was_trained_on(tmp_path):
    classifier = tiny_classifier(max_epochs=2).fit(X, LABELS["strings"])
    classifier.save_pretrained(tmp_path)
    card = " ".join((tmp_path / "README.md").read_text().split())
    n_parameters = sum(p.numel() for p in classifier.model_.field.parameters())
    assert f"{2 * len(X):,} images seen, last loss {classifier.loss_curve_[-1]:.4g}" in card
    assert f"Parameters: {n_parameters:,}" in card
    assert "uint8 in [0, 255]" in card


@pytest.mark.parametrize("image_weight", [0.5, 0])
def test_the_card_of_a_continued_model_says_that_it_has_the_last_call_only(tmp_path, image_weight):
    settings = {"max_epochs": 2, "image_weight": image_weight, "classification_fraction": 0.5}
    classifier = tiny_classifier(**settings, warm_start=True).fit(X, LABELS["strings"])
    classifier.save_pretrained(tmp_path / "once")
    assert "- Training: 2 epochs" in (tmp_path / "once" / "README.md").read_text()
    classifier.fit(X, LABELS["strings"]).save_pretrained(tmp_path / "twice")
    card = (tmp_path / "twice" / "README.md").read_text()
    assert "- Training, the last of several calls of fit: 2 epochs" in card
    opened = type(classifier).from_pretrained(tmp_path / "twice")
    opened.partial_fit(X, LABELS["strings"]).save_pretrained(tmp_path / "part")
    card = (tmp_path / "part" / "README.md").read_text()
    assert "- Training, the last of several calls of fit: 3 epochs" in card


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, make_classifier):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    classifier = make_classifier(checkpoint_dir="~/run", max_epochs=1).fit(X, LABELS["strings"])
    classifier.save_pretrained("~/model")
    opened = type(classifier).from_pretrained("~/model")
    np.testing.assert_array_equal(opened.predict(X), classifier.predict(X))
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"model", "run"}


def test_saving_again_replaces_the_model(saved, tmp_path):
    classifier, _ = saved
    classifier.save_pretrained(tmp_path)
    other = make_like(saved[0])(random_state=5).fit(X, LABELS["integers"])
    other.save_pretrained(tmp_path)
    opened = type(classifier).from_pretrained(tmp_path)
    np.testing.assert_array_equal(opened.predict_proba(X), other.predict_proba(X))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_saved_model_opens_in_another_process(saved, tmp_path):
    classifier, folder = saved
    np.save(tmp_path / "X.npy", X)
    code = (
        "import sys, numpy as np;"
        f"from sklearn_msf import {type(classifier).__name__} as M;"
        "p = M.from_pretrained(sys.argv[1]).predict_proba(np.load(sys.argv[2]));"
        "np.save(sys.argv[3], p)"
    )
    ended = run_code(LIBRARIES, code, folder, tmp_path / "X.npy", tmp_path / "p.npy")
    assert ended.code == 0, ended.errors
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), classifier.predict_proba(X))


def test_an_opened_model_can_be_saved_pickled_and_trained_on(saved, tmp_path):
    classifier, folder = saved
    opened = type(classifier).from_pretrained(folder)
    opened.save_pretrained(tmp_path)
    again = type(classifier).from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.predict_proba(X), classifier.predict_proba(X))
    before = again.predict_proba(X)
    again.partial_fit(X, LABELS["strings"])
    assert not np.array_equal(again.predict_proba(X), before)
    # Each part sees noise of its own, so how many there were has to be kept.
    again.save_pretrained(tmp_path)
    opened = type(classifier).from_pretrained(tmp_path)
    assert opened._continuation.n_continued == again._continuation.n_continued == 1


def test_names_of_columns_come_back(tmp_path, make_classifier):
    frame = pd.DataFrame(RNG.random((24, 16)), columns=[f"pixel{i}" for i in range(16)])
    classifier = make_classifier(image_shape=(4, 4)).fit(frame, LABELS["integers"])
    classifier.save_pretrained(tmp_path)
    opened = type(classifier).from_pretrained(tmp_path)
    assert opened.feature_names_in_.tolist() == list(frame.columns)
    np.testing.assert_array_equal(opened.predict(frame), classifier.predict(frame))


def test_parameters_of_every_kind_come_back(tmp_path, make_classifier):
    weights = {"a": 2.0, "bb": 1.0, "ccc": 0.5}
    classifier = make_classifier(
        class_weight=weights, channel_mult=(1, 2), time_budget=60.0, random_state=np.int64(3)
    ).fit(X, LABELS["strings"])
    classifier.save_pretrained(tmp_path)
    parameters = type(classifier).from_pretrained(tmp_path).get_params()
    assert parameters["class_weight"] == weights
    assert parameters["network_params"] == classifier.network_params
    assert parameters["network_params"]["channel_mult"] == (1, 2)
    assert parameters["time_budget"] == 60.0
    assert parameters["random_state"] == 3


@pytest.mark.parametrize("random_state", [np.random, np.random.RandomState(3), None])
def test_sources_of_random_numbers_are_left_out(tmp_path, random_state, make_classifier):
    classifier = make_classifier(random_state=random_state).fit(X, LABELS["strings"])
    classifier.save_pretrained(tmp_path)
    opened = type(classifier).from_pretrained(tmp_path)
    assert opened.random_state is None
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))


def test_a_model_from_a_gpu_opens_on_a_machine_without(saved, tmp_path):
    classifier, _ = saved
    classifier.save_pretrained(tmp_path)
    edit(tmp_path, lambda metadata: metadata["parameters"].update(device="cpu"))
    on_cpu = type(classifier).from_pretrained(tmp_path)
    edit(tmp_path, lambda metadata: metadata["parameters"].update(device="cuda:99"))
    with pytest.warns(UserWarning, match="not available here"):
        opened = type(classifier).from_pretrained(tmp_path)
    assert opened.model_.device.type == "cpu"
    np.testing.assert_array_equal(opened.predict_proba(X), on_cpu.predict_proba(X))


def test_saving_before_fit_is_refused(tmp_path, make_classifier):
    with pytest.raises(NotFittedError):
        make_classifier().save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_labels_that_json_lacks_are_refused_and_nothing_written(tmp_path, make_classifier):
    days = np.array([date(2020, 1, 1), date(2021, 1, 1)] * 12, dtype=object)
    classifier = make_classifier().fit(X, LABELS["booleans"])
    classifier.model_ = replace(classifier.model_, classes=np.unique(days))
    with pytest.raises(TypeError, match="pickle the estimator"):
        classifier.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nothing", r"holds no model: there is no such folder \(the working directory is"),
        ("empty", r"holds no model: model\.json is missing"),
    ],
)
def test_a_folder_without_a_model_is_named(tmp_path, folder, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        MedSymmFlowClassifier.from_pretrained(tmp_path / folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update({"class": "RandomForestClassifier"}), "holds a 'RandomForest"),
        (lambda d: d["parameters"].update(learning_rate=-1), "learning_rate must be"),
        (
            lambda d: d["parameters"].update(evil=1),
            r"parameters \['evil'\] that cannot be set from a file",
        ),
        (lambda d: d["layout"].update(channels=10**9), "does not fit a first convolution"),
        (lambda d: d["layout"].update(channel_mult=[1, 10**8]), "more blocks than there are"),
        (lambda d: d["layout"].update(n_blocks=10**9), "more blocks than there are weights"),
        (lambda d: d["layout"].update(n_classes=10**9), "codes, got 1000000000 classes"),
        (lambda d: d.pop("layout"), "layout"),
        (lambda d: d["layout"].pop("time_scale"), "must have the entries"),
        (lambda d: d["layout"].pop("time_modulation"), "must have the entries"),
        (lambda d: d["layout"].pop("dropout"), "must have the entries"),
        (lambda d: d["layout"].update(patch_size="auto"), "patch_size must be an integer"),
        (lambda d: d["layout"].update(channel_mult="auto"), "has channel_mult='auto'"),
        (lambda d: d["layout"].update(time_scale=0), r"time_scale must be a number in \(0"),
        (lambda d: d["layout"].update(time_scale=True), "time_scale must be a number"),
        (lambda d: d["layout"].update(time_scale=1e30), "time_scale must be a number"),
        (lambda d: d["layout"].update(time_modulation="add"), "time_modulation must be one of"),
        (lambda d: d["layout"].update(time_modulation="shift"), r"\.modulation\."),
        (lambda d: d["classes"].update(values=["c", "b", "a"]), "sorted and without duplicates"),
        (lambda d: d["image_format"].update(shape=[-1, 8, 3]), "not a valid image format"),
        (lambda d: d["image_format"].update(shape="88"), "not a valid image format"),
        (lambda d: d.update(feature_names="a" * 192), "no list of names for its 192"),
        (lambda d: d.update(feature_names=["a"]), "no list of names for its 192"),
        (lambda d: d["image_format"].update(dtype="O"), "not a dtype of numbers"),
        (lambda d: d.update(history="x"), "not a list of epoch logs"),
        (lambda d: d.update(history=[{"loss": "x"}]), "invalid epoch log"),
        (lambda d: d.update(noise_seed=-1), "noise_seed=-1"),
        (lambda d: d.update(flipped_axes=[-3]), r"flipped_axes=\[-3\]"),
        (lambda d: d.update(flipped_axes=[-2]), r"flipped_axes=\[-2\]"),
        (lambda d: d.update(flipped_axes=["x"]), r"flipped_axes=\['x'\]"),
        (lambda d: d.update(flipped_axes=[-1.0]), r"flipped_axes=\[-1.0\]"),
        (lambda d: d.update(ever_flipped_axes=[-2]), r"ever_flipped_axes=\[-2\]"),
        (lambda d: d.update(flipped_axes=None), "not a usable model"),
        (lambda d: d.pop("flipped_axes"), "not a usable model"),
        (lambda d: d["parameters"].update(checkpoint_dir="/tmp/x"), "cannot be set from a file"),
        (
            lambda d: d["parameters"].update(n_draws=10**9),
            "n_draws=1000000000 draws .* make 1,000,000,000 passes .* at most 100,000",
        ),
        (lambda d: d["parameters"].update(n_draws=9_999, n_steps=9_999), "at most 100,000"),
        (lambda d: d["image_format"].update(shape=[10**8, 8, 3]), "Images of shape"),
        (lambda d: d["image_format"].update(shape=[2**14, 2**14, 3]), "Images of shape"),
        (lambda d: d["image_format"].update(low=-1e308, high=1e308), "beyond what float64"),
        (
            lambda d: d["classes"].update(values=["a", "b", "c" * 10_001]),
            "10,001 characters; models whose labels have at most 10,000",
        ),
        (lambda d: d["classes"].update(values=["a", "b"]), "not a list of 3 labels"),
    ],
)
def test_what_is_wrong_with_the_plain_data_is_said(saved, tmp_path, change, message):
    saved[0].save_pretrained(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(ArchiveError, match=message):
        type(saved[0]).from_pretrained(tmp_path)


# The entries of the layout that were added last, and what older files mean.
NEW_ENTRIES = {"time_scale": 1000.0, "time_modulation": "scale_shift", "upsampling": "adm"}


def as_before(metadata):
    """Take out of the plain data what models of before lack."""
    for name in NEW_ENTRIES:
        del metadata["layout"][name]


def test_a_model_from_before_the_times_were_settings_opens_and_predicts_the_same_bits(
    make_classifier, tmp_path
):
    classifier = make_classifier(upsampling="adm").fit(X, LABELS["strings"])
    classifier.save_pretrained(tmp_path)
    edit(tmp_path, as_before)
    opened = type(classifier).from_pretrained(tmp_path)
    layout = opened.model_.field.layout
    assert {name: getattr(layout, name) for name in NEW_ENTRIES} == NEW_ENTRIES
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    opened.partial_fit(X, LABELS["strings"])
    # Saved again it says what it is.
    opened.save_pretrained(tmp_path)
    metadata = json.loads((tmp_path / "model.json").read_text())["metadata"]
    assert NEW_ENTRIES.items() <= metadata["layout"].items()


def test_a_pickle_from_before_the_times_were_settings_opens(make_classifier):
    classifier = make_classifier(upsampling="adm").fit(X, LABELS["strings"])
    state = classifier.__getstate__()
    as_before(state["model_"])
    opened = type(classifier)()
    opened.__setstate__(state)
    layout = opened.model_.field.layout
    assert {name: getattr(layout, name) for name in NEW_ENTRIES} == NEW_ENTRIES


def with_mirrored(plain):
    """Say as models of before did whether training saw mirror images."""
    plain["mirrored"] = bool(plain.pop("flipped_axes"))
    del plain["ever_flipped_axes"]


@pytest.mark.parametrize(("augment", "axes"), [("hflip", (-1,)), (None, ())])
def test_models_that_know_only_of_mirror_images_predict_the_same_bits(
    make_classifier, tmp_path, augment, axes
):
    classifier = make_classifier(augment=augment, n_draws=3).fit(X, LABELS["strings"])
    classifier.save_pretrained(tmp_path)
    edit(tmp_path, with_mirrored)
    state = classifier.__getstate__()
    with_mirrored(state["model_"])
    unpickled = type(classifier)()
    unpickled.__setstate__(state)
    for opened in (type(classifier).from_pretrained(tmp_path), unpickled):
        assert opened.model_.flipped_axes == opened.model_.ever_flipped_axes == axes
        np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))


# Each pair of these once.
@pytest.mark.parametrize(
    ("kind", "begins", "n_calls"),
    [
        ("pixels", "fit", 1),
        ("pixels", "partial_fit", 3),
        ("latents", "fit", 3),
        ("latents", "partial_fit", 1),
    ],
)
def test_few_images_at_a_time_teach_to_classify_however_often_the_model_is_opened(
    tmp_path, monkeypatch, kind, begins, n_calls
):
    divisions, division = [], TrainingStep._division

    def noted(self, n):
        divisions.append(division(self, n))
        return divisions[-1]

    classifier, y = CLASSIFIERS[kind](classification_fraction=0.15), LABELS["strings"]
    if begins == "partial_fit":
        monkeypatch.setattr(TrainingStep, "_division", noted)
        classifier.partial_fit(X[:3], y[:3], classes=np.unique(y))
    else:
        classifier.fit(X, y)
        monkeypatch.setattr(TrainingStep, "_division", noted)
    for _ in range(6):
        classifier.save_pretrained(tmp_path)
        classifier = type(classifier).from_pretrained(tmp_path)
        for _ in range(n_calls):
            classifier.partial_fit(X[:3], y[:3])
    assert len(divisions) == 6 * n_calls + (begins == "partial_fit")
    # 15 % of the images are at t = 1, where the class is learned.
    n_wanted = 0.15 * 3 * len(divisions)
    assert abs(sum(division.n_at_one for division in divisions) - n_wanted) < 1


def test_flips_come_back(tmp_path, make_classifier):
    classifier = make_classifier(augment="flip", n_draws=4).fit(X, LABELS["strings"])
    classifier.set_params(warm_start=True, augment="hflip").fit(X, LABELS["strings"])
    classifier.save_pretrained(tmp_path)
    opened = type(classifier).from_pretrained(tmp_path)
    for model in (classifier.model_, opened.model_):
        assert model.flipped_axes == (-1,)
        # A field goes on to draw what an earlier training taught it.
        assert model.ever_flipped_axes == (-1, -2)
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))


def test_other_times_come_back(tmp_path, make_classifier):
    times = {"time_scale": 2.5, "time_modulation": "shift"}
    classifier = make_classifier(**times, classification_fraction=0.0).fit(X, LABELS["strings"])
    classifier.save_pretrained(tmp_path)
    opened = type(classifier).from_pretrained(tmp_path)
    layout = opened.model_.field.layout
    assert {name: getattr(layout, name) for name in times} == times
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    with pytest.raises(ValueError, match="cannot go on with another time_scale than"):
        opened.set_params(network_params={**opened.network_params, "time_scale": 1.0}).partial_fit(
            X, LABELS["strings"]
        )


def test_files_of_the_first_format_version_are_refused_in_one_message(saved, tmp_path):
    saved[0].save_pretrained(tmp_path)
    path = tmp_path / "model.json"
    content = json.loads(path.read_text())
    # What version 1 wrote had other names for its parts.
    content["format_version"] = 1
    content["document"], content["document_sha256"] = (
        content.pop("metadata"),
        content.pop("metadata_sha256"),
    )
    path.write_text(json.dumps(content))
    with pytest.raises(
        ArchiveError, match="has format version 1, but .* reads version 2 only"
    ) as e:
        type(saved[0]).from_pretrained(tmp_path)
    assert e.value.__cause__ is None
    assert "\n" not in str(e.value)


def test_where_checkpoints_are_stays_on_the_machine(tmp_path, make_classifier):
    classifier = make_classifier(checkpoint_dir=tmp_path / "run").fit(X, LABELS["booleans"])
    classifier.save_pretrained(tmp_path / "model")
    text = (tmp_path / "model" / "model.json").read_text()
    assert str(tmp_path / "run") not in text
    assert "checkpoint_dir" not in json.loads(text)["metadata"]["parameters"]
    opened = type(classifier).from_pretrained(tmp_path / "model")
    assert opened.checkpoint_dir is None


def test_a_card_that_cannot_be_read_is_an_error_before_anything_is_written(saved, tmp_path):
    (tmp_path / "README.md").mkdir()
    with pytest.raises(OSError, match="README.md"):
        saved[0].save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_card_that_cannot_be_written_leaves_the_model(saved, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError("No space left on device")

    monkeypatch.setattr("sklearn_msf._estimator.serialization.write_file", full)
    with pytest.warns(UserWarning, match="was saved .* its card README.md could not be written"):
        saved[0].save_pretrained(tmp_path)
    assert type(saved[0]).from_pretrained(tmp_path).classes_.tolist() == list(saved[0].classes_)


def test_a_readme_that_is_not_ours_stays(saved, tmp_path):
    (tmp_path / "README.md").write_text("# My project")
    saved[0].save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My project"


@pytest.mark.parametrize("lines", ["\n", "\r\n"])
def test_a_card_that_nobody_changed_is_that_of_the_new_model(tmp_path, lines):
    # Labels of a file of Windows, read by lines.
    y = np.array(["a\r", "b\r"] * 12)
    classifier = tiny_classifier(max_epochs=1).fit(X, y)
    classifier.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    # git can change the ends of lines.
    card.write_bytes(card.read_bytes().replace(b"\n", lines.encode()))
    classifier.fit(X[:20, :6], y[:20]).save_pretrained(tmp_path)
    assert "6 x 8 x 3" in card.read_text()


def test_the_licence_that_a_card_states_is_kept(saved, tmp_path):
    card = shutil.copytree(saved[1], tmp_path / "model") / "README.md"
    card.write_bytes(card_to_write(card.read_bytes(), None, "mit"))
    licensed = card.read_text()
    assert licensed.count("\nlicense: mit\n---\n") == 1
    saved[0].save_pretrained(tmp_path / "model")
    assert card.read_text() == licensed


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n## Results\n",
        lambda text: text.replace("---\n\n", "license: mit\n---\n\n", 1),
        lambda text: text.replace("Not a medical device.", ""),
        lambda text: text.rpartition("<!--")[0],
    ],
    ids=["appended", "metadata", "removed", "without digest"],
)
def test_a_card_that_somebody_has_changed_stays_with_a_warning(saved, tmp_path, change):
    card = shutil.copytree(saved[1], tmp_path / "model") / "README.md"
    changed = change(card.read_text())
    assert changed != card.read_text()
    card.write_text(changed)
    with pytest.warns(UserWarning, match="README.md in .* was changed .* and is kept"):
        saved[0].save_pretrained(tmp_path / "model")
    assert card.read_text() == changed


@pytest.mark.parametrize("limit", [MAX_METADATA_BYTES, 10])
@pytest.mark.parametrize("content", ['{"learner": {}, "version": [2, 1, 0]}', "[[1], [2], [3]]"])
def test_a_file_of_another_program_is_not_replaced(saved, tmp_path, content, limit, monkeypatch):
    # One that is larger than ours can be is not read.
    monkeypatch.setattr("sklearn_msf.persistence.archives.MAX_METADATA_BYTES", limit)
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ValueError, match="file of another program .* name another folder"):
        saved[0].save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]
    assert (tmp_path / "model.json").read_text() == content


def test_a_model_replaces_one_that_is_damaged(saved, tmp_path):
    (tmp_path / "model.json").write_text('{"format": "skl')
    saved[0].save_pretrained(tmp_path)
    assert type(saved[0]).from_pretrained(tmp_path).classes_.tolist() == list(saved[0].classes_)


@pytest.fixture(scope="module", params=VICTIMS)
def victim(tmp_path_factory, request):
    """A saved model to mutate."""
    folder = tmp_path_factory.mktemp("victim") / "model"
    save_victim(folder, request.param)
    return folder


def test_an_accidental_change_of_the_plain_data_is_noticed(saved, tmp_path):
    saved[0].save_pretrained(tmp_path)
    path = tmp_path / "model.json"
    text = path.read_text()
    assert '"noise_seed": ' in text
    path.write_text(text.replace('"noise_seed": ', '"noise_seed": 1'))
    with pytest.raises(ArchiveError, match="another digest"):
        type(saved[0]).from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "weights"])
@pytest.mark.parametrize("special", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_read(saved, tmp_path, name, special):
    if special == "device" and not Path("/dev/zero").exists():
        special = "folder"
    saved[0].save_pretrained(tmp_path)
    path = next(tmp_path.glob("*.safetensors")) if name == "weights" else tmp_path / name
    path.unlink()
    if special == "pipe" and hasattr(os, "mkfifo"):
        os.mkfifo(path)
    elif special == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises((ArchiveError, OSError)):
        type(saved[0]).from_pretrained(tmp_path)


def test_harmless_changes_do_not_keep_a_model_from_opening(victim, tmp_path):
    folder = shutil.copytree(victim, tmp_path / "model")
    (folder / "README.md").write_text("mine now")
    (folder / "notes.txt").write_text("more")
    rewrite(folder)
    use(class_of(victim).from_pretrained(folder))


@settings(max_examples=100)
@given(st.integers(0, 2**32))
def test_a_mutated_model_opens_whole_or_is_refused(victim, tmp_path_factory, seed):
    open_mutated(victim, tmp_path_factory.mktemp("mutated") / "model", seed)


def test_pickles_of_before_the_release_are_refused(fitted):
    state = fitted.__getstate__()
    state["_weights"] = state.pop("model_")["field"]
    with pytest.raises(ValueError, match="unreleased version of sklearn_msf: fit again"):
        type(fitted)().__setstate__(state)
