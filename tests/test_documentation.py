"""The pages and the gallery against the package: what is public, and what is linked."""

import ast
import importlib
import inspect
import re
import textwrap

import pytest
from imported_scripts import EXAMPLES, ROOT

import sklearn_msf

DOCS = ROOT / "docs"
GALLERY = sorted((EXAMPLES / "gallery").glob("*.py"))
MODULES = {
    "sklearn_msf": {"__version__"},
    "sklearn_msf.datasets": set(),
    "sklearn_msf.exceptions": set(),
    "sklearn_msf.generation_metrics": set(),
    "sklearn_msf.operating_points": set(),
    "sklearn_msf.plotting": set(),
    "sklearn_msf.prevalence": set(),
    "sklearn_msf.sample_augmentation": set(),
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
        text = page.read_text(encoding="utf-8")
        linked = re.findall(r"\(\.\./examples/gallery/(\w+)\.py\)", text)
        assert set(linked) <= names, page.name
        # A file that only the built site has, but for the site's own index.
        assert "(gallery/" not in text or page.stem == "index", page.name


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_examples_need_no_files_of_others(path):
    text = path.read_text(encoding="utf-8")
    assert path.name.startswith("plot_"), "sphinx-gallery runs only these"
    assert "fetch_" not in text
    assert "from_pretrained(folder" in text or "from_pretrained" not in text


def blocks_of(page):
    """Python blocks of a page; those of the README's doctest begin with a prompt."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) for _, code in blocks if not code.lstrip().startswith(">>>")]


PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
PAGES_WITH_CODE = [page for page in PAGES if blocks_of(page)]
# What the pages call their estimators.
ESTIMATORS = {"clf", "classifier", "model"}


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: page.stem)
def test_code_on_a_page_uses_names_and_keywords_that_there_are(page):
    imported = {}
    for tree in map(ast.parse, blocks_of(page)):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("sklearn_msf"):
                module = importlib.import_module(node.module)
                imported |= {name.name: getattr(module, name.name) for name in node.names}
    for tree in map(ast.parse, blocks_of(page)):
        for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
            for called in functions_of(call.func, imported):
                known = inspect.signature(called).parameters
                kinds = {parameter.kind for parameter in known.values()}
                keywords = {keyword.arg for keyword in call.keywords} - {None}
                assert keywords <= known.keys() or inspect.Parameter.VAR_KEYWORD in kinds


def functions_of(func, imported):
    """What a call calls, if it is of this package; of an estimator the method of both classes."""
    if isinstance(func, ast.Name):
        return [imported[func.id]] if func.id in imported else []
    if not isinstance(func, ast.Attribute) or not isinstance(func.value, ast.Name):
        return []
    owner = imported.get(func.value.id)
    if owner is not None:
        return [getattr(owner, func.attr)]
    classes = (sklearn_msf.MedSymmFlowClassifier, sklearn_msf.LatentMedSymmFlowClassifier)
    return [getattr(c, func.attr) for c in classes] if func.value.id in ESTIMATORS else []


def test_the_check_of_keywords_sees_a_wrong_one(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nclf.sample(0, step_count=3)\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        test_code_on_a_page_uses_names_and_keywords_that_there_are(page)
