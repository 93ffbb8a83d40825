"""The benchmark scripts: scores equal to medmnist's own, figures that are the measured ones."""

import argparse
import json
import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ShrinkingAutoencoder, tiny_autoencoder
from imported_scripts import BENCHMARKS, benchmark_script
from scipy.stats import norm

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.flow.label_codes import make_label_codes
from sklearn_msf.latent.autoencoder import ImageAutoencoder, build_autoencoder
from sklearn_msf.latent.autoencoder_training import layout_for
from sklearn_msf.nn.unet import UNet


@pytest.fixture(scope="module")
def common():
    return benchmark_script("_common")


@pytest.fixture(scope="module")
def accuracy():
    return benchmark_script("accuracy")


@pytest.fixture(scope="module")
def uncertainty():
    return benchmark_script("uncertainty")


@pytest.fixture(scope="module")
def unusual():
    return benchmark_script("unusual")


@pytest.fixture(scope="module")
def generation():
    return benchmark_script("generation")


@pytest.mark.parametrize(("task", "n_classes"), [("binary-class", 2), ("multi-class", 5)])
def test_scores_equal_those_of_the_medmnist_evaluator(common, capsys, task, n_classes):
    evaluator = pytest.importorskip("medmnist.evaluator")
    getACC, getAUC = evaluator.getACC, evaluator.getAUC

    rng = np.random.default_rng(0)
    y = rng.integers(0, n_classes, 200)
    p = rng.dirichlet(np.ones(n_classes), 200)
    p[np.arange(200), y] += 0.2
    p /= p.sum(axis=1, keepdims=True)
    assert common.auc_score(y, p) == pytest.approx(getAUC(y[:, None], p, task))
    assert common.accuracy(y, p) == pytest.approx(getACC(y[:, None], p, task))


@pytest.mark.parametrize(
    "system", ["defaults", "alone", "balanced", "adjusted", "voting", "msf", "resnet18", "boosting"]
)
def test_every_system_trains_and_its_probabilities_are_scored(
    accuracy, common, system, monkeypatch
):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (12, 8, 8), dtype=np.uint8), np.arange(12) % 2
    data = dict.fromkeys(("train", "val", "test"), (X, y))
    # The paper's network takes a minute for its passes of many images.
    small = {"channels": 8, "network_params": {"channel_mult": (1, 2), "n_blocks": 1}}
    from_paper = partial(MedSymmFlowClassifier.from_paper, **small)
    monkeypatch.setattr(MedSymmFlowClassifier, "from_paper", from_paper)
    # A machine of four times the reference's speed has a quarter of the time.
    monkeypatch.setattr(accuracy, "gemm_gflops", lambda: 4 * common.REFERENCE_GFLOPS)
    train, seen = accuracy.COMPARED[system].train, []

    def watched(task):
        assert task.seconds == pytest.approx(0.25)
        trained = train(task)
        predict_proba = trained.predict_proba
        return replace(
            trained, predict_proba=lambda images: seen.append(predict_proba(images)) or seen[-1]
        )

    monkeypatch.setitem(
        accuracy.COMPARED, system, replace(accuracy.COMPARED[system], train=watched)
    )
    identity = {"dataset": "toy", "system": system, "seed": 0, "reference_seconds": 1.0}
    record = accuracy.run(identity, data)
    p = seen[-1]
    assert p.shape == (12, 2)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    assert record["test_auc"] == pytest.approx(100 * common.auc_score(y, p), abs=0.01)
    assert record["test_acc"] == pytest.approx(100 * common.accuracy(y, p), abs=0.01)
    assert record["seed"] == record["provenance"]["seed"] == 0


def test_the_speed_of_the_machine_is_measured_smoke(common):
    assert 0 < common.gemm_gflops(size=64, n_repeats=2) < np.inf


def test_the_table_gives_mean_and_deviation_over_seeds(accuracy):
    record = {"dataset": "toy", "system": "defaults", "reference_seconds": 10, "gemm_gflops": 150}
    records = [
        {**record, "seed": seed, "test_auc": auc, "test_acc": 50.0}
        for seed, auc in enumerate([70.0, 72.0, 74.0])
    ]
    assert "| toy | 10 | ours: defaults | 3 | 72.0 ± 2.0 | 50.0 ± 0.0 |" in accuracy.table(records)


def test_classification_alone_is_compared_by_seed(accuracy):
    scores = {"defaults": {0: (71.0, 0.50), 1: (73.0, 0.52), 2: (90.0, 0.9)}}
    scores["alone_08"] = {1: (72.0, 0.55), 0: (71.0, 0.51)}
    records = [
        {"dataset": "toy", "system": system, "reference_seconds": 10, "gemm_gflops": 150}
        | {"seed": seed, "test_auc": auc, "test_acc": 50.0, "test_log_loss": loss}
        for system, by_seed in scores.items()
        for seed, (auc, loss) in by_seed.items()
    ]
    # Differences 0 and 1: a deviation of 0.707, and t = 12.7 for two seeds.
    cells = "+0.5 [-5.9, +6.9] | +0.0 [+0.0, +0.0] | -0.020 [-0.147, +0.107]"
    expected = f"| toy | 10 | ours: `classification_fraction=0.8` | 2 | {cells} |"
    assert expected in accuracy.table(records)


def test_a_score_that_some_records_lack_is_not_averaged(accuracy):
    record = {"dataset": "toy", "system": "defaults", "reference_seconds": 10, "gemm_gflops": 150}
    record |= {"test_auc": 70.0, "test_acc": 50.0}
    records = [record | {"seed": 0}, record | {"seed": 1, "test_log_loss": 0.4}]
    assert "| 2 | 70.0 ± 0.0 | 50.0 ± 0.0 | - |" in accuracy.table(records)
    records += [record | {"seed": 1, "system": "alone_08", "test_log_loss": 0.5}]
    records += [record | {"seed": 0, "system": "alone_08", "test_log_loss": 0.5}]
    assert "| 2 | +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] | - |" in accuracy.table(records)


def test_tables_name_the_optimizer_and_fraction_that_followed(common, accuracy):
    def record(seed, **resolved):
        identity = {"dataset": "toy", "system": "defaults", "seed": seed, "reference_seconds": 10}
        of_run = {"parameters": {}, "data": {}, "gflops": 150.0, "seconds": 10.0, "seed": seed}
        record = common.described(identity, **of_run, resolved=resolved)
        return record | {"test_auc": 70.0, "test_acc": 50.0}

    first = record(0, optimizer="muon", classification_fraction=0.2)
    second = record(1, optimizer="muon", classification_fraction=0.3)
    assert "| ours: defaults | muon, 0.25 | 2 |" in accuracy.table([first, second])
    other = record(2, optimizer="adamw", classification_fraction=0.8)
    assert common.followed_settings([first, other]) == "adamw and muon, 0.50"
    assert common.followed_settings([first, record(3, rounds=9)]) == "-"


def test_the_unbalanced_set_has_the_first_normal_images(common, monkeypatch):
    splits = {"train": np.r_[np.ones(3), np.zeros(400), np.ones(5)].astype(int)}
    splits |= dict.fromkeys(("val", "test"), np.array([0, 1]))

    def fetch(name, *, size, split, return_X_y):
        assert (name, size, return_X_y) == ("pneumoniamnist", 28, True)
        return np.arange(len(splits[split])), splits[split]

    monkeypatch.setattr("sklearn_msf.datasets.fetch_medmnist", fetch)
    data = common.load("pneumoniamnist_unbalanced", {})
    np.testing.assert_array_equal(data["train"][0], [*range(391), *range(403, 408)])
    assert len(data["test"][1]) == 2


def test_the_ablation_changes_only_parameters_that_exist():
    module = benchmark_script("ablation")
    for parameters in module.VARIANTS.values():
        module.MedSymmFlowClassifier(**module.group_parameters(parameters))._parameters()


# What the scripts share


def test_no_script_imports_from_accuracy():
    for path in BENCHMARKS.glob("*.py"):
        words = [line.split()[:2] for line in path.read_text().splitlines()]
        assert ["from", "accuracy"] not in words, path.name
        assert ["import", "accuracy"] not in words, path.name


def settings_of(common, *items):
    parser = argparse.ArgumentParser()
    common.add_settings_option(parser)
    return common.settings_of(parser.parse_args(["--set", *items]))


def test_settings_of_the_command_line_go_into_their_dicts(common):
    items = ["max_epochs=3", "image_weight=0.5", "beta=2.0", "dropout=0", "ema_decay=0.9"]
    assert common.group_parameters(settings_of(common, *items)) == {
        "max_epochs": 3,
        "flow_params": {"image_weight": 0.5, "beta": 2.0},
        "network_params": {"dropout": 0},
        "optimizer_params": {"ema_decay": 0.9},
    }
    items = ["flow_params={'beta': 1.0, 'image_weight': 0.1}", "image_weight=0.5"]
    merged = {"flow_params": {"beta": 1.0, "image_weight": 0.5}}
    assert common.group_parameters(settings_of(common, *items)) == merged


def test_guidance_of_the_command_line_is_an_argument_of_sampling(common):
    settings = settings_of(common, "beta=1.0", "--guidance", "0.2")
    shown = common.shown_settings(settings)
    assert shown == {"beta": "1.0", "guidance": "0.2"}
    assert common.read_settings(shown) == settings
    assert common.split_settings(settings) == ({"flow_params": {"beta": 1.0}}, {"guidance": 0.2})
    unguided = settings_of(common, "beta=1.0")
    assert common.split_settings(unguided) == ({"flow_params": {"beta": 1.0}}, {"guidance": None})


@pytest.mark.parametrize(
    "item", ["fraction=0.8", "image_weight", "augment=hflip", "time_budget=60", "random_state=1"]
)
def test_settings_of_the_command_line_must_be_parameters_with_literals(common, capsys, item):
    with pytest.raises(SystemExit):
        settings_of(common, item)
    assert item.split("=")[-1] in capsys.readouterr().err


def test_reference_seconds_are_those_of_a_machine_of_150_gflops(common):
    assert common.local_seconds(60.0, gflops=300.0) == 30.0
    assert common.reference_seconds(30.0, gflops=300.0) == 60.0


def test_the_plain_network_is_the_papers():
    plain = benchmark_script("speed").PlainUNet(6)
    ours = UNet(6, 6)
    n_plain, n_ours = (sum(p.numel() for p in net.parameters()) for net in (plain, ours))
    assert n_plain == n_ours
    assert plain(torch.zeros(1, 6, 28, 28), torch.ones(1)).shape == (1, 6, 28, 28)


def networks():
    """Every kind of network that the package or a benchmark trains."""
    return {
        "U-Net": UNet(6, 6, channels=8, patch_size=2),
        "autoencoder": build_autoencoder("AutoencoderKL", layout_for(1, (32, 32))),
        "plain U-Net": benchmark_script("speed").PlainUNet(6),
        **{
            f"ResNet-{depth} for {side} px": benchmark_script("_common").make_resnet(
                3, 2, side, depth, 4
            )
            for depth in (18, 50)
            for side in (28, 224)
        },
        "ViT": benchmark_script("_common").make_vit(3, 2),
    }


def test_no_network_has_a_strided_pointwise_convolution():
    # Their forms alone, without weights.
    with torch.device("meta"):
        every_one = networks()
    # Of fewer than eight channels its weight gradient never ends: oneDNN's jit_1x1:avx2, in
    # channels_last, seen in torch 2.13. A run that hangs tells nobody why.
    strided = {
        f"{name}: {layer}"
        for name, network in every_one.items()
        for layer, module in network.named_modules()
        if isinstance(module, torch.nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
    }
    assert not strided


def test_the_shortcut_of_a_residual_block_is_the_strided_convolution_of_resnet18(common):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 9, 12)
    thinned, convolution, _ = common.ResidualBlock(8, 16, 2).shortcut
    expected = torch.nn.functional.conv2d(x, convolution.weight, stride=2)
    torch.testing.assert_close(convolution(thinned(x)), expected)


def test_folds_never_share_an_image():
    module = benchmark_script("ablation")
    X, y = np.arange(30)[:, None, None], np.arange(30) % 3
    data = {"train": (X[:20], y[:20]), "val": (X[20:], y[20:])}
    seen = []
    for (X_train, _), (X_valid, _) in module.parts(data, 3, 0):
        assert not set(X_train.ravel()) & set(X_valid.ravel())
        seen.extend(X_valid.ravel())
    assert sorted(seen) == list(range(30))


def test_the_limit_of_a_fit_follows_the_speed_of_the_machine(common, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = SimpleNamespace(max_epochs=None, seconds=60.0)
    name, limits = common.budget_of(arguments)
    assert name == "60 s"
    rates = common.REFERENCE_GFLOPS, 2 * common.REFERENCE_GFLOPS
    assert [limits(rate)["time_budget"] for rate in rates] == [60.0, 30.0]
    name, limits = common.budget_of(SimpleNamespace(max_epochs=3, seconds=60.0))
    assert (name, limits(1.0)) == ("3 epochs", {"max_epochs": 3})


# Uncertainty


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy(uncertainty):
    p = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    y = np.array([0] * 5 + [1] * 5 + [0] * 6 + [1] * 4)
    assert uncertainty.calibration_error(y, p) == pytest.approx(0.2)


def test_chance_alone_makes_a_calibration_error_that_falls_with_the_rows(uncertainty):
    p = np.random.default_rng(0).dirichlet(np.ones(3), 2000)
    few, many = (uncertainty.chance_calibration_error(p[:n], n_repeats=20) for n in (100, 2000))
    assert 0 < many < few / 2


def test_simulated_certificates_hold_on_the_pool(uncertainty, monkeypatch):
    monkeypatch.setattr(uncertainty, "N_SIMULATIONS", 200)
    rng = np.random.default_rng(0)
    scores = rng.random(400)
    errors = rng.random(400) < 0.5 * scores
    broken, certified = uncertainty.simulated_failures(errors, scores, 0.15, 0.9, 400, seed=0)
    assert broken <= 0.1
    assert certified > 0.5


def test_a_certificate_that_does_not_hold_is_counted(uncertainty, monkeypatch):
    monkeypatch.setattr(uncertainty, "N_SIMULATIONS", 5)
    scores, errors = np.arange(100) / 100, np.arange(100) >= 50
    # The first 58 have a risk of 8 / 58, the first 59 one of 9 / 59.
    for threshold, found in ((scores[57], (0, 1)), (scores[58], (1, 1)), (None, (0, 0))):
        monkeypatch.setattr(uncertainty, "certified_threshold", lambda *_, t=threshold, **__: t)
        assert uncertainty.simulated_failures(errors, scores, 0.15, 0.9, 50, 0) == found


def test_the_risk_is_certified_on_validation_images(uncertainty, monkeypatch):
    monkeypatch.setattr(uncertainty, "N_SIMULATIONS", 5)
    ones, zeros = np.ones(300), np.zeros(300)
    model = SimpleNamespace(predict=lambda X: X, predict_uncertainty=lambda X: zeros)
    data = {"val": (ones, ones), "test": (ones, zeros)}
    found = uncertainty.certified(model, data, 0.05, 0)
    assert (found["test_coverage"], found["test_risk"]) == (1.0, 1.0)


@pytest.mark.parametrize("growth", [0, 0.5])
def test_the_likelihood_is_that_of_the_noise_less_the_growth_on_the_way(unusual, growth):
    class Growing:
        codes = make_label_codes("rgb", 2, 4.0)

        def __call__(self, x_t, y_t, t):
            return growth * x_t, y_t

    class Classifier:
        model_ = SimpleNamespace(field=Growing())

        def predict_proba(self, X):
            return np.tile([1.0, 0.0], (len(X), 1))

    X = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    noise = (X / 127.5 - 1) * (1 - growth / unusual.N_STEPS) ** unusual.N_STEPS
    expected = norm.logpdf(noise).mean(axis=(1, 2, 3)) - growth
    np.testing.assert_allclose(unusual.log_likelihood(Classifier(), X), expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 28, 28), (2, 28, 28, 3)])
def test_corruptions_grow_with_their_severity(unusual, shape):
    ramp = np.linspace(0, 200, 28, dtype=np.uint8)
    X = np.zeros(shape, dtype=np.uint8) + ramp.reshape(28, *[1] * (len(shape) - 3))
    X[:, 10:14, 10:14] = 250
    for kind in unusual.CORRUPTIONS:
        distance = [
            np.abs(unusual.corrupted(X, kind, s).astype(float) - X).mean() for s in range(6)
        ]
        assert distance[0] == 0
        assert distance == sorted(distance)
        assert distance[1] > 0


def test_counts_keep_the_shares_of_the_labels_and_no_class_is_left_out(generation):
    y = np.repeat([0, 1, 2], [890, 100, 10])
    assert generation.counts_of(y, 50).tolist() == [44, 5, 1]
    assert generation.counts_of(np.repeat([0, 1, 2], 5), 10).tolist() == [4, 3, 3]


def test_a_judge_finds_the_class_of_images_that_tell_it(generation, monkeypatch):
    monkeypatch.setattr(generation, "JUDGE_IMAGES", 6400)
    monkeypatch.setattr(generation, "JUDGE_WIDTH", 4)
    y = np.arange(60) % 2
    X = np.random.default_rng(0).integers(0, 128, (60, 8, 8), dtype=np.uint8)
    X[y == 1] += 100
    judge = generation.Judge(X, y)
    assert (judge.predict(X) == y).all()
    assert judge.features(X).shape == (60, 32)


def test_every_figure_of_the_generation_benchmark_is_made(generation, monkeypatch, tmp_path):
    for name, value in {
        "N_GENERATED": 24,
        "N_TRAINED": 24,
        "N_CHANGED": 4,
        "JUDGE_IMAGES": 64,
        "JUDGE_WIDTH": 4,
        "SAMPLERS": (("euler", 1), ("euler", 25), ("midpoint", 5)),
    }.items():
        monkeypatch.setattr(generation, name, value)
    monkeypatch.setattr(generation, "gemm_gflops", lambda: 150.0)
    rng = np.random.default_rng(0)
    y = np.arange(24) % 2
    X = rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    data = dict.fromkeys(("train", "val", "test"), (X, y))
    tiny = {"channels": 8, "channel_mult": (1,), "attention_levels": (), "max_epochs": 1}
    judge = generation.Judge(X, y)
    shown = generation.shown_settings(tiny)
    identity = {"dataset": "toy", "seed": 0, "title": "tiny", "settings": shown}
    record = generation.run(identity, data, judge=judge, imagenet=judge.features, pictures=tmp_path)
    assert record["real"]["kernel_distance"] < 0.1
    assert record["changed_classes"]["rms_between_images"] > 90
    assert set(record["imagenet"]) == {"generated", "fresh", "training"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "generation_toy_tiny_grid.png",
        "generation_toy_tiny_trajectory.png",
    }
    assert generation.picture_name({**identity, "title": "defaults"}) == "generation_toy"
    records = [json.loads(json.dumps(record)) | {"seed": seed} for seed in (0, 1)]
    records[1]["accuracy_score"] = record["accuracy_score"] + 0.5
    text = generation.table(records)
    assert text.count("| toy | tiny |") == 5
    assert all(f"| {sampler} | " in text for sampler in ("euler 1", "euler 25", "midpoint 5"))
    assert f"{record['accuracy_score'] + 0.25:.2f} ± 0.35" in text


@pytest.fixture
def augmentation(monkeypatch):
    """The benchmark with short runs, whose scores tell what a classifier was trained on."""
    module = benchmark_script("augmentation")
    for name, value in {"N_IMAGES": 64, "WIDTH": 4, "LARGEST": 10}.items():
        monkeypatch.setattr(module, name, value)

    class Judge(module.Judge):
        def __init__(self, X, y, *arguments, class_weights, **options):
            super().__init__(X, y, *arguments, class_weights=class_weights, **options)
            self.images = len(y), len({row.tobytes() for row in X}), class_weights is not None

    def scores_of(classifier, X, y, of=module.scores_of):
        return {**of(classifier, X, y), "images": classifier.images, "test_images": X}

    monkeypatch.setattr(module, "Judge", Judge)
    monkeypatch.setattr(module, "scores_of", scores_of)
    monkeypatch.setattr(module, "gemm_gflops", lambda: 150.0)
    return module


def test_rare_images_are_repeated_up_to_a_number(augmentation):
    y = np.repeat([0, 1], [18, 6])
    X = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    assert augmentation.counts_to_add(y, 500) == {0: 0, 1: 12}
    assert augmentation.counts_to_add(y, 10) == {0: 0, 1: 4}
    X_more, y_more = augmentation.oversampled(X, y, {0: 0, 1: 12}, seed=0)
    assert np.bincount(y_more).tolist() == [18, 18]
    assert {row.tobytes() for row in X_more} == {row.tobytes() for row in X}
    X_class_1 = {row.tobytes() for row in X[y == 1]}
    assert {row.tobytes() for row in X_more[24:]} <= X_class_1


def test_generated_images_stand_beside_weights_and_oversampling(augmentation):
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [18, 6])
    X, X_test = rng.integers(0, 256, (2, 24, 8, 8, 3), dtype=np.uint8)
    tiny = {"channels": 8, "channel_mult": (1,), "attention_levels": (), "max_epochs": 1}
    shown = augmentation.shown_settings(tiny)
    identity = {"dataset": "toy", "seed": 0, "settings": shown}
    with warnings.catch_warnings():
        # After so short a training hardly any generated image passes.
        warnings.simplefilter("ignore", UserWarning)
        record = augmentation.run(identity, {"train": (X, y), "test": (X_test, y)})
    n_generated, n_passed = record["n_added"]
    assert n_generated == 4
    # Images, different ones among them, and whether classes are weighted.
    assert {kind: scores["images"] for kind, scores in record["scores"].items()} == {
        augmentation.PLAIN: (24, 24, False),
        "class weights": (24, 24, True),
        "oversampling": (28, 24, False),
        "generated": (28, 28, False),
        "generated, filtered": (24 + n_passed, 24 + n_passed, False),
        "generated, filtered; class weights": (24 + n_passed, 24 + n_passed, True),
        "oversampling to balance": (36, 24, False),
    }
    assert all(scores["test_images"] is X_test for scores in record["scores"].values())
    assert "| toy | generated, filtered |" in augmentation.table([record])


@pytest.fixture
def latent(monkeypatch):
    """The benchmark, and the training data that its classifiers make."""
    module, made = benchmark_script("latent"), []
    for cls in (module.FlippingPreparation, module.EncodingPreparation):

        def training_data(self, *arguments, make=cls.training_data):
            made.append(make(self, *arguments))
            return made[-1]

        monkeypatch.setattr(cls, "training_data", training_data)
    return module, made


def test_flipped_latents_stand_in_for_those_of_flipped_images(latent):
    module, made = latent
    X, y = np.random.default_rng(0).random((12, 16, 12)), np.arange(12) % 2
    tiny = {"channels": 8, "channel_mult": (1,), "attention_levels": (), "max_epochs": 1}
    settings = {"augment": "hflip", "n_variations": 2, **tiny}
    system = module.latent(ShrinkingAutoencoder(), module.FlippingLatents, **settings)
    predict_proba, classifier = system.train(X, y, 60.0, 0, None)
    assert predict_proba(X).shape == (12, 2)
    images, flipped = made[0].images.unflatten(0, (12, 2)).unbind(1)
    torch.testing.assert_close(flipped, images.flip(-1), rtol=0, atol=0)
    assert classifier.model_.field.unet.conv_in.out_channels == 8


@pytest.mark.parametrize(("name", "n_times"), [("EncodingInTheLoop", 1), ("EncodingMasksToo", 2)])
def test_without_a_cache_the_autoencoder_encodes_the_images_of_every_batch(
    latent, monkeypatch, name, n_times
):
    module, made = latent
    y = np.arange(12) % 2
    X = np.random.default_rng(0).integers(0, 128, (12, 16, 16, 3), dtype=np.uint8)
    X[y == 1] += 128
    network = {"channel_mult": (1,), "attention_levels": ()}
    settings = {"max_epochs": 1, "augment": None, "precision": "float32", "random_state": 0}
    # The scripts train on the CPU.
    settings["device"] = "cpu"
    cls = getattr(module, name)
    classifier = cls(tiny_autoencoder(), channels=8, network_params=network, **settings).fit(X, y)
    (data,) = made
    assert isinstance(data, module.EncodingData)
    # Fitting sorts the samples.
    encoded, encode = [], ImageAutoencoder.encode
    with monkeypatch.context() as patches:
        patches.setattr(
            ImageAutoencoder,
            "encode",
            lambda self, x, *others: encoded.append(len(x)) or encode(self, x, *others),
        )
        x, labels = data.batch((torch.arange(12),), 0, 0, torch.Generator().manual_seed(0))
    assert encoded == [12] * n_times
    images = data._images
    assert (images.float().mean(dim=(1, 2, 3)) > 127).tolist() == labels.bool().tolist()
    mean = classifier.model_.space.encode(images.float() / 127.5 - 1, "float32")
    assert x.shape == mean.shape
    assert torch.corrcoef(torch.stack([x.flatten(), mean.flatten()]))[0, 1] > 0.99
