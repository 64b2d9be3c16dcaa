"""`manifest.json`: what a directory of prepared rows holds. Written last: with it, all is there."""

import dataclasses
import json
import pathlib
import re
import typing
from typing import Any

from mlm_jax.files import atomic, paths, sealed
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking import vocabulary as vocabulary_lib

FILE = 'manifest.json'
CHANGED = 'has changed since prepare wrote it (by its SHA-256)'  # what is said of a file with another hash
DTYPES = ('uint16', 'uint32')
# What readers of the rows go by. Settings and sources are compared with those of a configuration in any case.
_SEALED = ('vocabulary', 'tokenizer', 'tokenizer_sha256', 'sequence_length', 'packing', 'dtype', 'splits')


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of rows; `sha256` is '' where nobody knows it."""

    file: str
    rows: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """The rows of one split, and the text they were made of.

    Attributes:
      rows: of T tokens.
      real_tokens: those that are no padding, [CLS] and [SEP] included.
      text_tokens: those of the text alone.
      documents: with any text.
      words: runs of characters other than ASCII white space.
      bytes: of the text in UTF-8.
      unigram_entropy_nats: −Σ p ln p over the text tokens of this split, in nats a token: the loss of a model
        that knows how often each token occurs here, and nothing else.
      repairs: what was mended in the text → how many times.
      shards: the files.
    """

    rows: int
    real_tokens: int
    text_tokens: int
    documents: int
    words: int
    bytes: int
    unigram_entropy_nats: float
    repairs: dict[str, int]
    shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `prepare` made, and of what.

    Attributes:
      settings: the keys of the configuration that shaped the rows, dotted, with their values.
      sources: corpus → what identifies its state: each file with its `bytes` and `sha256` (in directories of
        earlier versions with its size alone); nothing of a corpus that has no files.
      vocabulary: the special ids of the tokenizer.
      tokenizer: the file name of the SentencePiece model, SMILES tokens or tokenizer.json.
      tokenizer_sha256: its hash.
      sequence_length: T.
      packing: as in `data.packing`.
      dtype: of the rows.
      splits: 'train' and 'validation'.
      versions: of Python and of the libraries that had a part.
      tables: the file name of what masking must know; '' in directories of earlier versions.
      tables_sha256: its hash; '' in directories of earlier versions.
    """

    settings: dict[str, Any]
    sources: dict[str, Any]
    vocabulary: vocabulary_lib.Vocabulary
    tokenizer: str
    tokenizer_sha256: str
    sequence_length: int
    packing: str
    dtype: str
    splits: dict[str, Split]
    versions: dict[str, str]
    tables: str = ''
    tables_sha256: str = ''

    def split(self, name: str) -> Split:
        """The split of that name; ConfigError when there is none."""
        if name not in self.splits:
            raise ConfigError(f'there is no split {name!r}; the splits are {", ".join(self.splits)}')
        return self.splits[name]


def save(manifest: Manifest, directory: pathlib.Path, scratch: pathlib.Path | None = None) -> None:
    """Writes `manifest` into `directory`; `atomic.write` explains `scratch`."""
    content = dataclasses.asdict(manifest)
    content[sealed.KEY] = _seal(content)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    # A byte of a file name that is no UTF-8 is half a character in Python, and written as JSON writes it.
    atomic.write_bytes(directory / FILE, f'{text}\n'.encode(errors='backslashreplace'), scratch)


def load(directory: str | pathlib.Path) -> Manifest:
    """Reads the manifest of a directory.

    Raises:
      ConfigError: when nothing has been prepared there (or not to the end), or the file is damaged or none of ours.
    """
    paths.check_local(str(directory))
    path = pathlib.Path(directory).expanduser() / FILE
    try:
        stored = sealed.parse(path.read_bytes())
        stated = stored.pop(sealed.KEY, None)  # earlier versions wrote none
        if stated is not None and stated != _seal(stored):
            raise ValueError('its content does not have the hash that it names')
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f'{directory} holds no prepared data ({FILE} is missing there). Make it with\n'
            '    python -m mlm_jax.prepare --config=<the same configuration, with the same overrides>\n'
            'or let data.directory name the directory that has it'
        ) from None
    except OSError as error:
        raise ConfigError(f'cannot read {path}: {error.strerror or error}') from None
    except ValueError as error:
        raise ConfigError(f'{path} is damaged ({error}); delete {directory} and prepare it again') from None
    try:
        manifest = _build(Manifest, stored)
        _check(manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f'{path} is damaged, or was written by another version of mlm_jax ({error}); delete {directory} and '
            'prepare it again'
        ) from None
    return manifest


def _seal(content: dict) -> str:
    return sealed.seal({key: content.get(key) for key in _SEALED})


def _build(kind, value):
    """A value of the type `kind` from JSON; KeyError or TypeError where it is none."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) or origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f'{value!r:.80} is no object')
        if origin is dict:
            return {key: _build(arguments[1], item) for key, item in value.items()}
        types = typing.get_type_hints(kind)
        return kind(**{name: _build(types[name], item) for name, item in value.items()})
    if origin is tuple and isinstance(value, list):
        return tuple(_build(arguments[0], item) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not (origin or kind):
        raise TypeError(f'{value!r:.80} is no {(origin or kind).__name__}')
    return value


def _check(manifest: Manifest) -> None:
    """Raises ValueError for values that no preparation has."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    names = [manifest.tokenizer, *([manifest.tables] if manifest.tables else []), *(shard.file for shard in shards)]
    strange = [name for name in names if not re.fullmatch(r'\w[\w.-]*', name)]
    if strange:
        raise ValueError(f'{strange[0]!r:.80} is no name of a file in this directory')
    hashes = [manifest.tokenizer_sha256, manifest.tables_sha256, *(shard.sha256 for shard in shards)]
    strange = [text for text in hashes if text and not re.fullmatch(r'[0-9a-f]{64}', text)]
    if strange:
        raise ValueError(f'{strange[0]!r:.80} is no SHA-256')
    if manifest.dtype not in DTYPES or manifest.vocabulary.size > 1 << int(manifest.dtype[4:]):
        raise ValueError(f'{manifest.dtype!r:.80} does not hold {manifest.vocabulary.size} ids')
    for name, split in manifest.splits.items():
        counts = [shard.rows for shard in split.shards]
        if not counts or min(counts) < 0 or sum(counts) != split.rows:
            raise ValueError(f'its shards do not add up to the {split.rows} rows of the split {name:.80}')
    if not manifest.splits or manifest.sequence_length < 1:
        raise ValueError('it describes no rows')
