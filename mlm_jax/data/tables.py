"""`tables.npz` in a prepared directory: what masking must know about the tokenizer and the corpus.

`prepare` writes it: of every corpus, which pieces start a word and how often each id occurs; with `masking.unit=pmi`,
the collocations too. It is made of the rows alone, so a directory that lacks a table gets it by preparing once more.
"""

import io
import pathlib
import struct
import tokenize
import zipfile
import zlib

import ml_collections
import numpy as np

from mlm_jax.config import ConfigError
from mlm_jax.data import atomic, collocations, shards, tokenizers
from mlm_jax.data.manifest import Manifest
from mlm_jax.masking.tables import Tables

FILE = 'tables.npz'
_WORD_UNITS = ('word', 'span', 'pmi')


def required(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The arrays of the file that the masking of `config` needs."""
    k = config.masking
    needs = {
        'word_starts': k.unit in _WORD_UNITS,
        'counts': k.strategy == 'weighted' and k.token_weights == 'frequency',
        'collocations': k.unit == 'pmi',
    }
    return tuple(name for name, needed in needs.items() if needed)


def write_missing(config: ml_collections.ConfigDict, directory: pathlib.Path, manifest: Manifest, scratch=None) -> bool:
    """Writes the file if it is not there, or lacks what `config` needs.

    Args:
      config: `config.masking` matters.
      directory: holds the rows and the tokenizer.
      manifest: of the directory.
      scratch: as in `atomic.write`.

    Returns:
      Whether it wrote anything.

    Raises:
      ConfigError: for a masking that the tokenizer rules out.
    """
    path = directory / FILE
    vocabulary = manifest.vocabulary
    arrays = read(path, vocabulary.size) if path.exists() else {}
    missing = {'word_starts', 'counts', *required(config)} - arrays.keys()
    if not missing:
        return False
    if 'word_starts' in missing:
        arrays['word_starts'] = word_starts(tokenizers.Tokenizer.from_file(directory / manifest.tokenizer))
    if required(config):
        _check_words(config, arrays['word_starts'])
    if 'counts' in missing:
        arrays['counts'] = np.zeros(vocabulary.size, np.int64)
        for block in _blocks(directory, manifest):
            arrays['counts'] += np.bincount(block.ravel(), minlength=vocabulary.size)
    if 'collocations' in missing:
        arrays['collocations'] = collocations.collocations(
            _blocks(directory, manifest), arrays['word_starts'], vocabulary
        )
        print(f'tables     {len(arrays["collocations"]):,} collocations of 2 to 5 words')
    atomic.write(path, lambda file: np.savez(file, **dict(sorted(arrays.items()))), scratch)
    return True


def word_starts(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """bool[V]: whether a piece starts a word: tokenizers write the space before it as ▁."""
    ids = np.arange(tokenizer.vocabulary.size)
    starts = np.array([piece.startswith('▁') for piece in tokenizer.pieces(ids)])
    return starts & ~np.isin(ids, tokenizer.vocabulary.special_ids)


def load(config: ml_collections.ConfigDict, manifest: Manifest) -> Tables:
    """The tables that the masking of `config` needs, from its prepared directory.

    Raises:
      ConfigError: when one is missing or of no use, with the cure.
    """
    needed = required(config)
    arrays = {}
    if needed:
        path = pathlib.Path(config.data.directory).expanduser() / FILE
        arrays = read(path, manifest.vocabulary.size) if path.exists() else {}
        missing = [name for name in needed if name not in arrays]
        if missing:
            raise ConfigError(
                f'{config.data.directory} lacks the masking tables {", ".join(missing)}, which masking.unit='
                f'{config.masking.unit}, masking.strategy={config.masking.strategy} need. Run\n'
                '    python -m mlm_jax.prepare --config=<this configuration, with the same overrides>\n'
                'once more: it adds them to the rows that are there'
            )
        _check_words(config, arrays.get('word_starts'))
        if manifest.tables and manifest.tables_sha256 and atomic.sha256(path) != manifest.tables_sha256:
            raise _unreadable(path, 'it has changed since prepare wrote it, by its SHA-256')
    weights = None
    if config.masking.strategy == 'weighted':
        weights = _weights(config.masking.token_weights, arrays.get('counts'), manifest.vocabulary.size)
    return Tables(arrays.get('word_starts'), weights, arrays.get('collocations'))


# What NumPy and zipfile raise at files that are cut off, or made of other bytes.
_DAMAGED = (
    OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, MemoryError, OverflowError, NotImplementedError,
    RuntimeError, UserWarning, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip


def read(path: pathlib.Path, vocab_size: int) -> dict[str, np.ndarray]:
    """The arrays of the file, for a vocabulary of that size.

    Raises:
      ConfigError: when it cannot be read, or holds other arrays.
    """
    try:
        # From memory: an array whose header lies about its size would be as large as the header says.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name]) for name in stored}
        kinds = {'word_starts': (np.bool_, (vocab_size,)), 'counts': (np.int64, (vocab_size,))}
        kinds['collocations'] = (np.uint32, (np.size(arrays.get('collocations')),))
        for name, array in arrays.items():
            if (array.dtype, array.shape) != kinds.get(name, (array.dtype, array.shape)):
                raise ValueError(f'{name} is {array.dtype}{list(array.shape)}, for a vocabulary of {vocab_size}')
    except _DAMAGED as error:
        raise _unreadable(path, str(error) or type(error).__name__) from error
    return arrays


def _unreadable(path: pathlib.Path, reason: str) -> ConfigError:
    return ConfigError(f'cannot read {path} ({reason}); delete it, and run prepare once more')


def _blocks(directory: pathlib.Path, manifest: Manifest):
    """The training rows, a shard at a time."""
    return shards.Shards(directory, 'train', manifest=manifest).blocks()


def _check_words(config: ml_collections.ConfigDict, word_starts: np.ndarray | None) -> None:
    if config.masking.unit in _WORD_UNITS and not word_starts.any():
        raise ConfigError(
            f'masking.unit={config.masking.unit} is made of words, but no piece of this tokenizer starts with ▁, the '
            'sign of a space before it; use masking.unit=ngram, or token'
        )


def _weights(name: str, counts: np.ndarray | None, vocab_size: int) -> np.ndarray:
    """float32[V]: how gladly each id is chosen."""
    if name == 'frequency':
        return (1 / np.sqrt(counts + 1.0)).astype(np.float32)
    try:
        weights = np.load(pathlib.Path(name).expanduser(), allow_pickle=False)
        if not isinstance(weights, np.ndarray) or weights.dtype.kind not in 'fiu':
            raise ValueError('it holds no array of numbers')
    except _DAMAGED as error:
        raise ConfigError(
            f'cannot read masking.token_weights={name} ({error}); it is frequency, or the path of a .npy file'
        ) from error
    if weights.shape != (vocab_size,) or not np.all(np.isfinite(weights)) or weights.min() < 0 or not weights.max():
        raise ConfigError(
            f'masking.token_weights={name} must hold {vocab_size} finite numbers, one for each id, none of them '
            f'negative and not all 0; it holds {weights.dtype}{list(weights.shape)}'
        )
    return weights.astype(np.float32)
