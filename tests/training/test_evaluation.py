"""What is said of the held-out loss."""

import jax
import numpy as np
import pytest

from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.training.evaluation import HeldOutSources


class Rows:
    """Three rows of four tokens."""

    sequence_length = 4

    def __len__(self):
        return 3

    def read(self, indices):
        return np.ones((len(indices), 4), np.int32)


@pytest.fixture(scope='module')
def held_out():
    """Names → their held-out rows."""
    sharding = mesh_lib.batch_sharding(mesh_lib.make_mesh(devices=jax.devices()[:1]))

    def make(*names):
        weights = dict.fromkeys(names, 1 / len(names))
        return HeldOutSources({name: Rows() for name in names}, weights, 6, 2, 0, sharding)

    return make


@pytest.mark.parametrize(
    ('metrics', 'shown'),
    [
        ({'loss': 2.0}, ''),
        ({'loss': 2.0, 'masked_nll': 2.00001}, ''),
        ({'loss': 2.0, 'masked_nll': 1.5}, ', 1.5000 nats per masked token'),
    ],
)
def test_the_number_that_compares_objectives_stands_behind_another_loss(held_out, metrics, shown):
    assert held_out('wiki').describe(metrics) == shown
    of_mixture = metrics | {'wiki/loss': 1.75, 'law/loss': 2.25}
    assert held_out('wiki', 'law').describe(of_mixture) == f'{shown} (wiki 1.7500, law 2.2500)'
