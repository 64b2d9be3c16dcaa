"""BLiMP: which of two sentences, that differ in one point of grammar, does a model find likelier?

Warstadt et al., BLiMP: The Benchmark of Linguistic Minimal Pairs for English, TACL 2020, arXiv 1912.00582: 67 paradigms
of 1,000 pairs each, as JSON lines, a file for each paradigm (github.com/alexwarstadt/blimp, `data/`). A masked model
judges by pseudo-log-likelihood (`analysis/minimal_pairs.py`); guessing is right half of the time.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mlm_jax.files import json_lines, streams
from mlm_jax.files.errors import ConfigError

NUM_PARADIGMS = 67  # of the published set
_FIELDS = {
    'good': 'sentence_good', 'bad': 'sentence_bad', 'field': 'field', 'term': 'linguistics_term', 'paradigm': 'UID',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pair:
    """A minimal pair.

    Attributes:
      good: the grammatical sentence.
      bad: the other one.
      field: of linguistics: morphology, syntax, semantics, syntax_semantics.
      term: the phenomenon, such as 'island_effects'.
      paradigm: how the pair was made (UID), such as 'adjunct_island'.
    """

    good: str
    bad: str
    field: str
    term: str
    paradigm: str


def read(directory: str | pathlib.Path, percent: float = 100.0) -> list[Pair]:
    """The pairs of a directory, file by file.

    Args:
      directory: with one *.jsonl file for each paradigm.
      percent: of each file, rounded, and one pair at least: evenly spaced lines, the same every time.

    Raises:
      ConfigError: when there is no such directory, or a file is none of BLiMP's, or empty.
    """
    directory = pathlib.Path(directory).expanduser()
    if not 0 < percent <= 100:
        raise ConfigError(f'{percent} % of BLiMP: it must be above 0, and 100 at most')
    paths = sorted(directory.glob('*.jsonl')) if directory.is_dir() else []
    if not paths:
        raise ConfigError(
            f'{directory} {"holds no *.jsonl files" if directory.is_dir() else "is no directory"}: give the directory '
            'of the published BLiMP data, with one file for each paradigm, such as adjunct_island.jsonl'
        )
    pairs = []
    for path in paths:
        found = list(_read_file(path))
        if not found:
            raise ConfigError(f'{path} is empty: a file of BLiMP holds a pair on each line')
        count = max(1, round(len(found) * percent / 100))
        pairs += [found[i * len(found) // count] for i in range(count)]
    return pairs


def _read_file(path: pathlib.Path) -> Iterator[Pair]:
    for number, line in _lines(path):
        try:
            entry = json_lines.parse(line, 'the line')
        except ConfigError as error:
            raise ConfigError(f'{path}, line {number}: not JSON ({error})') from None
        values = {name: entry.get(key) if isinstance(entry, dict) else None for name, key in _FIELDS.items()}
        missing = [_FIELDS[name] for name, value in values.items() if not isinstance(value, str) or not value.strip()]
        if missing:
            raise ConfigError(
                f'{path}, line {number}: no text in {", ".join(missing)}; each line of BLiMP has '
                f'{", ".join(_FIELDS.values())}'
            )
        if any(map(json_lines.LONE_SURROGATE.search, values.values())):
            raise ConfigError(f'{path}, line {number}: it holds half a character (\\ud800 … \\udfff), which is no text')
        values['field'] = values['field'].replace('/', '_')  # one paradigm writes syntax/semantics
        yield Pair(**values)


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    try:
        with streams.open_text(path) as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if not line.isspace())
    except OSError as error:
        raise ConfigError(f'cannot read {path}: {error.strerror or error}') from error


def tally(pairs: Sequence[Pair], good_N: np.ndarray, bad_N: np.ndarray) -> dict:
    """How many pairs are right: the good sentence must score higher, and a tie is wrong.

    Args:
      pairs: N of them.
      good_N: float, the scores of their good sentences.
      bad_N: float, those of the others.

    Returns:
      `accuracy`, a fraction; `pairs`; `ties`, how many; and `fields`, `terms` and `paradigms`: name → the same for the
      pairs of that name.
    """
    right_N, tie_N = good_N > bad_N, good_N == bad_N

    def count(chosen_N) -> dict:
        return {
            'accuracy': float(right_N[chosen_N].mean()),
            'pairs': int(np.sum(chosen_N)),
            'ties': int(tie_N[chosen_N].sum()),
        }

    def by(name_of: Callable[[Pair], str]) -> dict:
        names_N = np.array([name_of(pair) for pair in pairs])
        return {str(name): count(names_N == name) for name in np.unique(names_N)}

    return {
        **count(np.ones(len(pairs), bool)),
        'fields': by(lambda pair: pair.field),
        'terms': by(lambda pair: pair.term),
        'paradigms': by(lambda pair: pair.paradigm),
    }
