"""Autoencoders by their id on a hub: a local server in the place of the public one."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import socketserver
import struct
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import numpy as np
import pytest
from conftest import autoencoder_folder, tiny_latent_classifier
from forked_scripts import LIBRARIES, run_code
from hub_server import serve
from safetensors.torch import load_file

from sklearn_msf._estimator.latent_preparation import _open_autoencoder
from sklearn_msf.exceptions import AutoencoderError, PretrainedModelError
from sklearn_msf.latent import autoencoder_training
from sklearn_msf.latent.autoencoder_opening import open_autoencoder, open_hub_autoencoder
from sklearn_msf.latent.backbone_opening import open_hub_backbone

COMMIT = "c0ffee" * 6 + "beef"

FIT_SAVE_OPEN = """
import json, sys
import numpy as np
from sklearn_msf import LatentMedSymmFlowClassifier

X = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
classifier = LatentMedSymmFlowClassifier(
    "someone/tiny", channels=8, network_params={"channel_mult": (1,), "attention_levels": ()},
    max_epochs=1, augment=None, device="cpu", precision="float32", random_state=0,
).fit(X, [0, 1] * 4)
classifier.save_pretrained(sys.argv[1])
opened = LatentMedSymmFlowClassifier.from_pretrained(sys.argv[1])
same = np.array_equal(opened.predict_proba(X), classifier.predict_proba(X))
print(json.dumps({"source": opened.model_.space.autoencoder.source, "same": same}))
"""


class Hub(BaseHTTPRequestHandler):
    """Answers for files of one repository, as the Hugging Face hub does."""

    folder = Path()
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        content = self.answer()
        if content is not None:
            self.wfile.write(content)

    def answer(self):
        self.asked.append(self.path)
        path = self.folder / self.path.rsplit("/", 1)[-1]
        found = self.path.startswith("/someone/tiny/resolve/") and path.is_file()
        content = path.read_bytes() if found else None
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
        else:
            self.send_header("ETag", hashlib.sha256(content).hexdigest())
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    Hub.folder, Hub.asked = Path(autoencoder_folder()), []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        serve(server)
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_model_over_an_autoencoder_of_the_hub_names_its_commit_and_opens_again(
    hub, tmp_path, monkeypatch
):
    # The address is read when the client is imported: a process of its own.
    foreign = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    for name in [name for name in os.environ if name.upper().startswith(foreign)]:
        monkeypatch.delenv(name)
    cache = str(tmp_path / "cache")
    model = tmp_path / "model"
    environment = {"HF_ENDPOINT": hub, "HF_HOME": cache, "HF_HUB_DISABLE_XET": "1"}
    done = run_code(LIBRARIES, FIT_SAVE_OPEN, model, **environment)
    assert done.code == 0, done.errors
    answer = json.loads(done.output)
    assert answer["source"] == {"kind": "hub", "id": "someone/tiny", "revision": COMMIT}
    assert answer["same"]
    weights = f"/someone/tiny/resolve/{COMMIT}/diffusion_pytorch_model.safetensors"
    assert weights in Hub.asked
    # The model names the autoencoder and does not hold it.
    held = {name for path in model.glob("*.safetensors") for name in load_file(path)}
    assert held
    assert not any("encoder" in name for name in held)


# A hub that does not give what is asked for


@pytest.fixture
def client(monkeypatch, tmp_path):
    """The hub's client with an empty cache and no proxy; it must not wait to ask again."""
    # Counted, because what is raised here would be taken for an answer of the hub.
    waits = []
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", waits.append)
    # The client keeps its connections, and the proxy that it found when it made them.
    huggingface_hub.close_session()
    yield huggingface_hub
    huggingface_hub.close_session()
    assert not waits


def set_endpoint(monkeypatch, address):
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextlib.contextmanager
def listening(answer):
    """A server that answers every connection by a function of its socket."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            answer(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        serve(server)
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def saying(text):
    def answer(connection):
        connection.recv(65536)
        connection.sendall(text)

    return answer


def closing_at_once(connection):
    connection.close()


def resetting(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def silent(connection):
    # Until the client hangs up.
    while connection.recv(65536):
        pass


def status(code):
    return saying(f"HTTP/1.1 {code} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


PROXIES = {
    "forbids": status(403),
    "wants a password": status(407),
    "fails": status(502),
    "closes at once": closing_at_once,
    "resets": resetting,
    "is none": saying(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "is silent": silent,
}
HUBS = {
    **{str(code): status(code) for code in (401, 403, 404, 429, 500, 503)},
    "closes at once": closing_at_once,
    "resets": resetting,
    "is silent": silent,
    "is no server": saying(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "is another site": saying(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "names no commit": saying(
        b"HTTP/1.1 200 OK\r\nETag: x\r\nX-Repo-Commit: ../..\r\nContent-Length: 0\r\n\r\n"
    ),
    "sends in circles": saying(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"),
}


def check_that_nothing_is_had(name="nobody/has-this"):
    """A name of the user's raises the error with the ways out; "auto" warns and trains one."""
    with pytest.raises(AutoencoderError, match="Instead, use autoencoder='fit'") as failure:
        open_autoencoder(name)
    assert repr(name) in str(failure.value)
    with pytest.warns(UserWarning, match="autoencoder='auto': stabilityai/sd-vae-ft-mse cannot be"):
        assert _open_autoencoder("auto") is None


@pytest.mark.parametrize("kind", PROXIES)
def test_a_proxy_that_lets_nobody_through_is_an_error_or_a_warning(client, monkeypatch, kind):
    monkeypatch.setattr("sklearn_msf.persistence.hub._SECONDS_TO_ANSWER", 0.2)
    with listening(PROXIES[kind]) as address:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
        set_endpoint(monkeypatch, "https://huggingface.co")
        check_that_nothing_is_had()


@pytest.mark.parametrize("kind", HUBS)
def test_a_hub_that_gives_nothing_is_an_error_or_a_warning(client, monkeypatch, kind):
    monkeypatch.setattr("sklearn_msf.persistence.hub._SECONDS_TO_ANSWER", 0.2)
    with listening(HUBS[kind]) as address:
        set_endpoint(monkeypatch, f"http://{address}")
        check_that_nothing_is_had()


def test_a_refused_connection_is_an_error_or_a_warning(client, monkeypatch):
    with listening(silent) as address:
        pass
    set_endpoint(monkeypatch, f"http://{address}")
    check_that_nothing_is_had()


def test_a_certificate_that_cannot_be_checked_is_an_error_or_a_warning(client, monkeypatch):
    with listening(saying(b"no handshake")) as address:
        set_endpoint(monkeypatch, f"https://{address}")
        check_that_nothing_is_had()


def test_a_name_that_cannot_be_resolved_is_an_error_or_a_warning(client, monkeypatch):
    def unresolved(*arguments, **keywords):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr("socket.getaddrinfo", unresolved)
    set_endpoint(monkeypatch, "https://huggingface.co")
    check_that_nothing_is_had()


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense://x", "http://[::1"])
def test_a_proxy_that_the_client_does_not_know_is_an_error_or_a_warning(client, monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    set_endpoint(monkeypatch, "https://127.0.0.1:9")
    check_that_nothing_is_had()


def test_the_offline_variable_is_an_error_or_a_warning(client, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    check_that_nothing_is_had()


def test_a_name_that_the_client_refuses_is_an_error(client):
    for name in ("a--b", "x" * 97, "someone/-x"):
        with pytest.raises(AutoencoderError, match="HFValidationError"):
            open_autoencoder(name)


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device")])
def test_an_error_of_the_machine_is_an_error_or_a_warning(client, hub, monkeypatch, error):
    def fail(*arguments, **keywords):
        raise error

    set_endpoint(monkeypatch, hub)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(AutoencoderError, match=type(error).__name__):
        open_autoencoder("someone/tiny")


def test_a_cache_that_cannot_be_written_is_an_error(client, hub, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    set_endpoint(monkeypatch, hub)
    with pytest.raises(AutoencoderError, match="Instead, use"):
        open_autoencoder("someone/tiny")


def test_auto_fits_its_own_behind_a_proxy_that_forbids(client, monkeypatch):
    stages = [stage._replace(n_steps=1) for stage in autoencoder_training._STAGES]
    monkeypatch.setattr("sklearn_msf.latent.autoencoder_training._STAGES", stages)
    X = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    with listening(status(403)) as address:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
        set_endpoint(monkeypatch, "https://huggingface.co")
        with pytest.warns(UserWarning, match=r"cannot be opened \(.*ProxyError.*\), a small auto"):
            classifier = tiny_latent_classifier(autoencoder="auto").fit(X, [0, 1] * 4)
    assert classifier.autoencoder_.config.in_channels == 3


# A hub that gives it


def test_configuration_weights_and_card_are_asked_for_and_no_other_file(client, hub, monkeypatch):
    set_endpoint(monkeypatch, hub)
    opened = open_autoencoder("someone/tiny")
    assert opened.source == {"kind": "hub", "id": "someone/tiny", "revision": COMMIT}
    assert opened.fingerprint()[0] == open_autoencoder(autoencoder_folder()).fingerprint()[0]
    names = {path.rsplit("/", 1)[-1] for path in Hub.asked}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors", "README.md"}


def test_the_licence_of_an_autoencoder_is_in_the_card_of_a_model(
    client, hub, monkeypatch, tmp_path
):
    Hub.folder = Path(shutil.copytree(autoencoder_folder(), tmp_path / "served"))
    (Hub.folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny one\n")
    set_endpoint(monkeypatch, hub)
    X = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    classifier = tiny_latent_classifier(autoencoder="someone/tiny", max_epochs=1).fit(X, [0, 1] * 4)
    classifier.save_pretrained(tmp_path / "model")
    opened = type(classifier).from_pretrained(tmp_path / "model")
    opened.save_pretrained(tmp_path / "again")
    for folder in ("model", "again"):
        card = (tmp_path / folder / "README.md").read_text()
        origin = f"someone/tiny, revision {COMMIT}; licence: apache-2.0"
        assert f"- Autoencoder (frozen, not in these files): {origin}\n" in card


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_what_is_in_the_cache_is_opened_without_the_hub(client, hub, monkeypatch, revision):
    set_endpoint(monkeypatch, hub)
    first = open_hub_autoencoder("someone/tiny")
    Hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again = open_hub_autoencoder("someone/tiny", revision)
    assert Hub.asked == []
    assert again.source == first.source
    assert again.fingerprint()[0] == first.fingerprint()[0]


@pytest.mark.parametrize("kind", ["autoencoder", "backbone"])
def test_the_network_of_a_saved_model_cannot_be_replaced_by_another(kind, monkeypatch):
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    open_hub = {"autoencoder": open_hub_autoencoder, "backbone": open_hub_backbone}[kind]
    remedy = rf"with the same weights: from_pretrained\(folder, {kind}=\.\.\.\)"
    with pytest.raises(PretrainedModelError, match=remedy):
        open_hub("nobody/has-this", "0" * 40, of_model=True)


def test_another_commit_than_the_one_asked_for_is_refused(client, hub, monkeypatch):
    set_endpoint(monkeypatch, hub)
    with pytest.raises(AutoencoderError, match="names the commit 'c0ffee"):
        open_hub_autoencoder("someone/tiny", "0" * 40)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"<html>Please log in</html>", "configuration that cannot be read"),
        ("config.json", b"[]", "expected an object of JSON"),
        ("diffusion_pytorch_model.safetensors", b"\x08" + b"\0" * 40, "were cut off"),
        ("diffusion_pytorch_model.safetensors", None, "pickles are not opened.*404"),
    ],
)
def test_files_that_are_damaged_or_missing_are_named(
    client, hub, monkeypatch, tmp_path, file, content, message
):
    Hub.folder = Path(shutil.copytree(autoencoder_folder(), tmp_path / "served"))
    (Hub.folder / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    if content is None:
        (Hub.folder / file).unlink()
    else:
        (Hub.folder / file).write_bytes(content)
    set_endpoint(monkeypatch, hub)
    with pytest.raises(AutoencoderError, match=message):
        open_autoencoder("someone/tiny")
    assert not any(path.endswith(".bin") for path in Hub.asked)


def test_a_download_that_ends_too_early_is_an_error(client, hub, monkeypatch):
    set_endpoint(monkeypatch, hub)
    send_header = Hub.send_header

    def promising_more(self, name, value):
        send_header(self, name, value)
        if name == "ETag":
            send_header(self, "X-Linked-Size", "1000000")

    monkeypatch.setattr(Hub, "send_header", promising_more)
    with pytest.raises(AutoencoderError, match=r"should be of size 1000000 but has size"):
        open_autoencoder("someone/tiny")
