"""Statistics over several runs, and how reports print them."""

import math
from collections.abc import Sequence

import numpy as np


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of the values and its standard error, which is None for a single value."""
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return float(np.mean(values)), error


def plus_minus(value: float, error: float | None, value_format: str, error_format: str | None = None) -> str:
    """'VALUE ± ERROR', or 'VALUE' where the error is None.

    Args:
      value: such as a mean.
      error: its standard error, or a standard deviation.
      value_format: the format of the value, such as '+.2f'.
      error_format: the format of the error; None means that of the value without a sign.
    """
    text = f'{value:{value_format}}'
    return text if error is None else f'{text} ± {error:{error_format or value_format.lstrip("+")}}'
