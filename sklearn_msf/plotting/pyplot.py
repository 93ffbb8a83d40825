"""matplotlib.pyplot, imported when a display is drawn."""

from typing import Any

__all__ = ["pyplot_for"]


def pyplot_for(display: type) -> Any:
    """Import matplotlib.pyplot, or raise an ImportError that says how to install it."""
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError(
            f'{display.__name__} needs matplotlib: python -m pip install "sklearn-msf[plot]".'
        ) from error
    return matplotlib.pyplot
