"""Saved models with something wrong in them, made at random.

As a script: opens many of them and reports what happened.

    python tests/mutations.py 10000
"""

import contextlib
import hashlib
import json
import math
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

import sklearn_msf
from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf._estimator.model_card import model_card
from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.latent.autoencoder import build_autoencoder
from sklearn_msf.persistence.archives import ArchiveError, _metadata_digest, write_archive

HOSTILE = [
    None, True, False, 0, 1, 2, -1, 2**31, 2**63, 10**30, 0.5, -1e308, 1e400, "", "rgb", "a" * 5000,
    "../../etc/passwd", [], [[]], [1] * 5000, [10**9], {}, {"pairs": [[1, 2]]}, {"pairs": 3},
    "<U1000000000", "O", "V8", "float64", "cuda:7", "simplex", [2**40, 2**40], [0, 0],
]  # fmt: skip


VICTIMS = ("pixels", "latents")


def save_victim(folder, kind="pixels"):
    """A model worth attacking."""
    rng = np.random.default_rng(0)
    X, y = rng.random((24, 8, 8)), np.array(["benign", "malignant", "normal"] * 8)
    network = {"channel_mult": (1, 2), "attention_levels": ()}
    small = {"channels": 8, "network_params": network, "max_epochs": 1}
    if kind == "pixels":
        classifier = MedSymmFlowClassifier(random_state=0, **small)
    else:
        layout = {
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "block_out_channels": [4, 4],
            "norm_num_groups": 2,
        }
        classifier = LatentMedSymmFlowClassifier(
            build_autoencoder("AutoencoderKL", layout),
            flow_params={"label_prediction": "velocity"},
            random_state=0,
            **small,
        )
    classifier.fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier.fit_reject(np.tile(X, (4, 1, 1)), np.tile(y, 4), target_risk=0.9)
    classifier.save_pretrained(folder)


def class_of(folder):
    """Class of a model that nobody has changed."""
    name = json.loads((folder / "model.json").read_text())["metadata"]["class"]
    return getattr(sklearn_msf, name)


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def rewrite(folder, tensors=None, metadata=None):
    """Write other content as an archive that is whole: digests and sizes fit."""
    content = json.loads((folder / "model.json").read_text())
    if tensors is None:
        tensors = safetensors.torch.load_file(next(folder.glob("*.safetensors")))
    write_archive(folder, "model", tensors, content["metadata"] if metadata is None else metadata)


def rewrite_bytes(folder, data):
    """Other bytes for the weights, with a digest that fits them."""
    path = folder / "model.json"
    content = json.loads(path.read_text())
    next(folder.glob("*.safetensors")).unlink()
    digest = hashlib.sha256(data).hexdigest()
    name = f"model-{digest[:16]}.safetensors"
    (folder / name).write_bytes(data)
    content["weights"] = {"file": name, "sha256": digest, "n_bytes": len(data)}
    path.write_text(json.dumps(content))


def places(value, path=()):
    """Every place in nested plain data."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(len(value)):
            yield from places(value[i], (*path, i))


def put(value, path, new):
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def change_value(folder, rng):
    edit_somewhere(folder, rng, lambda parent, key: put(parent, (key,), rng.choice(HOSTILE)))


def remove_value(folder, rng):
    edit_somewhere(folder, rng, lambda parent, key: parent.__delitem__(key))


def edit_somewhere(folder, rng, edit):
    """Edit one place of the JSON file, mostly with a digest that fits."""
    path = folder / "model.json"
    content = json.loads(path.read_text())
    place = rng.choice([p for p in places(content) if p])
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    edit(parent, place[-1])
    if isinstance(content.get("metadata"), dict) and rng.random() < 0.8:
        # NaN and infinity stand in JSON as Python writes it.
        content["metadata_sha256"] = _metadata_digest(content["metadata"])
    path.write_text(json.dumps(content))


def flip_bytes(data, rng, limit=None):
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(min(len(data), limit or len(data)))] = rng.randrange(256)
    return bytes(data)


def flip_json(folder, rng):
    path = folder / "model.json"
    path.write_bytes(flip_bytes(path.read_bytes(), rng))


def truncate(folder, rng):
    path = rng.choice(list(folder.iterdir()))
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def flip_weights(folder, rng):
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(flip_bytes(path.read_bytes(), rng))


def flip_header(folder, rng):
    data = next(folder.glob("*.safetensors")).read_bytes()
    n_header = int.from_bytes(data[:8], "little")
    rewrite_bytes(folder, flip_bytes(data, rng, 8 + n_header))


def flip_values(folder, rng):
    rewrite_bytes(folder, flip_bytes(next(folder.glob("*.safetensors")).read_bytes(), rng))


def cut_weights(folder, rng):
    data = next(folder.glob("*.safetensors")).read_bytes()
    rewrite_bytes(folder, data[: rng.randrange(len(data))])


def lie_in_header(folder, rng):
    """A safetensors header that claims huge or overlapping tensors."""
    end = rng.choice([4, 2**20, 2**40, 2**62])
    header = {"a": {"dtype": "F32", "shape": [end // 4], "data_offsets": [0, end]}}
    if rng.random() < 0.5:
        header["b"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps(header).encode()
    length = rng.choice([len(text), 2**63 - 1, 0, 10 * len(text)])
    rewrite_bytes(folder, length.to_bytes(8, "little") + text + bytes(4))


def change_tensor(folder, rng):
    tensors = safetensors.torch.load_file(next(folder.glob("*.safetensors")))
    name = rng.choice(sorted(tensors))
    value = tensors[name]
    tensors[name] = rng.choice(
        [
            torch.full_like(value, torch.nan),
            torch.full_like(value, torch.inf),
            value.double(),
            value.half(),
            value[..., :0],
            value.flatten()[None],
            torch.zeros(3, 3, 3),
        ]
    )
    if rng.random() < 0.2:
        del tensors[name]
    rewrite(folder, tensors)


def grow_layout(folder, rng):
    """A network far larger than its weights."""
    metadata = json.loads((folder / "model.json").read_text())["metadata"]
    name = rng.choice(["channels", "n_blocks", "n_classes", "patch_size", "channel_mult"])
    huge = rng.choice([10**4, 10**9])
    metadata["layout"][name] = [1, huge] if name == "channel_mult" else huge
    if rng.random() < 0.5:
        n = rng.choice([1000, 20_000])
        metadata["layout"]["label_encoding"] = "simplex"
        metadata["layout"]["n_classes"] = n
        metadata["classes"] = {"dtype": "<i8", "values": list(range(n))}
    rewrite(folder, metadata=metadata)


def grow_labels(folder, rng):
    """One long label among many short ones."""
    metadata = json.loads((folder / "model.json").read_text())["metadata"]
    n = rng.choice([3, 1000, 50_000])
    labels = ["a" * rng.choice([10_000, 10**6]), *(f"b{i:06}" for i in range(n - 1))]
    metadata["classes"] = {"dtype": "str", "values": labels}
    if rng.random() < 0.5:
        metadata["layout"] |= {"n_classes": n, "label_encoding": "grayscale"}
    rewrite(folder, metadata=metadata)


def buy_blocks(folder, rng):
    """Many blocks, for tensors that hold next to nothing."""
    metadata = json.loads((folder / "model.json").read_text())["metadata"]
    tensors = safetensors.torch.load_file(next(folder.glob("*.safetensors")))
    numel = rng.choice([0, 1, 64])
    tensors |= {f"unet.down.{i}.block.x": torch.zeros(numel) for i in range(5_000)}
    metadata["layout"]["n_blocks"] = rng.choice([5, 400, 10**4])
    rewrite(folder, tensors, metadata)


def grow_autoencoder(folder, rng):
    """An embedded autoencoder far larger than its weights."""
    metadata = json.loads((folder / "model.json").read_text())["metadata"]
    n = rng.choice([8, 64, 5000])
    config = {
        "down_block_types": ["DownEncoderBlock2D"] * n,
        "up_block_types": ["UpDecoderBlock2D"] * n,
        "block_out_channels": [rng.choice([2, 8192])] * n,
        "layers_per_block": rng.choice([1, 64, 8192]),
    }
    autoencoder = {"kind": "embedded", "class": "AutoencoderKL", "config": config}
    space = metadata.setdefault("space", {"encoded_size": [8, 8]})
    space["autoencoder"] = {**space.get("autoencoder", {}), **autoencoder}
    rewrite(folder, metadata=metadata)


def disguise_pickle(folder, rng):
    payload = pickle.dumps(Payload(folder / "executed"))
    if rng.random() < 0.5:
        rewrite_bytes(folder, payload)
    else:
        rng.choice([folder / "model.json", next(folder.glob("*.safetensors"))]).write_bytes(payload)


def escape(folder, rng):
    path = folder / "model.json"
    content = json.loads(path.read_text())
    content["weights"]["file"] = rng.choice(
        ["/etc/passwd", "../x.safetensors", "..", "", "model-0000000000000000.safetensors", "\x00"]
    )
    path.write_text(json.dumps(content))


def link(folder, rng):
    """A file that is a device, a pipe, or somewhere else."""
    path = rng.choice([folder / "model.json", next(folder.glob("*.safetensors"))])
    path.unlink()
    if rng.random() < 0.3 and hasattr(os, "mkfifo"):
        os.mkfifo(path)
    else:
        path.symlink_to(rng.choice(["/dev/zero", "/dev/stdin", "/etc/passwd", "/", "nowhere"]))


def append(folder, rng):
    with open(rng.choice(list(folder.iterdir())), "ab") as file:
        file.write(rng.randbytes(rng.choice([1, 1000, 10**6])))


def swap(folder, rng):
    """Weights of another model in the place of these."""
    tensors = safetensors.torch.load_file(next(folder.glob("*.safetensors")))
    names = sorted(tensors)
    a, b = rng.sample(names, 2)
    tensors[a], tensors[b] = tensors[b], tensors[a]
    if rng.random() < 0.5:
        next(folder.glob("*.safetensors")).write_bytes(safetensors.torch.save(tensors))
    else:
        rewrite(folder, tensors)


MUTATIONS = [
    change_value, remove_value, flip_json, truncate, flip_weights, flip_header, flip_values,
    cut_weights, lie_in_header, change_tensor, grow_layout, grow_labels, buy_blocks,
    grow_autoencoder, disguise_pickle, escape, link, append, swap,
]  # fmt: skip


def open_mutated(victim, folder, seed):
    """Mutate a copy of a model, open it, and tell which mutation it was and how it ended.

    Anything but a model that works or an error that says what is wrong is raised.
    """
    rng = random.Random(seed)
    shutil.copytree(victim, folder)
    mutation = rng.choice(MUTATIONS)
    mutation(folder, rng)
    outcome = "refused"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(ArchiveError, AutoencoderError, OSError):
            classifier = class_of(victim).from_pretrained(folder)
            outcome = "opened"
        if (folder / "executed").exists():
            raise AssertionError("code in a file was run")
        if outcome == "opened":
            use(classifier)
    return mutation.__name__, outcome


def use(classifier):
    """What opens works, and has weights that are finite."""
    assert all(parameter.isfinite().all() for parameter in classifier.model_.field.parameters())
    assert len(classifier.loss_curve_) == classifier.n_iter_
    parameters = classifier.get_params(deep=False)
    assert model_card(type(classifier).__name__, classifier._fit_so_far(), parameters)
    if math.prod(classifier.image_shape_) <= 64 and classifier.n_draws * classifier.n_steps < 9:
        dtype = classifier.model_.image_format.dtype
        p = classifier.predict_proba(np.zeros((1, *classifier.image_shape_), dtype))
        assert p.shape == (1, len(classifier.classes_))


def main(n):
    for kind in VICTIMS:
        attack(kind, n)


def attack(kind, n):
    import resource

    counts, slowest = Counter(), 0.0
    with tempfile.TemporaryDirectory() as root:
        victim = Path(root) / "victim"
        save_victim(victim, kind)
        n_bytes = sum(path.stat().st_size for path in victim.iterdir())
        open_mutated(victim, Path(root) / "first", 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in range(n):
            folder = Path(root) / "mutated"
            start = time.perf_counter()
            counts[open_mutated(victim, folder, seed)] += 1
            slowest = max(slowest, time.perf_counter() - start)
            shutil.rmtree(folder)
        # In KiB on Linux.
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    for (name, outcome), count in sorted(counts.items()):
        print(f"{name:16} {outcome:8} {count:6}")
    print(
        f"{kind}: {n} files of {n_bytes / 1024:.0f} KiB; slowest {slowest:.2f} s; peak memory "
        f"grew by {grown / 1024:.0f} MiB"
    )
    # Files have up to one MiB appended to them.
    if slowest > 30 or grown > 128 * 1024:
        raise SystemExit("too slow, or too much memory")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
