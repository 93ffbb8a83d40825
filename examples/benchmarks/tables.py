"""Put the tables of README and docs in place, from the records of the benchmarks.

    python examples/benchmarks/tables.py            # writes the tables
    python examples/benchmarks/tables.py --check    # says what is not as the records have it

A page holds a table between two comments, ``<!-- table: NAME -->`` and ``<!-- end of table -->``,
with NAME of a benchmark. ``<!-- table: NAME, earlier -->`` shows records of the earlier defaults;
only docs/earlier.md may. What stands in between is replaced. No other table of a page that has one
may show a figure, and no table elsewhere a decimal number, unless it is code: figures typed by hand
belong to docs/trials.md. A table of settings, which are no measurements, follows
``<!-- settings -->``.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from _common import Benchmark, describe_picture
from _common.records import read_records

ROOT = Path(__file__).resolve().parents[2]
# Benchmarks of scripts that are named otherwise.
SCRIPTS = {
    "larger": ("backbone", "SUMMARY"),
    "scaling_paper": ("scaling", "PAPER"),
    "sizes": ("backbone", "COMPARISON"),
    "speed_sweep": ("speed", "SWEEP"),
    "summary": ("paper", "SUMMARY"),
}
# Benchmarks whose records name a picture.
WITH_PICTURES = ("paper", "latent_drawing")
# Pages whose tables are not those of today's records: what was typed by hand.
TYPED_BY_HAND = "trials.md"
EARLIER_PAGE = "earlier.md"

BLOCK = re.compile(
    r"<!-- table: (?P<name>\w+)(?P<earlier>, earlier)? -->\n(?P<content>.*?)"
    r"<!-- end of table -->",
    re.DOTALL,
)
SETTINGS = re.compile(r"<!-- settings -->\n+(?:\|.*\n)+")
# Code in a table is a setting, not a figure.
CODE = re.compile(r"`[^`]*`")
ANY_FIGURE = re.compile(r"\d")
MEASURED_FIGURE = re.compile(r"\d\.\d|±")


def benchmark_of(name: str) -> Benchmark:
    """Benchmark that a marker names."""
    module, attribute = SCRIPTS.get(name, (name, "BENCHMARK"))
    return getattr(importlib.import_module(module), attribute)


def table_of(name: str, root: Path = ROOT, *, earlier: bool = False) -> str:
    """Markdown of a benchmark's records, those of today or the earlier ones."""
    benchmark = benchmark_of(name)
    records = read_records(root / "docs" / "benchmarks" / f"{benchmark.file}.json")
    return benchmark.markdown(records, earlier=earlier)


def with_tables(text: str, root: Path = ROOT) -> str:
    """Text of a page with every table as the records have it."""

    def filled(block: re.Match[str]) -> str:
        opening = block[0].partition("\n")[0]
        table = table_of(block["name"], root, earlier=block["earlier"] is not None)
        return f"{opening}\n\n{table}\n<!-- end of table -->"

    return BLOCK.sub(filled, text)


def pages(root: Path = ROOT) -> list[Path]:
    """README and the pages of the documentation."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def faults(root: Path = ROOT) -> Iterator[str]:
    """Say what in the pages is not as the records have it."""
    for page in pages(root):
        text, name = page.read_text(encoding="utf-8"), page.relative_to(root)
        if with_tables(text, root) != text:
            yield f"{name}: a table is not that of the records; run tables.py"
        if page.name != EARLIER_PAGE:
            for block in BLOCK.finditer(text):
                if block["earlier"] is not None:
                    yield f"{name}: shows earlier records, which belong to {EARLIER_PAGE}"
        if page.name != TYPED_BY_HAND:
            for line in typed_figures(text):
                yield f"{name}: this line of a table comes from no record: {line}"
    yield from wrong_pictures(root)


def typed_figures(text: str) -> list[str]:
    """Lines of tables outside of the blocks that show a figure.

    In a page with blocks this is any number that is not code, in other pages a decimal number or a
    deviation: their tables define things, and whole numbers are part of that.
    """
    is_figure = ANY_FIGURE if BLOCK.search(text) else MEASURED_FIGURE
    lines = SETTINGS.sub("", BLOCK.sub("", text)).splitlines()
    rows = [line for line in lines if line.lstrip().startswith("|")]
    # The first cell names what the row is about.
    return [row for row in rows if is_figure.search(CODE.sub("", row.split("|", 2)[2]))]


def wrong_pictures(root: Path) -> Iterator[str]:
    """Pictures of current records that are missing or were made by another run."""
    folder = root / "docs" / "benchmarks"
    for benchmark in map(benchmark_of, WITH_PICTURES):
        for record in benchmark.chosen(read_records(folder / f"{benchmark.file}.json")):
            if "picture" not in record:
                continue
            path = folder / record["picture"]["file"]
            if not path.is_file() or describe_picture(path) != record["picture"]:
                yield f"{path.relative_to(root)}: is not the picture of its record"


def rewrite_pages(root: Path = ROOT) -> list[Path]:
    """Write the tables into the pages; returns the pages that changed."""
    changed = []
    for page in pages(root):
        text = page.read_text(encoding="utf-8")
        if (new := with_tables(text, root)) != text:
            page.write_text(new, encoding="utf-8", newline="\n")
            changed.append(page)
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 on a fault")
    arguments = parser.parse_args()
    if not arguments.check:
        for page in rewrite_pages():
            print(f"wrote {page.relative_to(ROOT)}")
    found = list(faults())
    print("\n".join(found) or "Every table is that of the records.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
