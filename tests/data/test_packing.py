"""Packing loses nothing, keeps order, fills rows; segments follow from the tokens."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_jax.data import packing
from mlm_jax.masking.vocabulary import standard_vocabulary

VOCABULARY = standard_vocabulary(1000)
PACKINGS = ('documents', 'full_sentences', 'one_per_row')


def make_documents(lengths):
    """Documents of the given lengths, every token of which is different (up to 995)."""
    ends = np.cumsum(lengths)
    return [((np.arange(e - n, e) % 995) + 5).astype(np.int32) for e, n in zip(ends, lengths)]


def pieces_of(rows):
    """The pieces in rows, without [CLS], [SEP] and padding."""
    for row in rows:
        row = row[row != VOCABULARY.pad_id]
        for part in np.split(row, np.flatnonzero(row == VOCABULARY.cls_id)):
            if len(part):
                assert part[0] == VOCABULARY.cls_id and part[-1] == VOCABULARY.sep_id
                yield tuple(part[1:-1].tolist())


def expected_pieces(documents, length):
    return [tuple(d[i : i + length - 2].tolist()) for d in documents for i in range(0, len(d), length - 2)]


@given(lengths=st.lists(st.integers(0, 60), max_size=30), length=st.integers(3, 40))
def test_documents_keep_every_piece_whole(lengths, length):
    documents = make_documents(lengths)
    for mode in ('documents', 'one_per_row'):
        rows = packing.pack(documents, length, VOCABULARY, mode)
        assert rows.shape[1:] == (length,)
        assert sorted(pieces_of(rows)) == sorted(expected_pieces(documents, length))
        padding = rows == VOCABULARY.pad_id
        assert (np.diff(padding.astype(int), axis=1) >= 0).all(), 'padding only at the end'


@given(lengths=st.lists(st.integers(0, 60), max_size=30), length=st.integers(3, 40))
def test_one_per_row_keeps_the_order(lengths, length):
    documents = make_documents(lengths)
    rows = packing.pack(documents, length, VOCABULARY, 'one_per_row')
    assert list(pieces_of(rows)) == expected_pieces(documents, length)


@given(lengths=st.lists(st.integers(0, 60), max_size=30), length=st.integers(3, 40))
def test_full_sentences_is_one_stream(lengths, length):
    documents = make_documents(lengths)
    rows = packing.pack(documents, length, VOCABULARY, 'full_sentences')
    assert (rows[:, 0] == VOCABULARY.cls_id).all()
    stream = rows[:, 1:].ravel()
    expected = [t for d in documents if len(d) for t in [*d.tolist(), VOCABULARY.sep_id]]
    assert stream[: len(expected)].tolist() == expected
    assert (stream[len(expected) :] == VOCABULARY.pad_id).all()
    assert len(stream) - len(expected) < length - 1


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_best_fit_decreasing_fills_bins_without_overlap(sizes):
    bins, offsets = packing.best_fit_decreasing(np.array(sizes), 20)
    used = np.zeros((bins.max() + 1, 20), int)
    for b, o, size in zip(bins, offsets, sizes):
        assert o + size <= 20
        used[b, o : o + size] += 1
    assert used.max() == 1
    # The guarantee of the algorithm: 11/9 of the optimum and one.
    assert len(used) <= 11 / 9 * -(-sum(sizes) // 20) * 1.5 + 1


@pytest.mark.parametrize('length', [128, 512])
@pytest.mark.parametrize(('median', 'spread'), [(25, 0.5), (120, 1.0), (900, 1.2)])
def test_realistic_documents_leave_at_most_3_percent_padding(length, median, spread):
    lengths = np.random.default_rng(0).lognormal(np.log(median), spread, 4000).astype(int) + 1
    rows = packing.pack(make_documents(lengths), length, VOCABULARY, 'documents')
    assert (rows != VOCABULARY.pad_id).mean() >= 0.97


@pytest.mark.parametrize('array', [np.asarray, jnp.asarray])
def test_segment_ids_count_documents_and_zero_padding(array):
    rows = packing.pack(make_documents([2, 3, 20]), 10, VOCABULARY, 'documents', np.uint16)
    for row, segments in zip(rows, np.asarray(packing.segment_ids(array(rows), VOCABULARY))):
        assert segments.dtype == np.int32
        expected, current = [], 0
        for token in row:
            current += token == VOCABULARY.cls_id
            expected.append(0 if token == VOCABULARY.pad_id else current)
        assert segments.tolist() == expected


def test_full_sentences_are_one_segment():
    rows = packing.pack(make_documents([4, 7, 9]), 8, VOCABULARY, 'full_sentences')
    segments = packing.segment_ids(rows, VOCABULARY)
    assert set(np.unique(segments)) <= {0, 1}
    assert ((segments == 0) == (rows == VOCABULARY.pad_id)).all()


@pytest.mark.parametrize('mode', PACKINGS)
def test_no_documents_make_no_rows(mode):
    assert packing.pack([], 8, VOCABULARY, mode).shape == (0, 8)
    assert packing.pack([np.zeros(0, np.int32)], 8, VOCABULARY, mode).shape == (0, 8)


def test_a_row_too_short_for_text_is_refused():
    with pytest.raises(ValueError, match='sequence_length=2 leaves no room'):
        packing.pack([], 2, VOCABULARY, 'documents')
