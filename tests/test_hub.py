"""Autoencoders by their id on a hub: a local server in the place of the public one."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import autoencoder_folder
from safetensors.torch import load_file

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
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_model_over_an_autoencoder_of_the_hub_names_its_commit_and_opens_again(hub, tmp_path):
    # The address is read when the client is imported: a process of its own.
    foreign = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    environment = {k: v for k, v in os.environ.items() if not k.upper().startswith(foreign)} | {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
    }
    model = tmp_path / "model"
    done = subprocess.run(
        [sys.executable, "-c", FIT_SAVE_OPEN, str(model)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["source"] == {"kind": "hub", "id": "someone/tiny", "revision": COMMIT}
    assert answer["same"]
    weights = f"/someone/tiny/resolve/{COMMIT}/diffusion_pytorch_model.safetensors"
    assert weights in Hub.asked
    # The model names the autoencoder and does not hold it.
    held = {name for path in model.glob("*.safetensors") for name in load_file(path)}
    assert held
    assert not any("encoder" in name for name in held)
