"""The losses of fine-tuning: what they weigh, and what has no gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from mlm_jax.finetuning.losses import LOSSES


def test_cross_entropy_weights_classes_and_skips_padding():
    outputs = jnp.array([[0.0, 1.0], [2.0, 0.0], [5.0, 5.0]])
    losses, weights = LOSSES['classification'](
        outputs, jnp.array([[1.0], [1.0], [jnp.nan]]), None, jnp.array([1.0, 3.0])
    )
    want = -jax.nn.log_softmax(outputs)[:2, 1] * 3
    np.testing.assert_allclose(losses, [*want, 0], rtol=1e-6)
    assert weights.tolist() == [3, 3, 0]


def test_unknown_targets_have_no_gradient():
    targets = jnp.array([[1.0, jnp.nan], [0.0, 1.0]])
    for name in ('multilabel', 'regression'):

        def total(outputs, name=name):
            return LOSSES[name](outputs, targets, None, jnp.array([2.0, 1.0]))[0].sum()

        grads = jax.grad(total)(jnp.full((2, 2), 0.3))
        assert grads[0, 1] == 0 and np.all(np.isfinite(grads)) and (grads != 0).sum() == 3
    losses, weights = LOSSES['multilabel'](jnp.zeros((2, 2)), targets, None, jnp.array([2.0, 1.0]))
    np.testing.assert_allclose(losses, np.log(2) * np.array([[2, 0], [1, 1]]), rtol=1e-6)
    assert weights.tolist() == [[2, 0], [1, 1]]


def test_spans_are_chosen_among_real_tokens():
    outputs, segments = jnp.zeros((1, 4, 2)), jnp.array([[1, 1, 1, 0]])
    losses, weights = LOSSES['span'](outputs, jnp.array([[0.0, 2.0]]), segments, None)
    np.testing.assert_allclose(losses, [[np.log(3), np.log(3)]], rtol=1e-6)
    losses, weights = LOSSES['span'](outputs, jnp.array([[jnp.nan, jnp.nan]]), segments, None)
    assert losses.sum() == 0 and weights.sum() == 0
