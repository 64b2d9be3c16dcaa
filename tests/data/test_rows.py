"""Batches as a function of the step: permutations, resumption, placement, prefetching."""

import time

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from mlm_jax.data.orders import Permutation
from mlm_jax.data.rows import Batches, Prefetcher, place_rows
from mlm_jax.data.synthetic import SyntheticRows
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.parallel.mesh import batch_sharding, make_mesh


class NumberedRows:
    """Row i holds i; remembers what was read."""

    sequence_length = 4

    def __init__(self, count):
        self.count, self.reads = count, []

    def __len__(self):
        return self.count

    def read(self, indices):
        self.reads.append(np.array(indices))
        return np.repeat(np.asarray(indices, np.int32)[:, None], 4, axis=1)


def batches(count=10, batch_size=4, seed=0, mesh=(1, 1, 1)):
    devices = jax.devices()[: int(np.prod(mesh))]
    rows, order = NumberedRows(count), Permutation(count, seed)
    return Batches(rows, order, batch_size, batch_sharding(make_mesh(*mesh, devices=devices)))


@hypothesis.given(st.integers(1, 60), st.integers(1, 16), st.integers(0, 1000))
@hypothesis.settings(deadline=None, max_examples=40)
def test_every_epoch_is_a_permutation_and_no_row_is_dropped(count, batch_size, seed):
    source = batches(count, batch_size, seed)
    num_steps = -(-3 * count // batch_size)
    order = np.concatenate([source.indices(step) for step in range(num_steps)])
    for epoch in range(3):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    a = [batches(100, 50, seed=1).indices(step).tolist() for step in (0, 1, 2, 3)]
    assert a == [batches(100, 50, seed=1).indices(step).tolist() for step in (0, 1, 2, 3)]
    assert a[:2] != a[2:], 'epochs differ'
    assert a[0] != batches(100, 50, seed=2).indices(0).tolist()


def test_a_batch_is_the_same_on_every_mesh():
    expected = np.asarray(batches(50, 16)(3))
    for mesh in ((8, 1, 1), (2, 2, 2), (1, 8, 1)):
        assert np.array_equal(batches(50, 16, mesh=mesh)(3), expected)


def test_each_share_is_read_once():
    source = NumberedRows(100)
    place_rows(source, np.arange(16), batch_sharding(make_mesh(2, 2, 2)))
    shares = [tuple(r) for r in source.reads if len(r) == 4]
    assert sorted(shares) == [tuple(range(i, i + 4)) for i in range(0, 16, 4)]


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match='no rows'):
        batches(0)


def test_prefetching_keeps_the_order_and_measures_the_wait():
    def slow(step):
        time.sleep(0.02)
        return step

    prefetcher = Prefetcher(slow, 5, 9)
    assert [next(prefetcher) for _ in range(4)] == [5, 6, 7, 8]
    assert prefetcher.stall_seconds > 0.01
    prefetcher.close()


def test_an_error_while_reading_reaches_the_consumer():
    def broken(step):
        raise OSError('the disk is gone')

    prefetcher = Prefetcher(broken, 0, 3)
    with pytest.raises(OSError, match='the disk is gone'):
        next(prefetcher)
    prefetcher.close()


def test_closing_stops_a_producer_that_waits_for_room():
    prefetcher = Prefetcher(lambda step: step, 0, 10**9)
    next(prefetcher)
    prefetcher.close()
    assert not prefetcher._thread.is_alive()


def test_synthetic_rows_hold_ordinary_tokens_between_cls_and_sep():
    vocabulary = standard_vocabulary(30)
    rows = SyntheticRows(10, 16, vocabulary).read(np.array([3, 3, 7]))
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    assert (rows[:, 0] == vocabulary.cls_id).all() and (rows[:, -1] == vocabulary.sep_id).all()
    assert (rows[:, 1:-1] >= 5).all() and (rows[:, 1:-1] < 30).all()
