"""Lists for messages and reports: the first of many texts, and how many others there are."""

from collections.abc import Iterable, Sequence

__all__ = ["examples", "first_of"]


def first_of(
    texts: Sequence[str], n_shown: int, separator: str = ", ", others: str = "more"
) -> str:
    """Join the first of some texts, and write how many others there are."""
    shown = separator.join(texts[:n_shown])
    n_others = len(texts) - n_shown
    return shown if n_others <= 0 else f"{shown} and {n_others} {others}"


def examples(names: Iterable[object], n_shown: int = 3) -> str:
    """Write the first of some names, and the number of the others."""
    return first_of([repr(name) for name in names], n_shown)
