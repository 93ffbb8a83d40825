"""What is saved can be opened again, and opening takes no more than the files can be for."""

import copy
import json
import pickle
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import (
    CLASSIFIERS,
    Averages,
    tiny_autoencoder,
    tiny_classifier,
    tiny_latent_classifier,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import rewrite
from scipy.stats import beta

from sklearn_msf import LatentMedSymmFlowClassifier
from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.latent import autoencoder_io, autoencoder_opening
from sklearn_msf.latent.autoencoder import ImageAutoencoder
from sklearn_msf.latent.autoencoder_io import autoencoder_to_plain, check_autoencoder
from sklearn_msf.persistence import limits
from sklearn_msf.persistence.archives import ArchiveError, read_archive
from sklearn_msf.persistence.limits import check_blocks, check_image_shape, check_resized_size
from sklearn_msf.selective import confusion_matrix_with_reject

X = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
Y = np.array(["a", "bb", "ccc"] * 4)


@pytest.fixture(scope="module", params=CLASSIFIERS)
def fitted(request):
    """A classifier that has seen a few images; tests change copies of it."""
    return CLASSIFIERS[request.param](max_epochs=1).fit(X, Y)


def open_again(classifier, folder):
    classifier.save_pretrained(folder)
    return type(classifier).from_pretrained(folder)


# What fit accepts

IMAGE_KINDS = {
    "bool": lambda rng, shape: rng.random(shape) < 0.5,
    "uint8": lambda rng, shape: rng.integers(0, 256, shape, dtype=np.uint8),
    "big-endian": lambda rng, shape: rng.integers(0, 4096, shape).astype(">u2"),
    "int64": lambda rng, shape: rng.integers(-(2**63), 2**63 - 1, shape, dtype=np.int64),
    "uint64": lambda rng, shape: rng.integers(0, 2**64 - 1, shape, dtype=np.uint64),
    "float16": lambda rng, shape: rng.normal(size=shape).astype(np.float16),
    "float32": lambda rng, shape: rng.random(shape, dtype=np.float32),
    "float64": lambda rng, shape: rng.normal(0, 1e9, shape),
    "tiny": lambda rng, shape: rng.random(shape) * 5e-324,
    "huge": lambda rng, shape: rng.uniform(-8e307, 8e307, shape),
    "beyond": lambda rng, shape: np.resize([-1.7e308, 1.7e308], shape),
    "longdouble": lambda rng, shape: rng.normal(size=shape).astype(np.longdouble),
    "constant": lambda rng, shape: np.full(shape, 7),
    "dates": lambda rng, shape: np.full(shape, "2020-01-01", dtype="datetime64[ns]"),
    "durations": lambda rng, shape: np.ones(shape, dtype="timedelta64[s]"),
}
LABEL_KINDS = {
    "strings": lambda k: np.array([f"class {i}" for i in range(k)]),
    "objects": lambda k: np.array([f"{i} ä\ud800" for i in range(k)], dtype=object),
    "booleans": lambda k: np.array([False, True]),
    "int8": lambda k: np.arange(k, dtype=np.int8) - 1,
    "uint64": lambda k: np.arange(k, dtype=np.uint64) + np.uint64(2**64 - k),
    "floats": lambda k: np.arange(k) / 1.0,
    "float16": lambda k: np.arange(k, dtype=np.float16),
    "longdoubles": lambda k: np.arange(k, dtype=np.longdouble),
    "big-endian": lambda k: np.arange(k).astype(">i4"),
    "dates": lambda k: np.arange(k).astype("datetime64[D]"),
    "many": lambda k: np.arange(70),
    "long": lambda k: np.array([f"{i}{'x' * 9_999}" for i in range(k)]),
}
SHAPES = st.one_of(
    st.tuples(st.integers(1, 40)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4)),
)


REFUSED_IMAGES = ("beyond", "dates", "durations")


def check_round_trip(folder, classifier, rows, labels):
    """Fit, then save and pickle; what comes back has the same predictions."""
    classifier.fit(rows, labels)
    wanted = classifier.predict_proba(rows)
    opened = open_again(classifier, folder)
    assert opened.classes_.dtype == classifier.classes_.dtype
    for again in (opened, pickle.loads(pickle.dumps(classifier))):
        np.testing.assert_array_equal(again.predict_proba(rows), wanted)
        np.testing.assert_array_equal(again.classes_, classifier.classes_)
        # numpy gives arrays from pickles the byte order of the machine.
        assert again.classes_.dtype.newbyteorder("=") == opened.classes_.dtype.newbyteorder("=")
        assert again.image_shape_ == classifier.image_shape_


@pytest.mark.filterwarnings("ignore:.*nearly flat:UserWarning")
@pytest.mark.parametrize("kind", IMAGE_KINDS)
@settings(max_examples=3)
@given(shape=SHAPES)
def test_a_model_of_any_images_that_fit_accepts_is_saved_and_opened(tmp_path_factory, kind, shape):
    rows = IMAGE_KINDS[kind](np.random.default_rng(0), (6, *shape))
    folder = tmp_path_factory.mktemp("saved")
    refused = pytest.raises(ValueError, match="^X (must hold|has)")
    with refused if kind in REFUSED_IMAGES else nullcontext():
        check_round_trip(folder, tiny_classifier(max_epochs=1), rows, [0, 1, 2] * 2)


@pytest.mark.parametrize("kind", LABEL_KINDS)
@settings(max_examples=3)
@given(
    st.integers(2, 5),
    st.sampled_from(["rgb", "grayscale", "simplex"]),
    st.sampled_from(["posterior", "velocity"]),
)
def test_a_model_of_any_labels_that_save_accepts_is_opened(
    tmp_path_factory, kind, n_classes, encoding, prediction
):
    labels = np.tile(LABEL_KINDS[kind](n_classes), 2)
    flow = {"label_encoding": encoding, "label_prediction": prediction, "class_dropout": 0.0}
    classifier = tiny_classifier(max_epochs=1, **flow)
    folder = tmp_path_factory.mktemp("saved")
    rows = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4), dtype=np.uint8)
    refused = nullcontext()
    if kind == "dates":
        refused = pytest.raises(TypeError, match="use labels that are numbers or strings")
    if (kind, encoding) == ("many", "rgb"):
        refused = pytest.raises(ValueError, match="64 codes, got 70")
    with refused:
        check_round_trip(folder, classifier, rows, labels)


def test_rows_of_more_than_16384_features_are_saved_and_opened(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (4, 16_386), dtype=np.uint8)
    # With six levels there are only 513 positions in the middle of the network, where it attends.
    classifier = tiny_classifier(max_epochs=1, channel_mult=(1,) * 6).fit(rows, [0, 1, 0, 1])
    opened = open_again(classifier, tmp_path)
    assert opened.image_shape_ == (1, 16_386)
    np.testing.assert_array_equal(opened.predict_proba(rows), classifier.predict_proba(rows))


@pytest.mark.parametrize("kind", ["datetime64[ns]", "timedelta64[s]"])
def test_dates_are_no_images(kind, make_classifier):
    dates = np.arange(12 * 64).reshape(12, 8, 8).astype(kind)
    for method in ("fit", "partial_fit"):
        arguments = {"classes": np.unique(Y)} if method == "partial_fit" else {}
        with pytest.raises(ValueError, match=r"X must hold numbers.*leave dates and times out"):
            getattr(make_classifier(), method)(dates, Y, **arguments)


def test_dates_are_no_images_for_a_fitted_model(fitted):
    dates = X.astype("timedelta64[s]")
    with pytest.raises(ValueError, match=r"X must hold numbers, got timedelta64\[s\]"):
        fitted.predict(dates)


@pytest.mark.parametrize("ends", [(-1.7e308, 1.7e308), (1.7e308, 1.75e308)])
def test_a_range_that_float64_does_not_hold_is_refused_before_training(ends, make_classifier):
    far = np.where(X > 127, ends[0], ends[1])
    with pytest.raises(ValueError, match=r"X has values from .*e\+308 to .*divide X"):
        make_classifier().fit(far, Y)


def test_the_autoencoder_is_not_opened_for_classes_that_have_no_codes():
    class Unopened:
        def encode(self, images):
            raise AssertionError

        decode = encode

    many = np.repeat(np.arange(65), 2)
    images = np.zeros((130, 8, 8), dtype=np.uint8)
    with pytest.raises(ValueError, match="64 codes, got 65"):
        tiny_latent_classifier(autoencoder=Unopened()).fit(images, many)
    with pytest.raises(ValueError, match="64 codes, got 65"):
        tiny_latent_classifier(autoencoder=Unopened()).partial_fit(images, many, classes=many)
    gray = {"label_encoding": "grayscale", "class_dropout": 0.1}
    with pytest.raises(ValueError, match=r"class_dropout=0\.1 cannot be used"):
        tiny_latent_classifier(autoencoder=Unopened(), **gray).fit(X, Y)


def test_a_fit_that_goes_on_refuses_class_dropout_of_gray_codes_before_it_encodes():
    classifier = tiny_latent_classifier(
        autoencoder=Averages(), label_encoding="grayscale", class_dropout=0, warm_start=True
    ).fit(X, Y)

    def unused(images):
        raise AssertionError

    classifier.model_.space.autoencoder.module.encode = unused
    params = {**classifier.flow_params, "class_dropout": 0.1}
    classifier.set_params(flow_params=params)
    for method in (classifier.fit, classifier.partial_fit):
        with pytest.raises(ValueError, match=r"class_dropout=0\.1 cannot be used"):
            method(X, Y)


# Saving refuses what opening would refuse


def with_history(classifier, n):
    classifier.history_ = classifier.history_ * n


def with_label(classifier, label):
    classes = np.array(["a", "bb", label])
    classifier.model_ = replace(classifier.model_, classes=classes)


def with_weights(classifier, value):
    field = copy.deepcopy(classifier.model_.field)
    field.unet.conv_in.weight.data[0] = value
    classifier.model_ = replace(classifier.model_, field=field)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.set_params(n_draws=10**6),
            "n_draws=1000000 draws of up to 1 evaluations each",
        ),
        (lambda c: c.set_params(n_draws=400, n_steps=400), "make 160,000 passes.*set smaller"),
        (lambda c: c.set_params(n_steps=30_000, ode_solver="rk4"), "120,000 evaluations each"),
        (lambda c: c.set_params(n_draws=34, ode_solver="dopri5"), "make 102,000 passes"),
        (lambda c: c.set_params(learning_rate=-1), "learning_rate must be"),
        (lambda c: c.set_params(channels=3), "channels must be an even integer, got 3"),
        (lambda c: c.set_params(flow_params={"beta": -1}), r"flow_params\['beta'\] must be"),
        (lambda c: c.set_params(class_weight={"d": np.inf}), "class_weight holds numbers that"),
        (lambda c: with_label(c, "c" * 10_001), "10,001 characters.*use shorter labels"),
        (lambda c: with_label(c, "a"), "sorted and without duplicates"),
        (lambda c: with_weights(c, np.nan), "that are not finite"),
        (lambda c: with_history(c, 100), "most of them for history; at most"),
        (
            lambda c: setattr(c, "history_", [{**c.history_[0], "loss": np.inf}]),
            "invalid epoch log",
        ),
        (
            lambda c: setattr(c, "model_", replace(c.model_, temperature=1e9)),
            "temperature=1000000000.0",
        ),
    ],
)
def test_what_could_not_be_opened_is_not_saved_and_the_model_of_before_stays(
    fitted, tmp_path, monkeypatch, change, message
):
    fitted.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    # A hundred epochs take some 20,000 bytes, all else less than 8,000.
    monkeypatch.setattr(limits, "MAX_METADATA_BYTES", 15_000)
    changed = copy.deepcopy(fitted)
    change(changed)
    with pytest.raises(ValueError, match=f"not saved, because it could not be opened.*{message}"):
        changed.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_parameter_of_longdouble_is_saved(fitted, tmp_path):
    changed = copy.deepcopy(fitted).set_params(learning_rate=np.longdouble(0.25))
    assert open_again(changed, tmp_path).learning_rate == 0.25


def test_a_label_that_utf8_lacks_is_saved_with_its_card(tmp_path):
    classifier = tiny_classifier(max_epochs=1).fit(X, np.array(["a", "\ud800"] * 6))
    assert open_again(classifier, tmp_path).classes_.tolist() == ["a", "\ud800"]
    assert r"a, \ud800" in (tmp_path / "README.md").read_text()


def fused():
    module = tiny_autoencoder()
    module.fuse_qkv_projections()
    return module


@pytest.mark.parametrize("make", [fused, partial(tiny_autoencoder, sample_size=8193)])
def test_an_autoencoder_that_files_cannot_hold_is_asked_for_and_pickled_as_an_object(
    tmp_path, make
):
    module = make()
    classifier = tiny_latent_classifier(autoencoder=module, max_epochs=1).fit(X, Y)
    classifier.save_pretrained(tmp_path)
    with pytest.raises(AutoencoderError, match=r"from_pretrained\(folder, autoencoder=\.\.\.\)"):
        LatentMedSymmFlowClassifier.from_pretrained(tmp_path)
    opened = LatentMedSymmFlowClassifier.from_pretrained(tmp_path, autoencoder=module)
    for again in (opened, pickle.loads(pickle.dumps(classifier))):
        np.testing.assert_array_equal(again.predict_proba(X), classifier.predict_proba(X))


@pytest.mark.parametrize("revision", [None, "main"])
def test_an_autoencoder_from_the_hub_without_a_commit_is_saved_with_its_weights(revision):
    source = {"kind": "hub", "id": "someone/vae", "revision": revision}
    metadata, weights = autoencoder_to_plain(
        ImageAutoencoder(tiny_autoencoder(), source), by_name=True
    )
    assert metadata["kind"] == "embedded"
    assert len(weights) > 0
    check_autoencoder(metadata, weights)


def test_images_are_encoded_at_no_more_than_a_multiple_of_their_size():
    check_resized_size("encoded_size", (1024, 1024), (8, 8))
    check_resized_size("encoded_size", (16 * 128, 16 * 512), (128, 512))
    for size, image_size in [((1024, 1032), (8, 8)), ((16 * 128, 16 * 520), (128, 512))]:
        with pytest.raises(ValueError, match="choose a smaller encoded_size"):
            check_resized_size("encoded_size", size, image_size)
    with pytest.raises(ValueError, match="no more than 268,435,456"):
        check_resized_size("encoded_size", (2**15, 2**14), (2**14, 2**14))


def test_an_encoded_size_that_could_not_be_opened_is_refused_before_training():
    with pytest.raises(ValueError, match=r"encoded_size=\(4096, 4096\).*choose a smaller"):
        tiny_latent_classifier(encoded_size=4096).fit(X, Y)


def test_images_are_limited_by_their_values_and_not_by_their_sides():
    check_image_shape((1, 2**28))
    check_image_shape((2**13, 2**13, 4))
    with pytest.raises(ValueError, match="have 268,435,457 values"):
        check_image_shape((1, 2**28 + 1))


# Opening takes what the files can be for


def edited(classifier, folder, change=None, extra=None):
    """Save a model with other metadata or more tensors, and with digests that fit."""
    classifier.save_pretrained(folder)
    metadata = json.loads((folder / "model.json").read_text())["metadata"]
    tensors = safetensors.torch.load_file(next(folder.glob("*.safetensors")))
    if change is not None:
        change(metadata)
    rewrite(folder, {**tensors, **(extra or {})}, metadata)
    return folder


@pytest.mark.parametrize("numel", [0, 1])
def test_tiny_tensors_buy_no_blocks(fitted, tmp_path, numel):
    tensors = {f"unet.down.{i}.x": torch.zeros(numel) for i in range(5_000)}
    edited(fitted, tmp_path, lambda d: d["layout"].update(n_blocks=1_000), tensors)
    found = {"light": "1,001", "adm": "2,001"}[fitted.model_.field.layout.upsampling]
    message = f"more blocks than there are weights: {found} residual"
    with pytest.raises(ArchiveError, match=message):
        type(fitted).from_pretrained(tmp_path)


def test_a_network_has_at_most_1024_blocks():
    # Each block of 8 channels has 6 tensors and 9 * 8 * 8 = 576 numbers at least.
    weights = {str(i): torch.zeros(96, device="meta") for i in range(6 * 1025)}
    check_blocks([(1000, 8), (24, 8)], weights)
    with pytest.raises(ValueError, match="1,025 residual blocks; .* at most 1,024"):
        check_blocks([(1000, 8), (25, 8)], weights)
    for n_tensors, numel in [(6 * 10 - 1, 96), (6 * 10, 95)]:
        with pytest.raises(ValueError, match="more blocks than there are weights"):
            check_blocks([(10, 8)], {str(i): torch.zeros(numel) for i in range(n_tensors)})


KL = {
    "down_block_types": ["DownEncoderBlock2D"] * 64,
    "up_block_types": ["UpDecoderBlock2D"] * 64,
    "block_out_channels": [32] * 64,
    "layers_per_block": 64,
}
TINY = {
    "encoder_block_out_channels": [64] * 64,
    "decoder_block_out_channels": [64] * 64,
    "num_encoder_blocks": [64] * 64,
    "num_decoder_blocks": [64] * 64,
}


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("AutoencoderKL", KL, "more blocks than there are weights: 8,256 residual"),
        ("AutoencoderTiny", TINY, "more blocks than there are weights: 8,192 residual"),
        ("AutoencoderKL", {**KL, "up_block_types": ["UpDecoderBlock2D"]}, "invalid layout"),
        ("AutoencoderKL", {**KL, "layers_per_block": "many"}, "invalid"),
        ("AutoencoderTiny", {**TINY, "num_encoder_blocks": [0] * 64}, "invalid layout"),
        ("AutoencoderTiny", {**TINY, "upsampling_scaling_factor": 2000}, "invalid layout"),
        ("AutoencoderKL", {}, "invalid autoencoder: 'layers_per_block'"),
        ("AutoencoderKL", [], "class 'AutoencoderKL'"),
        ("OrderedDict", {}, "class 'OrderedDict'"),
    ],
)
def test_an_autoencoder_is_built_only_if_there_are_weights_for_it(
    monkeypatch, kind, config, message
):
    def build(*arguments):
        raise AssertionError

    monkeypatch.setattr(autoencoder_opening, "build_autoencoder", build)
    metadata = {"kind": "embedded", "class": kind, "config": config}
    with pytest.raises(ArchiveError, match=message):
        check_autoencoder(metadata, {"x": torch.zeros(9)})


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_the_blocks_of_an_autoencoder_are_counted(kind):
    module = tiny_autoencoder(kind)
    names = ("ResnetBlock2D", "AutoencoderTinyBlock")
    n_blocks = sum(type(part).__name__ in names for part in module.modules())
    config = json.loads(json.dumps(dict(module.config)))
    counted = sum(n for n, _ in autoencoder_opening._blocks(kind, config))
    # The two blocks in the middle of each half of an AutoencoderKL, and the last one on each side
    # of an AutoencoderTiny, are there in any case.
    assert 0 <= n_blocks - counted <= 4


def test_labels_take_no_array_before_they_are_counted(fitted, tmp_path):
    labels = ["a" * 10_000, *(f"b{i:06}" for i in range(50_000))]
    edited(fitted, tmp_path, lambda d: d["classes"].update(values=labels))
    with pytest.raises(ArchiveError, match="not a list of 3 labels"):
        type(fitted).from_pretrained(tmp_path)


def test_encoded_masks_without_values_take_no_memory(tmp_path):
    classifier = tiny_latent_classifier(label_prediction="velocity", max_epochs=1).fit(X, Y)
    edited(classifier, tmp_path, extra={"space.mask_codes": torch.zeros(2**40, 0)})
    with pytest.raises(ArchiveError, match="mask_codes as torch.float32 of shape"):
        type(classifier).from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [[8, 8.0], [0, 8], [8], "88", [2**14, 2**14]])
def test_an_encoded_size_in_a_file_is_two_sides(tmp_path, size):
    classifier = tiny_latent_classifier(max_epochs=1).fit(X, Y)
    edited(classifier, tmp_path, lambda d: d["space"].update(encoded_size=size))
    with pytest.raises(ArchiveError, match="encoded_size="):
        type(classifier).from_pretrained(tmp_path)


def test_a_damaged_autoencoder_of_a_run_counts_as_missing(tmp_path):
    autoencoder = ImageAutoencoder(tiny_autoencoder())
    autoencoder_io.write_autoencoder(tmp_path, "key", autoencoder)
    assert autoencoder_io.read_autoencoder(tmp_path, "key") is not None
    tensors, metadata = read_archive(tmp_path, "autoencoder-key")
    for wrong in ({}, {**metadata["autoencoder"], "config": {"layers_per_block": []}}):
        autoencoder_io.write_archive(
            tmp_path, "autoencoder-key", tensors, {"key": "key", "autoencoder": wrong}
        )
        with pytest.warns(UserWarning, match="is damaged and ignored"):
            assert autoencoder_io.read_autoencoder(tmp_path, "key") is None


# The certificate


def test_a_saved_rule_keeps_what_its_certificate_can_be_checked_by(tmp_path):
    rng = np.random.default_rng(1)
    classifier = tiny_classifier(max_epochs=1).fit(X, Y)
    images, labels = rng.integers(0, 256, (300, 8, 8), dtype=np.uint8), rng.choice(Y, 300)
    classifier.fit_reject(images, labels, target_risk=0.8, confidence=0.9)
    rule = open_again(classifier, tmp_path).rejection_
    assert rule == classifier.rejection_ == pickle.loads(pickle.dumps(classifier)).rejection_
    accepted = classifier.predict_uncertainty(images) <= rule.threshold
    wrong = classifier.predict(images) != labels
    assert (rule.target_risk, rule.confidence, rule.n_images) == (0.8, 0.9, 300)
    assert (rule.n_accepted, rule.n_wrong) == (accepted.sum(), (wrong & accepted).sum())
    # The bound of Clopper and Pearson, one of 20 tests, without the image that is the threshold.
    n, n_wrong = rule.n_accepted - 1, rule.n_wrong
    assert beta.ppf(1 - (1 - rule.confidence) / 20, n_wrong + 1, n - n_wrong) <= rule.target_risk


@pytest.mark.parametrize(
    "target",
    [
        {"target_risk": {"a": 0.9, "ccc": 0.8}},
        {"target_risk": 3.5, "cost_matrix": [[0, 1, 5], [1, 0, 1], [2, 2, 0]]},
    ],
)
def test_rules_of_classes_and_of_costs_are_saved(tmp_path, target):
    rng = np.random.default_rng(1)
    classifier = tiny_classifier(max_epochs=1).fit(X, Y)
    images, labels = rng.integers(0, 256, (300, 8, 8), dtype=np.uint8), rng.choice(Y, 300)
    classifier.fit_reject(images, labels, **target)
    rule = open_again(classifier, tmp_path).rejection_
    assert rule == classifier.rejection_ == pickle.loads(pickle.dumps(classifier)).rejection_
    assert rule.target_risk == target["target_risk"]
    answers = classifier.predict_with_reject(images)
    matrix = confusion_matrix_with_reject(labels, answers, labels=classifier.classes_)
    assert rule.confusion_matrix == tuple(map(tuple, matrix.tolist()))
    assert rule.n_accepted == answers.count()


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_risk": 1.5},
        {"confidence": "high"},
        {"confidence": None},
        {"target_risk": {"pairs": [["no class", 0.1]]}},
        {"target_risk": {"pairs": [["a", 1.5]]}},
        {"cost_matrix": [[0, 1], [1, 0]]},
        {"cost_matrix": [[0, 1, 1], [1, 0, 1], [1, 10**400, 0]]},
        {"confusion_matrix": [[1, 2, 3]] * 3},
        {"confusion_matrix": [[1, 2, 3, -4]] * 3},
        {"confusion_matrix": [[1, 2, 3, 0.5]] * 3},
        {"confusion_matrix": "many"},
    ],
)
def test_a_certificate_that_cannot_be_is_refused(tmp_path, wrong):
    classifier = tiny_classifier(max_epochs=1).fit(X, Y)
    rule = {"threshold": 0.5, "kind": "margin", "settings": {}}
    certificate = {"target_risk": 0.1, "confidence": 0.9, "confusion_matrix": [[1, 2, 3, 4]] * 3}
    edited(classifier, tmp_path, lambda d: d.update(rejection={**rule, **certificate, **wrong}))
    with pytest.raises(ArchiveError, match="invalid rejection rule"):
        type(classifier).from_pretrained(tmp_path)


def test_a_rule_of_an_older_file_opens_without_its_certificate(tmp_path):
    classifier = tiny_classifier(max_epochs=1).fit(X, Y)
    rule = {"threshold": 0.5, "kind": "margin", "settings": {}}
    edited(classifier, tmp_path, lambda d: d.update(rejection=rule))
    opened = type(classifier).from_pretrained(tmp_path)
    assert (opened.rejection_.threshold, opened.rejection_.target_risk) == (0.5, None)


def test_an_autoencoder_that_is_not_in_the_files_is_asked_for(tmp_path):
    classifier = tiny_latent_classifier(autoencoder=Averages(), max_epochs=1).fit(X, Y)
    classifier.save_pretrained(tmp_path)
    with pytest.raises(AutoencoderError, match="pass it, from_pretrained"):
        type(classifier).from_pretrained(tmp_path)
