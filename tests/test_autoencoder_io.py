"""Autoencoders by name: folders that diffusers saved, and names that are no folders."""

import json
import pickle
import re
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from conftest import autoencoder_folder, tiny_autoencoder, tiny_latent_classifier
from safetensors.torch import load_file, save_file

from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.latent.autoencoder import ImageAutoencoder
from sklearn_msf.latent.autoencoder_io import autoencoder_from_plain, autoencoder_to_plain
from sklearn_msf.latent.autoencoder_opening import as_autoencoder, open_autoencoder
from sklearn_msf.persistence.archives import ArchiveError
from sklearn_msf.persistence.hub import is_hub_id

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(autoencoder_folder("AutoencoderKL"), tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def no_hub(monkeypatch):
    """Fail where the hub is asked."""

    def asked(name, *arguments):
        raise AssertionError(f"the hub was asked for {name}")

    monkeypatch.setattr("sklearn_msf.latent.model_files.fetch_from_hub", asked)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def as_diffusers_opens(folder, kind="AutoencoderKL"):
    module = getattr(diffusers, kind).from_pretrained(folder, low_cpu_mem_usage=False)
    return ImageAutoencoder(module).fingerprint()


# The same as diffusers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_a_folder_gives_the_bits_that_diffusers_gives(tmp_path, kind, dtype):
    tiny_autoencoder(kind).to(dtype).save_pretrained(tmp_path)
    digest, latents = open_autoencoder(str(tmp_path)).fingerprint()
    wanted_digest, wanted = as_diffusers_opens(tmp_path, kind)
    # The digest is of configuration, attributes and weights.
    assert digest == wanted_digest
    assert torch.equal(latents, wanted)


def test_attention_under_its_former_names_gives_the_same_bits(folder):
    former = {
        ".to_q.": ".query.",
        ".to_k.": ".key.",
        ".to_v.": ".value.",
        ".to_out.0.": ".proj_attn.",
    }
    weights = load_file(folder / WEIGHTS)
    for new, old in former.items():
        weights = {name.replace(new, old): value for name, value in weights.items()}
    assert "encoder.mid_block.attentions.0.proj_attn.bias" in weights
    save_file(weights, folder / WEIGHTS)
    digest, latents = open_autoencoder(folder).fingerprint()
    wanted_digest, wanted = as_diffusers_opens(folder)
    assert digest == wanted_digest
    assert torch.equal(latents, wanted)


def test_entries_that_are_missing_have_the_defaults_of_diffusers(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name in ("scaling_factor", "use_quant_conv", "in_channels", "_diffusers_version"):
        del config[name]
    path.write_text(json.dumps(config))
    opened = open_autoencoder(folder)
    assert opened.published_scaling == (0.0, 0.18215)
    assert opened.fingerprint()[0] == as_diffusers_opens(folder)[0]
    # As in diffusers, what the class does not know is passed over.
    path.write_text(json.dumps({**config, "of_a_later_version": 1}))
    assert open_autoencoder(folder).fingerprint()[0] == opened.fingerprint()[0]


# What is not opened


class Evil:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize("beside", [True, False])
def test_weights_in_several_files_are_refused_by_the_name_of_their_index(folder, beside):
    if not beside:
        (folder / WEIGHTS).unlink()
    (folder / "evil.bin").write_bytes(pickle.dumps(Evil()))
    index = {"metadata": {}, "weight_map": {"encoder.conv_in.weight": "evil.bin"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(AutoencoderError, match=r"several files \(.*safetensors\.index\.json\)"):
        open_autoencoder(folder)


def test_a_pickle_under_the_name_of_safetensors_is_not_opened(folder):
    (folder / WEIGHTS).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(AutoencoderError, match="not safetensors, or were cut off"):
        open_autoencoder(folder)


def test_weights_that_were_cut_off_name_their_file(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(AutoencoderError, match=rf"cut off: .*Remove .*{WEIGHTS} and get it anew"):
        open_autoencoder(folder)


def test_weights_behind_a_link_name_the_file_that_has_to_go(folder, tmp_path):
    # So they lie in the hub's cache, where the link alone is made anew.
    blob = tmp_path / "blob"
    blob.write_bytes(b"cut off")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(blob)
    with pytest.raises(AutoencoderError, match=rf"Remove {re.escape(str(blob))} and get it anew"):
        open_autoencoder(folder)


@pytest.mark.parametrize(
    "text", ["[]", "1", "null", '"AutoencoderKL"', "{", "\xff", "", "[" * 100_000]
)
def test_a_configuration_that_is_no_object_of_json_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(AutoencoderError, match="configuration that cannot be read"):
        open_autoencoder(folder)


def test_a_configuration_without_end_is_not_read(folder):
    (folder / "config.json").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(AutoencoderError, match="more than 1,048,576 bytes"):
        open_autoencoder(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": ["AutoencoderKL"]},
        {"_class_name": {"AutoencoderKL": 1}},
        {"_class_name": None},
        {"quantization_config": {"quant_method": "gguf"}},
        {"block_out_channels": "8"},
        {"block_out_channels": 8},
        {"block_out_channels": []},
        {"block_out_channels": [8.0, 8.0]},
        {"block_out_channels": {"8": 8}},
        {"block_out_channels": None},
        {"layers_per_block": "many"},
        {"layers_per_block": 0},
        {"layers_per_block": None},
        {"norm_num_groups": 0},
        {"norm_num_groups": 3},
        {"act_fn": 1},
        {"act_fn": "os.system"},
        {"down_block_types": ["os.system", "os.system"]},
        {"latent_channels": True},
        {"latent_channels": 5},
        {"scaling_factor": "six"},
    ],
    ids=str,
)
def test_an_invalid_configuration_is_refused_by_one_error(folder, changes):
    edit_config(folder, **changes)
    with pytest.raises(AutoencoderError, match=r"autoencoder='"):
        open_autoencoder(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"block_out_channels": [10**6]},
        {"latent_channels": 10**9},
        {"layers_per_block": 10**9},
        {"block_out_channels": [8] * 10**3},
        {"norm_num_groups": -1},
    ],
    ids=str,
)
def test_sizes_beyond_the_limits_are_refused_before_anything_is_built(folder, changes, monkeypatch):
    monkeypatch.setattr("sklearn_msf.latent.autoencoder_opening.build_autoencoder", None)
    edit_config(folder, **changes)
    with pytest.raises(AutoencoderError, match="invalid layout|can be opened"):
        open_autoencoder(folder)


def test_weights_that_are_not_finite_are_refused(folder):
    weights = load_file(folder / WEIGHTS)
    weights["encoder.conv_in.bias"][0] = torch.nan
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(AutoencoderError, match="encoder.conv_in.bias that are not finite"):
        open_autoencoder(folder)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_what_is_described_is_restored(kind):
    opened = ImageAutoencoder(tiny_autoencoder(kind))
    restored = autoencoder_from_plain(*autoencoder_to_plain(opened, by_name=False))
    assert restored.fingerprint()[0] == opened.fingerprint()[0]


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_all_that_an_autoencoder_computes_with_is_among_its_weights(kind):
    module = tiny_autoencoder(kind)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    # What is not would have no values after `build_checked`, which draws none.
    assert set(tensors) == set(module.state_dict())


def test_weights_of_the_hub_keep_its_name_in_a_pickle():
    source = {"kind": "hub", "id": "some/body", "revision": "0" * 40}
    opened = ImageAutoencoder(tiny_autoencoder(), dict(source))
    metadata, tensors = autoencoder_to_plain(opened, by_name=False)
    restored = autoencoder_from_plain(metadata, tensors)
    assert restored.source == source
    assert autoencoder_to_plain(restored, by_name=True) == (source, {})
    changed = [{**source, **change} for change in ({"revision": "main"}, {"licence": "a\nb"})]
    for other in (*changed, {"kind": "folder"}, "some/body"):
        with pytest.raises(ArchiveError):
            autoencoder_from_plain({**metadata, "source": other}, tensors)


# Folders and ids


@pytest.mark.parametrize("name", ["models/vae", "vae"])
def test_a_path_that_leads_nowhere_never_becomes_a_hub_id(no_hub, name):
    with pytest.raises(AutoencoderError, match="is a path, and there is no such folder"):
        as_autoencoder(Path(name))


@pytest.mark.parametrize("name", ["https://huggingface.co/someone/vae", "someone/my vae"])
def test_text_that_is_neither_a_folder_nor_an_id_gets_told_what_an_id_is(no_hub, name):
    with pytest.raises(AutoencoderError, match="no such folder.*has the form 'user/model'"):
        as_autoencoder(name)


@pytest.mark.parametrize(
    "name",
    ["./vae", "../vae", "/models/vae", "~/vae", "a/b/c", "models\\vae", ".", "..", "../..", "a/.."],
)
def test_a_name_that_looks_like_a_path_never_becomes_a_hub_id(no_hub, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # "." and ".." are folders, without an autoencoder.
    with pytest.raises(AutoencoderError, match="is a path, and there is no such|is a folder with"):
        as_autoencoder(name)


def test_a_missing_path_is_named_by_fit(no_hub):
    images, labels = torch.zeros(4, 8, 8, 3).numpy(), [0, 1, 0, 1]
    with pytest.raises(AutoencoderError, match=r"Path\('models/vae'\) is a path"):
        tiny_latent_classifier(autoencoder=Path("models/vae")).fit(images, labels)


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("stabilityai/sd-vae-ft-mse", True),
        ("gpt2", True),
        ("someone/v1.0", True),
        ("../.", False),
        ("./x", False),
        ("x/..", False),
        (".../x", False),
        ("x/y/z", False),
        ("x/", False),
        ("/x", False),
        ("x/y\n", False),
        ("", False),
    ],
)
def test_an_id_is_one_or_two_names_that_are_not_dots_only(name, is_id):
    assert is_hub_id(name) is is_id


@pytest.mark.parametrize("name", ["./ae", "../.", "ae/..", "../ae"])
def test_an_id_in_a_saved_model_is_no_path(name, no_hub):
    with pytest.raises(ArchiveError, match="names an invalid autoencoder"):
        autoencoder_from_plain({"kind": "hub", "id": name, "revision": "0" * 40}, {})


@pytest.mark.parametrize("revision", [None, "main", "0" * 39, "G" * 40, 7])
def test_a_revision_in_a_saved_model_is_a_commit(revision, no_hub):
    with pytest.raises(ArchiveError, match="names an invalid autoencoder"):
        autoencoder_from_plain({"kind": "hub", "id": "a/b", "revision": revision}, {})


def test_an_id_in_a_saved_model_opens_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    tiny_autoencoder().save_pretrained(tmp_path / "someone" / "tiny")
    description = {"kind": "hub", "id": "someone/tiny", "revision": "0" * 40}
    with pytest.raises(AutoencoderError, match="taken for an id on the Hugging Face hub"):
        autoencoder_from_plain(description, {})
    # As a parameter the same name is that folder.
    assert open_autoencoder("someone/tiny").source == {"kind": "embedded"}
