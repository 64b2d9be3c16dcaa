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


def test_rows_of_padding_alone_have_no_loss_and_no_gradient():
    """Also where no compiler rewrites the arithmetic."""
    outputs, segments = jnp.full((2, 4, 2), 0.3), jnp.array([[1, 1, 1, 0], [0, 0, 0, 0]])
    targets = jnp.array([[0.0, 2.0], [jnp.nan, jnp.nan]])
    with jax.disable_jit():
        losses, grads = jax.value_and_grad(lambda x: LOSSES['span'](x, targets, segments, None)[0].sum())(outputs)
    np.testing.assert_allclose(losses, 2 * np.log(3), rtol=1e-6)
    assert np.isfinite(grads).all() and (grads[1] == 0).all() and (grads[0, :3] != 0).all()
