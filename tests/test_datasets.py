"""fetch_medmnist against a local server that also stalls, truncates and lies."""

import errno
import hashlib
import io
import os
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from sklearn_msf.datasets import _medmnist, _medmnist_files, fetch_medmnist


def make_file(n_labels=1):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 5), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (n, n_labels), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue(), arrays


CONTENT, ARRAYS = make_file()


class Server(ThreadingHTTPServer):
    """Serves CONTENT well or badly and counts the requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours = []
        self.n_requests = 0
        self.content = CONTENT
        self.released = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        behaviour = server.behaviours[min(server.n_requests, len(server.behaviours) - 1)]
        server.n_requests += 1
        if behaviour == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(server.content)))
        self.end_headers()
        if behaviour == "good":
            self.wfile.write(server.content)
        elif behaviour == "wrong bytes":
            self.wfile.write(bytes(len(server.content)))
        else:
            self.wfile.write(server.content[: len(server.content) // 2])
            self.wfile.flush()
            if behaviour == "stall":
                server.released.wait(20)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/toymnist.npz"
    entry = {
        "python_class": "ToyMNIST",
        "description": "Random pixels.",
        "url": url,
        "MD5": hashlib.md5(CONTENT).hexdigest(),
        "task": "binary-class",
        "label": {"0": "healthy", "1": "ill"},
        "n_samples": {"train": 5, "val": 2, "test": 3},
        "license": "CC BY 4.0",
    }
    server.entry = entry
    monkeypatch.setattr(_medmnist, "_medmnist_info", lambda: {"toymnist": entry})
    monkeypatch.setattr(_medmnist, "_TIMEOUT", (5, 20))
    # A proxy of this machine does not know the server.
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_file_is_downloaded_once_and_described(server, tmp_path):
    server.behaviours = ["good"]
    for _ in range(2):
        bunch = fetch_medmnist("toymnist", data_home=tmp_path)
    assert server.n_requests == 1
    assert bunch.data.shape == (10, 28, 28)
    assert bunch.data.dtype == np.uint8
    assert bunch.target.shape == (10,)
    assert bunch.target_names == ["healthy", "ill"]
    assert "CC BY 4.0" in bunch.DESCR
    assert "Scientific Data 10, 41" in bunch.DESCR
    assert [path.name for path in tmp_path.iterdir()] == ["toymnist.npz"]


@pytest.mark.parametrize(
    ("label", "warns"),
    [
        ({"0": "femur-left", "1": "liver"}, True),
        ({"0": "liver", "1": "Right kidney"}, True),
        ({"0": "cleft", "1": "bright"}, False),
    ],
)
def test_the_description_warns_of_mirror_images_where_classes_are_sides(
    server, tmp_path, label, warns
):
    server.behaviours = ["good"]
    server.entry["label"] = label
    text = fetch_medmnist("toymnist", data_home=tmp_path).DESCR
    assert ("Warning: names of classes say left or right" in text) == warns
    assert ("augment='affine' or augment=None" in text) == warns


def test_of_the_sets_of_medmnist_the_organs_are_those_with_sides():
    info = _medmnist._medmnist_info()
    sided = [name for name in info if "Warning" in _medmnist._describe(name, 28, info[name])]
    assert sided == ["organamnist", "organcmnist", "organsmnist", "organmnist3d"]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_splits_are_the_published_ones(server, tmp_path, split):
    server.behaviours = ["good"]
    X, y = fetch_medmnist("toymnist", split=split, data_home=tmp_path, return_X_y=True)
    np.testing.assert_array_equal(X, ARRAYS[f"{split}_images"])
    np.testing.assert_array_equal(y, ARRAYS[f"{split}_labels"][:, 0])


@pytest.fixture
def large_file(server, tmp_path, monkeypatch):
    """A file that counts as one of more than 1 GB."""
    monkeypatch.setattr(_medmnist_files, "_MAPPED_FROM", len(CONTENT))
    (tmp_path / "toymnist.npz").write_bytes(CONTENT)
    return tmp_path / "toymnist.npz"


@pytest.mark.parametrize("split", ["train", "val", "test", None])
def test_images_of_a_large_file_are_mapped_from_an_npy_file_beside_it(large_file, split):
    for _ in range(2):
        X, y = fetch_medmnist("toymnist", split=split, data_home=large_file.parent, return_X_y=True)
        assert isinstance(X, np.memmap)
        assert not X.flags.writeable
        parts = ["train", "val", "test"] if split is None else [split]
        np.testing.assert_array_equal(X, np.concatenate([ARRAYS[f"{p}_images"] for p in parts]))
        np.testing.assert_array_equal(
            y, np.concatenate([ARRAYS[f"{p}_labels"][:, 0] for p in parts])
        )
    names = sorted(path.name for path in large_file.parent.iterdir())
    assert names == ["toymnist.npy", "toymnist.npz"]


def damaged(content):
    return content[:-7] + bytes([content[-7] ^ 1]) + content[-6:]


def of_other_images(content):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((10, 28, 28), dtype=np.uint8))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change", [damaged, of_other_images, lambda c: c[:-1], lambda c: b"", lambda c: b"mine"]
)
def test_an_npy_file_that_is_damaged_or_of_others_is_neither_used_nor_changed(large_file, change):
    fetch_medmnist("toymnist", data_home=large_file.parent)
    beside = large_file.with_suffix(".npy")
    changed = change(beside.read_bytes())
    beside.write_bytes(changed)
    with pytest.raises(OSError, match=r"toymnist.npy does not hold the images .* Delete or move"):
        fetch_medmnist("toymnist", data_home=large_file.parent)
    assert beside.read_bytes() == changed


def test_images_are_read_into_memory_where_no_npy_file_can_be_written(large_file, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_medmnist_files.os, "fsync", full)
    with pytest.warns(UserWarning, match="toymnist.npy could not be written .*No space left"):
        X, _ = fetch_medmnist("toymnist", data_home=large_file.parent, return_X_y=True)
    assert not isinstance(X, np.memmap)
    np.testing.assert_array_equal(X[:5], ARRAYS["train_images"])
    assert [path.name for path in large_file.parent.iterdir()] == ["toymnist.npz"]


@pytest.mark.parametrize("is_large", [False, True])
def test_images_are_held_once_or_not_at_all_while_they_are_read(
    server, tmp_path, monkeypatch, is_large
):
    buffer, images = io.BytesIO(), np.zeros((1000, 28, 28), dtype=np.uint8)
    labels = np.zeros((1000, 1), dtype=np.uint8)
    splits = ("train", "val", "test")
    np.savez_compressed(
        buffer,
        **{f"{split}_images": images for split in splits},
        **{f"{split}_labels": labels for split in splits},
    )
    (tmp_path / "toymnist.npz").write_bytes(buffer.getvalue())
    server.entry["MD5"] = hashlib.md5(buffer.getvalue()).hexdigest()
    monkeypatch.setattr(_medmnist_files, "_BYTES_AT_ONCE", 2**14)
    monkeypatch.setattr(_medmnist_files, "_MAPPED_FROM", 1 if is_large else 10**9)
    tracemalloc.start()
    try:
        X, _ = fetch_medmnist("toymnist", data_home=tmp_path, return_X_y=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert X.shape == (3000, 28, 28)
    assert peak < (0.25 if is_large else 1.25) * X.nbytes


@pytest.mark.parametrize("failure", ["stall", "truncate", "wrong bytes", "missing"])
def test_a_failed_download_is_named_and_leaves_nothing_behind(
    server, tmp_path, monkeypatch, failure
):
    if failure == "stall":
        monkeypatch.setattr(_medmnist, "_TIMEOUT", (5, 0.2))
    server.behaviours = [failure]
    with pytest.raises(OSError, match="Could not download http.*Nothing was left"):
        fetch_medmnist("toymnist", data_home=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", ["stall", "truncate", "missing"])
def test_a_passing_failure_is_tried_again(server, tmp_path, monkeypatch, failure):
    if failure == "stall":
        # The good answer has as long.
        monkeypatch.setattr(_medmnist, "_TIMEOUT", (5, 1.0))
    server.behaviours = [failure, "good"]
    X, _ = fetch_medmnist("toymnist", data_home=tmp_path, return_X_y=True)
    assert len(X) == 10
    assert server.n_requests == 2


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such permissions")
def test_a_downloaded_file_is_for_all_who_may_read_new_files(server, tmp_path):
    server.behaviours = ["good"]
    fetch_medmnist("toymnist", data_home=tmp_path)
    (tmp_path / "new").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("toymnist.npz", "new")]
    assert modes[0] == modes[1]


def test_a_full_disk_is_not_tried_again(server, tmp_path, monkeypatch):
    calls = []

    class Full:
        def __init__(self, **options):
            pass

        def __call__(self, url, output_file, pooch_):
            calls.append(url)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pooch.HTTPDownloader", Full)
    with pytest.raises(OSError, match="No space left"):
        fetch_medmnist("toymnist", data_home=tmp_path)
    assert len(calls) == 1


def test_a_damaged_file_is_never_used(server, tmp_path):
    (tmp_path / "toymnist.npz").write_bytes(CONTENT[:-1])
    with pytest.raises(OSError, match="has MD5 .*expected"):
        fetch_medmnist("toymnist", data_home=tmp_path)
    assert server.n_requests == 0


def test_a_missing_file_is_not_downloaded_when_that_is_forbidden(server, tmp_path):
    with pytest.raises(OSError, match="is missing and download_if_missing=False"):
        fetch_medmnist("toymnist", data_home=tmp_path, download_if_missing=False)
    assert server.n_requests == 0


def test_the_folder_comes_from_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path / "here"))
    server.behaviours = ["good"]
    assert fetch_medmnist("toymnist").filename == str(tmp_path / "here" / "toymnist.npz")


def test_the_cache_of_medmnist_is_looked_into_where_the_folder_lacks_a_file(
    server, tmp_path, monkeypatch
):
    cache = tmp_path / "home" / ".medmnist"
    cache.mkdir(parents=True)
    (cache / "toymnist.npz").write_bytes(CONTENT)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path / "empty"))
    assert fetch_medmnist("toymnist").filename == str(cache / "toymnist.npz")
    assert server.n_requests == 0


def test_no_home_folder_is_needed_beside_one_that_is_named(server, tmp_path, monkeypatch):
    def no_home(path):
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(_medmnist.Path, "expanduser", no_home)
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path))
    with pytest.raises(OSError, match="is missing and download_if_missing=False"):
        fetch_medmnist("toymnist", download_if_missing=False)
    monkeypatch.delenv("MEDMNIST_ROOT")
    with pytest.raises(RuntimeError, match="home directory"):
        fetch_medmnist("toymnist", download_if_missing=False)


def test_a_folder_that_cannot_be_made_is_named_with_the_ways_out(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="set data_home or MEDMNIST_ROOT"):
        fetch_medmnist("toymnist", data_home=tmp_path / "file" / "data")


def test_unknown_names_sizes_and_splits_are_named(server):
    with pytest.raises(ValueError, match=r"name must be one of \['toymnist'\], got 'mnist'"):
        fetch_medmnist("mnist")
    with pytest.raises(ValueError, match=r"size must be one of \[28\] for toymnist, got 64"):
        fetch_medmnist("toymnist", size=64)
    with pytest.raises(ValueError, match="split must be one of .*got 'valid'"):
        fetch_medmnist("toymnist", split="valid")


def test_larger_images_have_their_own_file_address_and_checksum(server, tmp_path):
    server.behaviours = ["good"]
    server.entry["url_64"], server.entry["MD5_64"] = server.entry["url"], server.entry["MD5"]
    server.entry["url"], server.entry["MD5"] = "http://127.0.0.1:9/none", "0" * 32
    bunch = fetch_medmnist("toymnist", size=64, data_home=tmp_path)
    assert bunch.filename == str(tmp_path / "toymnist_64.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["toymnist_64.npz"]
    assert ", 64 px" in bunch.DESCR


def test_several_labels_stay_columns(server, tmp_path):
    server.content, arrays = make_file(n_labels=4)
    server.entry["MD5"] = hashlib.md5(server.content).hexdigest()
    server.behaviours = ["good"]
    bunch = fetch_medmnist("toymnist", split="train", data_home=tmp_path)
    np.testing.assert_array_equal(bunch.target, arrays["train_labels"])


def test_the_table_of_the_medmnist_package_is_used_without_torchvision(tmp_path, capsys):
    (tmp_path / "retinamnist.npz").write_bytes(CONTENT)
    with pytest.raises(OSError, match="expected bd4c0672f1bba3e3a89f0e4e876791e4"):
        fetch_medmnist("retinamnist", data_home=tmp_path)
    assert capsys.readouterr().out == ""


def test_a_missing_medmnist_package_names_the_remedy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "medmnist.info", None)
    with pytest.raises(ImportError, match=r'python -m pip install "sklearn-msf\[medmnist\]"'):
        fetch_medmnist("retinamnist")
