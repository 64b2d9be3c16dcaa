"""`data.directory` names one directory of prepared rows, or the directories of a mixture, divided by commas.

    data/mine                          one directory
    data/en:0.7,data/de:0.3            a mixture with weights, which need not sum to 1
    data/en,data/de                    a mixture by size: see `data.mixture_temperature`

A directory that exists is taken literally, even if its name contains a comma, or ends in a colon and a number.
"""

import dataclasses
import fractions
import pathlib
import re
from collections.abc import Sequence

from mlm_jax.files.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Source:
    """One directory of a mixture.

    Attributes:
      directory: the path as it was given.
      name: a short and unique name, for metrics and messages.
      weight: the relative share of the rows, above 0; None if sizes decide.
    """

    directory: str
    name: str
    weight: fractions.Fraction | None = None


def is_mixture(text: str) -> bool:
    """Whether a value of `data.directory` names several directories."""
    return ',' in text and not _exists(text)


def parse(text: str) -> tuple[Source, ...]:
    """The directories that a value of `data.directory` names.

    Raises:
      ConfigError: if a directory is missing or given twice, a weight is not above 0, or only some have one.
    """
    if not is_mixture(text):
        return (Source(text, pathlib.Path(text).name or 'data'),)
    parts = [_part(part.strip(), text) for part in text.split(',')]
    directories, weights = [directory for directory, _ in parts], [weight for _, weight in parts]
    if len({pathlib.Path(directory) for directory in directories}) < len(directories):
        raise ConfigError(f'data.directory={text} names a directory twice: add up its weights')
    without = [directory for directory, weight in parts if weight is None]
    if 0 < len(without) < len(parts):
        raise ConfigError(
            f'data.directory={text} gives {", ".join(without)} no weight: give every directory one, as in a:0.7,b:0.3, '
            'or none, and their sizes decide'
        )
    return tuple(map(Source, directories, _names(directories), weights))


def single(text: str, purpose: str) -> str:
    """The directory in a value of `data.directory`; ConfigError if that is a mixture, of which `purpose` takes none."""
    if is_mixture(text):
        raise ConfigError(f'data.directory={text} is a mixture of several directories, and {purpose}')
    return text


def _exists(directory: str) -> bool:
    try:
        return bool(directory) and pathlib.Path(directory).expanduser().is_dir()
    except (OSError, RuntimeError):  # the name is too long for a path, or a home directory does not exist
        return False


def _part(part: str, text: str) -> tuple[str, fractions.Fraction | None]:
    """Splits DIRECTORY[:WEIGHT]."""
    if _exists(part):
        return part, None
    found = re.fullmatch(r'(.*?)(?::([+-]?[\d.]+(?:e[+-]?\d{1,3})?))?', part, re.IGNORECASE | re.DOTALL)
    assert found  # the pattern matches every text
    directory, after = found.groups()
    if not directory:
        raise ConfigError(f'data.directory={text} lacks a directory before or after a comma')
    if not after:
        return directory, None
    try:
        weight = fractions.Fraction(after)
    except ValueError:
        weight = fractions.Fraction(0)
    if weight <= 0:
        raise ConfigError(
            f'data.directory={text}: the weight {after} of {directory} must be a number above 0; leave out a directory '
            'from which no rows are to be read'
        )
    return directory, weight


def _names(directories: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many of them as are needed to tell the paths apart."""
    parts = [pathlib.Path(directory).parts for directory in directories]
    for depth in range(1, max(map(len, parts)) + 1):
        names = [re.sub(r'[^\w.+-]', '-', '_'.join(path[-depth:])) for path in parts]
        if len(set(names)) == len(names):
            break
    else:
        names = [f'{name}_{number}' for number, name in enumerate(names)]  # they differ only in odd characters
    return names
