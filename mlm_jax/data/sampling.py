"""The text on which a tokenizer is trained: a random sample of the training text, or all of it if it is small.

The sample consists of the documents of the lowest hashes in each of the first slices, whose order is random; of larger
slices than usual, only the beginnings are read. So it does not depend on the number of processes.
"""

import collections
import contextlib
import dataclasses
import heapq
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from mlm_jax.data import corpora, reading, slices, sources, workers
from mlm_jax.files import atomic, buckets, sealed

MAX_SLICES = 256  # from so many places of the corpus, text is taken


@dataclasses.dataclass(frozen=True)
class Job(workers.Job):
    """Takes the sample of one slice. It keeps at most `limit` bytes of text and the largest document in memory."""

    slice: slices.Slice
    index: int
    threshold: int
    limit: int  # bytes of text
    working: str

    @property
    def name(self) -> str:
        """The name of the file of texts, JSON lines."""
        return f'sample-{self.index:05d}.jsonl'

    @property
    def num_bytes(self) -> int:
        """The size of the input."""
        return self.slice.num_bytes

    @property
    def record_path(self) -> pathlib.Path:
        """The record of the job."""
        return record_path(buckets.path(self.working), self.index)

    @property
    def path(self) -> pathlib.Path:
        """The file of texts."""
        return buckets.path(self.working) / self.name

    @property
    def files(self) -> dict[str, pathlib.Path]:
        """The file of texts by its name."""
        return {self.name: self.path}

    def run(self) -> int:
        """Writes the texts and the record; returns the size of the texts."""
        read = reading.Reading(self.slice, self.threshold, known_states(self.record_path))
        size = 0
        with atomic.opened(self.path) as file:
            for document in _lowest(read, self.limit):
                for text in document:
                    file.write(json.dumps(text.decode(), ensure_ascii=False).encode() + b'\n')
                    size += len(text)
        record = {
            'bytes': size,
            'documents': read.documents.total(),
            'held_out': read.documents['validation'],
            'empty': sum(repairs[corpora.EMPTY] for repairs in read.repairs.values()),
            'repairs': read.repairs['train'] + read.repairs['validation'],
            'states': read.states,
        }
        self.write_record(record, buckets.path(self.working))
        return size

    def texts(self) -> Iterator[str]:
        """The texts, those of the lowest hashes first."""
        with self.path.open(encoding='utf-8', newline='\n') as file:
            yield from map(json.loads, file)


def known_states(record: pathlib.Path) -> list[dict[str, Any]]:
    """The states of the parts of a slice when a job read them before; [] if its record cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return sealed.loads(record.read_bytes())['states']
    return []


def states_of_sample(working: pathlib.Path, index: int, whole: slices.Slice) -> list[dict[str, Any]]:
    """The states of the parts of slice `index` from the reading for the sample, if all of the slice was read; else [].

    Raises:
      ConfigError: if what was read has changed since then.
    """
    begin, states = slices.beginning(whole), known_states(record_path(working, index))
    for part, state in zip(begin.parts, states):
        sources.observe(part, state)
    return states if begin == whole else []


def record_path(working: pathlib.Path, index: int) -> pathlib.Path:
    """The record of the sample of slice `index`."""
    return working / f'sample-{index:05d}.json'


def take(corpus: corpora.Corpus, working: pathlib.Path, limit: int, engine: workers.Engine) -> list[Job]:
    """Takes a sample of about `limit` bytes of the training text, or all of it if it has at most so many.

    Raises:
      ConfigError: if most documents of the sample need the same repair; or if all of the corpus was read, and a split
        has no documents.
    """
    chosen = corpus.train[:MAX_SLICES]
    total = max(1, sum(part.num_bytes for part in chosen))
    jobs = []
    for index, part in enumerate(chosen):
        # Twice the share, because slices hold different amounts of text; `texts` leaves out what is too much.
        share = limit if total <= limit else 2 * limit * part.num_bytes // total + 1
        jobs.append(Job(slices.beginning(part), index, corpus.threshold, share, str(working)))
    engine.run(jobs, 'reading')
    records = [job.record() for job in jobs]
    counts = {key: sum(record[key] for record in records) for key in ('documents', 'held_out', 'empty')}
    repairs: collections.Counter[str] = collections.Counter()
    for record in records:
        repairs.update(record['repairs'])
    corpora.check_repairs(repairs, counts['documents'] - counts['empty'], 'the corpus')
    if len(jobs) == len(corpus.train):
        corpora.check_division(counts['documents'], counts['held_out'], corpus)
    return jobs


def texts(jobs: Sequence[Job], limit: int) -> Iterator[str]:
    """The texts of a sample, as much of each slice that they have about `limit` bytes together."""
    sizes = [job.record()['bytes'] for job in jobs]
    for job, size in zip(jobs, sizes):
        left = size if sum(sizes) <= limit else limit * size // sum(sizes)
        for text in job.texts():
            if left <= 0:
                break
            yield text
            left -= len(text.encode())


def remove(jobs: Sequence[Job]) -> None:
    """Deletes the texts; the records stay, because they hold the checksums of what was read."""
    for job in jobs:
        job.path.unlink(missing_ok=True)


def _lowest(read: reading.Reading, limit: int) -> list[list[bytes]]:
    """The training documents of the lowest hashes, in that order: as many as have `limit` bytes, or all."""
    kept: list[tuple[int, int, list[bytes]]] = []  # a heap: −hash, −number, texts
    size = 0
    for number, (split, digest, document) in enumerate(read.texts()):
        if split != 'train' or not document:
            continue
        heapq.heappush(kept, (-digest, -number, document))
        size += sum(map(len, document))
        while size - sum(map(len, kept[0][2])) >= limit:
            size -= sum(map(len, heapq.heappop(kept)[2]))
    return [document for _, _, document in sorted(kept, reverse=True)]
