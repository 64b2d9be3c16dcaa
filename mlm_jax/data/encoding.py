"""Documents → one shard of packed rows: the work of one process at a time, the same whichever does it.

A shard is done when its counts lie beside it in the working directory; they are written last.
"""

import collections
import dataclasses
import functools
import pathlib

import numpy as np

from mlm_jax.data import corpora, molecules, packing, shards, tokenizers
from mlm_jax.files import atomic, sealed

SHARD_BYTES = 16 << 20  # of text; ~4 million tokens, about a second of work
MAX_SHARDS = 4096  # a larger corpus has larger shards
_BATCH_BYTES = 4 << 20  # read and encoded at a time


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard to make: documents start … stop − 1 of a split."""

    source: corpora.Source
    split: str
    index: int
    count: int
    directory: str  # receives the rows
    working_directory: str  # receives the counts
    tokenizer: str  # its path
    sequence_length: int
    packing: str
    smiles_copies: int = 0  # so many variants of each molecule besides
    tokenizer_sha256: str = ''  # of its file

    @property
    def start(self) -> int:
        return self.index * self.source.num_documents // self.count

    @property
    def stop(self) -> int:
        return (self.index + 1) * self.source.num_documents // self.count

    @property
    def num_bytes(self) -> int:
        """About how much text it takes."""
        return self.source.num_bytes // self.count

    @property
    def name(self) -> str:
        return shards.shard_name(self.split, self.index, self.count)

    @property
    def counts_path(self) -> pathlib.Path:
        return pathlib.Path(self.working_directory) / f'{self.name}.json'


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a shard holds; as `manifest.Split` says, how often each id occurs in its text, and what encoded it."""

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
    """How many shards a split is divided into: a function of the text, not of the machine."""
    return max(1, min(-(-source.num_bytes // SHARD_BYTES), MAX_SHARDS, source.num_documents))


def finished(job: Job) -> Counts | None:
    """The counts of a shard that has been made with this tokenizer, and is there as it was written; else None."""
    try:
        counts = Counts(**sealed.loads(job.counts_path.read_bytes()))
        is_whole = counts.sha256 == atomic.sha256(pathlib.Path(job.directory) / job.name)
    except (FileNotFoundError, ValueError, TypeError):  # not made yet; damaged; of an earlier version
        return None
    return counts if is_whole and counts.tokenizer_sha256 == job.tokenizer_sha256 else None


def encode_shard(job: Job) -> Counts:
    """Reads, tokenises, packs and writes one shard."""
    tokenizer = _tokenizer(job.tokenizer)
    vocabulary = tokenizer.vocabulary
    documents, totals, repairs = [], collections.Counter(), collections.Counter()
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
    # The first rows of a split are then a random sample of its first shard, whatever order packing made.
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
    """Runs of bytes other than ASCII white space; five times as quick as `len(text.split())`."""
    space = np.frombuffer(utf8, np.uint8) <= 32
    return int(np.count_nonzero(space[:-1] & ~space[1:])) + int(not space[0]) if len(space) else 0


def _batches(job: Job, tokenizer: tokenizers.Tokenizer, repairs: collections.Counter):
    """Lists of texts in UTF-8; about `_BATCH_BYTES` of documents at a time: each reading has a fixed cost."""
    step = max(1, _BATCH_BYTES * job.source.num_documents // max(1, job.source.num_bytes))
    for start in range(job.start, job.stop, step):
        documents = job.source.read(start, min(start + step, job.stop))
        texts = [text for document in documents for text in corpora.clean(document, repairs)]
        texts = tokenizer.readable(texts, repairs)
        if job.smiles_copies:
            texts = [*texts, *molecules.copies(texts, job.smiles_copies, repairs)]
        if texts:
            yield texts


@functools.lru_cache(maxsize=1)
def _tokenizer(path: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(path)
