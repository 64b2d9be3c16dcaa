"""BLiMP: a model should prefer the grammatical one of two sentences that differ in one point of grammar.

Warstadt et al., BLiMP: The Benchmark of Linguistic Minimal Pairs for English, TACL 2020, arXiv 1912.00582: 67 paradigms
of 1,000 pairs each, with one JSON lines file for each paradigm (github.com/alexwarstadt/blimp, `data/`). Masked models
score sentences by pseudo-log-likelihood (`analysis/minimal_pairs.py`). The accuracy of chance is 0.5.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlm_jax.files import buckets, json_lines, streams
from mlm_jax.files.errors import ConfigError

NUM_PARADIGMS = 67  # in the published data set
_FIELDS = {
    'good': 'sentence_good', 'bad': 'sentence_bad', 'field': 'field', 'term': 'linguistics_term', 'paradigm': 'UID',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pair:
    """A minimal pair.

    Attributes:
      good: the grammatical sentence.
      bad: the ungrammatical sentence.
      field: the field of linguistics: morphology, syntax, semantics or syntax_semantics.
      term: the phenomenon, such as 'island_effects'.
      paradigm: the name (UID) of the paradigm, such as 'adjunct_island'.
    """

    good: str
    bad: str
    field: str
    term: str
    paradigm: str


def read(directory: str | pathlib.Path, percent: float = 100.0) -> list[Pair]:
    """Reads the pairs of a directory, file by file.

    Args:
      directory: a directory with one *.jsonl file for each paradigm.
      percent: the percentage of the pairs of each file to read, rounded, but at least one pair. The lines are evenly
        spaced and always the same.

    Raises:
      ConfigError: if the directory does not exist, or a file is empty or not a file of BLiMP.
    """
    directory = buckets.path(directory).expanduser()
    if not 0 < percent <= 100:
        raise ConfigError(f'cannot read {percent} % of BLiMP: the percentage must be above 0 and at most 100')
    paths = sorted(directory.glob('*.jsonl')) if directory.is_dir() else []
    if not paths:
        raise ConfigError(
            f'{directory} {"holds no *.jsonl files" if directory.is_dir() else "is not a directory"}: give the '
            'directory of the published BLiMP data, with one file for each paradigm, such as adjunct_island.jsonl'
        )
    pairs = []
    for path in paths:
        found = list(_read_file(path))
        if not found:
            raise ConfigError(f'{path} is empty: a file of BLiMP has one pair on each line')
        count = max(1, round(len(found) * percent / 100))
        pairs += [found[i * len(found) // count] for i in range(count)]
    return pairs


def extent(setting: Mapping[str, Any]) -> str:
    """How much of BLiMP a report judges, in words; `setting` has `percent`, `pairs` and `paradigms`."""
    few = '' if setting['paradigms'] == NUM_PARADIGMS else f' (the published set has {NUM_PARADIGMS})'
    return f'{setting["percent"]:g} % of it: {setting["pairs"]:,} pairs of {setting["paradigms"]} paradigms{few}'


def digest(pairs: Sequence[Pair]) -> str:
    """A hash that identifies the pairs, wherever their files lie."""
    return hashlib.blake2b(repr(list(pairs)).encode(), digest_size=16).hexdigest()


def _read_file(path: pathlib.Path) -> Iterator[Pair]:
    for number, line in _lines(path):
        try:
            entry = json_lines.parse(line, 'the line')
        except ConfigError as error:
            raise ConfigError(f'{path}, line {number}: not JSON ({error})') from None
        found = {name: entry.get(key) if isinstance(entry, dict) else None for name, key in _FIELDS.items()}
        values = {name: value for name, value in found.items() if isinstance(value, str) and value.strip()}
        if missing := [key for name, key in _FIELDS.items() if name not in values]:
            raise ConfigError(
                f'{path}, line {number}: no text in {", ".join(missing)}; each line of BLiMP has '
                f'{", ".join(_FIELDS.values())}'
            )
        if any(json_lines.LONE_SURROGATE.search(value) for value in values.values()):
            raise ConfigError(
                f'{path}, line {number}: it holds a lone surrogate (\\ud800 … \\udfff), which is not valid text'
            )
        values['field'] = values['field'].replace('/', '_')  # one paradigm writes syntax/semantics
        yield Pair(**values)


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    try:
        with streams.open_text(path) as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if not line.isspace())
    except OSError as error:
        raise ConfigError(f'cannot read {path}: {error.strerror or error}') from error


def tally(pairs: Sequence[Pair], good_N: np.ndarray, bad_N: np.ndarray) -> dict:
    """Counts the pairs that are judged correctly: the good sentence must score higher; a tie counts as wrong.

    Args:
      pairs: N pairs.
      good_N: float, the scores of the good sentences.
      bad_N: float, the scores of the bad sentences.

    Returns:
      `accuracy`, a fraction; `pairs` and `ties`, counts; and `fields`, `terms` and `paradigms`, each of which maps a
      name to the same three numbers for the pairs of that name.
    """
    right_N, tie_N = good_N > bad_N, good_N == bad_N

    def count(chosen_N: np.ndarray) -> dict:
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
