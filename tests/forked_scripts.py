"""Scripts in processes of their own that do not import torch first, which can take six seconds.

A server imports it once, and becomes a copy of itself for each script. Where processes cannot be
copied (Windows) or not safely (macOS), a script is started as usual.
"""

import atexit
import functools
import gc
import importlib
import itertools
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

# What a server has imported.
LIBRARIES = ("torch", "sklearn.datasets", "sklearn.model_selection")
PACKAGE = (
    *LIBRARIES,
    "torch._dynamo",
    "torch.distributed.run",
    "diffusers.models.autoencoders.autoencoder_kl",
    "conftest",
    "sklearn_msf.classifier",
    "sklearn_msf.latent_classifier",
)
# Of a script; pytest gives a test 300.
SECONDS = 100
FORKS = sys.platform == "linux"
_NUMBERS = itertools.count()
FOLDERS = [Path(__file__).parent, Path(__file__).parents[1]]


class Ended(NamedTuple):
    """What a script has left: its exit code, negative for a signal, and its texts."""

    code: int
    output: str
    errors: str


def start_script(imported, script, *arguments, server=0, **environment):
    """Start a Python script where some modules are imported; return a function that waits for it.

    A server runs one script after the other: scripts that run together have other servers. Two
    servers differ as two processes do, in the seeds of hashes and of numpy.
    """
    folder = Path(tempfile.mkdtemp(prefix="sklearn_msf"))
    outputs = [folder / name for name in ("output", "errors")]
    command = [str(script), *map(str, arguments)]
    environment = {**script_environment(), **environment}
    begin = _fork if FORKS else _popen
    wait = begin(imported, server, command, environment, outputs)

    def ended():
        try:
            code = wait()
            return Ended(code, *[path.read_text() for path in outputs])
        finally:
            shutil.rmtree(folder)

    return ended


def run_script(imported, script, *arguments, **environment):
    """Run a script to its end."""
    return start_script(imported, script, *arguments, **environment)()


def run_code(imported, code, *arguments, **environment):
    """Run the text of a script to its end."""
    with tempfile.TemporaryDirectory(prefix="sklearn_msf") as folder:
        script = Path(folder, "script.py")
        script.write_text(code)
        return run_script(imported, script, *arguments, **environment)


def script_environment():
    """Return the environment of a script, which may import the package and what tests share."""
    path = os.pathsep.join([*map(str, FOLDERS), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _popen(imported, server, command, environment, outputs):
    streams = [path.open("w") for path in outputs]
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=streams[0], stderr=streams[1]
    )

    def wait():
        try:
            return process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            for stream in streams:
                stream.close()

    return wait


def _fork(imported, server, command, environment, outputs):
    process, number = _server(imported, server), next(_NUMBERS)
    for path in outputs:
        path.touch()
    task = {"command": command, "environment": environment, "outputs": list(map(str, outputs))}
    process.stdin.write(json.dumps({"number": number, **task}) + "\n")
    process.stdin.flush()

    def wait():
        answered = None
        # A test that failed may have left an answer.
        while answered != number:
            answer = process.stdout.readline()
            assert answer, f"The server of {command} ended: {process.wait()}"
            answered, code = map(int, answer.split())
        return code

    return wait


@functools.cache
def _server(imported, number):
    process = subprocess.Popen(
        [sys.executable, __file__, *imported],
        env=script_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.stdin.close)
    return process


def _serve(imported):
    """Become a copy that runs it for each script that is read; say how each has ended."""
    for name in imported:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for line in iter(sys.stdin.readline, ""):
        task = json.loads(line)
        child = os.fork()
        if not child:
            return task
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(task["number"], code, flush=True)
    return None


def _become(task):
    signal.alarm(SECONDS)
    os.environ.clear()
    os.environ.update(task["environment"])
    for number, path in enumerate((os.devnull, *task["outputs"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
    sys.argv = task["command"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__" and (read := _serve(sys.argv[1:])):
    # At the top level, where errors and functions at exit are those of a script.
    _become(read)
