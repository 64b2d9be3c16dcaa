"""Orders of rows: permutations of all rows, and permutations of blocks with windows."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from mlm_jax.data.orders import BlockPermutation, Permutation

sizes = st.integers(1, 200)


@hypothesis.given(sizes, st.integers(1, 20), st.integers(1, 8), st.integers(0, 1000))
@hypothesis.settings(deadline=None, max_examples=60)
def test_every_row_comes_once_in_every_epoch(count, block_rows, window_blocks, seed):
    order = BlockPermutation(count, seed, block_rows, window_blocks)
    rows = order(np.arange(3 * count))
    for epoch in range(3):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))


@hypothesis.given(sizes, st.integers(1, 20), st.integers(1, 8), st.integers(0, 500), st.integers(1, 50))
@hypothesis.settings(deadline=None, max_examples=60)
def test_any_positions_have_their_rows_in_the_spans_whenever_they_are_asked_for(count, block_rows, window, start, size):
    order = BlockPermutation(count, 3, block_rows, window)
    rows, spans = order(np.arange(start, start + size)), order.spans(start, start + size)
    again = BlockPermutation(count, 3, block_rows, window)  # without what the first has computed before
    assert rows[::-1].tolist() == again(np.arange(start, start + size)[::-1]).tolist()
    ranges = [range(*span) for span in spans.tolist()]
    assert len({row for span in ranges for row in span}) == sum(map(len, ranges)), 'spans do not overlap'
    assert all(any(row in span for span in ranges) for row in rows.tolist())
    following = order(np.array([start + size]))
    assert any(int(following[0]) in span for span in ranges), 'what comes next is among what is read'
    assert all(len(span) <= block_rows and span.start % block_rows == 0 for span in ranges)


def test_windows_hold_whole_blocks_and_mix_their_rows():
    order, block_rows = BlockPermutation(10_000, 0, 100, 8), 100
    rows = order(np.arange(10_000))
    windows = np.split(rows, np.cumsum([len(order._first_rows(w)) for w in range(13)])[:-1] * block_rows)
    for window in windows:
        blocks, counts = np.unique(window // block_rows, return_counts=True)
        assert 7 <= len(blocks) <= 8 and (counts == block_rows).all()
        share = (window[1:] // block_rows == window[:-1] // block_rows).mean()
        assert 0.08 < share < 0.18, 'neighbors come from the same block with probability about 1/8'


def test_orders_have_not_changed():
    """A run that goes on with another version must find the same rows: no change of these numbers is harmless."""
    assert Permutation(10, 7)(np.arange(15)).tolist() == [4, 0, 3, 7, 2, 9, 6, 8, 1, 5, 5, 3, 6, 7, 9]
    assert BlockPermutation(11, 7, 2, 2)(np.arange(15)).tolist() == [8, 9, 4, 5, 1, 0, 3, 7, 6, 2, 10, 8, 9, 7, 5]
