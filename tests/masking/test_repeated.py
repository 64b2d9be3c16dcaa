"""Rows in which each token stands several times, each copy masked by itself."""

import jax
import numpy as np
import pytest
from draws import VOCABULARY, draw, full_rows, make, masked_positions

from mlm_jax import config as config_lib
from mlm_jax.data.packing import segment_ids
from mlm_jax.training.step import batch_statistics


@pytest.mark.parametrize('repeats', [2, 3])
@pytest.mark.parametrize('strategy', ['uniform', 'bernoulli'])
def test_copies_stand_side_by_side_and_are_masked_by_themselves(strategy, repeats):
    tokens, ratio = full_rows(400, 42), 0.5
    masking = make(strategy, ratio=ratio, repeats=repeats)
    batch, overflow = draw(masking, jax.random.key(0), tokens)
    assert np.array_equal(batch.tokens, np.repeat(tokens, repeats, axis=1))
    assert np.array_equal(batch.segments, np.repeat(segment_ids(tokens, VOCABULARY), repeats, axis=1))
    assert batch.positions.shape == (400, masking.max_masked(42))
    copies = masked_positions(batch).reshape(400, 42, repeats)
    assert not copies[:, [0, -1]].any()

    inner, count = copies[:, 1:-1], 400 * 40
    statistics = {k: float(s) / float(w) for k, (s, w) in batch_statistics(batch, masking, overflow).items()}
    assert statistics['masked_ratio'] == pytest.approx(inner.mean())
    assert statistics['corrupted_ratio'] == pytest.approx(inner.all(-1).mean())
    # p of the inputs, p^k of the tokens; a fixed count makes copies depend on each other a little.
    assert inner.mean() == pytest.approx(ratio, abs=4 * np.sqrt(0.25 / (count * repeats)))
    lost = ratio**repeats
    assert inner.all(-1).mean() == pytest.approx(lost, abs=4 * np.sqrt(lost * (1 - lost) / count) + 0.01)


def test_the_configuration_holds_the_share_of_lost_tokens_when_copies_are_added():
    for repeats in (1, 2, 4):
        config = config_lib.load(f'configs/repeated_mlm.py:tiny,repeats={repeats},corruption=0.15')
        assert config.masking.ratio**repeats == pytest.approx(0.15)
        assert config.evaluation.ratio == config.masking.ratio
