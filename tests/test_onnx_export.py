"""Exported models: onnxruntime answers as the estimator does, and no broken file is written."""

import copy
import json
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import (
    Averages,
    tiny_autoencoder,
    tiny_classifier,
    tiny_feature_classifier,
    tiny_joint_classifier,
    tiny_latent_classifier,
)
from imported_scripts import EXAMPLES

from sklearn_msf._estimator.auto_settings import classification_settings
from sklearn_msf._estimator.onnx_export import _warn_of_low_threshold
from sklearn_msf._estimator.parameters import draw_seed, make_random_state
from sklearn_msf._estimator.rejection import RejectionRule, prediction_parameters
from sklearn_msf.data.images import learn_format
from sklearn_msf.exporting import onnx_files
from sklearn_msf.exporting.graphs import ClassifierGraph, for_graphs
from sklearn_msf.model.sampling import image_noise

SERVICE = EXAMPLES / "onnx_service.py"
rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
HALVES = rng.random((24, 28, 28, 3)).astype(np.float16)
LABELS = np.array(["cyst", "mass", "none"])[np.arange(24) % 3]


def session_of(path):
    session = onnxruntime.InferenceSession(path)
    entries = session.get_modelmeta().custom_metadata_map
    return session, {key: json.loads(value) for key, value in entries.items()}


@pytest.fixture(scope="module")
def classifier():
    """A classifier with all that a graph must hold: draws, flips, temperature, a rule."""
    classifier = tiny_classifier(n_draws=5, augment="flip", classification_fraction=0.5)
    classifier.fit(RGB, LABELS)
    classifier.model_ = replace(classifier.model_, temperature=1.7)
    X = rng.integers(0, 256, (150, 8, 8, 3), dtype=np.uint8)
    y = np.where(rng.random(150) < 0.8, classifier.predict(X), rng.choice(LABELS[:3], 150))
    classifier.fit_reject(X, y, target_risk=0.3, kind="entropy")
    # Reject half of the images, with a distance to the threshold that rounding does not bridge.
    middle = np.sort(classifier.predict_uncertainty(RGB, "entropy"))[11:13]
    classifier.rejection_ = replace(classifier.rejection_, threshold=float(middle.mean()))
    return classifier


@pytest.fixture(scope="module")
def exported(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    classifier.export_onnx(path)
    return path


@pytest.mark.parametrize("n", [1, 2, 24])
def test_a_classifier_gives_the_same_probabilities_for_any_number_of_images(
    classifier, exported, n
):
    session, _ = session_of(exported)
    p, uncertainty = session.run(None, {"images": RGB[:n]})
    assert (p.dtype, uncertainty.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(p, classifier.predict_proba(RGB[:n]), atol=1e-4)
    wanted = classifier.predict_uncertainty(RGB[:n], "entropy")
    np.testing.assert_allclose(uncertainty, wanted, atol=1e-4)


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint8, np.uint64])
def test_whole_numbers_are_compared_on_images_of_all_values(dtype):
    X = np.arange(128).reshape(2, 64).astype(dtype)
    image_format = learn_format(X, (8, 8), flat=False, dtype=np.dtype(dtype))
    images = onnx_files._random_images(image_format, 200)
    expected = np.arange(image_format.low, image_format.high + 1)
    assert set(expected) - set(images.ravel().tolist()) == set()
    assert images.dtype == dtype


def test_draws_that_are_equal_are_computed_once(classifier):
    settings = classification_settings(classifier._parameters(), torch.device("cpu"))
    graph = ClassifierGraph(for_graphs(classifier.model_), settings, "entropy")
    assert settings.n_draws == 5
    # Along two axes there are four views of an image.
    assert len(graph.noise) == 4


def test_the_axes_are_named_and_sized(classifier, exported):
    session, _ = session_of(exported)
    (images,) = session.get_inputs()
    assert images.shape == ["n", *RGB.shape[1:]]
    assert [output.shape for output in session.get_outputs()] == [["n", 3], ["n"]]


def test_the_metadata_have_what_a_service_must_know(classifier, exported):
    _, metadata = session_of(exported)
    rule = classifier.rejection_
    assert metadata["kind"] == "classifier"
    assert metadata["classes"] == ["cyst", "mass", "none"]
    assert metadata["image_format"] == {
        "shape": [8, 8, 3], "flat": False, "dtype": "uint8", "low": 0.0, "high": 255.0,
    }  # fmt: skip
    assert metadata["uncertainty"] == metadata["rejection"]["kind"] == "entropy"
    assert metadata["rejection"]["threshold"] == rule.threshold
    assert metadata["rejection"]["confidence"] == rule.confidence


def test_the_graph_is_small_and_of_standard_operations(exported):
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain for opset in model.opset_import} == {""}
    # The other exporter of torch makes some 900 of this network.
    assert len(model.graph.node) < 250


def test_the_service_of_the_examples_answers_and_abstains_without_torch(
    classifier, exported, tmp_path
):
    np.save(tmp_path / "images.npy", RGB)
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert not {'torch', 'sklearn', 'sklearn_msf'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, SERVICE, exported, tmp_path / "images.npy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wanted = classifier.predict_with_reject(RGB, reject_label="abstains")
    assert [line.split()[1] for line in done.stdout.splitlines()] == wanted.tolist()
    assert (wanted == "abstains").sum() == 12


@pytest.mark.parametrize(
    ("rule", "abstains"),
    [
        ({"threshold": None}, [True, True]),
        ({"threshold": 0.5}, [False, True]),
        (None, [False, False]),
    ],
    ids=["nothing certified", "threshold", "no rule"],
)
def test_the_service_answers_only_what_is_certified(exported, rule, abstains):
    service = runpy.run_path(str(SERVICE))["Service"](exported)
    p, uncertainty = np.full((2, 3), 1 / 3, np.float32), np.array([0.1, np.nan])
    service.session = SimpleNamespace(run=lambda *_: (p, uncertainty))
    service.metadata["rejection"] = rule
    assert service(RGB[:2])[1].tolist() == abstains


def test_the_service_refuses_images_of_another_kind(exported):
    service = runpy.run_path(str(SERVICE))["Service"](exported)
    with pytest.raises(ValueError, match="uint8"):
        service(RGB / 255)
    with pytest.raises(ValueError, match=r"\(n, 8, 8, 3\)"):
        service(RGB[0])


def test_a_latent_classifier_holds_its_autoencoder(tmp_path):
    autoencoder = tiny_autoencoder(
        down_block_types=["DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D"],
        block_out_channels=[8],
        mid_block_add_attention=False,
    )
    # Gray rows, whose images are enlarged for the autoencoder.
    X = rng.integers(0, 4096, (24, 63), dtype=np.uint16)
    classifier = tiny_latent_classifier(
        autoencoder=autoencoder,
        encoded_size=(10, 8),
        image_shape=(9, 7),
        n_draws=3,
        augment="flip",
    ).fit(X, np.arange(24) % 3)
    classifier.model_ = replace(classifier.model_, temperature=1.7)
    # Another uncertainty than that of the fixture.
    rejects_by(classifier, "draws")
    classifier.export_onnx(str(tmp_path / "model.onnx"), "classifier")
    metadata = check_answers(tmp_path / "model.onnx", classifier, X, "draws")
    assert metadata["autoencoder"] == {"class": "AutoencoderKL", "kind": "embedded"}


def rejects_by(classifier, kind):
    settings = prediction_parameters(classifier._parameters())
    classifier.rejection_ = RejectionRule(0.5, kind, settings)


def check_answers(path, classifier, X, kind):
    """Compare probabilities and uncertainties of an exported classifier; return its metadata."""
    session, metadata = session_of(path)
    p, uncertainty = session.run(None, {"images": X})
    np.testing.assert_allclose(p, classifier.predict_proba(X), atol=1e-4)
    np.testing.assert_allclose(uncertainty, classifier.predict_uncertainty(X, kind), atol=1e-4)
    assert np.ptp(uncertainty) > 0
    assert metadata["uncertainty"] == kind
    return metadata


def test_a_sampler_draws_the_images_of_its_noise(tmp_path):
    X = rng.random((24, 6, 6), dtype=np.float32)
    settings = {"class_dropout": 0.1, "classification_fraction": 0.5}
    classifier = tiny_classifier(**settings, label_prediction="velocity")
    classifier.fit(X, np.arange(24) % 3).export_onnx(tmp_path / "model.onnx", "sampler")
    session, metadata = session_of(tmp_path / "model.onnx")
    assert (metadata["kind"], metadata["n_steps"], metadata["guidance"]) == ("sampler", 5, 0.5)
    assert metadata["ode_solver"] == "midpoint"
    labels = np.array([2, 0, 1, 2, 1])
    noise = noise_of(classifier, len(labels))
    assert list(noise.shape[1:]) == metadata["noise_shape"]
    axes = {value.name: value.shape for value in [*session.get_inputs(), *session.get_outputs()]}
    wanted = {"labels": ["n"], "noise": ["n", *noise.shape[1:]], "images": ["n", *X.shape[1:]]}
    assert axes == wanted
    (images,) = session.run(None, {"labels": labels, "noise": noise})
    # Image i of a seed has the same noise whatever its class: draw each class, and select.
    wanted = [classifier.sample(c, 5, random_state=0)[i] for i, c in enumerate(labels)]
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, wanted, atol=1e-4)
    (last,) = session.run(None, {"labels": labels[4:], "noise": noise[4:]})
    np.testing.assert_allclose(last, images[4:], atol=1e-4)


@pytest.mark.parametrize(
    ("make", "kind", "form", "X", "rounding"),
    [
        # One level of gray is the rounding of whole numbers.
        (tiny_latent_classifier, "AutoencoderKL", "velocity", RGB, 1),
        (tiny_latent_classifier, "AutoencoderTiny", "posterior", HALVES, np.finfo(np.float16).eps),
        # A sampler needs no backbone.
        (tiny_joint_classifier, "Averages", "posterior", RGB, 1),
    ],
    ids=["KL-velocity-uint8", "Tiny-posterior-float16", "joint-posterior-uint8"],
)
def test_a_sampler_decodes_by_its_autoencoder(make, kind, form, X, rounding, tmp_path):
    is_of_diffusers = kind.startswith("Autoencoder")
    classifier = make(
        autoencoder=tiny_autoencoder(kind) if is_of_diffusers else Averages(),
        label_prediction=form,
        classification_fraction=0.5,
    ).fit(X, LABELS)
    classifier.export_onnx(tmp_path / "model.onnx", "sampler")
    session, metadata = session_of(tmp_path / "model.onnx")
    way = "embedded" if is_of_diffusers else "object"
    assert metadata["autoencoder"] == {"class": kind, "kind": way}
    # More images than diffusers decodes without a copy.
    for n in (1, 70):
        labels, noise = np.full(n, 2), noise_of(classifier, n)
        (images,) = session.run(None, {"labels": labels, "noise": noise})
        wanted = classifier.sample("none", n, random_state=0)
        assert images.dtype == X.dtype
        difference = np.abs(images.astype(float) - wanted.astype(float)).max()
        assert difference <= rounding + 1e-4


def test_a_classifier_decodes_masks_by_an_autoencoder_of_diffusers(tmp_path):
    # Of two levels with attention, and from a folder.
    classifier = tiny_latent_classifier(label_prediction="velocity", label_decoding="pixel")
    classifier.fit(RGB, LABELS).export_onnx(tmp_path / "model.onnx")
    X = rng.integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    # Without a rule.
    metadata = check_answers(tmp_path / "model.onnx", classifier, X, "margin")
    assert metadata["rejection"] is None


def noise_of(classifier, n):
    """Noise of the first images of seed 0, as `sample` draws it."""
    return image_noise(classifier.model_, draw_seed(make_random_state(0)), 0, n).cpu().numpy()


# What is refused


def refused(classifier, path, message, kind="classifier", error=ValueError):
    """Check that an export fails with a message, and that the file and its folder stay as is."""
    path.write_bytes(b"an older model")
    with pytest.raises(error, match=message):
        classifier.export_onnx(path, kind)
    assert path.read_bytes() == b"an older model"
    assert list(path.parent.iterdir()) == [path]


def changed(classifier, **parameters):
    return copy.copy(classifier).set_params(**parameters)


@pytest.fixture(scope="module")
def plain():
    return tiny_classifier(max_epochs=1).fit(RGB, LABELS)


@pytest.mark.parametrize("kind", ["Classifier", "", None, ["sampler"]])
def test_another_kind_is_refused(plain, tmp_path, kind):
    refused(plain, tmp_path / "m.onnx", "kind must be one of 'classifier', 'sampler'", kind)


@pytest.mark.parametrize("parameters", [{"n_steps": 3}, {"ode_solver": "dopri5"}])
def test_several_steps_and_adaptive_solvers_are_refused_with_the_way_out(
    plain, tmp_path, parameters
):
    classifier = changed(plain, **parameters)
    refused(classifier, tmp_path / "m.onnx", r"one Euler step.*set_params\(n_steps=1")


def test_a_sampler_without_an_image_branch_is_refused(tmp_path):
    classifier = tiny_classifier(max_epochs=1, image_weight=0).fit(RGB, LABELS)
    refused(classifier, tmp_path / "m.onnx", "kind='sampler' needs the image branch", "sampler")


def test_a_threshold_of_other_parameters_is_refused(classifier, tmp_path):
    refused(changed(classifier, n_draws=2), tmp_path / "m.onnx", "n_draws=2 was 5 when fit_reject")


def test_a_threshold_of_a_kind_that_is_not_exported_is_refused(classifier, tmp_path):
    other = changed(classifier)
    other.rejection_ = replace(classifier.rejection_, kind="image")
    refused(other, tmp_path / "m.onnx", "kind='image', which needs 12 passes.*call fit_reject with")


def test_a_dtype_that_onnx_lacks_is_refused(tmp_path):
    X = RGB.astype(np.longdouble)
    classifier = tiny_classifier(max_epochs=1, classification_fraction=0.5).fit(X, LABELS)
    for kind in ("classifier", "sampler"):
        refused(classifier, tmp_path / "m.onnx", "dtype .*which ONNX lacks", kind)


def test_labels_that_a_file_cannot_hold_are_refused_first(tmp_path, monkeypatch):
    days = np.array(["2026-01-01", "2026-01-02", "2026-01-03"], "datetime64[D]")
    classifier = tiny_classifier(max_epochs=1, classification_fraction=0.5)
    classifier.fit(RGB, days[np.arange(len(RGB)) % 3])
    monkeypatch.setattr(onnx_files, "to_onnx", None)
    classifier.fit_reject(RGB, days[np.arange(24) % 3], target_risk={days[0].item(): 0.9})
    for kind in ("classifier", "sampler"):
        with pytest.raises(TypeError, match="use labels that are numbers or strings"):
            classifier.export_onnx(tmp_path / "m.onnx", kind)


def test_an_autoencoder_that_cannot_be_exported_is_named(tmp_path):
    class Remote(Averages):
        """Computes outside of torch."""

        def encode(self, images):
            return torch.tensor(super().encode(images).tolist())

    classifier = tiny_latent_classifier(autoencoder=Remote(), max_epochs=1).fit(RGB, LABELS)
    refused(classifier, tmp_path / "m.onnx", "together with its autoencoder Remote.*Fit with")


def test_an_autoencoder_that_depends_on_values_is_refused_in_one_message(tmp_path, capfd):
    class Branching(Averages):
        def encode(self, images):
            return super().encode(images if float(images.mean()) > 0 else -images)

    classifier = tiny_latent_classifier(autoencoder=Branching(), max_epochs=1).fit(RGB, LABELS)
    capfd.readouterr()
    # A long reason ends between two words.
    refused(classifier, tmp_path / "m.onnx", r"its autoencoder Branching \(\w+: .* \[...\]\)\. Fit")
    # Torch prints the graph that it has so far.
    assert capfd.readouterr() == ("", "")


def test_an_estimator_that_computes_in_bfloat16_is_said_to_differ(
    classifier, exported, tmp_path, monkeypatch
):
    # The more draws, the less is left of the rounding; of untrained logits little is seen.
    other = changed(classifier, precision="bfloat16", n_draws=1)
    del other.rejection_
    field = copy.deepcopy(classifier.model_.field)
    field.head.weight.data *= 20
    other.model_ = classifier.model_.with_field(field)
    # A file that would answer in float32 as the estimator does.
    exact = changed(other, precision="float32")
    monkeypatch.setattr(onnx_files, "_converted", lambda *_: onnx.load(exported))
    monkeypatch.setattr(onnx_files, "_compare", lambda data, compare: compare(answers, 4))

    def answers(inputs):
        X = inputs["images"]
        return [exact.predict_proba(X), exact.predict_uncertainty(X, "margin")]

    with pytest.warns(
        UserWarning, match="computes in bfloat16 here.*differ by up to [0-9.e-]+"
    ) as w:
        other.export_onnx(tmp_path / "m.onnx")
    difference = float(re.search(r"up to (\S+)\.", str(w[0].message))[1])
    assert 1e-4 < difference < 0.1


def test_a_threshold_that_was_learned_in_bfloat16_is_refused(classifier, tmp_path):
    other = changed(classifier)
    other.rejection_ = replace(classifier.rejection_, precision="bfloat16")
    refused(other, tmp_path / "m.onnx", "computed in bfloat16.*'float32'.* and fit_reject again")


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (tiny_joint_classifier, "backbone=None, or serve"),
        # Without both there is nothing that the field could work on.
        (tiny_feature_classifier, "backbone=None and an autoencoder, or serve"),
    ],
)
def test_a_classifier_with_a_backbone_is_refused(tmp_path, make, advice):
    classifier = make(max_epochs=1).fit(RGB, LABELS)
    message = f"backbone=TinyBackbone cannot be exported to ONNX: fit with {advice}"
    refused(classifier, tmp_path / "m.onnx", message)


def test_a_sampler_without_an_autoencoder_is_refused(tmp_path):
    classifier = tiny_feature_classifier(max_epochs=1, classification_fraction=0.5)
    classifier.fit(RGB, LABELS)
    message = "kind='sampler' makes images, and this model has no autoencoder"
    refused(classifier, tmp_path / "m.onnx", message, "sampler")


def test_a_file_that_answers_otherwise_is_not_written(plain, exported, tmp_path, monkeypatch):
    # The file of another model.
    monkeypatch.setattr(onnx_files, "_converted", lambda *_: onnx.load(exported))
    refused(plain, tmp_path / "m.onnx", "was not written: its probabilities differ")


def test_paths_that_cannot_be_written_are_refused_before_any_work(plain, tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        plain.export_onnx(tmp_path)
    with pytest.raises(FileNotFoundError, match="in a folder that does not exist"):
        plain.export_onnx(tmp_path / "nowhere" / "m.onnx")


def test_an_estimator_that_is_not_fitted_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not fitted"):
        tiny_classifier().export_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra(plain, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    message = rf"{name}.*sklearn-msf\[onnx\]"
    refused(plain, tmp_path / "m.onnx", message, error=ImportError)


def test_a_threshold_below_the_rounding_of_float32_is_warned_of():
    rule = RejectionRule(1e-8, "margin", {})
    with pytest.warns(UserWarning, match="less than the rounding of float32"):
        _warn_of_low_threshold(rule)
    for threshold in (0.1, 0.0, None):
        _warn_of_low_threshold(replace(rule, threshold=threshold))


def test_a_network_that_resizes_its_images_is_refused(tmp_path):
    classifier = tiny_classifier(max_epochs=1, input_size=10).fit(RGB, LABELS)
    for asked in ({"input_size": 10}, None):
        classifier.set_params(network_params=asked)
        with pytest.raises(ValueError, match=r"fitted with input_size=.*10.* resizes images"):
            classifier.export_onnx(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_volumes_are_exported(tmp_path):
    X = rng.integers(0, 256, (12, 6, 6, 6), dtype=np.uint8)
    classifier = tiny_classifier(max_epochs=1, n_spatial_dims=3).fit(X, LABELS[:12])
    rejects_by(classifier, "distance")
    classifier.export_onnx(tmp_path / "model.onnx")
    check_answers(tmp_path / "model.onnx", classifier, X, "distance")
