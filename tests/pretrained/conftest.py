"""What comparisons with released code share: gradients by the names of the released weights."""

import functools

import jax
import numpy as np
import pytest


@functools.partial(jax.jit, static_argnames='module')  # once for all cases of one shape
def _everything(module, params, batch, methods):
    """Outputs of the methods, and gradients of the mean loss with the LossTerms."""

    def loss(params):
        terms = module.apply({'params': params}, batch)
        return terms.loss_sum / terms.weight_sum, terms

    outputs = {name: module.apply({'params': params}, *args, method=name) for name, args in methods.items()}
    return outputs, jax.grad(loss, has_aux=True)(params)


@pytest.fixture(scope='session')
def compute():
    """(read, state_dict, batch, methods) → LossTerms, outputs of `methods` (name → arguments), gradients by name.

    `read` turns a state dict into a module and its parameters. Each weight is numbered and read like a weight: the
    numbers then tell where each gradient of the mean loss belongs; weights that are not read have none, NaN.
    """

    def function(read, state_dict, batch, methods):
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith('classification_heads')}
        ends = np.cumsum([v.size for v in state_dict.values()])
        numbered = {
            name: np.arange(end - v.size, end, dtype=np.float32).reshape(v.shape)
            for (name, v), end in zip(state_dict.items(), ends, strict=True)
        }
        module, params = read(state_dict)
        _, places = read(numbered)

        outputs, (grads, terms) = _everything(module, params, batch, methods)
        flat = np.full(ends[-1], np.nan)
        for place, grad in zip(jax.tree.leaves(places), jax.tree.leaves(grads), strict=True):
            flat[place.astype(np.int64)] = grad
        return terms, outputs, {name: flat[place.astype(np.int64)] for name, place in numbered.items()}

    return function
