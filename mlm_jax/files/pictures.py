"""What all figures share."""

import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 120


def new_figure(width: float, height: float) -> 'Figure':
    """An empty figure of this size, in inches, whose parts do not overlap.

    It is made without `matplotlib.pyplot`, which would keep global state and might open a display. Matplotlib takes
    long to import, so only a program that draws imports it.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained')


def save(figure: 'Figure', path: pathlib.Path) -> None:
    """Writes a figure as a PNG file."""
    figure.savefig(path, dpi=DOTS_PER_INCH)


def plain_text(text: str) -> str:
    """Escapes dollar signs, because Matplotlib would typeset the text between two of them as mathematics."""
    return text.replace('$', r'\$')
