"""Backbones by every door: vision models of transformers by id, folder and object, and modules."""

import builtins
import functools
import json
import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from conftest import (
    TINY_VISION,
    TinyBackbone,
    backbone_folder,
    save_vision_model,
    tiny_feature_classifier,
    tiny_joint_classifier,
    tiny_vision_model,
)
from forked_scripts import LIBRARIES, run_code
from safetensors.torch import load_file, save_file
from test_hub import COMMIT, Hub, client, hub, listening, set_endpoint, silent

from sklearn_msf import LatentMedSymmFlowClassifier
from sklearn_msf.exceptions import BackboneError
from sklearn_msf.latent.backbone import (
    ImageBackbone,
    Preprocessing,
    _with_channels_first,
)
from sklearn_msf.latent.backbone_features import (
    BackboneFeatures,
    learn_features,
    principal_components,
)
from sklearn_msf.latent.backbone_opening import (
    _KIND,
    as_backbone,
    open_backbone,
    open_hub_backbone,
)
from sklearn_msf.latent.backbone_preprocessing import as_preprocessing, preprocessing_of_object
from sklearn_msf.latent.model_files import read_weights
from sklearn_msf.model.image_space import PixelInputs

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
Y = np.array(["a", "b", "c"] * 4)
WEIGHTS = "model.safetensors"
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
N_TOKENS = {"ViT": 1, "DeiT": 2, "Dinov2": 1, "Dinov2WithRegisters": 5, "SiglipVision": 0}


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(backbone_folder(), tmp_path / "backbone"))


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def standardised(images):
    mean, deviation = (
        torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    return ((images + 1) / 2 - mean) / deviation


def last_tokens(model, images):
    with torch.no_grad():
        return model(pixel_values=standardised(images)).last_hidden_state


# What the models give


@pytest.mark.parametrize("kind", N_TOKENS)
def test_tokens_of_patches_are_a_map_without_class_and_register_tokens(tmp_path, kind):
    model = tiny_vision_model(kind)
    save_vision_model(model, tmp_path)
    found = open_backbone(tmp_path).encode(IMAGES)
    tokens = last_tokens(model, IMAGES)
    assert tokens.shape[1] == N_TOKENS[kind] + 16
    for row in range(4):
        for column in range(4):
            wanted = tokens[:, N_TOKENS[kind] + 4 * row + column]
            torch.testing.assert_close(found[:, :, row, column], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "grid"), [("ConvNext", (1, 1)), ("Swin", (4, 4))])
def test_hierarchical_models_give_their_last_map(tmp_path, kind, grid):
    model = tiny_vision_model(kind)
    save_vision_model(model, tmp_path, size={"shortest_edge": 32})
    found = open_backbone(tmp_path).encode(IMAGES)
    assert found.shape == (3, 16, *grid)
    wanted = last_tokens(model, IMAGES)
    wanted = wanted if wanted.ndim == 4 else wanted.transpose(1, 2).unflatten(2, grid)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [32, 33, 39, 40])
def test_patches_that_an_image_does_not_fill_are_part_of_the_map(side):
    model = tiny_vision_model("Swin")
    model.image_mean, model.image_std = [0.5] * 3, [0.5] * 3
    found = as_backbone(model).encode(torch.zeros(1, 3, side, side))
    # 8 to 10 patches a side, of which 4 are merged once.
    assert found.shape[2:] == (math.ceil(math.ceil(side / 4) / 2),) * 2


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "SiglipVision", "Swin", "ConvNext"])
def test_where_an_image_changes_its_map_changes_most(kind):
    model = tiny_vision_model(kind)
    model.image_mean, model.image_std = [0.5] * 3, [0.5] * 3
    backbone = as_backbone(model)
    image = torch.zeros(1, 3, 64, 96)
    height, width = backbone.encode(image).shape[2:]
    for row, column in [(0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1)]:
        changed = image.clone()
        rows, columns = 64 // height, 96 // width
        part = changed[:, :, row * rows :, column * columns :][:, :, :rows, :columns]
        part += torch.randn(part.shape, generator=torch.Generator().manual_seed(1))
        distance = (backbone.encode(changed) - backbone.encode(image)).abs().sum(dim=1)
        assert int(distance.argmax()) == row * width + column


def test_the_vision_tower_of_a_model_of_images_and_text_is_used(tmp_path):
    text = {k: v for k, v in TINY_VISION.items() if "size" in k and k.startswith(("hid", "inter"))}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    both = tiny_vision_model("Siglip", text_config=text, vision_config=TINY_VISION)
    save_vision_model(both, tmp_path)
    found = open_backbone(tmp_path)
    assert type(found.module).__name__ == "SiglipVisionModel"
    tower = as_backbone_of(both.vision_model)
    torch.testing.assert_close(found.encode(IMAGES), tower.encode(IMAGES))
    torch.testing.assert_close(as_backbone_of(both).encode(IMAGES), tower.encode(IMAGES))


def as_backbone_of(model):
    model.image_mean, model.image_std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return as_backbone(model)


def test_a_model_with_a_head_is_used_below_it(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(**TINY_VISION)
    model = transformers.ViTForImageClassification(config).eval()
    save_vision_model(model, tmp_path)
    found = open_backbone(tmp_path)
    assert type(found.module).__name__ == "ViTModel"
    torch.testing.assert_close(found.encode(IMAGES), as_backbone_of(model).encode(IMAGES))


@pytest.mark.parametrize(
    ("entries", "size", "white"),
    [
        ({"size": 32}, (32, 32), (1 - 0.485) / 0.229),
        ({"size": {"height": 16, "width": 24}}, (16, 24), (1 - 0.485) / 0.229),
        ({"size": {"shortest_edge": 37}, "crop_size": 32, "do_center_crop": True}, (32, 32), None),
        ({"size": {"shortest_edge": 37}, "crop_size": {"height": 8, "width": 8}}, (37, 37), None),
        ({"size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, (32, 32), 1.0),
        ({"size": 32, "do_normalize": False}, (32, 32), 1.0),
        ({"size": 32, "do_normalize": False, "rescale_factor": 1 / 127.5}, (32, 32), 2.0),
        ({"size": 32, "do_normalize": False, "do_rescale": False}, (32, 32), 255.0),
    ],
)
def test_size_mean_and_deviation_are_those_of_the_preprocessor(folder, entries, size, white):
    path = folder / "preprocessor_config.json"
    entries = {"image_mean": [0.485] * 3, "image_std": [0.229] * 3, **entries}
    path.write_text(json.dumps(entries))
    found = open_backbone(folder).preprocessing
    assert found.size == size
    if white is not None:
        assert (1 - found.mean[0]) / found.deviation[0] == pytest.approx(white)


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "SiglipVision", "Swin"])
def test_other_sizes_are_taken_too(tmp_path, kind):
    save_vision_model(tiny_vision_model(kind), tmp_path)
    found = open_backbone(tmp_path).encode(torch.zeros(2, 3, 48, 64))
    assert found.shape == (2, 16, 6, 8)


def test_the_map_of_an_image_does_not_depend_on_those_beside_it():
    features = as_features(open_backbone(backbone_folder()))
    images = torch.rand(23, 3, 32, 32) * 2 - 1
    together = features.encode(images, "float32")
    for chosen in (slice(3, 4), slice(10, 23)):
        assert torch.equal(features.encode(images[chosen], "float32"), together[chosen])


def as_features(backbone, grid=(4, 4)):
    n = backbone.n_features
    return BackboneFeatures(backbone, (32, 32), grid, torch.zeros(n), torch.ones(n), None)


# Standardised, reduced, on the grid


def test_features_have_zero_mean_and_unit_deviation_in_each_channel():
    images = RNG.integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
    backbone = as_backbone(TinyBackbone())
    learned = learn_features(images, backbone, (8, 8), "float32")
    maps = backbone.encode(torch.from_numpy(images / 127.5 - 1).float())
    mean, deviation = maps.mean(dim=(0, 2, 3)), maps.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(learned.mean, mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(1 / learned.scale, deviation, atol=1e-4, rtol=1e-4)


class Mixed(torch.nn.Module):
    """Six channels that are mixtures of three, and one that never changes."""

    mixture = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [2, 0, 1]])

    def forward(self, images):
        mixed = torch.einsum("kc,nchw->nkhw", self.mixture, images)
        return torch.cat([mixed, torch.full_like(images[:, :1], 7.0)], dim=1)


def test_principal_components_that_carry_nothing_are_left_out():
    images = RNG.integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
    backbone = as_backbone(Mixed())
    learned = learn_features(images, backbone, (8, 8), "float32")
    assert (backbone.n_features, learned.n_channels) == (7, 3)
    torch.testing.assert_close(learned.components @ learned.components.T, torch.eye(3))
    x = torch.from_numpy(images / 127.5 - 1).float()
    features = learned.encode(x, "float32")
    # Nothing is lost: the three give the six.
    restored = torch.einsum("kc,nkhw->nchw", learned.components, features)
    restored = restored / learned.scale[:, None, None] + learned.mean[:, None, None]
    torch.testing.assert_close(restored, backbone.encode(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("variances", "kept", "n_wanted"),
    [
        ([5.0, 3.0, 1.0, 1.0], 0.79, 2),
        ([5.0, 3.0, 1.0, 1.0], 0.81, 3),
        ([1.0, 1.0, 1.0, 1.0], 0.99, None),
        ([99.0, 0.5, 0.5, 0.0], 0.99, 1),
        ([0.0, 0.0, 0.0, 0.0], 0.99, None),
    ],
)
def test_as_many_components_are_kept_as_the_variance_asks_for(variances, kept, n_wanted):
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    covariance = rotation @ torch.diag(torch.tensor(variances, dtype=torch.float64)) @ rotation.T
    found = principal_components(covariance, kept)
    assert (None if found is None else len(found)) == n_wanted
    if found is not None:
        explained = torch.diagonal(found @ covariance @ found.T)
        torch.testing.assert_close(explained, torch.tensor(variances[:n_wanted]).double())


@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (3, 5)])
def test_features_keep_their_mean_and_place_on_another_grid(grid):
    class Ramp(torch.nn.Module):
        def forward(self, images):
            brightness = images.square().mean(dim=(1, 2, 3), keepdim=True)
            return torch.linspace(-1, 1, 4) + brightness.expand(-1, 1, 4, 4)

    found = as_features(as_backbone(Ramp()), grid).encode(torch.zeros(2, 3, 32, 32), "float32")
    assert found.shape == (2, 1, *grid)
    assert found.mean().abs() < 1e-6
    assert (found.diff(dim=3) > 0).all()
    torch.testing.assert_close(found[..., :1, :], found[..., -1:, :])


class Hooked(torch.nn.Module):
    """Collects its maps by a hook that knows the module it was made in, and not its copies."""

    def __init__(self):
        super().__init__()
        self.net = TinyBackbone()
        self.net.register_forward_hook(lambda module, args, output: setattr(self, "maps", output))

    def forward(self, images):
        self.net(images)
        return self.maps


def test_a_module_that_makes_the_same_map_of_all_images_is_refused():
    module = Hooked()
    with torch.no_grad():
        module(torch.zeros(1, 3, 32, 32))
    with pytest.raises(BackboneError, match="same map of different images.*hooks"):
        as_backbone(module)


class Standardising(TinyBackbone):
    """Sees no brightness and no contrast."""

    def forward(self, images):
        images = images - images.mean(dim=(1, 2, 3), keepdim=True)
        return super().forward(images / images.std(dim=(1, 2, 3), keepdim=True))


def test_a_module_that_standardises_each_image_can_be_a_backbone():
    assert as_backbone(Standardising()).n_features == 12


def test_a_module_that_makes_infinite_features_is_refused():
    module = TinyBackbone()
    module.conv.bias.data[0] = torch.inf
    with pytest.raises(BackboneError, match="TinyBackbone makes NaN or infinite features of an im"):
        as_backbone(module)


def test_a_module_that_cannot_be_copied_is_refused():
    module = Hooked()
    module(torch.zeros(1, 3, 32, 32))
    with pytest.raises(BackboneError, match="Hooked cannot be copied.*keep nothing in attributes"):
        as_backbone(module)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_refused():
    with pytest.raises(BackboneError, match="TorchScript module: pass the torch module"):
        as_backbone(torch.jit.script(TinyBackbone()))


# Doors


@functools.cache
def probabilities_by_folder(make):
    return make(backbone=backbone_folder(), max_epochs=1).fit(X, Y).predict_proba(X)


@pytest.mark.parametrize("make", [tiny_joint_classifier, tiny_feature_classifier])
@pytest.mark.parametrize("door", ["folder", "Path", "object"])
def test_a_model_of_transformers_by_every_door(tmp_path, make, door):
    folder = backbone_folder()
    doors = {"folder": folder, "Path": Path(folder)}
    backbone = doors.get(door) or transformers.AutoModel.from_pretrained(folder)
    classifier = make(backbone=backbone, max_epochs=1).fit(X, Y)
    assert classifier.model_.space.features.size == (32, 32)
    wanted = probabilities_by_folder(make)
    np.testing.assert_array_equal(classifier.predict_proba(X), wanted)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(classifier)).predict_proba(X), wanted)
    classifier.save_pretrained(tmp_path)
    # Whatever door it came by, the weights are the same.
    opened = LatentMedSymmFlowClassifier.from_pretrained(tmp_path, backbone=folder)
    assert opened.backbone == folder
    np.testing.assert_array_equal(opened.predict_proba(X), wanted)


def test_random_weights_behind_the_map_tell_no_models_apart(tmp_path):
    config = {**TINY_VISION, "image_size": 32}
    with_head = transformers.ViTForImageClassification(transformers.ViTConfig(**config))
    save_vision_model(with_head, tmp_path)

    def opened(seed):
        torch.manual_seed(seed)
        # Its file has no pooler, so transformers draws one.
        return as_backbone(transformers.AutoModel.from_pretrained(tmp_path))

    first, second, of_folder = opened(0), opened(1), open_backbone(tmp_path)
    assert first.digest_of_weights() == second.digest_of_weights() == of_folder.digest_of_weights()
    assert first.fingerprint()[0] == second.fingerprint()[0]


def test_a_model_is_told_to_be_the_one_that_was_passed():
    config = transformers.ViTConfig(**{**TINY_VISION, "image_size": 32})
    model = transformers.ViTModel(config).eval()
    model.image_mean, model.image_std = [0.5] * 3, [0.5] * 3
    assert as_backbone(model).is_made_of(model)


def test_the_place_of_a_model_is_not_part_of_it(tmp_path):
    models = []
    for name in ("here", "there"):
        shutil.copytree(backbone_folder(), tmp_path / name)
        models.append(as_backbone(transformers.AutoModel.from_pretrained(tmp_path / name)))
    assert models[0].fingerprint()[0] == models[1].fingerprint()[0]


def test_images_are_prepared_as_efficientnet_and_its_like_ask_for(folder):
    normal = {"image_mean": [0.4] * 3, "image_std": [0.5] * 3}
    plain = prepared_for(normal)
    # In units of images in [-1, 1], where 0 is the middle of the range.
    assert plain.mean == pytest.approx([-0.2] * 3)
    assert plain.deviation == pytest.approx([1.0] * 3)
    twice = prepared_for({**normal, "include_top": True})
    assert twice.mean == plain.mean
    assert twice.deviation == pytest.approx([0.5] * 3)
    by_class = prepared_for({**normal, "image_processor_type": "EfficientNetImageProcessor"})
    assert by_class == twice
    shifted = prepared_for({**normal, "rescale_offset": True})
    assert shifted.mean == pytest.approx([1.8] * 3)
    # MobileViT's files have neither mean nor deviation.
    for entries in (
        {**normal, "do_flip_channel_order": True},
        {"image_processor_type": "MobileViTImageProcessor"},
    ):
        with pytest.raises(BackboneError, match=r"blue, green and red: .*flip\(1\)"):
            prepared_for(entries)


def test_an_efficientnet_as_an_object_gets_the_images_that_its_file_asks_for():
    normal = {"image_mean": [0.4] * 3, "image_std": [0.5] * 3}
    model = SimpleNamespace(config=SimpleNamespace(model_type="efficientnet"), **normal)
    model.image_size = 32
    of_file = prepared_for({**normal, "image_processor_type": "EfficientNetImageProcessor"})
    assert preprocessing_of_object(_KIND, model) == of_file


def test_the_fitted_backbone_of_a_folder_can_be_passed_to_another_fit(folder):
    first = as_backbone(folder)
    second = as_backbone(first.module)
    assert second.preprocessing == first.preprocessing
    assert torch.equal(second.encode(IMAGES), first.encode(IMAGES))
    assert second.fingerprint()[0] == first.fingerprint()[0]
    # What a user says counts more than the file.
    first.module.image_mean, first.module.image_std = [0.0] * 3, [1.0] * 3
    assert as_backbone(first.module).preprocessing != first.preprocessing


def test_an_object_whose_images_are_to_be_bgr_is_refused():
    config = transformers.MobileViTConfig(hidden_sizes=[8, 8, 8], neck_hidden_sizes=[8] * 7)
    model = transformers.MobileViTModel(config)
    model.image_mean, model.image_std = [0.5] * 3, [0.5] * 3
    with pytest.raises(BackboneError, match="blue, green and red"):
        as_backbone(model)


def test_an_object_whose_file_asks_for_bgr_is_refused_as_its_folder_is(folder):
    edit_json(folder / "preprocessor_config.json", do_flip_channel_order=True)
    model = transformers.AutoModel.from_pretrained(folder)
    with pytest.raises(BackboneError, match="^backbone=.* is for images whose channels are blue"):
        as_backbone(model)


def prepared_for(entries):
    return as_preprocessing("x", {"size": 32, **entries})


def test_a_folder_is_not_in_the_files_of_a_model(tmp_path):
    classifier = tiny_feature_classifier(backbone=backbone_folder(), max_epochs=1).fit(X, Y)
    classifier.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="a backbone of a folder .* pass that one"):
        LatentMedSymmFlowClassifier.from_pretrained(tmp_path)


def test_an_object_that_has_recorded_its_layers_is_pickled():
    model = tiny_vision_model("Dinov2")
    model.image_mean, model.image_std = [0.5] * 3, [0.5] * 3
    model(pixel_values=IMAGES, output_hidden_states=True)
    model.config.output_hidden_states = True
    unfitted = tiny_feature_classifier(backbone=model, max_epochs=1)
    classifier = pickle.loads(pickle.dumps(unfitted)).fit(X, Y)
    opened = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    # Several processes send each other the space itself.
    space = pickle.loads(pickle.dumps(classifier.model_.space))
    images = torch.rand(2, 3, 16, 16)
    encoded = classifier.model_.space.encode(images, "float32")
    # It is on the CPU then.
    torch.testing.assert_close(space.encode(images, "float32"), encoded)
    again = opened.backbone_.cpu()(pixel_values=IMAGES, output_hidden_states=True)
    assert len(again.hidden_states) == 2


def test_an_object_says_how_its_images_are_normalised():
    model = tiny_vision_model("Dinov2")
    with pytest.raises(BackboneError, match="set its attributes image_mean and image_std"):
        as_backbone(model)
    backbone = as_backbone_of(model)
    assert backbone.preprocessing.size == (32, 32)
    torch.testing.assert_close(
        backbone.encode(IMAGES)[:, :, 0, 0],
        last_tokens(model, IMAGES)[:, 1],
        atol=1e-5,
        rtol=1e-5,
    )


def test_weights_of_a_later_version_under_other_names_are_the_same_weights():
    backbone = as_backbone(TinyBackbone())

    class Renamed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.empty(12))
            self.kernel = torch.nn.Parameter(torch.empty(12, 3, 2, 2))
            self.load_state_dict(
                {"bias": backbone.module.conv.bias, "kernel": backbone.module.conv.weight}
            )

        def forward(self, images):
            return torch.nn.functional.conv2d(images, self.kernel, self.bias, stride=2).relu()

    renamed = as_backbone(Renamed())
    assert renamed.digest_of_weights() == backbone.digest_of_weights()
    renamed.module.bias.data[0] += 1e-6
    assert renamed.digest_of_weights() != backbone.digest_of_weights()


# The hub


@pytest.fixture
def backbone_hub(hub, client, monkeypatch, tmp_path):
    """A hub with a backbone and its card, and the address as the client's own."""
    Hub.folder = Path(shutil.copytree(backbone_folder(), tmp_path / "served"))
    (Hub.folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny one\n")
    set_endpoint(monkeypatch, hub)
    return Hub.folder


def test_an_id_of_the_hub_is_pinned_and_named_in_the_files(backbone_hub, tmp_path):
    classifier = tiny_joint_classifier(backbone="someone/tiny", max_epochs=1).fit(X, Y)
    source = classifier.model_.space.backbone.source
    licence = "apache-2.0"
    named = {"kind": "hub", "id": "someone/tiny", "revision": COMMIT, "licence": licence}
    assert source == named
    classifier.save_pretrained(tmp_path / "model")
    opened = LatentMedSymmFlowClassifier.from_pretrained(tmp_path / "model")
    assert opened.backbone == "someone/tiny"
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    held = {n for path in (tmp_path / "model").glob("*.safetensors") for n in load_file(path)}
    assert not any("embeddings" in name for name in held)
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"someone/tiny, revision {COMMIT}; licence: apache-2.0" in card
    # The client asks for a list of its own, too.
    names = {path.rsplit("/", 1)[-1] for path in Hub.asked if "/resolve/" in path}
    assert names == {"config.json", WEIGHTS, "preprocessor_config.json", "README.md"}


@pytest.mark.parametrize("card", [None, "no licence", "---\nlicense: [1, {\n---\n", "---\n1\n---"])
def test_a_licence_that_is_not_named_is_unknown(backbone_hub, card):
    (backbone_hub / "README.md").unlink()
    if card is not None:
        (backbone_hub / "README.md").write_text(card)
    assert open_backbone("someone/tiny").source["licence"] is None


def test_what_is_in_the_cache_is_opened_without_the_hub(backbone_hub, monkeypatch):
    first = open_backbone("someone/tiny")
    Hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for again in (open_backbone("someone/tiny"), open_hub_backbone("someone/tiny", COMMIT)):
        assert again.source == first.source
        assert again.digest_of_weights() == first.digest_of_weights()
    assert Hub.asked == []


@pytest.mark.parametrize("of_model", [False, True])
def test_a_hub_without_the_preprocessor_gives_the_advice_of_who_asks(backbone_hub, of_model):
    (backbone_hub / "preprocessor_config.json").unlink()
    remedy = r"from_pretrained\(folder, backbone=" if of_model else "use backbone='path/to/folder'"
    with pytest.raises(BackboneError, match=rf"preprocessor_config.json .*Instead, .*{remedy}"):
        open_hub_backbone("someone/tiny", COMMIT, of_model=of_model)


def test_a_hub_that_has_other_weights_now_is_refused_by_name(backbone_hub, tmp_path, monkeypatch):
    classifier = tiny_feature_classifier(backbone="someone/tiny", max_epochs=1).fit(X, Y)
    classifier.save_pretrained(tmp_path / "model")
    weights = load_file(backbone_hub / WEIGHTS)
    save_file({name: value + 1e-3 for name, value in weights.items()}, backbone_hub / WEIGHTS)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "another"))
    with pytest.raises(BackboneError, match="backbone='someone/tiny' has other weights than"):
        LatentMedSymmFlowClassifier.from_pretrained(tmp_path / "model")


def check_that_nothing_is_had():
    with pytest.raises(BackboneError, match="Instead, use backbone='path/to/folder'") as failure:
        open_backbone("nobody/has-this")
    assert "backbone='nobody/has-this' is taken for an id" in str(failure.value)


def test_offline_names_the_ways_out(client, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    check_that_nothing_is_had()


def test_a_refused_connection_names_the_ways_out(client, monkeypatch):
    with listening(silent) as address:
        pass
    set_endpoint(monkeypatch, f"http://{address}")
    check_that_nothing_is_had()


@pytest.mark.parametrize("name", [Path("models/vit"), "./vit", "a/b/c", "~/vit"])
def test_a_path_that_leads_nowhere_never_becomes_a_hub_id(name, monkeypatch):
    monkeypatch.setattr("sklearn_msf.latent.model_files.fetch_from_hub", None)
    with pytest.raises(BackboneError, match="is a path, and there is no such folder"):
        as_backbone(name)


# What is not opened


class Evil:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_code_of_a_repository_is_not_run(folder):
    marker = folder / "executed"
    (folder / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w')")
    code = {"AutoModel": "modeling_own.Own", "AutoConfig": "modeling_own.OwnConfig"}
    edit_json(folder / "config.json", auto_map=code, _attn_implementation="someone/kernel")
    assert open_backbone(folder).n_features == 16
    edit_json(folder / "config.json", model_type="own")
    with pytest.raises(BackboneError, match="model_type='own', .* No code of a repository is run"):
        open_backbone(folder)
    assert not marker.exists()


def test_a_pickle_is_not_opened(folder):
    (folder / WEIGHTS).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BackboneError, match="not safetensors, or were cut off"):
        open_backbone(folder)
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="pickles are not opened"):
        open_backbone(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "model_type=None"),
        ({"model_type": ["vit"]}, "model_type="),
        ({"model_type": "bert"}, "are missing or have another shape|cannot be built"),
        ({"backbone": "resnet50", "use_timm_backbone": True}, "names other models"),
        ({"model_type": "timm_wrapper", "architecture": "resnet18"}, "names other models"),
        ({"vision_config": {"model_type": "timm_backbone"}}, "names other models"),
        ({"part": {"backbone_config": {"model_type": "resnet"}}}, "names other models"),
        ({"model_type": "detr"}, "names other models"),
        ({"quantization_config": {"quant_method": "gguf"}}, "quantized weights"),
        ({"depth_coefficient": 1e7}, "numbers beyond the limits"),
        ({"layer_depths": [20] * 9}, "numbers beyond the limits"),
        ({"colours": [1] * 2000}, "numbers beyond the limits"),
        ({"num_hidden_layers": 10**6}, "numbers beyond the limits"),
        ({"hidden_size": 10**9}, "numbers beyond the limits"),
        ({"hidden_size": 2**19}, r"it needs [\d,]+ weights, and its file has"),
        ({"hidden_size": 32}, "it needs|missing or have another shape"),
        ({"image_size": "large"}, "cannot be built"),
        ({"num_attention_heads": 3}, "cannot be built"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_used_is_refused_by_one_error(folder, changes, message):
    edit_json(folder / "config.json", **changes)
    with pytest.raises(BackboneError, match=message) as failure:
        open_backbone(folder)
    assert str(failure.value).startswith("backbone='")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.update(of_others=w.pop("layernorm.weight")),
            "1 of its weights are missing .*layernorm.weight",
        ),
        (lambda w: w["layernorm.weight"].fill_(torch.nan), "layernorm.weight that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, change, message):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(BackboneError, match=message):
        open_backbone(folder)


@pytest.mark.parametrize(
    "attributes",
    [
        {"image_mean": 0.5, "image_std": 0.5},
        {"image_mean": [0.5], "image_std": [0.0]},
        {"image_mean": [0.5, 0.5], "image_std": [0.5]},
        {"image_mean": [0.5], "image_std": [0.5], "image_size": 32.0},
    ],
)
def test_attributes_that_cannot_be_used_are_not_blamed_on_a_file(attributes):
    model = tiny_vision_model()
    for name, value in attributes.items():
        setattr(model, name, value)
    with pytest.raises(BackboneError, match="attributes image_mean, .* cannot be used") as found:
        as_backbone(model)
    assert "preprocessor_config" not in str(found.value)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        "{}",
        '{"size": 32}',
        '{"size": -1, "image_mean": [0.5], "image_std": [0.5]}',
        '{"size": {"longest_edge": 9}, "image_mean": [0.5], "image_std": [0.5]}',
        '{"size": 32, "image_mean": [0.5, 0.5], "image_std": [0.5]}',
        '{"size": 32, "image_mean": [0.5], "image_std": [0]}',
        '{"size": 32, "image_mean": "0.5", "image_std": [NaN]}',
        '{"size": 100000000, "image_mean": [0.5], "image_std": [0.5]}',
    ],
)
def test_a_preprocessor_that_cannot_be_used_is_refused_by_name(folder, text):
    (folder / "preprocessor_config.json").write_text(text)
    with pytest.raises(BackboneError, match=r"preprocessor_config.json"):
        open_backbone(folder)


def test_a_folder_without_its_preprocessor_is_named(folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BackboneError, match="has no preprocessor_config.json, which says how"):
        open_backbone(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    with pytest.raises(BackboneError, match="set its attributes image_mean and image_std"):
        as_backbone(model)


@pytest.mark.parametrize("kind", ["ViTMAE", "Yolos"])
def test_tokens_that_are_not_those_of_the_patches_are_refused(tmp_path, kind):
    config = {"image_size": [32, 32]} if kind == "Yolos" else {}
    save_vision_model(tiny_vision_model(kind, **{**TINY_VISION, **config}), tmp_path)
    with pytest.raises(BackboneError, match=r"makes Tensor\[.*\], which is no map|makes Tensor"):
        open_backbone(tmp_path)


def test_without_transformers_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def lacking(name, *arguments, **keywords):
        if name.split(".")[0] == "transformers":
            raise ImportError("No module named 'transformers'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr("builtins.__import__", lacking)
    with pytest.raises(ImportError, match=r'python -m pip install "sklearn-msf\[backbones\]"'):
        open_backbone(backbone_folder())
    # A module of the user's own needs none.
    assert as_backbone(TinyBackbone()).n_features == 12


def test_a_model_is_opened_without_torchvision_and_nothing_is_printed():
    code = f"""
import sys
from sklearn_msf.latent.backbone_opening import open_backbone
assert "transformers" not in sys.modules
open_backbone({backbone_folder()!r})
assert "torchvision" not in sys.modules and "transformers" in sys.modules
"""
    assert run_code(LIBRARIES, code) == (0, "", "")


# Precision


def test_a_backbone_runs_in_the_precision_asked_for():
    backbone = ImageBackbone(TinyBackbone(), Preprocessing(None, (0.0,) * 3, (1.0,) * 3))
    exact, rounded = (backbone.encode(IMAGES, p) for p in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, atol=0.1, rtol=0.1)


def test_the_preprocessor_may_be_in_the_file_of_all_modalities(folder):
    preprocessor = folder / "preprocessor_config.json"
    known = open_backbone(folder).preprocessing
    entries = json.loads(preprocessor.read_text())
    whole = folder / "processor_config.json"
    whole.write_text(json.dumps({"image_processor": entries, "processor_class": "CLIPProcessor"}))
    preprocessor.unlink()
    assert open_backbone(folder).preprocessing == known
    assert as_backbone(transformers.AutoModel.from_pretrained(folder)).preprocessing == known
    whole.write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    with pytest.raises(BackboneError, match="has no preprocessor_config.json"):
        open_backbone(folder)


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_a_map_with_channels_last_is_arranged(size):
    maps = torch.rand(2, 20, size[0] // 8, size[1] // 8)
    wide = torch.rand(2, 100, size[0] // 8, size[1] // 8)
    for wanted in (maps, wide):
        for given in (wanted, wanted.permute(0, 2, 3, 1)):
            found = _with_channels_first(given, torch.Size(size))
            assert found.shape == wanted.shape


class ChannelsLast(TinyBackbone):
    """Returns (n, h, w, C), as the stages of Swin do."""

    def forward(self, images):
        return torch.cat([super().forward(images)] * 16, dim=1).permute(0, 2, 3, 1)


def test_modules_may_return_the_channels_last():
    found, wanted = as_backbone(ChannelsLast()), as_backbone(TinyBackbone())
    assert found.n_features == 192
    torch.testing.assert_close(found.encode(IMAGES)[:, -12:], wanted.encode(IMAGES))


def test_large_images_of_a_batch_are_in_memory_a_few_at_a_time(monkeypatch):
    classifier = tiny_feature_classifier(backbone=TinyBackbone(), max_epochs=1).fit(X, Y)
    expected = classifier.predict_proba(np.concatenate([X] * 4))
    sizes, batch = [], PixelInputs.batch

    def noted(self, start, n, flip=()):
        sizes.append(n)
        return batch(self, start, n, flip)

    monkeypatch.setattr(PixelInputs, "batch", noted)
    monkeypatch.setattr("sklearn_msf.latent.latent_space._BYTES_KEPT", 0)
    monkeypatch.setattr("sklearn_msf.latent.latent_space.ENCODED_AT_ONCE", 5)
    # Images of 16 x 16 x 3 values of four bytes.
    monkeypatch.setattr("sklearn_msf.latent.latent_space._BYTES_AT_ONCE", 7 * 3072)
    found = classifier.predict_proba(np.concatenate([X] * 4))
    assert max(sizes) == 7
    np.testing.assert_array_equal(found, expected)


def test_a_folder_of_the_hubs_cache_is_told_from_that_of_a_model(tmp_path):
    (tmp_path / "snapshots" / COMMIT).mkdir(parents=True)
    with pytest.raises(BackboneError, match="is a folder of the hub's cache: pass that of a commi"):
        open_backbone(tmp_path)


def test_integer_buffers_of_a_folder_stay_integers(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"index": torch.arange(3), "weight": torch.ones(2).half()}, path)
    found = read_weights(_KIND, "x", path)
    assert found["index"].dtype == torch.int64
    assert found["weight"].dtype == torch.float32
