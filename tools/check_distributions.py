"""Compare the files of a wheel and of a source distribution with those that git tracks.

    python tools/check_distributions.py dist

The folder holds one wheel and one source distribution. A file that somebody forgot to add is
missing from both, and a file that lies about in the working tree gets into them; both are errors.
"""

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Set
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "sklearn_msf"
# What the build tool adds.
_OF_THE_WHEEL = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
_OF_THE_SDIST = {"PKG-INFO"}
# What git tracks and only developers of a checkout need.
_NOT_IN_THE_SDIST = (".ci/", ".git-blame-ignore-revs", ".gitattributes", ".pre-commit-config.yaml")


def tracked_files(root: Path = ROOT) -> set[str]:
    """Return the files that git tracks, relative to the root of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True
    ).stdout.decode("utf-8")
    return {name for name in listed.split("\0") if name}


def wheel_differences(wheel: Path, tracked: Set[str]) -> list[str]:
    """Say which files of the package a wheel lacks, and which it has beside them."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = "-".join(wheel.name.split("-")[:2]) + ".dist-info/"
    wanted = {name for name in tracked if name.startswith(f"{PACKAGE}/")}
    return _differences(wheel, names, wanted | {metadata + name for name in _OF_THE_WHEEL})


def sdist_differences(sdist: Path, tracked: Set[str]) -> list[str]:
    """Say which tracked files a source distribution lacks, and which it has beside them."""
    folder = sdist.name.removesuffix(".tar.gz") + "/"
    with tarfile.open(sdist) as archive:
        names = {member.name for member in archive if not member.isdir()}
    wanted = {name for name in tracked if not name.startswith(_NOT_IN_THE_SDIST)}
    return _differences(sdist, names, {folder + name for name in wanted | _OF_THE_SDIST})


def _differences(path: Path, names: Set[str], wanted: Set[str]) -> list[str]:
    lacking = [f"{path.name} lacks {name}" for name in sorted(wanted - names)]
    return lacking + [f"{path.name} should not have {name}" for name in sorted(names - wanted)]


def main(folder: Path) -> None:
    """Print every difference; exit with an error if there is one."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    tracked = tracked_files()
    differences = wheel_differences(wheel, tracked) + sdist_differences(sdist, tracked)
    if differences:
        raise SystemExit("\n".join(differences))
    print(f"{wheel.name} and {sdist.name} hold what git tracks, and nothing else.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
