"""Properties of masking, over every strategy in the registry."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.data.packing import segment_ids
from mlm_jax.masking import corruption, selection
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.vocabulary import Vocabulary, standard_vocabulary
from mlm_jax.parallel.mesh import batch_sharding, make_mesh
from mlm_jax.training.step import frozen_masks

VOCABULARY = standard_vocabulary(50)
STRATEGIES = sorted(selection.STRATEGIES)


def rows(seed: int, batch: int = 8, length: int = 48) -> np.ndarray:
    """Rows of one or two documents with padding behind them."""
    rng = np.random.default_rng(seed)
    tokens = np.full((batch, length), VOCABULARY.pad_id, np.int32)
    for row in tokens:
        end = 0
        for _ in range(rng.integers(1, 3)):
            size = int(rng.integers(3, length // 2))
            row[end : end + size] = rng.integers(5, VOCABULARY.size, size)
            row[end], row[end + size - 1] = VOCABULARY.cls_id, VOCABULARY.sep_id
            end += size
    return tokens


@functools.partial(jax.jit, static_argnums=0)
def mask(masking: Masking, key, tokens):
    return masking(key, tokens, segment_ids(tokens, masking.vocabulary))


@pytest.mark.smoke
@pytest.mark.parametrize('strategy', STRATEGIES)
@hypothesis.given(st.integers(0, 10_000), st.sampled_from([0.0, 0.15, 0.4, 1.0]), st.sampled_from([(1, 0), (0.8, 0.1)]))
@hypothesis.settings(deadline=None, max_examples=25)
def test_a_masked_batch_keeps_its_promises(strategy, seed, ratio, fractions):
    masking = Masking(VOCABULARY, strategy, ratio, *map(float, fractions))
    tokens = rows(seed)
    batch = jax.tree.map(np.asarray, mask(masking, jax.random.key(seed), tokens))
    length = tokens.shape[1]
    assert np.array_equal(batch.tokens, tokens)
    assert batch.positions.shape == (8, masking.max_masked(length))
    special = np.isin(tokens, VOCABULARY.special_ids)
    for row in range(8):
        positions = batch.positions[row]
        used = positions[positions < length]
        assert np.all(np.diff(used) > 0), 'ascending and unique'
        assert np.all(positions[len(used) :] == length), 'unused slots hold T, behind the others'
        assert np.array_equal(batch.weights[row] > 0, positions < length)
        assert not special[row, used].any(), 'no specials, no padding'
        untouched = np.setdiff1d(np.arange(length), used)
        assert np.array_equal(batch.inputs[row, untouched], tokens[row, untouched])
        num_eligible = (~special[row]).sum()
        assert ratio * num_eligible - 1 < len(used) < ratio * num_eligible + 1 + 1e-4
        replaced = batch.inputs[row, used]
        assert np.all((replaced == VOCABULARY.mask_id) | (replaced >= 5)), 'only [MASK] and ordinary ids'
        if fractions == (1, 0):
            assert np.all(replaced == VOCABULARY.mask_id)


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_count_and_positions_have_the_right_expectation(strategy):
    """20 ordinary tokens at 15 %: 3 each time; at 16 %: 3.2 on average. Every position equally often."""
    tokens = np.full((4000, 22), 7, np.int32)
    tokens[:, 0], tokens[:, -1] = VOCABULARY.cls_id, VOCABULARY.sep_id
    for ratio, expected in ((0.15, 3.0), (0.16, 3.2)):
        batch = mask(Masking(VOCABULARY, strategy, ratio), jax.random.key(1), tokens)
        counts = np.asarray(batch.weights.sum(1))
        assert set(counts) <= {3.0, 4.0}
        assert abs(counts.mean() - expected) < 4 * 0.5 / np.sqrt(4000)
    positions = np.asarray(batch.positions).ravel()
    frequency = np.bincount(positions[positions < 22], minlength=22)[1:-1] / 4000
    assert np.all(np.abs(frequency - 0.16) < 4.5 * np.sqrt(0.16 * 0.84 / 4000))


def test_corruption_follows_its_fractions():
    tokens = jnp.full((400, 100), 7)
    out = np.asarray(corruption.corrupt(jax.random.key(0), tokens, jnp.ones_like(tokens, bool), VOCABULARY, 0.8, 0.1))
    masked, random = (out == VOCABULARY.mask_id).mean(), ((out != VOCABULARY.mask_id) & (out != 7)).mean()
    assert abs(masked - 0.8) < 0.01
    assert abs(random - 0.1 * 44 / 45) < 0.01  # one draw in 45 hits the token itself


def test_random_replacement_draws_every_ordinary_id_equally_and_no_special():
    vocabulary = Vocabulary(size=12, pad_id=1, cls_id=0, sep_id=2, mask_id=11, special_ids=(0, 1, 2, 5, 11))
    drawn = np.asarray(corruption.random_ordinary_tokens(jax.random.key(0), (70_000,), vocabulary))
    counts = np.bincount(drawn, minlength=12)
    ordinary = [3, 4, 6, 7, 8, 9, 10]
    assert counts.sum() == counts[ordinary].sum()
    assert np.all(np.abs(counts[ordinary] - 10_000) < 500)


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_masks_have_the_same_bits_on_one_and_on_eight_devices(strategy):
    masking, tokens, key = Masking(VOCABULARY, strategy, 0.3, 0.8, 0.1), rows(3, batch=16), jax.random.key(5)
    expected = mask(masking, key, tokens)
    for shape in ((8, 1, 1), (2, 2, 2)):
        sharded = jax.device_put(tokens, batch_sharding(make_mesh(*shape)))
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(mask(masking, key, sharded)), strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_another_key_gives_another_mask_and_the_same_key_the_same(strategy):
    masking, tokens = Masking(VOCABULARY, strategy, 0.3), rows(3)
    a, b, c = (mask(masking, jax.random.key(k), tokens).positions for k in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_frozen_masks_depend_on_the_row_and_not_on_its_batch():
    masking, tokens = Masking(VOCABULARY, ratio=0.3), rows(3)
    segments = segment_ids(tokens, VOCABULARY)
    whole = frozen_masks(masking, tokens, segments, jnp.arange(8))
    part = frozen_masks(masking, tokens[4:6], segments[4:6], jnp.arange(4, 6))
    assert np.array_equal(whole.inputs[4:6], part.inputs)
    assert np.array_equal(whole.positions[4:6], part.positions)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(special_ids=(0, 2, 3)), 'mask_id = 4 is missing'),
        (dict(special_ids=(0, 3, 2, 4)), 'ascending'),
        (dict(size=4), 'outside'),
    ],
)
def test_impossible_vocabularies_are_refused(fields, message):
    valid = dict(size=10, pad_id=0, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 2, 3, 4))
    with pytest.raises(ValueError, match=message):
        Vocabulary(**{**valid, **fields})
