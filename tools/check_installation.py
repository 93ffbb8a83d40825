"""Try the installed package where nothing is installed but what it requires.

    ENVIRONMENT/bin/python -I tools/check_installation.py README.md

Every module must import without the optional packages, a call that needs one must name the extra
that brings it, and the README's example must run.
"""

import doctest
import importlib
import importlib.metadata
import pkgutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sklearn_msf
from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf.datasets import fetch_medmnist, load_image_folder
from sklearn_msf.plotting import AccuracyRejectionDisplay

DISTRIBUTION = "sklearn-msf"
_OF_EVERY_ENVIRONMENT = ("pip", "setuptools")


def required_packages(distribution: str) -> set[str]:
    """Return the names of the packages that one requires, and of those that these require."""
    seen: set[tuple[str, str]] = set()
    waiting = [(distribution, "")]
    while waiting:
        name, extra = waiting.pop()
        for requirement in map(Requirement, importlib.metadata.requires(name) or []):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            required = canonicalize_name(requirement.name)
            new = {(required, each) for each in ("", *requirement.extras)} - seen
            seen |= new
            waiting += new
    return {name for name, _ in seen}


def surplus_packages(distribution: str) -> list[str]:
    """Return the packages that are installed beside one and what it requires."""
    names = {canonicalize_name(d.name) for d in importlib.metadata.distributions()}
    expected = required_packages(distribution) | {distribution, *_OF_EVERY_ENVIRONMENT}
    return sorted(names - expected)


def import_every_module() -> int:
    """Import all modules of the package; return their number."""
    modules = list(pkgutil.walk_packages(sklearn_msf.__path__, f"{sklearn_msf.__name__}."))
    for module in modules:
        importlib.import_module(module.name)
    return len(modules)


def check_names_extra(call: Callable[[], object], extra: str) -> None:
    """Check that a call without its optional package says how to install it."""
    try:
        call()
    except ImportError as error:
        if f"{DISTRIBUTION}[{extra}]" in str(error):
            return
        raise SystemExit(f"The error does not name the extra {extra!r}: {error}") from error
    raise SystemExit(f"A call that needs the extra {extra!r} worked without it.")


def main(readme: str) -> None:
    """Run every check; exit with an error at the first that fails."""
    if surplus := surplus_packages(DISTRIBUTION):
        raise SystemExit(f"This environment should not have {', '.join(surplus)}.")
    if importlib.metadata.version(DISTRIBUTION) != sklearn_msf.__version__:
        raise SystemExit("The metadata and the package state different versions.")
    n_modules = import_every_module()

    check_names_extra(lambda: fetch_medmnist("breastmnist"), "medmnist")
    X, y = [[0.0], [1.0]] * 8, [0, 1] * 8
    check_names_extra(lambda: LatentMedSymmFlowClassifier("folder").fit(X, y), "latent")
    check_names_extra(lambda: AccuracyRejectionDisplay.from_predictions(y, y, y), "plot")
    latents = LatentMedSymmFlowClassifier(None, backbone="user/encoder")
    check_names_extra(lambda: latents.fit(X, y), "backbones")
    check_names_extra(lambda: LatentMedSymmFlowClassifier.from_pretrained("user/model"), "hub")
    with tempfile.TemporaryDirectory() as folder:
        # The first bytes of a PNG and of a DICOM file.
        for name, content in (("images", b"\x89PNG\r\n\x1a\n"), ("dicom", bytes(128) + b"DICM")):
            path = Path(folder) / name / "class" / "file"
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
            check_names_extra(partial(load_image_folder, Path(folder) / name), name)
        small = MedSymmFlowClassifier(channels=8, max_epochs=1).fit(X, y)
        check_names_extra(lambda: small.export_onnx(Path(folder) / "model.onnx"), "onnx")

    failures = doctest.testfile(readme, module_relative=False, encoding="utf-8")
    if failures.failed or not failures.attempted:
        raise SystemExit(f"{readme}: {failures}")
    print(
        f"{sklearn_msf.__version__} on Python {sys.version.split()[0]}: {n_modules} modules, and "
        f"{failures.attempted} lines of {readme}."
    )


if __name__ == "__main__":
    main(sys.argv[1])
