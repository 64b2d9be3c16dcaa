"""The gradient variance, against a quadratic model whose covariances are known.

The loss of a position i is ‖w − a_i‖²/2, so the gradient of a mask m of s positions is w − mean of a_i over m. Over
masks of s of N positions with o in common, sampling without replacement gives c_o = A·(o/s² − 1/N), where A is
the sample variance of the a_i.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.analysis import gradient_variance
from mlm_jax.analysis.gradient_variance import Design
from mlm_jax.data.synthetic import SyntheticRows
from mlm_jax.losses.terms import LossTerms
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.parallel.mesh import batch_sharding, make_mesh, split_rows

VOCABULARY = standard_vocabulary(64)
LENGTH = 26  # 24 eligible positions
WIDTH = 16


class Quadratic(nn.Module):
    """‖w − a_token‖²/2 over the masked tokens."""

    @nn.compact
    def __call__(self, batch, deterministic=True):
        w = self.param('w', nn.initializers.zeros, (WIDTH,))
        losses = split_rows(0.5 * ((w - vectors()[batch.targets]) ** 2).sum(-1))  # as models do
        return LossTerms((losses * batch.weights).sum(), batch.weights.sum(), {})


def vectors():
    """f32[V, WIDTH]: a_i."""
    return jax.random.normal(jax.random.key(1), (VOCABULARY.size, WIDTH)) * jnp.arange(1, WIDTH + 1)


@dataclasses.dataclass(frozen=True)
class Views(Masking):
    """Two rows of a text: position 1 is predicted in one, and position 2, with twice the weight, in the other."""

    def __call__(self, key, tokens, segments, step=0):
        rows = [jnp.concatenate([x, x]) for x in (tokens, segments)]
        return MaskedBatch(rows[0], rows[0], jnp.array([[1], [2]]), jnp.array([[1.0], [2.0]]), rows[1])


def known_covariance(a_Nxd, size, overlap):
    """c_o of the mean over `size` of the N positions."""
    spread = ((a_Nxd - a_Nxd.mean(0)) ** 2).sum() / (len(a_Nxd) - 1)
    return spread * (overlap / size**2 - 1 / len(a_Nxd))


@pytest.mark.parametrize('segments', [2, 3, 7])
def test_windows_share_what_is_prescribed(segments):
    eligible = jnp.arange(64) % 9 > 0  # 56
    design, size = Design(segments=segments), 56 // segments
    starts = gradient_variance.window_starts(jnp.int32(size), design)
    masks = np.asarray(gradient_variance.window_masks(jax.random.key(0), eligible, size, starts))
    assert (masks.sum(1) == size).all() and not (masks & ~np.asarray(eligible)).any()
    shared = (masks[:, None] & masks[None]).sum(-1)
    assert (shared[:segments, :segments] == size * np.eye(segments)).all(), 'disjoint'
    assert shared[0, segments:].tolist() == np.round(np.array(design.overlaps) * size).tolist()


def test_every_window_is_a_uniform_mask():
    eligible, size = jnp.arange(14) > 1, 4
    starts = gradient_variance.window_starts(jnp.int32(size), Design(segments=3))
    keys = jax.random.split(jax.random.key(0), 4000)
    masks = jax.vmap(lambda key: gradient_variance.window_masks(key, eligible, size, starts))(keys)
    frequency = np.asarray(masks).mean(0)[:, 2:]
    assert np.abs(frequency - size / 12).max() < 4.5 * np.sqrt(1 / 3 * 2 / 3 / 4000)


def test_windows_of_repeated_mlm_lie_over_all_copies():
    masking, design = Masking(VOCABULARY, repeats=2), Design(segments=3, draws=3, overlaps=())
    tokens_T = SyntheticRows(1, LENGTH, VOCABULARY).read(np.arange(1))[0]
    batch = gradient_variance.window_batches(jax.random.key(0), jnp.asarray(tokens_T), masking, design)
    assert np.array_equal(batch.tokens[0], np.repeat(tokens_T, 2)) and batch.segments.shape == batch.tokens.shape
    covered = np.sort(np.asarray(batch.positions[:3]).ravel())
    eligible = 2 * (LENGTH - 2)
    assert np.count_nonzero(covered < 2 * LENGTH) == eligible - eligible % 3


def test_estimates_have_no_bias():
    """Averages over many texts lie within their error; an estimate around a mean with the draw itself would not."""
    rng, size, segments, draws, overlaps = np.random.default_rng(0), 4, 3, 3, (1, 2, 4)
    a_Nxd = rng.normal(size=(12, 5)) + 7
    starts = [0, 4, 8, *(size - overlap for overlap in overlaps)]
    estimates, biased = [], []
    for _ in range(3000):
        orders_PxN = rng.permuted(np.tile(np.arange(12), (draws, 1)), axis=1)
        windows = np.stack([-a_Nxd[orders_PxN[:, start : start + size]].mean(1) for start in starts], 1)
        moments = gradient_variance.window_moments(windows, segments)
        # All 12 positions are masked once, so the mean over disjoint masks is exact: leave one mask out for that part.
        partial = gradient_variance.window_moments(windows[:, [0, 1, 3]], 2)
        estimates.append([moments.variance, *moments.covariances, partial.disjoint])
        first = windows[:, 0] - windows[:, 0].mean(0)
        biased.append((first**2).sum(1).mean())
    c = [known_covariance(a_Nxd, size, overlap) for overlap in (size, 0, *overlaps)]
    expected = np.array([*c, (c[0] + c[1]) / 2])
    error = np.std(estimates, axis=0) / np.sqrt(len(estimates))
    assert (np.abs(np.mean(estimates, axis=0) - expected) < 4 * error + 1e-9).all()
    assert np.mean(biased) < expected[0] - 10 * error[0], 'the test would notice'


def test_disjoint_masks_vary_as_their_covariance_says():
    """Var(disjoint) = (σ² + (K − 1) c_0)/K holds for the estimates too."""
    windows = np.random.default_rng(0).normal(size=(5, 6, 8))
    moments = gradient_variance.window_moments(windows, segments=4)
    assert moments.disjoint == pytest.approx((moments.variance + 3 * moments.covariances[0]) / 4)


def test_variance_between_texts_excludes_that_of_their_means():
    rng, between, within = np.random.default_rng(0), 2.0, 9.0
    found = []
    for _ in range(400):
        means = rng.normal(size=(6, 3)) * np.sqrt(between / 3)
        draws = means[:, None] + rng.normal(size=(6, 4, 3)) * np.sqrt(within / 3)
        moments = [gradient_variance.draw_moments(text) for text in draws]
        means_Sxk, errors_S = np.stack([m[1] for m in moments]), np.array([m[2] for m in moments])
        found.append(gradient_variance.between_texts(means_Sxk, errors_S))
    assert abs(np.mean(found) - between) < 4 * np.std(found) / 20 < 0.7 * within / 4


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(0).normal(size=17)
    value, error = gradient_variance.jackknife(lambda index: x[index].mean(), 17)
    assert value == pytest.approx(x.mean()) and error == pytest.approx(x.std(ddof=1) / np.sqrt(17))


def test_sketched_gradients_on_any_mesh_and_what_they_add_up_to():
    """From tokens to the summary: the known covariances of the quadratic model, within the errors that are claimed."""
    design = Design(segments=3, draws=6, overlaps=(0.5, 1.0), sketch_size=32)
    masking = Masking(VOCABULARY, ratio=0.25)
    tokens = SyntheticRows(24, LENGTH, VOCABULARY).read(np.arange(24))
    params = Quadratic().init(jax.random.key(0), masking(jax.random.key(0), tokens[:1], np.ones((1, LENGTH), np.int32)))
    found = []
    for mesh in (make_mesh(), make_mesh(devices=jax.devices()[:1])):
        with jax.set_mesh(mesh):
            gradients = gradient_variance.make_sketched_gradients(Quadratic(), masking, design, mesh)
            place = batch_sharding(mesh)
            found.append(jax.device_get(gradients(params['params'], *jax.device_put((tokens, np.arange(24)), place))))
    assert jax.tree.map(np.shape, found[0]) == ((24, 6, 5, 32), (24, 6, 32))
    for x, y in zip(*found, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-4)
    assert (found[0][0][:, :, 0] == found[0][0][:, :, -1]).all(), 'all [MASK]: nothing but the positions is random'

    texts = [gradient_variance.window_moments(windows, 3) for windows in found[0][0]]
    summary = gradient_variance.summarize(texts, [gradient_variance.draw_moments(own) for own in found[0][1]], design)
    a_SxNxd = np.asarray(vectors(), np.float64)[tokens[:, 1:-1]]
    c_OxS = np.array([[known_covariance(a, 8, overlap) for a in a_SxNxd] for overlap in (8, 0, 4)])
    own = np.mean([known_covariance(a, 6, 6) for a in a_SxNxd])  # a quarter of 24
    means = a_SxNxd.mean(1)
    between = ((means - means.mean(0)) ** 2).sum() / 23
    variance, covariance = c_OxS[0].mean(), c_OxS[1:].mean(1)
    disjoint = (variance + 2 * covariance[0]) / 3
    expected = {
        'variance': variance,
        'own_variance': own,
        'between_texts': between,
        'own_between_texts': between,
        'disjoint_over_independent': disjoint / (variance / 3),
        'disjoint_over_distinct_texts': (between + disjoint) * 3 / (between + variance),
        'c0_plus_between_over_variance': (covariance[0] + between) / variance,
    }
    for name, value in expected.items():
        assert abs(summary[name][0] - value) < 4 * summary[name][1] + 1e-4, name
    assert abs(summary['covariance_over_variance'][1][0] - covariance[1] / variance) < 0.1
    assert summary['covariance_over_variance'][2][0] == pytest.approx(1, abs=0.15)
    for name in ('variance', 'own_variance'):
        assert summary[name][1] < 0.2 * summary[name][0], 'errors small enough to tell'


def test_several_rows_of_a_text_have_the_gradient_of_their_common_loss():
    design, mesh = Design(segments=3, draws=3, overlaps=(), sketch_size=32), make_mesh()
    tokens = SyntheticRows(8, LENGTH, VOCABULARY).read(np.arange(8))
    with jax.set_mesh(mesh):
        gradients = gradient_variance.make_sketched_gradients(Quadratic(), Views(VOCABULARY), design, mesh)
        _, own_BxPxk = gradients({'w': jnp.zeros(WIDTH)}, tokens, np.arange(8))
    a_Bx2xd = np.asarray(vectors())[tokens[:, 1:3]]
    expected_B = np.linalg.norm((a_Bx2xd[:, 0] + 2 * a_Bx2xd[:, 1]) / 3, axis=1)
    np.testing.assert_allclose(np.linalg.norm(own_BxPxk, axis=2), np.tile(expected_B, (3, 1)).T, rtol=1e-5)
