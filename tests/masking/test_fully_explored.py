"""Fully-explored masking: its masks divide a text, at any step, with any unit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import TABLES, VOCABULARY, draw, full_rows, mask, masked_positions, rows

from mlm_jax.masking.masking import Masking
from mlm_jax.masking.registry import PARTITIONS, UNITS, FullyExplored


def make(unit: str = 'token', num_rows: int = 0, **options) -> Masking:
    options = FullyExplored(**options)
    return Masking(VOCABULARY, 'fully_explored', unit=unit, fully_explored=options, tables=TABLES, num_rows=num_rows)


@pytest.mark.smoke
@pytest.mark.parametrize('partition', PARTITIONS)
@pytest.mark.parametrize('segments', [2, 7])
def test_the_masks_of_a_step_divide_the_tokens(partition, segments):
    tokens = rows(1, batch=64)
    masking = make(segments=segments, partition=partition)
    batch, overflow = draw(masking, jax.random.key(0), tokens)
    masked = masked_positions(batch).reshape(64, segments, -1)
    eligible = tokens >= 5
    assert np.array_equal(masked.sum(1), eligible), 'disjoint, covering, no specials'
    sizes = masked.sum(2)
    assert np.all(sizes.max(1) - sizes.min(1) <= 1)
    assert batch.weights.sum() == eligible.sum(), 'exactly N predictions'
    assert not overflow.any()


@pytest.mark.parametrize(
    ('partition', 'unit'),
    [('random', unit) for unit in UNITS if unit != 'token'] + [('contiguous', 'span'), ('stratified', 'span')],
)
def test_units_stay_whole_and_nothing_is_masked_twice(partition, unit):
    tokens = rows(1, batch=64)
    batch, overflow = draw(make(unit, segments=3, partition=partition), jax.random.key(0), tokens)
    masked = masked_positions(batch).reshape(64, 3, -1)
    assert masked.sum(1).max() == 1
    assert masked.sum() + overflow.sum() == (tokens >= 5).sum()
    assert overflow.sum() <= 0.01 * masked.sum()


@pytest.mark.parametrize('partition', PARTITIONS)
def test_every_position_is_as_likely_in_every_view(partition):
    """20 tokens in 7 segments of 2 or 3: the odd ones must not always fall to the same view."""
    tokens = full_rows(6000)
    for schedule in ('subset', 'successive'):
        masking = make(partition=partition, schedule=schedule, num_rows=6000)
        masked = masked_positions(mask(masking, jax.random.key(0), tokens)).reshape(6000, -1, 22)[:, :, 1:-1]
        assert masked.shape[1] == (2 if schedule == 'subset' else 1)
        for view in range(masked.shape[1]):
            assert np.all(np.abs(masked[:, view].mean(0) - 1 / 7) < 4.5 * np.sqrt(1 / 7 * 6 / 7 / 6000))


def test_the_masks_of_a_subset_are_disjoint():
    masked = masked_positions(mask(make(schedule='subset', views=3), jax.random.key(0), rows(1, batch=64)))
    assert masked.reshape(64, 3, -1).sum(1).max() == 1
    assert masked.shape[0] == 3 * 64


@pytest.mark.parametrize('unit', ['token', 'ngram'])
def test_successive_visits_explore_a_row_and_start_afresh(unit):
    """Rows come in another order and in other batches at each visit; nothing but the visit number is known of them."""
    tokens = rows(4, batch=32)
    masking = make(unit, segments=4, schedule='successive', num_rows=32)
    rng = np.random.default_rng(0)
    cycles = []
    for cycle in range(2):
        masks = []
        for visit in range(4 * cycle, 4 * cycle + 4):
            order = rng.permutation(32)
            halves = [
                masked_positions(mask(masking, jax.random.key(visit), tokens[part], 2 * visit + half))
                for half, part in enumerate(np.split(order, 2))
            ]
            masks.append(np.concatenate(halves)[np.argsort(order)])
        masks = np.stack(masks)
        assert np.array_equal(masks.sum(0), tokens >= 5)
        cycles.append(masks)
    assert not np.array_equal(*cycles), 'another partition'


def test_a_random_partition_is_unbiased():
    """Over partitions, the mean over masks equals that over random masks of the same ratio, whatever the loss.

    The loss here is nonlinear in the mask and knows its size: Σ over pairs of masked positions of a random matrix.
    """
    tokens = np.tile(full_rows(1, 23), (30_000, 1))  # 21 tokens in 7 segments of 3
    a = np.random.default_rng(0).normal(size=(21, 21))

    def losses(batch):
        masked = masked_positions(batch)[:, 1:-1].astype(float)
        return np.einsum('bi,ij,bj->b', masked, a, masked)

    explored = losses(mask(make(), jax.random.key(0), tokens[:5000])).reshape(5000, 7).mean(1)
    independent = losses(mask(Masking(VOCABULARY, ratio=1 / 7 + 1e-7), jax.random.key(1), tokens))
    error = np.sqrt(explored.var() / len(explored) + independent.var() / len(independent))
    assert abs(explored.mean() - independent.mean()) < 4 * error
    assert explored.var() < independent.var() / 7, 'and varies less than the mean of 7 independent masks'


def test_neighbours_part_in_strata_and_stay_together_in_contiguous_segments():
    tokens = full_rows(500, 128)
    together = {}
    for partition in PARTITIONS:
        masked = masked_positions(mask(make(partition=partition), jax.random.key(0), tokens))
        together[partition] = (masked[:, 1:] & masked[:, :-1]).sum() / masked.sum()
    assert together['contiguous'] > 0.93
    assert together['stratified'] < together['random'] - 0.03 and abs(together['random'] - 1 / 7) < 0.02


def test_short_rows_have_empty_masks():
    tokens = np.full((4, 16), VOCABULARY.pad_id, np.int32)
    tokens[:, :4] = [VOCABULARY.cls_id, 7, 8, VOCABULARY.sep_id]
    batch = mask(make(), jax.random.key(0), tokens)
    assert batch.weights.sum() == 4 * 2 and jnp.all(batch.weights.reshape(4, 7, -1).sum((1, 2)) == 2)
