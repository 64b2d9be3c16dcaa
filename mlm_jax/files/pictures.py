"""What all figures share."""

import io
import pathlib
from typing import TYPE_CHECKING

from mlm_jax.files.buckets import BucketPath

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


def save(figure: 'Figure', path: pathlib.Path, dots_per_inch: int = DOTS_PER_INCH) -> None:
    """Writes a figure as a PNG file, or as an object of a bucket."""
    if isinstance(path, BucketPath):
        content = io.BytesIO()
        figure.savefig(content, dpi=dots_per_inch, format='png')
        path.write_bytes(content.getvalue())
    else:
        figure.savefig(path, dpi=dots_per_inch)


def plain_text(text: str) -> str:
    """Escapes dollar signs, because Matplotlib would typeset the text between two of them as mathematics."""
    return text.replace('$', r'\$')
