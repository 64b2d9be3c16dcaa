"""Corpora: the sources of text, and the conversion of stored documents to text.

`data.corpus` names one:

    demo                   English prose found in the Python installation (`demo_corpus.py`)
    text:GLOB[;GLOB …]     plain text; a blank line ends a document
    lines:GLOB             plain text; each line is a document
    files:GLOB             plain text; each file is a document
    jsonl:GLOB             JSON lines; each object is a document, its text under `data.text_key`
    csv:GLOB               CSV with a header (TSV in .tsv files; `delimited.py`); each record is a document
    parquet:GLOB           Parquet files; each row is a document, its text in the column `data.text_key`
    arrow:GLOB             Arrow files or streams; each row is a document, as in Parquet files
    smi:GLOB               SMILES; each line is a document, up to the first whitespace (a name may follow)
    tfds:NAME[/CONFIG]     a TFDS data set by name; its text is the feature `data.text_key`
    hf:ORGANIZATION/NAME[/CONFIG][@REVISION][:SPLIT]
                           a data set of the Hugging Face Hub by name (`hub_sets.py`); its text is the column
                           `data.text_key`

Text files may be compressed (gzip, xz, bzip2, zstandard) or encoded in UTF-16 with a byte order mark; the first bytes
of a file determine its format (`streams.py`). If a file of exactly the given name exists, the name is not read as a
glob. Files may lie in a bucket, as in jsonl:gs://BUCKET/corpus/*.jsonl (`files/buckets.py`).

Held-out text comes from `data.validation_corpus` if that is given; of a data set by name, it is the validation split,
or else the train split. Otherwise it is the validation split of a data set by name, if it has one. From other corpora,
`data.validation_percent` of the documents are held out: those whose text has a low hash, so that equal documents are in
the same split.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping

import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.data import demo_corpus, hub_sets, slices, tfds_sets
from mlm_jax.files import atomic, progress, streams, text_files
from mlm_jax.files.errors import ConfigError

_BY_NAME = ('tfds', 'hf')  # data sets that have splits
KINDS = ('demo', *text_files.KINDS, *_BY_NAME)
_WITHOUT_FIELDS = ('demo', 'text', 'lines', 'files', 'smi')  # which do not read `data.text_key`
_PLAIN, _WITH_FIELDS = ('text', 'lines', 'files'), ('.json', '.jsonl', '.csv', '.tsv')
MAX_DOCUMENT_CHARACTERS = 1_000_000  # longer documents are split, because SentencePiece's memory use is proportional
INVALID_UTF8 = 'documents with invalid UTF-8, replaced by �'
EMPTY = 'empty documents, dropped'
NUL_CHARACTERS = 'documents with NUL characters, replaced by spaces'
# Repairs that most documents of a corpus need only if the corpus has a systematic problem → its likely cause and cure.
_CAUSES = {
    INVALID_UTF8: (
        'The text is probably in another encoding: find out which one, convert the file, for example with '
        '`iconv -f LATIN1 -t UTF-8 OLD > NEW` (or CP1252, SHIFT_JIS, GB18030, KOI8-R), and name the new file'
    ),
    NUL_CHARACTERS: (
        'The file is probably in UTF-16, or not a text file: convert it, for example with '
        '`iconv -f UTF-16LE -t UTF-8 OLD > NEW`, and name the new file'
    ),
}
MIN_DOCUMENTS_TO_JUDGE = 20
ALL_HASHES = 1 << 64  # all hashes of documents are smaller


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The text of a configuration.

    Attributes:
      train: the slices that hold the training text, and held-out documents if `percent` is positive.
      held_out: the slices of which all documents are held out.
      percent: the percentage of the documents of `train` that are held out.
    """

    train: list[slices.Slice]
    held_out: list[slices.Slice]
    percent: float

    @property
    def threshold(self) -> int:
        """Documents of `train` with a smaller hash are held out."""
        return int(self.percent / 100 * ALL_HASHES)

    @property
    def has_held_out(self) -> bool:
        """Whether there is a split of held-out text."""
        return bool(self.held_out) or self.percent > 0


def open_corpus(data: ml_collections.ConfigDict, working: pathlib.Path) -> Corpus:
    """Lists the slices of the corpus of a configuration; downloads a TFDS data set if that is not yet done.

    Args:
      data: `config.data`.
      working: the directory in which the text of the demo corpus is collected.

    Raises:
      ConfigError: if text is missing or cannot be read; the message says what to do.
    """
    files = files_of(data)
    train = _open(data.corpus, files.get('corpus', []), data.text_key, working)
    if data.validation_corpus:
        return Corpus(train['train'], _held_out(data, files.get('validation_corpus', []), train['train'], working), 0)
    if 'validation' in train:
        return Corpus(train['train'], train['validation'], 0)
    return Corpus(train['train'], [], data.validation_percent)


def files_of(
    data: ml_collections.ConfigDict, note: Callable[[str], None] = lambda text: None
) -> dict[str, list[pathlib.Path]]:
    """The files that `corpus` and `validation_corpus` name, as far as these keys of `config.data` name files.

    Each file is there once, and those that are held out are not trained on.

    Args:
      data: `config.data`.
      note: receives a line of text for names of files that are left out, and for JSON lines and tables that are read
        as plain text.

    Raises:
      ConfigError: if there are no files of a name, or all are held out.
    """
    found = {}
    for key in ('corpus', 'validation_corpus'):
        kind, rest = parse(data[key]) if data[key] else ('', '')
        if kind in text_files.KINDS:
            names = text_files.names(rest, kind)
            found[key] = text_files.distinct(names)
            if others := len(names) - len(found[key]):
                note(f'once       {others:,} of {len(names):,} names that match data.{key} are of files named before')
            if kind in _PLAIN:
                _note_fields(key, kind, found[key], note)
    if len(found) < 2:
        return found
    training = text_files.without(found['corpus'], found['validation_corpus'])
    if not training:
        raise ConfigError(
            f'all files of data.corpus={data.corpus} are held out by data.validation_corpus={data.validation_corpus}, '
            'so nothing is left to train on: name other files, or leave data.validation_corpus out, and a part of the '
            'documents is held out (data.validation_percent)'
        )
    if held_out := len(found['corpus']) - len(training):
        note(f'held-out   {held_out:,} of the {len(found["corpus"]):,} files of data.corpus, by data.validation_corpus')
    return found | {'corpus': training}


def _note_fields(key: str, kind: str, files: list[pathlib.Path], note: Callable[[str], None]) -> None:
    """Says if some files that are read as plain text are JSON lines or tables by their names."""
    if names := [file.name for file in files if streams.suffix(file, _WITH_FIELDS)]:
        note(
            f'plain text {len(names):,} of the {len(files):,} files of data.{key} are JSON lines or tables by their '
            f'names, such as {names[0]}; {kind}: reads them as plain text, with all that they hold. To read one field '
            'of them, write jsonl:GLOB or csv:GLOB'
        )


def refuse_unread(data: ml_collections.ConfigDict) -> None:
    """Raises ConfigError if `text_key` is given but no corpus has fields; `data` is `config.data`.

    It is for new directories only: earlier versions recorded such a value, and that must not change any more.
    """
    default = config_lib.default_config().data.text_key
    specs = {key: data[key] for key in ('corpus', 'validation_corpus') if data[key]}
    if data.text_key != default and all(parse(spec)[0] in _WITHOUT_FIELDS for spec in specs.values()):
        given = ' and '.join(f'data.{key}={spec}' for key, spec in specs.items())
        raise ConfigError(
            f'data.text_key={data.text_key} would have no effect, because {given} is read as plain text without '
            f'fields: name JSON lines as jsonl:GLOB, tables as csv:GLOB, or set data.text_key={default} (the default)'
        )


def _held_out(
    data: ml_collections.ConfigDict, files: list[pathlib.Path], train: list[slices.Slice], working: pathlib.Path
) -> list[slices.Slice]:
    """The slices of `data.validation_corpus`; says if they are a train split that the user has not named.

    Raises:
      ConfigError: if they are what is trained on, whose slices are `train`.
    """
    spec = data.validation_corpus
    splits, (kind, name) = _open(spec, files, data.text_key, working), parse(spec)
    held_out = splits.get('validation', splits['train'])
    if held_out == train:
        raise ConfigError(
            f'data.validation_corpus={spec} is the very text that is trained on: leave it out, and a part of '
            'data.corpus is held out; or name another corpus, such as hf:ORGANIZATION/NAME:test'
        )
    is_named = kind == 'hf' and hub_sets.parse(name).split
    if kind in _BY_NAME and 'validation' not in splits and not is_named:
        print(f'held-out   the split train of {spec}, which has no split validation')
    return held_out


def _open(spec: str, files: list[pathlib.Path], text_key: str, working: pathlib.Path) -> dict[str, list[slices.Slice]]:
    """Split → slices of a corpus; `files` are those that it names, if it names files."""
    kind, rest = parse(spec)
    if kind == 'tfds':
        return {
            split: slices.divide_examples(examples, text_key)
            for split, examples in tfds_sets.open_splits(rest, text_key).items()
            if split in ('train', 'validation')
        }
    if kind == 'hf':
        splits = hub_sets.open_splits(rest)
        return {split: slices.divide_files(hub_sets.KIND, some, text_key) for split, some in splits.items()}
    if kind == 'demo':
        return {'train': slices.divide_files('jsonl', [_demo_file(working)], 'text')}
    return {'train': slices.divide_files(kind, files, text_key)}


def _demo_file(working: pathlib.Path) -> pathlib.Path:
    """The demo corpus as JSON lines, which is collected unless an undamaged file exists."""
    path, record = working / 'demo.jsonl', working / 'demo.jsonl.sha256'
    if not atomic.is_recorded(path, record):
        documents = progress.bar(demo_corpus.documents(), desc='collecting', unit=' documents')
        content = ''.join(json.dumps({'text': text}) + '\n' for text in documents).encode()
        atomic.write_bytes(record, hashlib.sha256(content).hexdigest().encode())
        atomic.write_bytes(path, content)
    return path


def check_division(documents: int, held_out: int, corpus: Corpus) -> None:
    """Raises ConfigError unless there are documents, and some of them in each split.

    Args:
      documents: the number of documents in `corpus.train`.
      held_out: how many of them are held out.
      corpus: the corpus.
    """
    percent = corpus.percent
    if not documents:
        raise ConfigError('the corpus is empty: its files contain no documents')
    if held_out == documents:
        raise ConfigError(
            f'all documents fell into the {percent} % to hold out: the corpus has too few. Lower '
            'data.validation_percent, or name a data.validation_corpus'
        )
    if not corpus.has_held_out:
        raise ConfigError(
            'data.validation_percent=0 holds nothing out, and the corpus has no validation split: raise '
            'data.validation_percent, or name a data.validation_corpus'
        )
    if percent and not held_out:
        raise ConfigError(
            f'no document fell into the {percent} % to hold out: the corpus has too few. Raise '
            'data.validation_percent, or name a data.validation_corpus'
        )


def parse(spec: str) -> tuple[str, str]:
    """Splits a specification such as 'jsonl:a/*.jsonl' at the colon; raises ConfigError for an unknown kind."""
    kind, _, rest = spec.partition(':')
    if kind not in KINDS or (kind == 'demo') == bool(rest):
        raise ConfigError(
            f'{spec!r} does not specify a corpus. Write demo, tfds:NAME[/CONFIG], hf:ORGANIZATION/NAME[/CONFIG], or '
            f'one of {", ".join(text_files.KINDS)} with globs, such as jsonl:corpus/*.jsonl.gz'
        )
    return kind, rest


def clean(document: bytes, repairs: collections.Counter[str]) -> list[bytes]:
    """Converts a stored document to text.

    Args:
      document: the bytes of the document, which should be UTF-8.
      repairs: counts what had to be repaired.

    Returns:
      The text in UTF-8 (SentencePiece reads that directly, but would have to copy a Python string), split into several
      parts if it exceeds `MAX_DOCUMENT_CHARACTERS`; an empty list for an empty document.
    """
    try:
        text = document.decode()
    except UnicodeDecodeError:
        text = document.decode(errors='replace')
        document = text.encode()
        repairs[INVALID_UTF8] += 1
    if b'\0' in document:
        document, text = document.replace(b'\0', b' '), text.replace('\0', ' ')
        repairs[NUL_CHARACTERS] += 1
    if not text or text.isspace():
        repairs[EMPTY] += 1
        return []
    if len(text) <= MAX_DOCUMENT_CHARACTERS:
        return [document]
    repairs[f'documents over {MAX_DOCUMENT_CHARACTERS:,} characters, split'] += 1
    return [part.encode() for part in _cut(text)]


def check_repairs(repairs: Mapping[str, int], num_documents: int, where: str) -> None:
    """Raises ConfigError if most of at least `MIN_DOCUMENTS_TO_JUDGE` documents needed the same repair."""
    for repair, cause in _CAUSES.items():
        times = repairs.get(repair, 0)
        if num_documents >= MIN_DOCUMENTS_TO_JUDGE and times > num_documents / 2:
            raise ConfigError(f'{where}: {times:,} of {num_documents:,} {repair}. {cause}')


def _cut(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > MAX_DOCUMENT_CHARACTERS:
        end = start + MAX_DOCUMENT_CHARACTERS
        end = max(text.rfind('\n', start + 1, end), text.rfind(' ', start + 1, end)) + 1 or end
        yield text[start:end]
        start = end
    yield text[start:]
