"""Corpora: where text comes from, as TFDS data sets that are read at random without TensorFlow.

`data.corpus` names one:

    demo                   English prose found in the Python installation (`demo_corpus.py`)
    text:GLOB[;GLOB …]     plain text; a blank line ends a document
    lines:GLOB             plain text; each line is a document
    files:GLOB             plain text; each file is a document
    jsonl:GLOB             JSON lines; each object is a document, its text under `data.text_key`
    csv:GLOB               CSV with a header (TSV in .tsv files; `delimited.py`); each record is a document
    smi:GLOB               SMILES; each line is a document, up to the first white space (a name may follow)
    tfds:NAME[/CONFIG]     a TFDS data set by name; its text is the feature `data.text_key`

Files may be compressed (gzip, xz, bzip2, zstandard) and in UTF-16 with a byte order mark: their first bytes tell
(`streams.py`). A file of exactly that name comes before its reading as a glob. Local text becomes a TFDS data set in a
cache first: ArrayRecord, in the order of a hash, so that the start of a corpus is a random sample of it.

Held-out text: `data.validation_corpus` if given; else the validation split of a TFDS data set; else
`data.validation_percent` of the documents: those whose text has a low hash, so that equal documents fall on
one side (of a TFDS data set without such a split: its first examples).
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
MAX_DOCUMENT_CHARACTERS = 1_000_000  # longer documents are cut: SentencePiece needs memory in proportion
INVALID_UTF8 = 'documents with invalid UTF-8, replaced by �'
NUL_CHARACTERS = 'documents with NUL characters, replaced by spaces'
# Repairs that most documents of a corpus do not need by chance → what it will be, and the cure.
_CAUSES = {
    INVALID_UTF8: (
        'The text is probably in another encoding: find out which one, convert it, as by '
        '`iconv -f LATIN1 -t UTF-8 OLD > NEW` (or CP1252, SHIFT_JIS, GB18030, KOI8-R), and name the new file'
    ),
    NUL_CHARACTERS: (
        'The text is probably in UTF-16, or no text at all: convert it, as by `iconv -f UTF-16LE -t UTF-8 OLD > NEW`, '
        'and name the new file'
    ),
}
MIN_DOCUMENTS_TO_JUDGE = 20
_TFDS_HOST = 'https://storage.googleapis.com'


@dataclasses.dataclass(frozen=True)
class Source:
    """The documents of one split; small, and usable in another process.

    Attributes:
      directory: of the prepared TFDS data set.
      split: a TFDS split, or part of one.
      text_key: the feature that holds the text.
      num_documents: how many there are.
      num_bytes: about how much they take.
    """

    directory: str
    split: str
    text_key: str
    num_documents: int
    num_bytes: int

    def read(self, start: int, stop: int) -> list[bytes]:
        """The documents start … stop − 1, as they are stored; `clean` makes text of them."""
        records = _open_source(self.directory, self.split).__getitems__(range(start, stop))
        # TFDS decodes every feature, at several times the price: a fifth of the time of all on short documents.
        examples = map(tf_example_pb2.Example.FromString, records)
        return [example.features.feature[self.text_key].bytes_list.value[0] for example in examples]

    def texts(self) -> Iterator[str]:
        """All documents in order, cleaned."""
        for start in range(0, self.num_documents, 256):
            for document in self.read(start, min(start + 256, self.num_documents)):
                yield from (text.decode() for text in clean(document, collections.Counter()))


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Text to train on and text held out: splits['train'] and splits['validation']."""

    splits: dict[str, Source]


def open_corpus(data: ml_collections.ConfigDict, cache_directory: str | pathlib.Path) -> Corpus:
    """Opens the corpus of a configuration; converts local text and downloads TFDS data sets, once.

    Args:
      data: `config.data`.
      cache_directory: receives the converted local text; for one setting of `data` only.

    Raises:
      ConfigError: for text that is missing or cannot be read, with the cure.
    """
    cache = pathlib.Path(cache_directory)
    if not data.validation_corpus:
        return Corpus(_open(data.corpus, data, cache / 'train', data.validation_percent))
    train = _open(data.corpus, data, cache / 'train', 0)
    held_out = _open(data.validation_corpus, data, cache / 'validation', 0)
    return Corpus({'train': train['train'], 'validation': held_out.get('validation', held_out['train'])})


def describe(spec: str) -> dict[str, Any]:
    """What identifies the state of a corpus: of each of its files, if it has any, `bytes` and `sha256`.

    All is read for it, once and with all cores: what the clock says of a file changes when it is copied, and what its
    size says does not change with a word.

    Raises:
      ConfigError: when the specification is none, or no file matches, or one cannot be read.
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
    """In which files two states of corpora differ, in words; `now` is of `describe`, `then` may hold sizes alone."""
    found = []
    for file in sorted(then.keys() | now.keys()):
        old, new = then.get(file), now.get(file)
        if not isinstance(old, Mapping) and old is not None:  # of an earlier version: the size
            old = {'bytes': old}
        sizes = [state.get('bytes') if state else 'no' for state in (old, new)]
        if sizes[0] != sizes[1]:
            found.append(f'{file}: {sizes[0]} bytes then, {sizes[1]} now')
        elif old.get('sha256', new['sha256']) != new['sha256']:
            found.append(f'{file}: as many bytes as then, {sizes[1]}, and other ones')
    return found


def parse(spec: str) -> tuple[str, str]:
    """Splits 'jsonl:a/*.jsonl' into kind and the rest; ConfigError for an unknown kind."""
    kind, _, rest = spec.partition(':')
    if kind not in KINDS or (kind == 'demo') == bool(rest):
        raise ConfigError(
            f'{spec!r} is no corpus. Write demo, tfds:NAME[/CONFIG], or one of '
            f'{", ".join(text_files.READERS)} with globs, '
            'such as jsonl:corpus/*.jsonl.gz'
        )
    return kind, rest


def clean(document: bytes, repairs: collections.Counter) -> list[bytes]:
    """Makes text of a stored document.

    Args:
      document: should be UTF-8.
      repairs: counts what had to be mended.

    Returns:
      The text in UTF-8 (which SentencePiece takes as it is: a Python string would cost it a copy), cut into several
      where it exceeds `MAX_DOCUMENT_CHARACTERS`; nothing for an empty document.
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
    repairs[f'documents over {MAX_DOCUMENT_CHARACTERS:,} characters, cut'] += 1
    return [part.encode() for part in _cut(text)]


def check_repairs(repairs: Mapping[str, int], num_documents: int, where: str) -> None:
    """Raises ConfigError where most documents needed the same repair, of `MIN_DOCUMENTS_TO_JUDGE` or more."""
    for repair, cause in _CAUSES.items():
        times = repairs.get(repair, 0)
        if num_documents >= MIN_DOCUMENTS_TO_JUDGE and times > num_documents / 2:
            raise ConfigError(f'{where}: {times:,} of {num_documents:,} {repair}. {cause}')


def _count_repairs(document: bytes, repairs: collections.Counter) -> None:
    """Counts what `clean` will have to mend that may have one cause."""
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
    """Without TFDS's talk of downloads, where there are none, and of configurations it does not know."""
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
    """`percent` of the documents make the validation split; 0 makes none."""

    percent: float = 1.0


@dataclasses.dataclass
class TextFilesConfig(HeldOutConfig):
    """The other attributes are those of `text_files.find` and `text_files.read`."""

    kind: str = 'text'
    patterns: str = ''
    text_key: str = 'text'


class HeldOutBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Documents, divided into training and validation by a hash of their bytes."""

    VERSION = tfds.core.Version('1.0.0')

    def _documents(self) -> Iterator[bytes]:
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({'text': tfds.features.Text()}))

    def prepare(self) -> None:
        """Converts the documents, where that has not been done."""
        # Text is read once: what is held out waits in a file that vanishes with the process.
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
            raise ConfigError('the corpus is empty: its files hold no document')
        if not kept:
            raise ConfigError(
                f'all documents fell into the {self.builder_config.percent} % to hold out: the corpus has '
                'too few. '
                'Lower data.validation_percent, or name a data.validation_corpus'
            )

    def _generate_held_out(self):
        end = self._held_out.tell()
        self._held_out.seek(0)
        if not end:
            raise ConfigError(
                f'no document fell into the {self.builder_config.percent} % to hold out: the corpus has '
                'too few. Raise '
                'data.validation_percent, or name a data.validation_corpus'
            )
        while self._held_out.tell() < end:
            number, document = pickle.load(self._held_out)
            yield number, {'text': document}


class TextFiles(HeldOutBuilder, skip_registration=True):
    """Documents in local files."""

    def _documents(self) -> Iterator[bytes]:
        c = self.builder_config
        all_repairs, all_documents = collections.Counter(), 0
        for path in text_files.find(c.patterns):
            repairs, num_documents = collections.Counter(), 0
            for document in text_files.read(path, c.kind, c.text_key):
                num_documents += not (document.isspace() or not document)
                _count_repairs(document, repairs)
                yield document
            check_repairs(repairs, num_documents, str(path))
            all_repairs, all_documents = all_repairs + repairs, all_documents + num_documents
        check_repairs(all_repairs, all_documents, 'the corpus')


class DemoCorpus(HeldOutBuilder, skip_registration=True):
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
            f'the data set {name} has no text feature {text_key!r}; its features are '
            f'{", ".join(features)}. Set data.text_key'
        )
    if 'train' not in splits:
        raise ConfigError(f'the data set {name} has no split train; its splits are {", ".join(splits)}')
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
    """The builder of a data set that is on disk as ArrayRecord; downloads it if need be."""
    try:
        builder = _builder(name)
    except tfds.core.DatasetNotFoundError:
        raise ConfigError(
            f'TFDS can neither find {name} in {tfds.core.constants.DATA_DIR} nor make it. Check the name '
            '(tensorflow.org/datasets/catalog); the builders of some data sets (wikipedia, wiki40b, c4, '
            'glue) need '
            f'TensorFlow: run `tfds build {name} --file_format=array_record` where that is installed, '
            'copy the '
            'result here, and let the environment variable TFDS_DATA_DIR name its parent directory'
        ) from None
    except (ValueError, RuntimeError, TypeError) as error:  # an unknown config or version
        raise ConfigError(f'TFDS refuses {name}: {error}') from error
    if builder.data_path.exists():
        formats = builder.info.available_file_formats()
        if tfds.core.FileFormat.ARRAY_RECORD not in formats:
            listed = ', '.join(f.value for f in formats)
            raise ConfigError(
                f'the data set {name} in {builder.data_path} is stored as {listed}, which only TensorFlow '
                'reads. Where '
                f'that is installed run\n    tfds convert_format --dataset_version_dir={builder.data_path} '
                '--out_file_format=array_record\nor delete that directory, and it is prepared anew'
            )
        return builder
    _check_reachable(name, builder.data_path)
    builder.download_and_prepare(file_format='array_record')
    return builder


def _builder(name: str) -> tfds.core.DatasetBuilder:
    return tfds.builder(name)


def _check_reachable(name: str, directory: Any) -> None:
    """Fails within seconds where a download would fail after minutes."""
    try:
        urllib.request.urlopen(_TFDS_HOST, timeout=5).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except OSError as error:
        raise ConfigError(
            f'the data set {name} is not in {directory}, and {_TFDS_HOST} cannot be reached to download '
            f'it ({error}). '
            'Run this where there is a network, or copy the directory here from a machine that has it '
            '(stored as '
            'array_record), or let the environment variable TFDS_DATA_DIR name the directory where it lies'
        ) from None
