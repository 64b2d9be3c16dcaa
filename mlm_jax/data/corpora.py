"""Corpora: the sources of text, as TFDS data sets with random access that are read without TensorFlow.

`data.corpus` names one:

    demo                   English prose found in the Python installation (`demo_corpus.py`)
    text:GLOB[;GLOB …]     plain text; a blank line ends a document
    lines:GLOB             plain text; each line is a document
    files:GLOB             plain text; each file is a document
    jsonl:GLOB             JSON lines; each object is a document, its text under `data.text_key`
    csv:GLOB               CSV with a header (TSV in .tsv files; `delimited.py`); each record is a document
    smi:GLOB               SMILES; each line is a document, up to the first whitespace (a name may follow)
    tfds:NAME[/CONFIG]     a TFDS data set by name; its text is the feature `data.text_key`

Files may be compressed (gzip, xz, bzip2, zstandard) or encoded in UTF-16 with a byte order mark; the first bytes of a
file determine its format (`streams.py`). If a file of exactly the given name exists, the name is not read as a glob.
Local text is first converted to a TFDS data set in a cache: ArrayRecord files in the order of a hash, so that the start
of a corpus is a random sample of it.

Held-out text comes from `data.validation_corpus` if that is given. Otherwise it is the validation split of a TFDS data
set, or the first `data.validation_percent` of a TFDS data set without such a split. From other corpora,
`data.validation_percent` of the documents are held out: those whose text has a low hash, so that equal documents are in
the same split.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import pickle
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.proto import tf_example_pb2

from mlm_jax.data import demo_corpus
from mlm_jax.files import atomic, progress, text_files
from mlm_jax.files.errors import ConfigError

KINDS = ('demo', *text_files.READERS, 'tfds')
MAX_DOCUMENT_CHARACTERS = 1_000_000  # longer documents are split, because SentencePiece's memory use is proportional
INVALID_UTF8 = 'documents with invalid UTF-8, replaced by �'
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
_TFDS_HOST = 'https://storage.googleapis.com'


@dataclasses.dataclass(frozen=True)
class Source:
    """The documents of one split, as a small object that can be sent to another process.

    Attributes:
      directory: the directory of the prepared TFDS data set.
      split: a TFDS split, or part of one.
      text_key: the feature that holds the text.
      num_documents: the number of documents.
      num_bytes: their approximate size.
    """

    directory: str
    split: str
    text_key: str
    num_documents: int
    num_bytes: int

    def read(self, start: int, stop: int) -> list[bytes]:
        """The documents start … stop − 1 as they are stored; `clean` converts them to text."""
        records = _open_source(self.directory, self.split).__getitems__(range(start, stop))
        # Decoding by TFDS takes several times as long: a fifth of the total time of `prepare` on short documents.
        examples = map(tf_example_pb2.Example.FromString, records)
        return [example.features.feature[self.text_key].bytes_list.value[0] for example in examples]

    def texts(self) -> Iterator[str]:
        """The text of all documents, in order, as `clean` returns it."""
        for start in range(0, self.num_documents, 256):
            for document in self.read(start, min(start + 256, self.num_documents)):
                yield from (text.decode() for text in clean(document, collections.Counter()))


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The training text, splits['train'], and the held-out text, splits['validation']."""

    splits: dict[str, Source]


def open_corpus(data: ml_collections.ConfigDict, cache_directory: str | pathlib.Path) -> Corpus:
    """Opens the corpus of a configuration; converts local text or downloads a TFDS data set if that is not yet done.

    Args:
      data: `config.data`.
      cache_directory: where converted local text is stored; each setting of `data` needs its own directory.

    Raises:
      ConfigError: if text is missing or cannot be read; the message says what to do.
    """
    cache = pathlib.Path(cache_directory)
    if not data.validation_corpus:
        return Corpus(_open(data.corpus, data, cache / 'train', data.validation_percent))
    train = _open(data.corpus, data, cache / 'train', 0)
    held_out = _open(data.validation_corpus, data, cache / 'validation', 0)
    return Corpus({'train': train['train'], 'validation': held_out.get('validation', held_out['train'])})


def describe(spec: str) -> dict[str, Any]:
    """Identifies the content of a corpus: maps each of its files, if it has any, to its `bytes` and `sha256`.

    This reads all files, on all cores: the time stamp of a file would change when the file is copied, and its size
    would not change when a word is replaced.

    Raises:
      ConfigError: if `spec` is not valid, no file matches, or a file cannot be read.
    """
    kind, rest = parse(spec)
    if kind not in text_files.READERS:
        return {}
    files = text_files.find(rest)
    try:
        sizes = [file.stat().st_size for file in files]
        with (
            progress.bar(total=sum(sizes), desc='checking', unit='B', unit_scale=True, delay=5) as bar,
            concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
        ):
            states = {}
            for file, size, digest in zip(files, sizes, pool.map(atomic.sha256, files)):
                states[str(file)] = {'bytes': size, 'sha256': digest}
                bar.update(size)
    except OSError as error:
        raise ConfigError(f'cannot read {error.filename}: {error.strerror or error}') from error
    return states


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Messages about files that differ; `now` comes from `describe`, `then` may hold only the sizes of files."""
    found = []
    for file in sorted(then.keys() | now.keys()):
        old, new = then.get(file, {}), now.get(file, {})
        if not isinstance(old, Mapping):  # earlier versions stored only the size
            old = {'bytes': old}
        sizes = [state.get('bytes', 'no') for state in (old, new)]
        if sizes[0] != sizes[1]:
            found.append(f'{file}: {sizes[0]} bytes then, {sizes[1]} now')
        elif old.get('sha256', new['sha256']) != new['sha256']:
            found.append(f'{file}: the same size as then, {sizes[1]} bytes, but different content')
    return found


def parse(spec: str) -> tuple[str, str]:
    """Splits a specification such as 'jsonl:a/*.jsonl' at the colon; raises ConfigError for an unknown kind."""
    kind, _, rest = spec.partition(':')
    if kind not in KINDS or (kind == 'demo') == bool(rest):
        raise ConfigError(
            f'{spec!r} does not specify a corpus. Write demo, tfds:NAME[/CONFIG], or one of '
            f'{", ".join(text_files.READERS)} with globs, such as jsonl:corpus/*.jsonl.gz'
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
        repairs['empty documents, dropped'] += 1
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


def _count_repairs(document: bytes, repairs: collections.Counter[str]) -> None:
    """Counts those repairs that `clean` will make and that may have a common cause."""
    if not document.isascii():
        try:
            document.decode()
        except UnicodeDecodeError:
            repairs[INVALID_UTF8] += 1
    repairs[NUL_CHARACTERS] += b'\0' in document


def _cut(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > MAX_DOCUMENT_CHARACTERS:
        end = start + MAX_DOCUMENT_CHARACTERS
        end = max(text.rfind('\n', start + 1, end), text.rfind(' ', start + 1, end)) + 1 or end
        yield text[start:end]
        start = end
    yield text[start:]


@functools.lru_cache(maxsize=8)
def _open_source(directory: str, split: str):
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    return tfds.builder_from_directory(directory).as_data_source(split, deserialize_method=raw)


def _open(spec: str, data: ml_collections.ConfigDict, cache: pathlib.Path, percent: float) -> dict[str, Source]:
    kind, rest = parse(spec)
    if kind == 'tfds':
        return _open_tfds(rest, data.text_key, percent)
    with _quiet():
        if kind == 'demo':
            builder = DemoCorpus(data_dir=cache, config=HeldOutConfig(name='demo', percent=percent))
        else:
            settings = TextFilesConfig(name=kind, percent=percent, kind=kind, patterns=rest, text_key=data.text_key)
            builder = TextFiles(data_dir=cache, config=settings)
        builder.prepare()
    return {split: _source(builder, split, 'text') for split in builder.info.splits}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS, which would report downloads that do not happen and configurations that it does not know."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


def _source(builder: tfds.core.DatasetBuilder, split: str, text_key: str) -> Source:
    info = builder.info.splits[split]
    whole = builder.info.splits[split.partition('[')[0]]
    num_bytes = whole.num_bytes * info.num_examples // max(1, whole.num_examples)
    return Source(str(builder.data_path), split, text_key, info.num_examples, num_bytes)


# ---- Local text ------------------------------------------------------------


@dataclasses.dataclass
class HeldOutConfig(tfds.core.BuilderConfig):
    """The builder puts `percent` of the documents into the validation split; 0 means that there is no such split."""

    percent: float = 1.0


@dataclasses.dataclass
class TextFilesConfig(HeldOutConfig):
    """The other attributes are the arguments of `text_files.find` and `text_files.read`."""

    kind: str = 'text'
    patterns: str = ''
    text_key: str = 'text'


# mypy does not see the argument `skip_registration` of the base class of TFDS, which is behind a lazy import.
class HeldOutBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builds a data set of documents; a hash of its bytes assigns each document to training or validation."""

    VERSION = tfds.core.Version('1.0.0')

    def _documents(self) -> Iterator[bytes]:
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({'text': tfds.features.Text()}))

    def prepare(self) -> None:
        """Converts the documents, unless that has been done before."""
        # The text is read only once, so held-out documents wait in a file that disappears with the process.
        pathlib.Path(self._data_dir_root).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._data_dir_root) as self._held_out:
            self.download_and_prepare(file_format='array_record')

    def _split_generators(self, dl_manager):
        train = {'train': self._generate_examples()}
        return train | {'validation': self._generate_held_out()} if self.builder_config.percent else train

    def _generate_examples(self):
        threshold, number, kept = self.builder_config.percent / 100 * 2**64, -1, 0
        documents = progress.bar(self._documents(), desc='reading', unit=' documents')
        for number, document in enumerate(documents):
            digest = hashlib.blake2b(document, digest_size=8).digest()
            if int.from_bytes(digest) < threshold:
                pickle.dump((number, document), self._held_out)
            else:
                kept += 1
                yield number, {'text': document}
        if number < 0:
            raise ConfigError('the corpus is empty: its files contain no documents')
        if not kept:
            raise ConfigError(
                f'all documents fell into the {self.builder_config.percent} % to hold out: the corpus has too few. '
                'Lower data.validation_percent, or name a data.validation_corpus'
            )

    def _generate_held_out(self):
        end = self._held_out.tell()
        self._held_out.seek(0)
        if not end:
            raise ConfigError(
                f'no document fell into the {self.builder_config.percent} % to hold out: the corpus has too few. '
                'Raise data.validation_percent, or name a data.validation_corpus'
            )
        while self._held_out.tell() < end:
            number, document = pickle.load(self._held_out)
            yield number, {'text': document}


class TextFiles(HeldOutBuilder, skip_registration=True):  # type: ignore[call-arg]  # as above
    """Documents in local files."""

    def _documents(self) -> Iterator[bytes]:
        c = self.builder_config
        all_repairs: collections.Counter[str] = collections.Counter()
        all_documents = 0
        for path in text_files.find(c.patterns):
            repairs: collections.Counter[str] = collections.Counter()
            num_documents = 0
            for document in text_files.read(path, c.kind, c.text_key):
                num_documents += not (document.isspace() or not document)
                _count_repairs(document, repairs)
                yield document
            check_repairs(repairs, num_documents, str(path))
            all_repairs, all_documents = all_repairs + repairs, all_documents + num_documents
        check_repairs(all_repairs, all_documents, 'the corpus')


class DemoCorpus(HeldOutBuilder, skip_registration=True):  # type: ignore[call-arg]  # as above
    """English prose from the Python installation."""

    def _documents(self) -> Iterator[bytes]:
        for text in demo_corpus.documents():
            yield text.encode()


# ---- TFDS data sets by name ------------------------------------------------------------


def _open_tfds(name: str, text_key: str, percent: float) -> dict[str, Source]:
    builder = prepared_builder(name)
    splits = dict(builder.info.splits)
    features = builder.info.features
    if text_key not in features or features[text_key].np_dtype != np.object_ or features[text_key].shape != ():
        raise ConfigError(
            f'the data set {name} has no text feature {text_key!r}; its features are {", ".join(features)}. Set '
            'data.text_key'
        )
    if 'train' not in splits:
        raise ConfigError(f'the data set {name} has no train split; its splits are {", ".join(splits)}')
    if 'validation' in splits:
        return {split: _source(builder, split, text_key) for split in ('train', 'validation')}
    if not percent:
        return {'train': _source(builder, 'train', text_key)}
    held_out = max(1, round(splits['train'].num_examples * percent / 100))
    return {
        'train': _source(builder, f'train[{held_out}:]', text_key),
        'validation': _source(builder, f'train[:{held_out}]', text_key),
    }


def prepared_builder(name: str) -> tfds.core.DatasetBuilder:
    """The builder of a data set that is on disk as ArrayRecord; downloads the data set if necessary."""
    try:
        builder = _builder(name)
    except tfds.core.DatasetNotFoundError:
        raise ConfigError(
            f'TFDS can neither find {name} in {tfds.core.constants.DATA_DIR} nor build it. Check the name '
            '(tensorflow.org/datasets/catalog). The builders of some data sets (wikipedia, wiki40b, c4, glue) need '
            f'TensorFlow: run `tfds build {name} --file_format=array_record` on a machine that has TensorFlow, copy '
            'the result here, and set the environment variable TFDS_DATA_DIR to its parent directory'
        ) from None
    except (ValueError, RuntimeError, TypeError) as error:  # an unknown config or version
        raise ConfigError(f'TFDS rejects {name}: {error}') from error
    if builder.data_path.exists():
        formats = builder.info.available_file_formats()
        if tfds.core.FileFormat.ARRAY_RECORD not in formats:
            listed = ', '.join(f.value for f in formats)
            raise ConfigError(
                f'the data set {name} in {builder.data_path} is stored as {listed}, which only TensorFlow can read. '
                f'On a machine that has TensorFlow, run\n'
                f'    tfds convert_format --dataset_version_dir={builder.data_path} --out_file_format=array_record\n'
                'or delete that directory, so that the data set is prepared again'
            )
        return builder
    _check_reachable(name, builder.data_path)
    builder.download_and_prepare(file_format='array_record')
    return builder


def _builder(name: str) -> tfds.core.DatasetBuilder:
    return tfds.builder(name)


def _check_reachable(name: str, directory: Any) -> None:
    """Fails within seconds if the download would fail only after minutes."""
    try:
        urllib.request.urlopen(_TFDS_HOST, timeout=5).close()
    except urllib.error.HTTPError:
        pass  # the host answered
    except OSError as error:
        raise ConfigError(
            f'the data set {name} is not in {directory}, and {_TFDS_HOST} cannot be reached to download it '
            f'({error}). Run this on a machine with network access, or copy the directory here from a machine that '
            'has it (stored as array_record), or set the environment variable TFDS_DATA_DIR to the directory that '
            'holds it'
        ) from None
