"""Times the reading of rows from a disk on which every read takes long: writes the data in this directory.

    python docs/results/reading_in_blocks/measure.py

The disk is made up: the files of rows are local, and each read of them sleeps first. A step is a pause of fixed length,
so that only reading keeps it waiting. Rows are random ids; their number does not matter. It takes about two minutes.
Then: python docs/results/make.py
"""

import dataclasses
import pathlib
import tempfile
import threading
import time

import jax
import numpy as np
from absl import flags

from mlm_jax.comparing import experiment, measured
from mlm_jax.comparing.experiment import Column, Experiment, Row, Table
from mlm_jax.config import command_line
from mlm_jax.data import block_cache, shards
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data.orders import BlockPermutation, Order, Permutation
from mlm_jax.data.rows import Batches, Prefetcher
from mlm_jax.files import paths
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.parallel import mesh as mesh_lib

HERE = pathlib.Path(__file__).resolve().parent
LENGTH, VOCABULARY, BATCH = 128, 8192, 256
ROWS_OF_SHARD, NUM_SHARDS = 65_536, 32
BLOCK_KIB = 256
SECONDS = 12  # in which steps at the rates below read several windows
SEED = 1
LARGE = 10_000_000  # rows of the corpus for which mixing is counted; none of them exists


class SlowDisk(shards.Shards):
    """Rows on a disk on which each read takes `latency` seconds, be it a row or a run of rows, alone or among others.

    Rows that are read one by one are read one after another, as page faults of a memory map are. Nothing is cached.
    """

    latency = 0.0

    def read(self, indices: np.ndarray) -> np.ndarray:
        """As `Shards.read`, after a pause for each row."""
        time.sleep(self.latency * len(indices))
        return super().read(indices)

    def read_span(self, first: int, stop: int) -> np.ndarray:
        """As `Shards.read_span`, after one pause."""
        with self.lock:
            self.reads, self.bytes = self.reads + 1, self.bytes + 2 * LENGTH * (stop - first)
        time.sleep(self.latency)
        return super().read_span(first, stop)

    def start(self, latency: float) -> 'SlowDisk':
        """Forgets what was counted."""
        self.latency, self.lock, self.reads, self.bytes = latency, threading.Lock(), 0, 0
        return self


@dataclasses.dataclass(frozen=True)
class Timing:
    """What a run of pauses instead of steps has waited for.

    Attributes:
      first: seconds before the first batch.
      stall: the share of the time after it in which there was no batch.
      rows_per_second: rows that were read in that time.
      reads_per_second: likewise, reads; 0 of single rows, each of which is one.
      mib_per_second: likewise, MiB.
    """

    first: float
    stall: float
    rows_per_second: float
    reads_per_second: float
    mib_per_second: float


def write_rows(directory: pathlib.Path) -> None:
    """A directory as `prepare` leaves it, with random rows and no tokenizer."""
    vocabulary, rng = standard_vocabulary(VOCABULARY), np.random.default_rng(SEED)
    entries, rows = [], rng.integers(5, VOCABULARY, (ROWS_OF_SHARD, LENGTH)).astype(np.uint16)
    for number in range(NUM_SHARDS):
        name = shards.shard_name('train', number, NUM_SHARDS)
        shards.write_rows(directory / name, rows)
        entries.append(manifest_lib.Shard(name, len(rows), ''))
    count = ROWS_OF_SHARD * NUM_SHARDS
    tokens = count * LENGTH
    split = manifest_lib.Split(count, tokens, tokens, count, 0, 0, 0.0, {}, tuple(entries))
    manifest_lib.save(
        manifest_lib.Manifest(
            {}, {}, vocabulary, 'tokenizer.model', '', LENGTH, 'one_per_row', 'uint16', {'train': split}, versions={}
        ),
        directory,
    )


def time_reading(disk: SlowDisk, order: Order, step_seconds: float, steps: int) -> Timing:
    """Reads batches for `steps` pauses, as training reads them."""
    sharding = mesh_lib.batch_sharding(mesh_lib.make_mesh(devices=jax.devices()[:1]))
    start = time.perf_counter()
    batches = Batches(disk, order, BATCH, sharding)
    prefetcher = Prefetcher(batches, 0, 10**9)
    next(prefetcher)
    first, waited, reads, size = (
        time.perf_counter() - start,
        prefetcher.stall_seconds,
        disk.reads,
        disk.bytes,
    )
    start = time.perf_counter()
    for _ in range(steps):
        time.sleep(step_seconds)
        next(prefetcher)
    seconds = time.perf_counter() - start
    timing = Timing(
        first,
        (prefetcher.stall_seconds - waited) / seconds,
        steps * BATCH / seconds,
        (disk.reads - reads) / seconds,
        (disk.bytes - size) / seconds / 2**20,
    )
    prefetcher.close()
    batches.close()
    return timing


def others_of_the_block(order: Order, block_rows: int, batches: int = 40) -> float:
    """For a row of a batch, the mean number of other rows in it that come from the same block."""
    rng, pairs = np.random.default_rng(SEED), 0
    for step in rng.integers(0, LARGE // BATCH, batches).tolist():
        _, counts = np.unique(order(np.arange(step * BATCH, (step + 1) * BATCH)) // block_rows, return_counts=True)
        pairs += int((counts * (counts - 1)).sum())
    return pairs / (batches * BATCH)


def mixing(block_rows: int) -> list[Row]:
    """A row for each size of window, and for the exact permutation."""
    rows = []
    for window in (16, 64, 256, 1024):
        order = BlockPermutation(LARGE, SEED, block_rows, window)
        found = others_of_the_block(order, block_rows)
        rows.append(
            Row(
                f'window of {window:,} blocks',
                (2 * window * BLOCK_KIB / 1024, found, _cost(order, window * block_rows)),
            )
        )
    exact = Permutation(LARGE, SEED)
    rows.append(Row('single rows', (None, others_of_the_block(exact, block_rows), _cost(exact))))
    return rows


def _cost(order: Order, rows: int = 100 * BATCH) -> float:
    """Microseconds in which the order finds a row, on average over the batches of the first `rows` rows."""
    start = time.perf_counter()
    for step in range(rows // BATCH):
        order(np.arange(step * BATCH, (step + 1) * BATCH))
    return 1e6 * (time.perf_counter() - start) / rows


def main() -> None:
    """Measures, and writes the experiment."""
    output = pathlib.Path(flags.FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    facts = measured.of_this_process(('numpy', 'grain'))
    block_rows = BLOCK_KIB * 1024 // (2 * LENGTH)
    table = []
    with tempfile.TemporaryDirectory() as directory:
        write_rows(pathlib.Path(directory))
        disk = SlowDisk(directory, 'train')
        cases = [
            (0, 12.5, 64), (20, 50, 16), (20, 12.5, 64), (100, 12.5, 64), (0, 3.125, 256), (20, 3.125, 256),
            (20, 50, 0),
        ]  # fmt: skip
        for latency, step, window in cases:
            order = BlockPermutation(len(disk), SEED, block_rows, window) if window else Permutation(len(disk), SEED)
            steps = round(1000 * SECONDS / step) if window else 2
            found = time_reading(disk.start(latency / 1000), order, step / 1000, steps)
            what = f'windows of {window} blocks' if window else 'single rows'
            name = f'{what}, {latency} ms a read, {step:g} ms a step'
            wanted = BATCH / step * 1000
            values = (
                wanted * LENGTH, 100 * found.stall, found.first,
                found.reads_per_second if window else found.rows_per_second,
                found.mib_per_second if window else found.rows_per_second * 2 * LENGTH / 2**20,
            )  # fmt: skip
            table.append(Row(name, values))
            print(name, *(f'{value:,.2f}' for value in values), sep='  ', flush=True)
    made = Experiment(
        title='Rows from a slow disk',
        question='Does reading hold up a step where every read takes 20 ms or more, as on a network file system?',
        commands=('python docs/results/reading_in_blocks/measure.py',),
        needs='two minutes',
        settings={
            'disk': 'made up: local files, and a pause before each read; nothing is cached',
            'rows': f'{ROWS_OF_SHARD * NUM_SHARDS:,} of {LENGTH} tokens, 2 bytes each; batches of {BATCH}; one process',
            'blocks': f'{BLOCK_KIB} KiB, {block_rows:,} rows; {block_cache.THREADS} threads',
            'step': f'a pause of the length that is given, for {SECONDS} s; of single rows, two steps',
        },
        tables=(
            Table(
                'stall',
                'Waiting for rows. The rate is what steps without any waiting would need.',
                (
                    Column('rate', 'tokens/s', ',.0f'),
                    Column('stall', '%', '.2f'),
                    Column('before the first batch', 's', ',.2f'),
                    Column('reads', '1/s', ',.0f'),
                    Column('throughput', 'MiB/s', ',.2f'),
                ),
                tuple(table),
            ),
            Table(
                'mixing',
                f'How well {LARGE:,} rows are mixed, and what the order costs.',
                (
                    Column('memory', 'MiB', ',.0f'),
                    Column('other rows of its block in a batch of 256', '', '.3f'),
                    Column('time to find a row', 'µs', ',.2f'),
                ),
                tuple(mixing(block_rows)),
            ),
        ),
        **facts,
    )
    experiment.write(experiment.with_words_of(made, output), output)
    print(output / experiment.METRICS)


if __name__ == '__main__':
    paths.define_flag('output', str(HERE), 'Where the experiment is written.', 'directory')
    command_line.run(main)
