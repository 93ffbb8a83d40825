"""matplotlib.pyplot, imported when a display is drawn."""

from typing import Any

from sklearn_msf.runtime.optional_imports import importing

__all__ = ["pyplot_for"]


def pyplot_for(display: type) -> Any:
    """Import matplotlib.pyplot, or raise an ImportError that says how to install it."""
    needed = f'{display.__name__} needs matplotlib: python -m pip install "sklearn-msf[plot]".'
    with importing(needed):
        import matplotlib.pyplot
    return matplotlib.pyplot
