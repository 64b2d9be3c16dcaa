"""Examples become rows, and rows batches: nothing is lost, and little is padding."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax.config import ConfigError
from mlm_jax.finetuning import inputs as inputs_lib
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.tasks.examples import Example, hold_out

VOCABULARY = standard_vocabulary(64)


class Letters:
    """A tokenizer: one id for each character."""

    vocabulary = VOCABULARY

    def encode_batch(self, texts):
        return [np.array([5 + ord(c) % 50 for c in text], np.int32) for text in texts]


def encode(*texts: str, max_length: int, **options):
    notes = Counter()
    rows = inputs_lib.encode([Example('0', texts, (0.0,))], Letters(), max_length, notes, **options)
    return rows.tokens[0].tolist(), notes['rows cut at max_length']


def test_one_text_and_a_pair():
    v = VOCABULARY
    a, b = Letters().encode_batch(['ab', 'xyz'])
    assert encode('ab', max_length=16) == ([v.cls_id, *a, v.sep_id], 0)
    assert encode('ab', 'xyz', max_length=16) == ([v.cls_id, *a, v.sep_id, v.sep_id, *b, v.sep_id], 0)
    assert encode('ab', 'xyz', max_length=8, separators=1) == ([v.cls_id, *a, v.sep_id, *b, v.sep_id], 0), 'as BERT'


def cut_token_by_token(first: int, second: int, room: int) -> tuple[int, int]:
    while first + second > room:
        if first > second:
            first -= 1
        else:
            second -= 1
    return first, second


@given(st.integers(1, 40), st.integers(1, 40), st.integers(6, 40))
def test_of_a_pair_the_longer_text_is_cut(first, second, max_length):
    row, cut = encode('a' * first, 'b' * second, max_length=max_length)
    assert len(row) == min(max_length, first + second + 4)
    assert cut == (first + second + 4 > max_length)
    a, b = row.count(5 + ord('a') % 50), row.count(5 + ord('b') % 50)
    want = cut_token_by_token(first, second, max_length - 4)
    assert sorted((a, b)) == sorted(want) and (a - b) * (first - second) >= 0


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(ConfigError, match='leaves no room'):
        encode('a', 'b', max_length=5)
    mixed = [Example('0', ('a',), (0.0,)), Example('1', ('a', 'b'), (0.0,))]
    with pytest.raises(ConfigError, match='1 and 2 texts'):
        inputs_lib.encode(mixed, Letters(), 16, Counter())


@settings(max_examples=30)
@given(st.lists(st.integers(3, 200), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 3))
def test_every_row_once_in_each_epoch(lengths, batch_size, epoch):
    lengths = np.array(lengths)
    batches = list(inputs_lib.epoch_batches(lengths, batch_size, seed=1, epoch=epoch))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    rows = inputs_lib.Inputs([np.zeros(length, np.int32) for length in lengths], np.zeros((len(lengths), 1)), 200)
    assert all(
        length <= inputs_lib.batch_length(rows, length) <= max(16, min(200, 1.25 * length + 15)) for length in lengths
    )


@pytest.mark.parametrize(('step', 'longest', 'programs'), [(4, 100, 15), (16, 200, 11), (16, 500, 16)])
def test_rows_are_padded_a_little_and_to_few_lengths(step, longest, programs):
    lengths = [inputs_lib.padded_length(n, step, longest) for n in range(3, longest + 1)]
    assert lengths == sorted(lengths) and max(lengths) == longest
    assert all(n <= length < max(n + step, 1.25 * n) for n, length in zip(range(3, longest + 1), lengths, strict=True))
    assert len(set(lengths)) <= programs, 'each is a program to compile'


def test_epochs_and_seeds_have_orders_of_their_own_and_equal_lengths_in_turn():
    lengths = np.random.default_rng(0).integers(3, 120, 400)

    def batches(seed, epoch):
        return list(inputs_lib.epoch_batches(lengths, 8, seed, epoch))

    assert not np.array_equal(np.concatenate(batches(1, 0)), np.concatenate(batches(1, 1)))
    assert not np.array_equal(np.concatenate(batches(1, 0)), np.concatenate(batches(2, 0)))
    ours, theirs = ([lengths[rows].max() for rows in batches(seed, 0)] for seed in (1, 2))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.95, 'seeds side by side are padded alike'
    padded = sum(8 * longest for longest in ours)
    assert padded < 1.2 * lengths.sum(), 'neighbours in length share a batch'


def test_padding():
    rows = inputs_lib.Inputs([np.array([2, 9, 3]), np.array([2, 3])], np.array([[1.0], [0.0]], np.float32), 8)
    tokens, targets = inputs_lib.pad_rows(rows, np.array([1, 0]), 3, 4, pad_id=0)
    assert tokens.tolist() == [[2, 3, 0, 0], [2, 9, 3, 0], [0, 0, 0, 0]]
    assert targets[:2].tolist() == [[0.0], [1.0]] and np.isnan(targets[2]).all()


def test_held_out_examples_depend_on_their_texts_alone():
    examples = [Example(str(i), (f'text {i % 500}',), (0.0,)) for i in range(1000)]
    stay, held = hold_out(examples, 20.0)
    assert len(stay) + len(held) == 1000 and 120 < len(held) < 280
    assert not {e.texts for e in stay} & {e.texts for e in held}
    assert [e.id for e in hold_out(examples[::-1], 20.0)[1]] == [e.id for e in held[::-1]]
