"""Tables of README and docs: each comes from records, or stands where it says that it does not."""

import json

import pytest
from imported_scripts import benchmark_script

tables = benchmark_script("tables")


def test_every_table_of_readme_and_docs_comes_from_a_record():
    assert list(tables.faults()) == []


@pytest.fixture
def site(tmp_path):
    """A checkout with one page and one file of records of the earlier defaults."""
    folder = tmp_path / "docs" / "benchmarks"
    folder.mkdir(parents=True)
    earlier = {"dataset": "toy", "system": "defaults", "seed": 0, "reference_seconds": 10.0}
    earlier |= {"gemm_gflops": 150.0, "test_auc": 71.23, "test_acc": 50.0}
    (folder / "accuracy.json").write_text(json.dumps([earlier]))
    (tmp_path / "README.md").write_text("")
    return tmp_path


def write(site, name, text):
    (site / "docs" / name).write_text(text)


def block(marker):
    return f"# Title\n\n<!-- table: {marker} -->\n<!-- end of table -->\n\nText.\n"


def test_tables_are_written_between_their_markers(site):
    write(site, "earlier.md", block("accuracy, earlier"))
    assert len(list(tables.faults(site))) == 1
    tables.rewrite_pages(site)
    text = (site / "docs" / "earlier.md").read_text()
    assert "| toy | 10 | ours: defaults | 1 | 71.2 | 50.0 |" in text
    assert text.startswith("# Title\n")
    assert text.endswith("\n\nText.\n")
    assert list(tables.faults(site)) == []
    assert tables.rewrite_pages(site) == []


def test_records_of_the_earlier_defaults_are_not_shown_as_todays(site):
    write(site, "accuracy.md", block("accuracy"))
    tables.rewrite_pages(site)
    text = (site / "docs" / "accuracy.md").read_text()
    assert "71.2" not in text
    assert "Not measured yet with today's settings" in text


def test_earlier_figures_belong_to_their_own_page(site):
    write(site, "accuracy.md", block("accuracy, earlier"))
    tables.rewrite_pages(site)
    (fault,) = tables.faults(site)
    assert "belong to earlier.md" in fault


def test_a_figure_that_was_changed_by_hand_is_found(site):
    write(site, "earlier.md", block("accuracy, earlier"))
    tables.rewrite_pages(site)
    page = site / "docs" / "earlier.md"
    page.write_text(page.read_text().replace("71.2", "91.2"))
    (fault,) = tables.faults(site)
    assert "not that of the records" in fault


@pytest.mark.parametrize(
    ("line", "is_figure"),
    [
        ("| AUC | 74.2 |", True),
        ("| AUC | 74 ± 1 |", True),
        ("| images | 400 |", False),
        ("| at most 0.5 | any |", False),
        ("| default | `0.15` |", False),
        ("74.2 in text", False),
    ],
)
def test_figures_typed_into_tables_are_found(site, line, is_figure):
    write(site, "guide.md", f"| a | b |\n|---|---|\n{line}\n")
    assert bool(list(tables.faults(site))) == is_figure
    # Where figures of today stand, whole numbers are figures too.
    assert bool(tables.typed_figures(block("accuracy") + line)) == (
        is_figure or line == "| images | 400 |"
    )
    write(site, "guide.md", "")
    write(site, "trials.md", line)
    assert list(tables.faults(site)) == []


def test_a_table_that_says_that_it_is_of_settings_may_have_numbers():
    settings = "<!-- settings -->\n\n| a | b |\n|---|---|\n| rate | 0.1 |\n"
    assert tables.typed_figures(settings) == []
    assert tables.typed_figures(settings + "\n| AUC | 74.2 |\n") == ["| AUC | 74.2 |"]


def test_an_unknown_table_is_an_error(site):
    write(site, "accuracy.md", block("nothing"))
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        list(tables.faults(site))


def test_the_command_fails_where_a_page_differs(monkeypatch, capsys):
    monkeypatch.setattr(tables, "faults", lambda: iter(["README.md: a table"]))
    monkeypatch.setattr("sys.argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        tables.main()
    assert ended.value.code
    assert "README.md: a table" in capsys.readouterr().out
