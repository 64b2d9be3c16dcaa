"""`manifest.json`: what a directory of prepared rows holds. Written last: with it, all is there."""

import dataclasses
import json
import pathlib
from typing import Any

from mlm_jax import config as config_lib
from mlm_jax.data import atomic
from mlm_jax.masking import vocabulary as vocabulary_lib

FILE = 'manifest.json'


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of rows."""

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

    def split(self, name: str) -> Split:
        """The split of that name; ConfigError when there is none."""
        if name not in self.splits:
            raise config_lib.ConfigError(f'there is no split {name!r}; the splits are {", ".join(self.splits)}')
        return self.splits[name]


def save(manifest: Manifest, directory: pathlib.Path, scratch: pathlib.Path | None = None) -> None:
    """Writes `manifest` into `directory`; `atomic.write` explains `scratch`."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True, ensure_ascii=False)
    # A byte of a file name that is no UTF-8 is half a character in Python, and written as JSON writes it.
    atomic.write_bytes(directory / FILE, f'{text}\n'.encode(errors='backslashreplace'), scratch)


def load(directory: str | pathlib.Path) -> Manifest:
    """Reads the manifest of a directory.

    Raises:
      ConfigError: when nothing has been prepared there (or not to the end), or the file is none of ours.
    """
    path = pathlib.Path(directory).expanduser() / FILE
    try:
        stored = json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError):
        raise config_lib.ConfigError(
            f'{directory} holds no prepared data ({FILE} is missing there). Make it with\n'
            '    python -m mlm_jax.prepare --config=<the same configuration, with the same overrides>\n'
            'or let data.directory name the directory that has it'
        ) from None
    except json.JSONDecodeError as error:
        raise config_lib.ConfigError(f'{path} is damaged ({error}); delete {directory} and prepare it again') from None
    try:
        return _from_dict(stored)
    except (KeyError, TypeError) as error:
        raise config_lib.ConfigError(
            f'{path} was written by another version of mlm_jax ({error}); delete {directory} and prepare it again'
        ) from None


def _from_dict(stored: dict) -> Manifest:
    splits = {
        name: Split(**{**split, 'shards': tuple(Shard(**shard) for shard in split['shards'])})
        for name, split in stored['splits'].items()
    }
    return Manifest(**{**stored, 'splits': splits, 'vocabulary': vocabulary_lib.Vocabulary(**stored['vocabulary'])})
