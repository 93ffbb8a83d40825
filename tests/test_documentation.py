"""The pages and the gallery against the package: what is public, and what is linked."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GALLERY = sorted((ROOT / "examples" / "gallery").glob("*.py"))
MODULES = {
    "sklearn_msf": {"__version__"},
    "sklearn_msf.datasets": set(),
    "sklearn_msf.exceptions": set(),
    "sklearn_msf.generation_metrics": set(),
    "sklearn_msf.operating_points": set(),
    "sklearn_msf.plotting": set(),
    "sklearn_msf.prevalence": set(),
    # For the plots, not for users.
    "sklearn_msf.sample_augmentation": {"check_like", "check_pairs", "mirrored"},
    "sklearn_msf.selective": set(),
}


@pytest.mark.parametrize("module", MODULES)
def test_all_that_is_public_is_on_the_page_of_the_api(module):
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(rf"^   ~{re.escape(module)}\.(\w+)$", text, re.MULTILINE))
    assert listed == set(importlib.import_module(module).__all__) - MODULES[module]


def test_every_page_is_reachable_from_the_index():
    pages = {path.stem for path in DOCS.glob("*.md")}
    found, waiting = set(), ["index"]
    while waiting:
        page = waiting.pop()
        found.add(page)
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        entries = {
            line
            for toctree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
            for line in toctree.split()
        }
        waiting += entries & pages - found
    assert found == pages


def test_links_into_the_gallery_lead_to_examples():
    names = {path.stem for path in GALLERY}
    for page in DOCS.glob("*.md"):
        linked = re.findall(r"\(gallery/(\w+)\.rst\)", page.read_text(encoding="utf-8"))
        assert set(linked) <= names | {"index"}, page.name


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_examples_need_no_files_of_others(path):
    text = path.read_text(encoding="utf-8")
    assert path.name.startswith("plot_"), "sphinx-gallery runs only these"
    assert "fetch_" not in text
    assert "from_pretrained(folder" in text or "from_pretrained" not in text
