"""Encodes a corpus into shards of packed rows, in two phases of jobs whose results do not depend on who does them.

In the first phase, a job for each slice reads its documents, writes the rows of the training documents as one shard,
and writes the tokens of the held-out documents to the working directory. In the second phase, a job for each shard of
held-out rows collects its documents (`held_out.py`).

A process keeps in memory at most the largest document and about `PIECE_BYTES` of text, with its tokens and rows; the
rows of a larger slice are written in pieces.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from mlm_jax.data import held_out, molecules, packing, reading, sampling, shards, slices, tokenizers, workers
from mlm_jax.files import atomic, buckets, sealed

PIECE_BYTES = 16 << 20  # bytes of text whose tokens are packed together
_BATCH_BYTES = 4 << 20  # bytes of text that are encoded at a time
HELD_OUT = 'held_out'  # the key of the file of held-out documents in a record
_COUNTS = ('documents', 'words', 'bytes', 'text_tokens')
Runs = Sequence[Sequence[int]]  # of a file of held-out documents, as `held_out.write_run` returns them


@dataclasses.dataclass(frozen=True)
class Output:
    """What the jobs of a preparation have in common.

    Attributes:
      directory: where the rows are written.
      working: where everything else is written.
      scratch: the directory of temporary files, which no other process uses.
      tokenizer: the path of the tokenizer.
      tokenizer_sha256: its checksum.
      sequence_length: T, the number of tokens in a row.
      packing: as in `packing.pack`.
    """

    directory: str
    working: str
    scratch: str
    tokenizer: str
    tokenizer_sha256: str
    sequence_length: int
    packing: str

    def load_tokenizer(self) -> tokenizers.AnyTokenizer:
        """The tokenizer; each process reads it once."""
        return _tokenizer(self.tokenizer, self.tokenizer_sha256)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the rows."""
        return shards.row_dtype(self.load_tokenizer().vocabulary.size)


class _Encoding(workers.Job):
    """A job of either phase; rows made with another tokenizer are made again.

    Attributes:
      output: what all jobs share.
    """

    output: Output

    @property
    def record_path(self) -> pathlib.Path:
        """The record of the job."""
        return buckets.path(self.output.working) / f'{self.name}.json'

    @property
    def shard(self) -> str:
        """The name of the file of rows."""
        return self.name

    @property
    def histogram_path(self) -> pathlib.Path:
        """The file that says how often each id occurs in the rows."""
        return buckets.path(self.output.working) / f'{self.shard}.histogram.npy'

    @property
    def files(self) -> dict[str, pathlib.Path]:
        """The files of rows and their histogram."""
        return {
            self.shard: buckets.path(self.output.directory) / self.shard,
            self.histogram_path.name: self.histogram_path,
        }

    def is_done(self) -> bool:
        """Whether it has been done with this tokenizer, and its results are undamaged."""
        return super().is_done() and self.record().get('tokenizer_sha256') == self.output.tokenizer_sha256

    def histogram(self) -> np.ndarray:
        """int[V]: how often each id occurs in the rows, special ids included."""
        with self.histogram_path.open('rb') as file:
            return np.load(file)

    def _finish(self, content: dict[str, Any]) -> None:
        """Writes the record."""
        stamped = {**content, 'tokenizer_sha256': self.output.tokenizer_sha256}
        self.write_record(stamped, buckets.path(self.output.scratch))

    def _write_rows(self, blocks: Iterator[np.ndarray]) -> dict[str, int]:
        """Writes rows and their histogram; returns the numbers of rows and of tokens that are not padding."""
        vocabulary, scratch = self.output.load_tokenizer().vocabulary, buckets.path(self.output.scratch)
        times = np.zeros(vocabulary.size, np.int64)

        def counted() -> Iterator[np.ndarray]:
            for block in blocks:
                np.add(times, np.bincount(block.ravel(), minlength=vocabulary.size), out=times)
                yield block

        path, length = self.files[self.shard], self.output.sequence_length
        num_rows = shards.write_blocks(path, counted(), length, self.output.dtype, scratch)
        small = times.astype(np.min_scalar_type(int(times.max(initial=0))))
        atomic.write(self.histogram_path, lambda file: np.save(file, small), scratch)
        return {'rows': num_rows, 'real_tokens': int(times.sum() - times[vocabulary.pad_id])}


@dataclasses.dataclass(frozen=True)
class SliceJob(_Encoding):
    """The first phase for one slice.

    Attributes:
      output: what all jobs share.
      slice: the slice.
      split: 'train', or 'validation' for a slice of which all documents are held out.
      index: the number of the slice among those of the same split.
      count: the number of these slices.
      threshold: documents with a smaller hash are held out.
      writes_rows: whether to write training rows.
      smiles_copies: the number of additional SMILES of each training molecule.
    """

    output: Output
    slice: slices.Slice
    split: str
    index: int
    count: int
    threshold: int
    writes_rows: bool = True
    smiles_copies: int = 0

    @property
    def name(self) -> str:
        """The name of the slice."""
        return _slice_name(self.split, self.index, self.count)

    @property
    def num_bytes(self) -> int:
        """The size of the input."""
        return self.slice.num_bytes

    @property
    def shard(self) -> str:
        """The file of training rows."""
        return shards.shard_name(self.split, self.index, self.count)

    @property
    def held_out_path(self) -> pathlib.Path:
        """The file of held-out documents."""
        return held_out_path(self.output, self.split, self.index, self.count)

    @property
    def files(self) -> dict[str, pathlib.Path]:
        """The files of rows, their histogram, and held-out documents, as far as they are written."""
        held = {HELD_OUT: self.held_out_path} if self.threshold else {}
        return (super().files if self.writes_rows else {}) | held

    def is_done(self) -> bool:
        """As in `workers.Job`; raises ConfigError if a file of the slice has changed since the job was done."""
        if not super().is_done():
            return False
        reading.Reading(self.slice, self.threshold, self.record()['states'])
        return True

    def run(self) -> int:
        """Reads, tokenizes, packs and writes one slice; returns the size of its text."""
        known = sampling.known_states(self.record_path)
        if self.split == 'train':
            known = known or sampling.states_of_sample(buckets.path(self.output.working), self.index, self.slice)
        read = reading.Reading(self.slice, self.threshold, known)
        tokenizer = self.output.load_tokenizer()
        texts = {
            'train': _Encoder(tokenizer, read.repairs['train'], self.smiles_copies),
            'validation': _Encoder(tokenizer, read.repairs['validation'], has_hashes=True),
        }
        scratch = buckets.path(self.output.scratch)
        runs: list[list[int]] = []
        with contextlib.ExitStack() as stack:
            file = None
            if self.threshold:
                file = stack.enter_context(atomic.opened(self.held_out_path, scratch))
            rows, written = self._rows(read, texts, file, runs), {}
            if self.writes_rows:
                written = self._write_rows(rows)
            else:
                collections.deque(rows, maxlen=0)  # they are empty
        counts = {split: {key: encoder.counts[key] for key in _COUNTS} for split, encoder in texts.items()}
        repairs = {split: {name: n for name, n in sorted(made.items()) if n} for split, made in read.repairs.items()}
        self._finish(
            {
                'read': {split: read.documents[split] for split in reading.SPLITS},
                'counts': counts,
                'repairs': repairs,
                'rows': written,
                'runs': runs,
                'states': read.states,
            }
        )
        return sum(part['bytes'] for part in counts.values())

    def _rows(
        self, read: reading.Reading, texts: dict[str, '_Encoder'], file: BinaryIO | None, runs: list[list[int]]
    ) -> Iterator[np.ndarray]:
        """Yields training rows, a piece at a time, and writes runs of held-out documents, whose sizes go to `runs`."""
        pieces = size = 0

        def finish(piece: int) -> np.ndarray:
            _, documents = texts['train'].take()
            if file:
                runs.append(held_out.write_run(file, *texts['validation'].take(), self.output.dtype))
            return _pack(documents, self.output, (self.index, piece))

        for split, digest, parts in read.texts():
            if split == 'train' and not self.writes_rows:
                continue
            for text in parts:
                texts[split].add(digest, text)
                size += len(text)
            if size >= PIECE_BYTES:
                yield finish(pieces)
                pieces, size = pieces + 1, 0
        yield finish(pieces)


@dataclasses.dataclass(frozen=True)
class HeldOutJob(_Encoding):
    """The second phase for one shard of held-out rows.

    Attributes:
      output: what all jobs share.
      index: the number of the shard.
      count: the number of shards.
      threshold: all held-out documents have smaller hashes.
      first_phase: the split and the number of the slices that have held-out documents.
      checksum: a checksum of all held-out documents.
    """

    output: Output
    index: int
    count: int
    threshold: int
    first_phase: tuple[str, int]
    checksum: str
    num_bytes: int = 1  # not known, and the same for all

    @property
    def name(self) -> str:
        """The name of the shard, which is that of its file."""
        return shards.shard_name('validation', self.index, self.count)

    def is_done(self) -> bool:
        """As in `workers.Job`; also whether the documents were the same."""
        return super().is_done() and self.record().get('checksum') == self.checksum

    def run(self) -> int:
        """Collects, packs and writes the documents of one shard; returns 0, because their text was read before."""
        low, high = (number * self.threshold // self.count for number in (self.index, self.index + 1))
        hashes: list[int] = []
        documents: list[np.ndarray] = []
        split, count = self.first_phase
        for number, runs in zip(range(count), _read_runs(self.output), strict=True):
            path = held_out_path(self.output, split, number, count)
            found = held_out.read(path, runs, low, high, self.output.dtype)
            hashes += found[0]
            documents += found[1]
        order = np.argsort(np.array(hashes, np.uint64), kind='stable')
        rows = _pack([documents[place] for place in order], self.output, (self.index,))
        self._finish({'rows': self._write_rows(iter([rows])), 'checksum': self.checksum})
        return 0


def num_held_out_shards(num_bytes: int) -> int:
    """The number of shards for held-out text of so many bytes."""
    return max(1, min(-(-num_bytes // PIECE_BYTES), slices.MAX_SLICES))


def held_out_path(output: Output, split: str, index: int, count: int) -> pathlib.Path:
    """The file of the held-out documents of a slice, beside the record of its job."""
    return buckets.path(output.working) / f'{_slice_name(split, index, count)}.held_out'


def write_runs(output: Output, runs: Sequence[Runs]) -> None:
    """Writes the runs of the slices that have held-out documents, in order, where the jobs of the second phase look.

    They are in the records of the slices, too, each of which also has the states of all files of its slice: too much to
    be read by each of these jobs.
    """
    atomic.write_bytes(_runs_path(output), sealed.dumps({'runs': list(runs)}), buckets.path(output.scratch))


def _read_runs(output: Output) -> list[Runs]:
    return sealed.loads(_runs_path(output).read_bytes())['runs']


def _runs_path(output: Output) -> pathlib.Path:
    return buckets.path(output.working) / 'held_out_runs.json'


def _slice_name(split: str, index: int, count: int) -> str:
    return f'{split}-slice-{index:05d}-of-{count:05d}'


def checksum(held_out_sha256: list[str]) -> str:
    """The checksum of all held-out documents, from those of the slices."""
    return hashlib.sha256(' '.join(held_out_sha256).encode()).hexdigest()


class _Encoder:
    """Encodes texts in batches.

    Attributes:
      counts: the numbers of documents, words, bytes and tokens of all texts, except those without tokens.
    """

    def __init__(
        self,
        tokenizer: tokenizers.AnyTokenizer,
        repairs: collections.Counter[str],
        smiles_copies: int = 0,
        has_hashes: bool = False,
    ):
        """Encodes with `tokenizer`, and counts in `repairs` what is dropped or replaced.

        Args:
          tokenizer: the tokenizer.
          repairs: a repair → how many times it was made.
          smiles_copies: the number of additional SMILES of each text.
          has_hashes: whether to keep the hashes of the documents.
        """
        self.counts: collections.Counter[str] = collections.Counter()
        self._tokenizer, self._repairs, self._copies = tokenizer, repairs, smiles_copies
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._waiting_hashes: list[int] | None = [] if has_hashes else None
        self._hashes: list[int] = []
        self._documents: list[np.ndarray] = []

    def add(self, digest: int, text: bytes) -> None:
        """Adds a text in UTF-8 of a document with this hash."""
        self._waiting.append(text)
        self._waiting_bytes += len(text)
        if self._waiting_hashes is not None:
            self._waiting_hashes.append(digest)
        if self._waiting_bytes >= _BATCH_BYTES:
            self._encode()

    def take(self) -> tuple[list[int], list[np.ndarray]]:
        """The hashes, if they are kept, and the tokens, int32[n], of the texts since the last call."""
        self._encode()
        taken = self._hashes, self._documents
        self._hashes, self._documents = [], []
        return taken

    def _encode(self) -> None:
        texts, hashes = self._readable()
        if not texts:
            return
        encoded = self._tokenizer.encode_batch(texts)
        sizes = [len(tokens) for tokens in encoded]
        kept = list(itertools.compress(texts, sizes))
        self._documents += itertools.compress(encoded, sizes)
        self._hashes += itertools.compress(hashes, sizes)
        tokens = np.concatenate(encoded)
        self.counts.update(
            documents=len(kept), words=count_words(b' '.join(kept)), bytes=sum(map(len, kept)), text_tokens=len(tokens)
        )
        self._repairs['documents without tokens, dropped'] += len(texts) - len(kept)
        if self._tokenizer.unknown_id is not None:
            unknown = int(np.count_nonzero(tokens == self._tokenizer.unknown_id))
            self._repairs['tokens outside the vocabulary, replaced by [UNK]'] += unknown

    def _readable(self) -> tuple[Sequence[bytes], Sequence[int]]:
        """The waiting texts that the tokenizer can encode, with copies, and the hashes of their documents."""
        waiting, hashes = self._waiting, self._waiting_hashes
        self._waiting, self._waiting_bytes = [], 0
        if hashes is not None:
            self._waiting_hashes = []
            readable = [bool(self._tokenizer.readable([text], self._repairs)) for text in waiting]
            return list(itertools.compress(waiting, readable)), list(itertools.compress(hashes, readable))
        texts = self._tokenizer.readable(waiting, self._repairs)
        if self._copies:
            texts = [*texts, *molecules.copies(texts, self._copies, self._repairs)]
        return texts, ()


def count_words(utf8: bytes) -> int:
    """The number of runs of bytes other than ASCII whitespace; five times as fast as `len(text.split())`."""
    space = np.frombuffer(utf8, np.uint8) <= 32
    return int(np.count_nonzero(space[:-1] & ~space[1:])) + int(not space[0]) if len(space) else 0


def _pack(documents: list[np.ndarray], output: Output, seed: tuple[int, ...]) -> np.ndarray:
    """The rows of documents, shuffled, so that the first rows are a random sample, however packing orders rows."""
    vocabulary = output.load_tokenizer().vocabulary
    rows = packing.pack(documents, output.sequence_length, vocabulary, output.packing, output.dtype)
    return rows[np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))]


@functools.lru_cache(maxsize=1)
def _tokenizer(path: str, sha256: str) -> tokenizers.AnyTokenizer:
    return tokenizers.Tokenizer.from_file(path)
