"""Tables in Markdown."""

from collections.abc import Sequence

__all__ = ["NOT_RUN", "markdown"]

# What stands in the place of a figure.
NOT_RUN = "not run"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells, without a last line break."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
