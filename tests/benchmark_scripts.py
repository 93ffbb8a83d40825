"""Import of the benchmark scripts, which are no package."""

import importlib
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "examples" / "benchmarks"


def script(name):
    """Module of a benchmark script; the scripts import each other."""
    if str(BENCHMARKS) not in sys.path:
        # First, because some examples have the names of benchmarks.
        sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module(name)
