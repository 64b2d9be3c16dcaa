"""`manifest.json` describes a directory of prepared rows. It is written last, so it marks a complete directory."""

import dataclasses
import json
import pathlib
import re
import shlex
import typing
from typing import Any

from mlm_jax.files import atomic, buckets, paths, sealed
from mlm_jax.files.errors import ConfigError, MissingDataError
from mlm_jax.masking import vocabulary as vocabulary_lib

FILE = 'manifest.json'
CHANGED = 'has changed since prepare wrote it (its SHA-256 differs)'  # said of a file whose checksum is wrong
DTYPES = ('uint16', 'uint32')
# The checksum of the manifest covers what readers of rows need. Settings and sources are not covered, because they are
# always compared with those of a configuration.
_PREPARE = 'python -m mlm_jax.prepare --config=<this configuration, with the same overrides>'
_SEALED = ('vocabulary', 'tokenizer', 'tokenizer_sha256', 'sequence_length', 'packing', 'dtype', 'splits')


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of rows; `sha256` is '' if it is unknown."""

    file: str
    rows: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """The rows of one split, and the text from which they were made.

    Attributes:
      rows: the number of rows of T tokens.
      real_tokens: the number of tokens that are not padding, including [CLS] and [SEP].
      text_tokens: the number of tokens of the text, without [CLS] and [SEP].
      documents: the number of documents that are not empty; the parts of one that was split count each, and copies of
        molecules, too.
      words: the number of runs of characters other than ASCII whitespace.
      bytes: the size of the text in UTF-8.
      unigram_entropy_nats: −Σ p ln p over the text tokens of this split, in nats per token: the loss of a model that
        knows only the frequency of each token in this split.
      repairs: a repair of the text → how many times it was made.
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
    """What `prepare` made, and from what.

    Attributes:
      settings: the configuration keys that determine the rows, with dots in their names, and their values.
      sources: corpus → what identifies its content: each file with its `bytes`, and with its `sha256` or, if several
        jobs read it, `parts`: the SHA-256 of each of that many equal parts (earlier versions stored only the size of
        a file). It is empty for a corpus without files.
      vocabulary: the special ids of the tokenizer.
      tokenizer: the file name of the SentencePiece model, SMILES vocabulary or tokenizer.json.
      tokenizer_sha256: the SHA-256 of that file.
      sequence_length: T, the number of tokens in a row.
      packing: as in `data.packing`.
      dtype: the dtype of the rows.
      splits: 'train' and 'validation'.
      versions: the versions of Python and of the libraries that were used.
      tables: the file name of the masking tables; '' in directories of earlier versions.
      tables_sha256: the SHA-256 of that file; '' in directories of earlier versions.
      preparation: the version of the way in which the corpus was divided into shards (`claim.VERSION`); 1 in
        directories of earlier versions. Damaged shards can be made again only in the same way.
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
    preparation: int = 1

    def split(self, name: str) -> Split:
        """The split of that name; raises ConfigError if there is none."""
        if name not in self.splits:
            raise ConfigError(f'there is no split {name!r}; the splits are {", ".join(self.splits)}')
        return self.splits[name]

    @property
    def prepare_command(self) -> str:
        """How to call `prepare` for this corpus, which the configuration of a run need not name."""
        corpus = self.settings.get('data.corpus')
        return _PREPARE + (f' --set=data.corpus={shlex.quote(corpus)}' if corpus else '')

    @property
    def fingerprint(self) -> str:
        """`fingerprint_of` the training rows."""
        return self.fingerprint_of('train')

    def fingerprint_of(self, split: str) -> str:
        """What identifies the rows of a split, wherever the directory lies: a SHA-256 of their checksums and layout."""
        rows = dataclasses.asdict(self.split(split))['shards']
        return sealed.seal({'tokenizer': self.tokenizer_sha256, 'length': self.sequence_length, 'shards': rows})


def save(manifest: Manifest, directory: pathlib.Path, scratch: pathlib.Path | None = None) -> None:
    """Writes `manifest` into `directory`; `atomic.write` explains `scratch`."""
    content = dataclasses.asdict(manifest)
    content[sealed.KEY] = _seal(content)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    # Python represents a byte of a file name that is not UTF-8 as a lone surrogate; it is written as a JSON escape.
    atomic.write_bytes(directory / FILE, f'{text}\n'.encode(errors='backslashreplace'), scratch)


def load(directory: str | pathlib.Path) -> Manifest:
    """Reads the manifest of a directory.

    Raises:
      MissingDataError: if there is no manifest, because nothing has been prepared or `prepare` has not finished.
      ConfigError: if the manifest is not valid.
    """
    paths.check_local_or_bucket(str(directory))
    path = buckets.path(directory).expanduser() / FILE
    try:
        stored = sealed.parse(path.read_bytes())
        stated = stored.pop(sealed.KEY, None)  # earlier versions wrote no checksum
        if stated is not None and stated != _seal(stored):
            raise ValueError('its content does not match its checksum')
    except (FileNotFoundError, NotADirectoryError):
        raise MissingDataError(
            f'{directory} holds no prepared data ({FILE} is missing there). Prepare the data with\n'
            f"    {_PREPARE} --set=data.corpus='text:corpus/*.txt'\n"
            'or wherever your text lies (without data.corpus it is text of the Python installation, unless the '
            'configuration names another), or set data.directory to the directory that has the prepared data'
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


def in_words(manifest: Manifest) -> str:
    """The splits as a table."""
    lines = [
        f'{"split":12}{"documents":>12}{"words":>14}{"tokens":>14}{"rows":>12}{"% real":>8}{"tokens/word":>13}'
        f'{"entropy":>9}'
    ]
    for name, s in manifest.splits.items():
        real = 100 * s.real_tokens / max(1, s.rows * manifest.sequence_length)
        lines.append(
            f'{name:12}{s.documents:12,}{s.words:14,}{s.text_tokens:14,}{s.rows:12,}{real:8.1f}'
            f'{s.text_tokens / max(1, s.words):13.2f}{s.unigram_entropy_nats:9.3f}'
        )
    note = 'entropy: of single tokens, in nats; the loss of a model that knows only their frequencies'
    return '\n'.join(['', *lines, note])


def _seal(content: dict) -> str:
    return sealed.seal({key: content.get(key) for key in _SEALED})


def _build(kind: Any, value: Any) -> Any:
    """Converts a JSON value to the type `kind`; raises KeyError or TypeError if it does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) or origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f'{value!r:.80} is not an object')
        if origin is dict:
            return {key: _build(arguments[1], item) for key, item in value.items()}
        types = typing.get_type_hints(kind)
        return kind(**{name: _build(types[name], item) for name, item in value.items()})
    if origin is tuple and isinstance(value, list):
        return tuple(_build(arguments[0], item) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not (origin or kind):
        raise TypeError(f'{value!r:.80} is not of type {(origin or kind).__name__}')
    return value


def _check(manifest: Manifest) -> None:
    """Raises ValueError for values that `prepare` never writes."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    names = [manifest.tokenizer, *([manifest.tables] if manifest.tables else []), *(shard.file for shard in shards)]
    strange = [name for name in names if not re.fullmatch(r'\w[\w.-]*', name)]
    if strange:
        raise ValueError(f'{strange[0]!r:.80} is not the name of a file in this directory')
    hashes = [manifest.tokenizer_sha256, manifest.tables_sha256, *(shard.sha256 for shard in shards)]
    strange = [text for text in hashes if text and not re.fullmatch(r'[0-9a-f]{64}', text)]
    if strange:
        raise ValueError(f'{strange[0]!r:.80} is not a SHA-256')
    if manifest.dtype not in DTYPES or manifest.vocabulary.size > 1 << int(manifest.dtype[4:]):
        raise ValueError(f'{manifest.dtype!r:.80} cannot represent {manifest.vocabulary.size} ids')
    for name, split in manifest.splits.items():
        counts = [shard.rows for shard in split.shards]
        if not counts or min(counts) < 0 or sum(counts) != split.rows:
            raise ValueError(f'its shards do not add up to the {split.rows} rows of the split {name:.80}')
    if not manifest.splits or manifest.sequence_length < 1:
        raise ValueError('it describes no rows')
