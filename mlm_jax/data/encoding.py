"""Encodes documents into one shard of packed rows; the result does not depend on which process does the work.

A shard is finished when its counts exist in the working directory; they are written last.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from mlm_jax.data import corpora, molecules, packing, shards, tokenizers
from mlm_jax.files import atomic, sealed

SHARD_BYTES = 16 << 20  # bytes of text per shard: ~4 million tokens, about a second of work
MAX_SHARDS = 4096  # a larger corpus has larger shards
_BATCH_BYTES = 4 << 20  # bytes of text that are read and encoded at a time


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard to be written: the documents start … stop − 1 of a split."""

    source: corpora.Source
    split: str
    index: int
    count: int
    directory: str  # where the rows are written
    working_directory: str  # where the counts are written
    tokenizer: str  # the path of the tokenizer
    sequence_length: int
    packing: str
    smiles_copies: int = 0  # the number of additional SMILES of each molecule
    tokenizer_sha256: str = ''  # the checksum of the tokenizer file

    @property
    def start(self) -> int:
        return self.index * self.source.num_documents // self.count

    @property
    def stop(self) -> int:
        return (self.index + 1) * self.source.num_documents // self.count

    @property
    def num_bytes(self) -> int:
        """The approximate size of its text."""
        return self.source.num_bytes // self.count

    @property
    def name(self) -> str:
        return shards.shard_name(self.split, self.index, self.count)

    @property
    def counts_path(self) -> pathlib.Path:
        return pathlib.Path(self.working_directory) / f'{self.name}.json'


@dataclasses.dataclass(frozen=True)
class Counts:
    """Statistics of a shard, as in `manifest.Split`; also how often each id occurs in its text, and its tokenizer."""

    rows: int
    real_tokens: int
    text_tokens: int
    documents: int
    words: int
    bytes: int
    repairs: dict[str, int]
    sha256: str
    histogram: list[int]
    tokenizer_sha256: str = ''


def num_shards(source: corpora.Source) -> int:
    """The number of shards of a split; it depends only on the text, not on the machine."""
    return max(1, min(-(-source.num_bytes // SHARD_BYTES), MAX_SHARDS, source.num_documents))


def finished(job: Job) -> Counts | None:
    """The counts of a shard if it was made with this tokenizer and is undamaged; else None."""
    try:
        counts = Counts(**sealed.loads(job.counts_path.read_bytes()))
        is_whole = counts.sha256 == atomic.sha256(pathlib.Path(job.directory) / job.name)
    except (FileNotFoundError, ValueError, TypeError):  # not made yet, damaged, or written by an earlier version
        return None
    return counts if is_whole and counts.tokenizer_sha256 == job.tokenizer_sha256 else None


def encode_shard(job: Job) -> Counts:
    """Reads, tokenizes, packs and writes one shard."""
    tokenizer = _tokenizer(job.tokenizer)
    vocabulary = tokenizer.vocabulary
    documents: list[np.ndarray] = []
    totals: collections.Counter[str] = collections.Counter()
    repairs: collections.Counter[str] = collections.Counter()
    dtype = shards.row_dtype(vocabulary.size)
    histogram = np.zeros(vocabulary.size, np.int64)
    for texts in _batches(job, tokenizer, repairs):
        encoded = tokenizer.encode_batch(texts)
        kept = [(text, tokens) for text, tokens in zip(texts, encoded) if len(tokens)]
        documents += [tokens.astype(dtype) for _, tokens in kept]
        times = np.bincount(np.concatenate(encoded), minlength=vocabulary.size)
        histogram += times
        if tokenizer.unknown_id is not None:
            repairs['tokens outside the vocabulary, replaced by [UNK]'] += int(times[tokenizer.unknown_id])
        repairs['documents without tokens, dropped'] += len(texts) - len(kept)
        totals['documents'] += len(kept)
        totals['words'] += sum(count_words(text) for text, _ in kept)
        totals['bytes'] += sum(len(text) for text, _ in kept)
        totals['text_tokens'] += int(times.sum())
    rows = packing.pack(documents, job.sequence_length, vocabulary, job.packing, dtype)
    # Shuffled, so that the first rows of a split are a random sample of its first shard, however packing orders rows.
    rows = rows[np.random.Generator(np.random.PCG64(job.index)).permutation(len(rows))]
    path = pathlib.Path(job.directory) / job.name
    shards.write_rows(path, rows, pathlib.Path(job.working_directory))
    counts = Counts(
        rows=len(rows),
        real_tokens=int(np.count_nonzero(rows != vocabulary.pad_id)),
        repairs={name: times for name, times in sorted(repairs.items()) if times},
        sha256=atomic.sha256(path),
        histogram=histogram.tolist(),
        tokenizer_sha256=job.tokenizer_sha256,
        **{name: totals[name] for name in ('text_tokens', 'documents', 'words', 'bytes')},
    )
    atomic.write_bytes(job.counts_path, sealed.dumps(vars(counts)))
    return counts


def count_words(utf8: bytes) -> int:
    """The number of runs of bytes other than ASCII whitespace; five times as fast as `len(text.split())`."""
    space = np.frombuffer(utf8, np.uint8) <= 32
    return int(np.count_nonzero(space[:-1] & ~space[1:])) + int(not space[0]) if len(space) else 0


def _batches(
    job: Job, tokenizer: tokenizers.AnyTokenizer, repairs: collections.Counter[str]
) -> Iterator[Sequence[bytes]]:
    """Yields texts in UTF-8, about `_BATCH_BYTES` of documents at a time, because each read has a fixed cost."""
    step = max(1, _BATCH_BYTES * job.source.num_documents // max(1, job.source.num_bytes))
    for start in range(job.start, job.stop, step):
        documents = job.source.read(start, min(start + step, job.stop))
        texts = [text for document in documents for text in corpora.clean(document, repairs)]
        kept = tokenizer.readable(texts, repairs)
        if job.smiles_copies:
            kept = [*kept, *molecules.copies(kept, job.smiles_copies, repairs)]
        if kept:
            yield kept


@functools.lru_cache(maxsize=1)
def _tokenizer(path: str) -> tokenizers.AnyTokenizer:
    return tokenizers.Tokenizer.from_file(path)
