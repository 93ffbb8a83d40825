"""Write the oldest versions that pyproject.toml admits as constraints for pip.

    python tools/lower_bounds.py > oldest.txt
    pip install -c oldest.txt ".[test]"

The tests run with these versions before a release, so a lower bound is a version that works.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def lower_bounds(project: Mapping[str, Any]) -> list[str]:
    """Return one constraint for each dependency, optional ones too.

    Parameters
    ----------
    project : dict
        The table ``project`` of pyproject.toml.

    Returns
    -------
    list of str
        Such as ``"numpy==1.26"``, sorted. Where several lists name one package, the largest of
        their bounds, because pip has to satisfy them all.

    Raises
    ------
    ValueError
        If a dependency has no lower bound.
    """
    lists = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
    oldest: dict[str, Version] = {}
    for requirement in (Requirement(entry) for entries in lists for entry in entries):
        name = canonicalize_name(requirement.name)
        if name == canonicalize_name(project["name"]):
            continue  # an extra that is the sum of others
        bounds = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
        if not bounds:
            raise ValueError(f"{str(requirement)!r} in pyproject.toml needs a lower bound (>=).")
        oldest[name] = max([*bounds, *([oldest[name]] if name in oldest else [])])
    return [f"{name}=={version}" for name, version in sorted(oldest.items())]


if __name__ == "__main__":
    print(*lower_bounds(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]), sep="\n")
