"""Import of the scripts in examples/ and tools/, which are no packages."""

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
BENCHMARKS = EXAMPLES / "benchmarks"


def benchmark_script(name):
    """Module of a benchmark script; the scripts import each other."""
    if str(BENCHMARKS) not in sys.path:
        # First, because some examples have the names of benchmarks.
        sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module(name)


def script_at(path):
    """Module of a script, made anew in each call."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
