"""Rows that are read in blocks: each once, ahead of time, and the same rows as read one by one."""

import threading
import time

import jax
import numpy as np
import pytest
from prepared_rows import write_prepared

from mlm_jax.config import ConfigError
from mlm_jax.data.block_cache import BlockCache
from mlm_jax.data.orders import BlockPermutation, Permutation
from mlm_jax.data.rows import Batches, Prefetcher
from mlm_jax.data.shards import Shards
from mlm_jax.files.errors import TransientError
from mlm_jax.parallel.mesh import batch_sharding, make_mesh


class SlowRows:
    """Row i holds i; each read, of a row or of a span, takes a while."""

    sequence_length = 4

    def __init__(self, count, seconds=0.0):
        self.count, self.seconds, self.spans = count, seconds, []

    def __len__(self):
        return self.count

    def read(self, indices):
        time.sleep(self.seconds * len(indices))
        return np.repeat(np.asarray(indices, np.int32)[:, None], 4, axis=1)

    def read_span(self, first, stop):
        self.spans.append((first, stop))
        time.sleep(self.seconds)
        return (
            self.read(np.arange(first, stop)) if not self.seconds else np.repeat(np.arange(first, stop)[:, None], 4, 1)
        )


def batches(rows, order, batch_size=16, mesh=(1, 1, 1)):
    devices = jax.devices()[: int(np.prod(mesh))]
    return Batches(rows, order, batch_size, batch_sharding(make_mesh(*mesh, devices=devices)))


def test_each_block_is_read_once_in_an_epoch_and_batches_are_those_of_the_order():
    rows, order = SlowRows(1000), BlockPermutation(1000, 1, 10, 8)
    source = batches(rows, order, 20, (2, 1, 1))
    for step in range(44):
        assert np.asarray(source(step))[:, 0].tolist() == order(np.arange(20 * step, 20 * step + 20)).tolist()
    assert len(set(rows.spans)) == len(rows.spans) <= 100, 'before the last window is reached, no block is read twice'
    resumed = batches(SlowRows(1000), order, 20, (4, 1, 1))
    assert np.array_equal(resumed(31), source(31)), 'whatever was read before, on any mesh'
    source.close()
    resumed.close()


def test_waiting_is_hidden_where_single_rows_would_stall():
    """A read takes 5 ms: a batch of 16 single rows takes 80 ms, and a step 10 ms."""
    stalls = {}
    for name, order in {'blocks': BlockPermutation(4096, 0, 64, 16), 'rows': Permutation(4096, 0)}.items():
        source = batches(SlowRows(4096, 0.005), order)
        prefetcher = Prefetcher(source, 0, 8 if name == 'rows' else 20)
        next(prefetcher)  # the first window
        before, start = prefetcher.stall_seconds, time.perf_counter()
        for _ in range(3 if name == 'rows' else 19):
            next(prefetcher)
            time.sleep(0.01)
        stalls[name] = (prefetcher.stall_seconds - before) / (time.perf_counter() - start)
        prefetcher.close()
        source.close()
    assert stalls['blocks'] < stalls['rows'] / 2 and stalls['rows'] > 0.6, 'with room for a busy machine'


def test_what_is_no_longer_needed_is_dropped_and_reads_do_not_wait_for_the_rest():
    release = threading.Event()

    class Blocked(SlowRows):
        def read_span(self, first, stop):
            if first >= 100:
                release.wait(5)
            return super().read_span(first, stop)

    cache = BlockCache(Blocked(1000), num_threads=2)
    cache.hold(np.array([[0, 10], [10, 20], [100, 110]]))
    assert cache.read(np.array([12, 3]))[:, 0].tolist() == [12, 3]
    cache.hold(np.array([[10, 20], [20, 30]]))
    assert sorted(cache._held) == [10, 20]
    release.set()
    assert cache.read(np.array([25]))[0, 0] == 25
    cache.close()


def test_an_error_of_a_thread_reaches_the_reader():
    class Broken(SlowRows):
        def read_span(self, first, stop):
            raise ConfigError('the disk is gone')

    source = batches(Broken(100), BlockPermutation(100, 0, 10, 4))
    with pytest.raises(ConfigError, match='the disk is gone'):
        source(0)
    source.close()


def test_a_read_that_failed_for_a_moment_is_repeated_once():
    class Unsteady(SlowRows):
        failures = 1

        def read_span(self, first, stop):
            if len(self.spans) < self.failures:
                self.spans.append((first, stop))
                raise TransientError('the bucket could not be reached')
            return super().read_span(first, stop)

    rows = Unsteady(100)
    cache = BlockCache(rows, num_threads=1)
    cache.hold(np.array([[10, 20]]))
    assert cache.read(np.array([12]))[0, 0] == 12 and rows.spans == [(10, 20)] * 2
    rows.spans, rows.failures = [], 2
    cache.hold(np.array([[20, 30]]))
    with pytest.raises(TransientError):
        cache.read(np.array([22]))
    cache.close()


def test_spans_of_files_are_their_rows_across_shards(tmp_path):
    directory = write_prepared(tmp_path / 'rows', documents=40)
    shards = Shards(directory, 'train')
    everything = shards.read(np.arange(len(shards)))
    for first, stop in ((0, len(shards)), (3, 4), (5, 5)):
        assert np.array_equal(shards.read_span(first, stop), everything[first:stop])
    with pytest.raises(IndexError):
        shards.read_span(0, len(shards) + 1)
    file = directory / 'train-00000-of-00001.npy'
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(ConfigError, match='truncated'):
        shards.read_span(0, len(shards))
