"""The table beside other packages: what a cell says, and that the page is what was run."""

import ast
import json
import os
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from imported_scripts import EXAMPLES, ROOT, script_at

COMPARISON = EXAMPLES / "comparison"


@pytest.fixture
def compare():
    return script_at(COMPARISON / "compare.py")


DOCUMENTED = {"draws": {"answer": True, "link": "https://x.org", "version": "2.1"}}


@pytest.mark.parametrize(
    ("answer", "documented", "expected"),
    [
        ({"answer": True}, {}, "**yes**"),
        ({"answer": False}, {}, "**no**"),
        ({"answer": "3 kinds"}, {}, "**3 kinds**"),
        ({"answer": False}, DOCUMENTED, "**no**"),
        (None, DOCUMENTED, "yes ([documented, 2.1](https://x.org))"),
        ({"error": "OSError: no weights"}, DOCUMENTED, "yes ([documented, 2.1](https://x.org))"),
        ({"error": "OSError: no weights"}, {}, "unknown (failed: OSError: no weights)"),
        (None, {}, "unknown"),
    ],
)
def test_a_cell_is_what_was_run_else_what_is_documented_else_unknown(
    compare, answer, documented, expected
):
    seen = {} if answer is None else {"version": "1", "answers": {"draws": answer}}
    assert compare.cell("draws", seen, documented) == expected


STUB_PROBES = """
from importlib.metadata import version
import stub

DISTRIBUTION = "stub-package"

def images():
    print("a package that talks")
    return stub.classifies

def draws():
    return "in colour"

def offline():
    raise OSError("nothing | there\\nat all")

def _helper():
    return True
"""


@pytest.fixture
def stub(compare, tmp_path, monkeypatch):
    """An environment with a package of one line, and questions to it."""
    monkeypatch.setattr(compare, "HERE", tmp_path)
    shutil.copy(COMPARISON / "run_probes.py", tmp_path)
    (tmp_path / "probes").mkdir()
    probes = tmp_path / "probes" / "skorch.py"
    probes.write_text(STUB_PROBES, encoding="utf-8")
    package = tmp_path / "site"
    metadata = package / "stub_package-1.2.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: stub-package\nVersion: 1.2\n", "utf-8")
    (package / "stub.py").write_text("classifies = True", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(package))
    # The interpreter itself, and not a link to it, which would not find its own libraries.
    monkeypatch.setattr(compare, "interpreter", lambda folder: Path(sys.executable))
    return tmp_path


def test_every_function_without_an_underscore_is_asked(compare, stub):
    seen = compare.probe("skorch", stub / "environments")
    assert seen["version"] == "1.2"
    assert seen["beside"].startswith(f"Python {sys.version.split()[0]}")
    assert seen["answers"] == {
        "images": {"answer": True},
        "draws": {"answer": "in colour"},
        "offline": {"error": "OSError: nothing | there"},
    }
    page = compare.page({"skorch": seen}, {})
    assert "](https://skorch.readthedocs.io) 1.2, with Python" in page
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| draws new")]
    assert rows[0][2] == "**in colour**"
    assert "unknown (failed: OSError: nothing / there)" in page


def test_a_package_that_does_not_import_is_named(compare, stub):
    (stub / "site" / "stub.py").write_text("import no_such_package", encoding="utf-8")
    seen = compare.probe("skorch", stub / "environments")
    assert seen == {"error": "ModuleNotFoundError: No module named 'no_such_package'"}
    assert "could not be run: ModuleNotFoundError" in compare.page({"skorch": seen}, {})


def test_a_package_without_an_environment_or_questions_is_not_run(compare, stub, monkeypatch):
    assert compare.probe("mapie", stub / "environments") is None
    monkeypatch.setattr(compare, "interpreter", lambda folder: None)
    assert compare.probe("skorch", stub / "environments") is None


@pytest.mark.parametrize("place", ["bin/python", "Scripts/python.exe"])
def test_an_environment_has_its_interpreter_where_its_system_puts_it(compare, tmp_path, place):
    assert compare.interpreter(tmp_path) is None
    (tmp_path / place).parent.mkdir()
    (tmp_path / place).touch()
    assert compare.interpreter(tmp_path) == tmp_path / place


def test_no_question_reaches_the_network(compare, stub, monkeypatch):
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    code = (
        'import os\nDISTRIBUTION = "stub-package"\ndef offline(): return os.environ["HTTPS_PROXY"]'
    )
    (stub / "probes" / "skorch.py").write_text(code, encoding="utf-8")
    seen = compare.probe("skorch", stub / "environments")
    assert seen["answers"]["offline"]["answer"] == "http://127.0.0.1:9"
    assert "HTTPS_PROXY" not in os.environ


def all_features(compare):
    return {name for features in compare.FEATURES.values() for name in features}


@pytest.mark.parametrize("path", sorted(COMPARISON.glob("probes/*.py")), ids=lambda p: p.stem)
def test_questions_are_rows_of_the_table(compare, path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    asked = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert path.stem in compare.PACKAGES
    assert {name for name in asked if not name.startswith("_")} <= all_features(compare)


def test_documented_answers_are_rows_and_have_links(compare):
    documented = tomllib.loads((COMPARISON / "documented.toml").read_text(encoding="utf-8"))
    assert documented.keys() <= compare.PACKAGES.keys()
    for answers in documented.values():
        assert answers.keys() <= all_features(compare)
        assert all(entry["link"].startswith("https://") for entry in answers.values())


def test_the_page_is_what_was_run(compare):
    documented = tomllib.loads((COMPARISON / "documented.toml").read_text(encoding="utf-8"))
    seen = json.loads((ROOT / "docs" / "next_to_others.json").read_text(encoding="utf-8"))
    written = (ROOT / "docs" / "next_to_others.md").read_text(encoding="utf-8")
    assert compare.page(seen, documented) == written


def test_the_answers_about_this_package_were_found_by_questions_that_work():
    """A question that has gone stale would say of the package that it lacks something."""
    seen = json.loads((ROOT / "docs" / "next_to_others.json").read_text(encoding="utf-8"))
    answers = seen["sklearn_msf"]["answers"]
    assert not [name for name, found in answers.items() if "error" in found]
    lacking = {name for name, found in answers.items() if found["answer"] is False}
    assert lacking == {"conformal_regression", "own_network", "regression", "segmentation"}
