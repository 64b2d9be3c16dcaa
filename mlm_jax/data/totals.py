"""Adds up the records of the jobs of a preparation, one at a time, so that memory does not grow with their number."""

import collections
import dataclasses
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import Any

import ml_collections
import numpy as np

from mlm_jax.data import (
    claim,
    corpora,
    encoding,
    masking_tables,
    reading,
    shards,
    sources,
    tokenizer_making,
    tokenizers,
)
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.files import columnar
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.vocabulary import Vocabulary


@dataclasses.dataclass
class Texts:
    """The sums over the first phase.

    Attributes:
      read: split → the number of documents of `data.corpus`, empty ones included.
      counts: split → the numbers of documents, words, bytes and tokens.
      repairs: split → repair → how many times it was made.
      checksums: file → the SHA-256 of each of its parts.
      held_out: the checksum of all held-out documents.
      runs: the runs of the slices that have held-out documents, in order.
    """

    read: collections.Counter[str]
    counts: dict[str, collections.Counter[str]]
    repairs: dict[str, collections.Counter[str]]
    checksums: dict[str, list[str]]
    held_out: str
    runs: list[encoding.Runs]


def of_texts(jobs: Iterable[encoding.SliceJob]) -> Texts:
    """Adds up the records of the first phase."""
    read: collections.Counter[str] = collections.Counter()
    counts: dict[str, collections.Counter[str]] = {split: collections.Counter() for split in reading.SPLITS}
    repairs: dict[str, collections.Counter[str]] = {split: collections.Counter() for split in reading.SPLITS}
    parts: dict[str, dict[int, str]] = collections.defaultdict(dict)
    held_out, runs = [], []
    for job in jobs:
        record = job.record()
        if job.split == 'train':
            read.update(record['read'])
        for split in reading.SPLITS:
            counts[split].update(record['counts'][split])
            repairs[split].update(record['repairs'][split])
        for part, state in zip(job.slice.parts, record['states']):
            if state:
                parts[part.path][part.index] = state['sha256']
        held_out.append(record['files'].get(encoding.HELD_OUT, ''))
        if job.threshold:
            runs.append(record['runs'])
    checksums = {path: [by_index[index] for index in sorted(by_index)] for path, by_index in parts.items()}
    return Texts(read, counts, repairs, checksums, encoding.checksum(held_out), runs)


def of_split(
    name: str, texts: Texts, jobs: Sequence[encoding.SliceJob] | Sequence[encoding.HeldOutJob], vocabulary: Vocabulary
) -> tuple[manifest_lib.Split, np.ndarray]:
    """Adds up the shards of a split.

    Args:
      name: 'train' or 'validation'.
      texts: the sums of the first phase.
      jobs: those that wrote the shards of the split, in order.
      vocabulary: the vocabulary of the tokenizer.

    Returns:
      The split, as the manifest describes it; and int64[V], how often each id occurs in its rows.

    Raises:
      ConfigError: if the split has no text, or most of its documents needed the same repair.
    """
    made, counts = texts.repairs[name], texts.counts[name]
    for repair, number in sorted(made.items()):
        print(f'repaired   {name}: {number:,} {repair}')
    corpora.check_repairs(made, counts['documents'], f'the {name} split')
    times = np.zeros(vocabulary.size, np.int64)
    rows: collections.Counter[str] = collections.Counter()
    made_shards = []
    for job in jobs:
        record: dict[str, Any] = job.record()
        times += job.histogram()
        rows.update(record['rows'])
        made_shards.append(manifest_lib.Shard(job.shard, record['rows']['rows'], record['files'][job.shard]))
    if not rows['rows']:
        raise ConfigError(f'the {name} split has no text: all its documents are empty or were dropped')
    split = manifest_lib.Split(
        rows=rows['rows'],
        real_tokens=rows['real_tokens'],
        **{key: counts[key] for key in ('text_tokens', 'documents', 'words', 'bytes')},
        unigram_entropy_nats=_entropy(times, vocabulary),
        repairs=dict(sorted(made.items())),
        shards=tuple(made_shards),
    )
    return split, times


def _entropy(times: np.ndarray, vocabulary: Vocabulary) -> float:
    """The entropy, in nats, of the ids of text among the ids of rows, which packing has put between [CLS] and [SEP]."""
    text = times.copy()
    text[[vocabulary.pad_id, vocabulary.cls_id, vocabulary.sep_id]] = 0
    share = text / max(1, text.sum())
    return float(-np.sum(share * np.log(share, where=share > 0, out=np.zeros_like(share))))


def manifest(
    config: ml_collections.ConfigDict,
    intent: dict,
    tokenizer: tokenizers.AnyTokenizer,
    tokenizer_sha256: str,
    splits: dict[str, manifest_lib.Split],
    checksums: dict[str, list[str]],
) -> manifest_lib.Manifest:
    """The manifest of a directory, still without the checksum of its tables.

    Args:
      config: the configuration.
      intent: its settings and sources, as `claim.claim` takes them.
      tokenizer: the tokenizer of the directory.
      tokenizer_sha256: the checksum of its file.
      splits: the splits.
      checksums: file of the corpus → the SHA-256 of each of its parts.
    """
    return manifest_lib.Manifest(
        settings=intent['settings'],
        sources={spec: sources.with_checksums(files, checksums) for spec, files in intent['sources'].items()},
        vocabulary=tokenizer.vocabulary.padded(config.vocab_size),
        tokenizer=tokenizer_making.FILE,
        tokenizer_sha256=tokenizer_sha256,
        sequence_length=config.sequence_length,
        packing=config.data.packing,
        dtype=shards.row_dtype(tokenizer.vocabulary.size).name,
        splits=splits,
        versions={name: version(name) for name in ('python', 'numpy', tokenizer.package, *_readers(config)) if name},
        tables=masking_tables.FILE,
        preparation=claim.VERSION,
    )


def _readers(config: ml_collections.ConfigDict) -> Iterator[str]:
    """The packages that read the corpus, or change what is read."""
    kinds = {corpora.parse(spec)[0] for spec in (config.data.corpus, config.data.validation_corpus) if spec}
    if 'tfds' in kinds:
        yield from ('array-record', 'tensorflow-datasets')
    if kinds.intersection((*columnar.KINDS, 'hf')):
        yield 'pyarrow'
    if config.data.smiles_copies:
        yield 'rdkit'


def version(name: str) -> str:
    """The version of Python or of a package; 'none' if the package is not installed."""
    try:
        return platform.python_version() if name == 'python' else metadata.version(name)
    except metadata.PackageNotFoundError:
        return 'none'
