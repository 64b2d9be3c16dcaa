"""What the tests of all objectives share."""

import jax
import optax
import pytest


@pytest.fixture(scope='session')
def overfitted_loss():
    """(module, params, batch) → the loss after 150 updates on that one batch."""

    def fit(module, params, batch) -> float:
        optimizer = optax.adam(3e-3)

        def loss(params):
            terms = module.apply({'params': params}, batch)
            return terms.loss_sum / terms.weight_sum

        def update(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        run = jax.jit(lambda params: jax.lax.scan(update, (params, optimizer.init(params)), length=150)[1])
        return float(run(params)[-1])

    return fit
