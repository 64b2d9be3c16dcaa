"""`tables.npz` in a prepared directory: what masking needs to know about the tokenizer and the corpus.

`prepare` always writes which pieces start words and how often each id occurs, and with `masking.unit=pmi` also the
collocations. The tables depend only on the tokenizer and the rows, so running `prepare` again adds a missing table to a
directory.
"""

import dataclasses
import io
import pathlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from mlm_jax.data import collocations, shards, tokenizers
from mlm_jax.data import word_marks as words
from mlm_jax.data.manifest import Manifest
from mlm_jax.files import atomic, buckets
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.registry import STRATEGIES, UNITS, largest_ratio
from mlm_jax.masking.tables import NEXT_STARTS, STARTS, Tables, find_word_starts

FILE = 'tables.npz'
_LOOKED_AT = 1000  # number of rows from which word lengths are estimated
_TOLERATED = 0.1  # fraction of the tokens that may be in words too long to be masked

# The arrays of the file: dtype, and whether there is a value for each id.
_ARRAYS: dict[str, tuple[type, bool]] = {
    'word_starts': (np.bool_, True),
    'word_marks': (np.uint8, True),
    'counts': (np.int64, True),
    'collocations': (np.uint32, False),
}
_ALWAYS = {'word_starts', 'word_marks', 'counts'}


def required(masking: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The names of the arrays that `masking` needs, the part of a configuration with that name."""
    tables = dict.fromkeys(_tables_of(masking))
    if 'token_weights' in tables:  # follows from the counts, or is a file of the user's
        del tables['token_weights']
        tables |= {'counts': None} if masking.token_weights == 'frequency' else {}
    return tuple(tables)


def _tables_of(masking: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The attributes of `Tables` that the unit and the strategy read."""
    return (*UNITS[masking.unit].tables, *STRATEGIES[masking.strategy].tables)


def _reads_words(masking: ml_collections.ConfigDict) -> bool:
    return 'word_starts' in _tables_of(masking)


def write_missing(
    masking: ml_collections.ConfigDict,
    directory: pathlib.Path,
    manifest: Manifest,
    scratch: pathlib.Path | None = None,
    counts: np.ndarray | None = None,
) -> bool:
    """Writes the file if it does not exist or lacks an array that the masking needs.

    Args:
      masking: the part `masking` of a configuration.
      directory: the directory that holds the rows and the tokenizer.
      manifest: the manifest of the directory.
      scratch: as in `atomic.opened`.
      counts: int64[V], how often each id occurs in the training rows; without it, all rows are read if it is needed.

    Returns:
      Whether the file was written.

    Raises:
      ConfigError: if the masking is impossible with this tokenizer.
    """
    path = directory / FILE
    vocabulary = manifest.vocabulary
    arrays = read(path, vocabulary.size) if path.exists() else {}
    missing = {*_ALWAYS, *required(masking)} - arrays.keys()
    if not missing:
        return False
    if unknown := missing - _ARRAYS.keys():
        raise ConfigError(
            f'nothing makes the table {min(unknown)}, which masking.unit={masking.unit} or masking.strategy='
            f'{masking.strategy} reads: `write_missing` in mlm_jax/data/masking_tables.py must compute it, and _ARRAYS '
            'name it (docs/extend.md)'
        )
    if missing & {'word_starts', 'word_marks'}:
        arrays |= _of_words(directory, manifest)
        if 'collocations' in arrays:  # they were computed with the word starts of an earlier version
            missing.add('collocations')
    if required(masking):
        _check_words(masking, arrays)
    if 'counts' in missing and counts is not None:
        arrays['counts'] = np.pad(counts, (0, vocabulary.size - len(counts)))
    elif 'counts' in missing:
        arrays['counts'] = np.zeros(vocabulary.size, np.int64)
        for block in shards.Shards(directory, 'train', manifest=manifest).blocks():
            arrays['counts'] += np.bincount(block.ravel(), minlength=vocabulary.size)
    if 'collocations' in missing:
        rows = shards.Shards(directory, 'train', manifest=manifest)
        limit = collocations.MAX_TOKENS // manifest.sequence_length
        if len(rows) > limit:  # rows are shuffled within their shards, which are of different parts of the corpus
            limit = -(-limit // len(manifest.splits['train'].shards))
        arrays['collocations'] = collocations.collocations(
            rows.blocks(max_rows=limit), arrays['word_starts'], vocabulary, word_marks=arrays['word_marks']
        )
        print(f'tables     {len(arrays["collocations"]):,} collocations of 2 to 5 words')
    named: dict[str, Any] = dict(sorted(arrays.items()))
    atomic.write(path, lambda file: np.savez(file, **named), scratch)
    return True


def word_starts(tokenizer: tokenizers.AnyTokenizer) -> np.ndarray:
    """bool[V]: whether a piece begins with a space, which `pieces` writes as ▁."""
    ids = np.arange(tokenizer.vocabulary.size)
    starts = np.array([piece.startswith('▁') for piece in tokenizer.pieces(ids)])
    return starts & ~np.isin(ids, tokenizer.vocabulary.special_ids)


def word_marks(tokenizer: tokenizers.AnyTokenizer) -> np.ndarray:
    """uint8[V]: the other word marks of the pieces, as `masking.tables` defines them."""
    ids = range(tokenizer.vocabulary.size)
    if hasattr(tokenizer, 'text_of'):
        return words.marks(map(tokenizer.text_of, ids))
    return words.marks(piece.replace('▁', ' ').encode() for piece in tokenizer.pieces(ids))


def of_words(tokenizer: tokenizers.AnyTokenizer, vocab_size: int) -> list[np.ndarray]:
    """`word_starts` and `word_marks` for `vocab_size` ids; the last ids may have no piece."""
    padding = vocab_size - tokenizer.vocabulary.size
    return [np.pad(array, (0, padding)) for array in (word_starts(tokenizer), word_marks(tokenizer))]


def _of_words(directory: pathlib.Path, manifest: Manifest) -> dict[str, np.ndarray]:
    tokenizer = tokenizers.Tokenizer.from_file(directory / manifest.tokenizer)
    return dict(zip(('word_starts', 'word_marks'), of_words(tokenizer, manifest.vocabulary.size)))


def describe_words(masking: ml_collections.ConfigDict, directory: pathlib.Path, manifest: Manifest) -> str:
    """A line about the words of the training rows, with a warning if many words are too long to be masked.

    Args:
      masking: the part `masking` of a configuration.
      directory: the directory that holds the rows and the tables.
      manifest: the manifest of the directory.

    Returns:
      The line, or '' if the masking does not use words.
    """
    if not _reads_words(masking):
        return ''
    arrays = read(directory / FILE, manifest.vocabulary.size)
    rows = shards.Shards(directory, 'train', manifest=manifest)
    tokens = rows.read(np.unique(np.linspace(0, len(rows) - 1, _LOOKED_AT, dtype=np.int64)))  # from all shards
    ordinary = ~np.isin(tokens, manifest.vocabulary.special_ids)
    starts = find_word_starts(tokens, arrays['word_starts'], arrays['word_marks'])
    starts |= ~np.pad(ordinary[:, :-1], ((0, 0), (1, 0)))
    word = np.cumsum(starts | ~ordinary).reshape(tokens.shape)  # the index of the word of each token
    size = np.bincount(word[ordinary], minlength=word[-1, -1] + 1)[word]
    largest = largest_ratio(masking.ratio_schedule, masking.ratio, masking.final_ratio)
    too_long = ordinary & (size > largest * ordinary.sum(1, keepdims=True) + 1)
    share = too_long.sum() / max(1, ordinary.sum())
    line = f'words      {ordinary.sum() / max(1, (starts & ordinary).sum()):.2f} tokens on average'
    if share <= _TOLERATED:
        return line
    return (
        f'{line}\nWARNING: {share:.0%} of the tokens are in words that are longer than the fraction of a row that is '
        f'masked, {largest:.0%}: masking.unit={masking.unit} never masks such words. Use masking.unit=token or '
        'ngram, which work with the same rows, or a tokenizer that marks where words start'
    )


def load(
    masking: ml_collections.ConfigDict,
    sources: Sequence[tuple[pathlib.Path, Manifest]],
    weights: Sequence[float],
) -> Tables:
    """Loads the tables that the masking needs from a prepared directory, or from those of a mixture with one tokenizer.

    Words are those of the tokenizer. Counts are those of as many tokens as all sources have, taken from them by weight.

    Args:
      masking: the part `masking` of a configuration; units that read collocations take a single directory.
      sources: the directories, each with its manifest.
      weights: the share of each source; they add up to 1.

    Raises:
      ConfigError: if a table is missing or cannot be used; the message says what to do.
    """
    found = [_arrays(masking, directory, manifest) for directory, manifest in sources]
    arrays, size = found[0], sources[0][1].vocabulary.size
    if len(found) > 1 and 'counts' in required(masking):
        totals = [each['counts'].sum() for each in found]
        mean = sum(w * each['counts'] / max(1, n) for w, each, n in zip(weights, found, totals, strict=True))
        arrays = {**arrays, 'counts': mean * sum(totals)}
    by_name = {field.name: arrays.get(field.name) for field in dataclasses.fields(Tables)}
    if 'token_weights' in _tables_of(masking):
        by_name['token_weights'] = _weights(masking.token_weights, arrays, size)
    return Tables(**by_name)


def _arrays(masking: ml_collections.ConfigDict, directory: pathlib.Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """The arrays of a directory, with all that the masking needs; none if it needs none."""
    needed, path = required(masking), directory / FILE
    if not needed:
        return {}
    arrays = read(path, manifest.vocabulary.size) if path.exists() else {}
    if 'word_starts' in arrays and 'word_marks' not in arrays and 'word_marks' in needed:  # from an earlier version
        _check_words(masking, arrays)
        arrays = _of_words(directory, manifest) | arrays
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ConfigError(
            f'{directory} lacks the masking tables {", ".join(missing)}, which masking.unit='
            f'{masking.unit} and masking.strategy={masking.strategy} need. To add them to the '
            'prepared rows, run\n'
            f'    {manifest.prepare_command}'
        )
    _check_words(masking, arrays)
    if manifest.tables and manifest.tables_sha256 and atomic.sha256(path) != manifest.tables_sha256:
        raise _unreadable(path, 'its SHA-256 differs from that in the manifest')
    return arrays


# Exceptions that NumPy and zipfile raise for truncated or damaged files.
_DAMAGED = (
    OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, MemoryError, OverflowError, NotImplementedError,
    RuntimeError, UserWarning, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip


def read(path: pathlib.Path, vocab_size: int) -> dict[str, np.ndarray]:
    """Reads the arrays of the file `path` for a vocabulary of `vocab_size` ids.

    Raises:
      ConfigError: if the file cannot be read, or an array has a wrong shape or dtype.
    """
    try:
        # Reading from memory, because NumPy would allocate an array of any size that a damaged header states.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name]) for name in stored}
        for name in filter(_ARRAYS.__contains__, arrays):
            array, (dtype, is_by_id) = arrays[name], _ARRAYS[name]
            if array.dtype != dtype or array.shape != (vocab_size if is_by_id else array.size,):
                raise ValueError(f'{name} is {array.dtype}{list(array.shape)}, for a vocabulary of {vocab_size}')
    except _DAMAGED as error:
        raise _unreadable(path, str(error) or type(error).__name__) from error
    return arrays


def _unreadable(path: pathlib.Path, reason: str) -> ConfigError:
    return ConfigError(f'cannot read {path} ({reason}); delete that file and run prepare again')


def _check_words(masking: ml_collections.ConfigDict, arrays: dict[str, np.ndarray]) -> None:
    if not _reads_words(masking):
        return
    marks = arrays.get('word_marks', np.zeros(1, np.uint8))
    if not arrays['word_starts'].any() and not (marks & (STARTS | NEXT_STARTS)).any():
        raise ConfigError(
            f'masking.unit={masking.unit} masks words, but no piece of this tokenizer starts with ▁, which '
            'marks a space before a word; use masking.unit=ngram or masking.unit=token'
        )


def _weights(name: str, arrays: dict[str, np.ndarray], vocab_size: int) -> np.ndarray:
    """float32[V]: the sampling weight of each id."""
    if name == 'frequency':
        return (1 / np.sqrt(arrays['counts'] + 1.0)).astype(np.float32)
    try:
        weights = np.load(io.BytesIO(buckets.path(name).expanduser().read_bytes()), allow_pickle=False)
        if not isinstance(weights, np.ndarray) or weights.dtype.kind not in 'fiu':
            raise ValueError('it does not hold an array of numbers')
    except _DAMAGED as error:
        raise ConfigError(
            f'cannot read masking.token_weights={name} ({error}); set it to frequency or to the path of a .npy file'
        ) from error
    if weights.shape != (vocab_size,) or not np.all(np.isfinite(weights)) or weights.min() < 0 or not weights.max():
        raise ConfigError(
            f'masking.token_weights={name} must hold {vocab_size} finite numbers, one for each id, none of them '
            f'negative and not all of them 0; it holds {weights.dtype}{list(weights.shape)}'
        )
    return weights.astype(np.float32)
