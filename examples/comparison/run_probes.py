"""Run the functions of one file of probes; print their answers as a line of JSON.

    python -P run_probes.py probes/skorch.py

It runs in the environment of the package, so it needs nothing but Python.
"""

import contextlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

_LONGEST_ERROR = 100
_BESIDE = ("torch", "scikit-learn", "numpy")


def load(path: Path) -> ModuleType:
    """Import a file by its path, so that its name does not hide the package of the same name."""
    spec = importlib.util.spec_from_file_location(f"probes_of_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def answer(function: Any) -> dict[str, Any]:
    """Return what a probe answers, or the error that it ended with."""
    try:
        found = function()
        return {"answer": found if isinstance(found, str) else bool(found)}
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return {"error": f"{type(error).__name__}: {first}"[:_LONGEST_ERROR]}


def main(path: Path) -> None:
    """Print the version of the package and what its probes answer."""
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        module = load(path)
        functions = {
            name: function
            for name, function in inspect.getmembers(module, inspect.isfunction)
            if function.__module__ == module.__name__ and not name.startswith("_")
        }
        answers = {name: answer(function) for name, function in functions.items()}
    beside = [f"Python {sys.version.split()[0]}"]
    for name in _BESIDE:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            beside.append(f"{name} {importlib.metadata.version(name)}")
    version = importlib.metadata.version(module.DISTRIBUTION)
    print(json.dumps({"version": version, "beside": ", ".join(beside), "answers": answers}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
