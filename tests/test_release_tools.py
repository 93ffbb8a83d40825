"""The checks before a release: lower bounds, contents of the distributions, the workflow."""

import re
import tarfile
import tomllib
import zipfile

import pytest
import yaml
from imported_scripts import ROOT, script_at
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def tool(name):
    return script_at(ROOT / "tools" / f"{name}.py")


@pytest.fixture
def lower_bounds():
    return tool("lower_bounds").lower_bounds


def test_lower_bounds_become_constraints(lower_bounds):
    project = {
        "name": "sklearn-msf",
        "dependencies": ["numpy>=1.26", "Scikit_Learn >=1.7, <2"],
        "optional-dependencies": {
            "plot": ["matplotlib>=3.9"],
            "docs": ["matplotlib>=3.10", "sphinx[extra]>=8; python_version > '3'"],
            "all": ["sklearn-msf[plot,docs]"],
        },
    }
    assert lower_bounds(project) == [
        "matplotlib==3.10",
        "numpy==1.26",
        "scikit-learn==1.7",
        "sphinx==8",
    ]


@pytest.mark.parametrize("requirement", ["numpy", "numpy<3", "numpy==1.26"])
def test_a_dependency_without_a_lower_bound_is_named(lower_bounds, requirement):
    with pytest.raises(ValueError, match=f"'{requirement}'.* needs a lower bound"):
        lower_bounds({"name": "x", "dependencies": [requirement]})


def test_the_pinned_versions_are_admitted(lower_bounds):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and line[0] != "#")
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (Requirement(entry) for entries in lists for entry in entries):
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(pinned[requirement.name]), requirement
    assert {line.split("==")[0] for line in lower_bounds(PROJECT)} <= pinned.keys()


TRACKED = {
    "README.md",
    "sklearn_msf/__init__.py",
    "sklearn_msf/py.typed",
    "tests/test_one.py",
    ".ci/run",
}
WHEEL = "sklearn_msf-0.1-py3-none-any.whl"
METADATA = [
    f"sklearn_msf-0.1.dist-info/{name}"
    for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")
]


@pytest.mark.parametrize(
    ("files", "differences"),
    [
        (["sklearn_msf/__init__.py", "sklearn_msf/py.typed"], []),
        (["sklearn_msf/__init__.py"], [f"{WHEEL} lacks sklearn_msf/py.typed"]),
        (
            ["sklearn_msf/__init__.py", "sklearn_msf/py.typed", "tests/test_one.py"],
            [f"{WHEEL} should not have tests/test_one.py"],
        ),
    ],
)
def test_a_wheel_has_the_tracked_files_of_the_package(tmp_path, files, differences):
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as archive:
        for name in [*files, *METADATA]:
            archive.writestr(name, "")
    assert tool("check_distributions").wheel_differences(tmp_path / WHEEL, TRACKED) == differences


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        (set(), []),
        ({"README.md"}, ["sklearn_msf-0.1.tar.gz lacks sklearn_msf-0.1/README.md"]),
        ({"notes.txt"}, ["sklearn_msf-0.1.tar.gz should not have sklearn_msf-0.1/notes.txt"]),
    ],
)
def test_a_source_distribution_has_the_tracked_files(tmp_path, changes, differences):
    sdist = tmp_path / "sklearn_msf-0.1.tar.gz"
    (tmp_path / "empty").touch()
    with tarfile.open(sdist, "w:gz") as archive:
        for name in (TRACKED - {".ci/run"} | {"PKG-INFO"}) ^ changes:
            archive.add(tmp_path / "empty", f"sklearn_msf-0.1/{name}")
    assert tool("check_distributions").sdist_differences(sdist, TRACKED) == differences


def test_required_packages_are_followed_and_others_are_surplus(tmp_path, monkeypatch):
    needs = {
        "one": ["Two_B>=1", "three; extra == 'x'", "four; python_version < '3'"],
        "two-b": ["five[fast]", "one"],
        "five": ["six; extra == 'fast'", "seven; extra == 'slow'"],
        "six": [],
        "three": [],
    }
    for name, requirements in needs.items():
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
        folder = tmp_path / f"{name.replace('-', '_')}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    check = tool("check_installation")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert check.required_packages("one") == {"two-b", "one", "five", "six"}
    assert check.surplus_packages("one") == ["three"]


def raises(error):
    def call():
        raise error

    return call


def test_the_error_of_a_missing_package_names_its_extra():
    check = tool("check_installation").check_names_extra
    check(raises(ImportError('python -m pip install "sklearn-msf[plot]"')), "plot")
    with pytest.raises(SystemExit, match="does not name the extra 'latent'"):
        check(raises(ImportError('python -m pip install "sklearn-msf[plot]"')), "latent")
    with pytest.raises(SystemExit, match="worked without it"):
        check(lambda: None, "plot")


# The workflow


@pytest.fixture(scope="module")
def workflow():
    text = (ROOT / ".github" / "workflows" / "checks.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def makefiles():
    return "".join(
        (ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "tools/release.mk")
    )


def test_the_workflow_and_make_test_the_same_pythons(workflow):
    versions = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    named = re.search(r"^PYTHONS \?= (.*)$", makefiles(), re.MULTILINE)[1].split()
    assert named == [f"python{version}" for version in versions]
    admitted = SpecifierSet(PROJECT["requires-python"])
    oldest = workflow["jobs"]["oldest"]["steps"][1]["with"]["python-version"]
    assert oldest == versions[0]
    assert all(admitted.contains(version) for version in versions)
    assert not admitted.contains(f"3.{int(oldest.split('.')[1]) - 1}")


def test_the_workflow_calls_targets_that_exist(workflow):
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    words = " ".join(
        step["run"] for step in steps if step.get("run", "").startswith("make ")
    ).split()
    called = {word for word in words if word == "lint" or "docs" in word or "release" in word}
    assert called == {
        "lint",
        "docs",
        "docs-links",
        "release-check-dist",
        "release-check-install",
        "release-check-oldest",
    }
    for target in called:
        assert re.search(rf"^{target}:", makefiles(), re.MULTILINE), target
