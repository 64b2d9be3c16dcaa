"""Optimizers by name: AdamW, LAMB, StableAdamW and Muon, which treat each layer of a stack as separate tensors."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from optax.contrib import MuonDimensionNumbers

from mlm_jax.config import weight_decay as weight_decay_of
from mlm_jax.parallel.parameters import ENCODER, Parameter, find
from mlm_jax.parallel.sharding import is_stacked, path_name


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: Callable, parameters: Sequence[Parameter] = ENCODER
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of `config` (the part `optimizer` of a configuration).

    Args:
      config: name, peak learning rate, moments, weight decay and clipping.
      schedule: step → factor of the peak learning rate.
      parameters: the rules from which Muon knows the matrices.

    Returns:
      A transformation of the mean gradient into updates, which are added to the parameters. Its `update` takes the step
      of the run as `step=`, which determines the learning rate, so that skipped updates do not delay the schedule.
      Without `step`, it counts the updates.
    """
    c = config
    weight_decay = weight_decay_of(c)
    decays = decayed if c.decay_mask == 'matrices' else None
    if c.name == 'stable_adamw':
        core = stable_adamw(c.learning_rate, schedule, c.b1, c.b2, c.eps, weight_decay, decays)
    elif c.name == 'muon':
        core = muon(config, weight_decay, decays, schedule, parameters)
    else:
        core = optax.chain(
            optax.scale_by_adam(c.b1, c.b2, c.eps),
            optax.add_decayed_weights(weight_decay, decays),
            scale_by_layer_trust_ratio() if c.name == 'lamb' else optax.identity(),
            scale_by_learning_rate(c.learning_rate, schedule),
        )
    return optax.chain(optax.clip_by_global_norm(c.clip_norm), core) if c.clip_norm else core


def scale_by_learning_rate(peak: float, schedule: Callable) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by −`peak` · schedule(step), with the step given to `update`, or the number of updates."""

    def update(updates, state, params=None, *, step=None, **extra):
        del params, extra
        step = state.count if step is None else step
        rate = -peak * schedule(step)
        scaled = jax.tree.map(lambda u: rate * u, updates)
        return scaled, optax.ScaleByScheduleState(count=optax.safe_increment(step))

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32)), update
    )


def decayed(params: Any) -> Any:
    """A pytree of bool: True for kernels and embeddings, which have weight decay; False for biases and norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).rsplit('/', 1)[-1] in ('kernel', 'embedding'), params
    )


def muon(
    config: ml_collections.ConfigDict,
    weight_decay: float,
    decays: Callable | None,
    schedule: Callable,
    parameters: Sequence[Parameter],
) -> optax.GradientTransformationExtraArgs:
    """Muon for the matrices inside the network, and Adam for embeddings, biases and norms.

    This assembles the parts of `optax.contrib.muon`, as that function passes neither the mask of the weight decay nor ε
    on to Adam. As there, Adam has Nesterov momentum, like Muon.

    Args:
      config: the part `optimizer` of a configuration.
      weight_decay: the weight decay of Muon and Adam; it is multiplied by the learning rate.
      decays: parameters → pytree of bool, True where there is weight decay; None means everywhere.
      schedule: step → factor of the peak learning rate.
      parameters: the rules from which matrices are known.
    """
    c = config
    dimensions_of = functools.partial(muon_dimensions, parameters=parameters)

    def labels(params):
        return jax.tree.map(lambda _, d: 'adam' if d is None else 'muon', params, dimensions_of(params))

    def as_large_as_adam(updates, params=None):
        del params
        return jax.tree.map(_as_large_as_adam, updates, dimensions_of(updates))

    def decay(updates, params):  # stateless, as in the checkpoints of `optax.contrib.muon`
        decays_here = decays(params) if decays else jax.tree.map(lambda _: True, params)
        return jax.tree.map(lambda u, p, d: u + weight_decay * p if d else u, updates, params, decays_here)

    matrices = optax.chain(
        optax.contrib.scale_by_muon(beta=c.momentum, weight_dimension_numbers=dimensions_of),
        optax.stateless(as_large_as_adam),
        optax.add_decayed_weights(weight_decay, decays),
        scale_by_learning_rate(c.learning_rate, schedule),
    )
    others = optax.chain(
        optax.scale_by_adam(c.b1, c.b2, c.eps, nesterov=True),
        optax.stateless(decay),
        scale_by_learning_rate(c.learning_rate, schedule),
    )
    return optax.partition({'muon': matrices, 'adam': others}, labels)


def muon_dimensions(params: Any, parameters: Sequence[Parameter] = ENCODER) -> Any:
    """A pytree of MuonDimensionNumbers for matrices inside the network, and None (Adam) for the other parameters.

    Raises:
      ValueError: if no rule describes a kernel as a matrix.
    """

    def one(path, _):
        name = path_name(path)
        if not name.endswith('kernel'):
            return None
        rule = find(name, parameters)
        if rule is None or not rule.inputs:
            raise ValueError(
                f"Muon does not know the axes of {name}: give its rule, in `parameters` of the objective's spec or in "
                'parallel/parameters.py, the fields `inputs` and `outputs`'
            )
        shift = int(is_stacked(path))
        return MuonDimensionNumbers(tuple(i + shift for i in rule.inputs), tuple(o + shift for o in rule.outputs))

    return jax.tree_util.tree_map_with_path(one, params)


def _as_large_as_adam(update: jax.Array, dimensions: MuonDimensionNumbers) -> jax.Array:
    """Scales an orthogonal update to the root mean square of Adam's, for a common learning rate (arXiv 2502.16982)."""
    sizes = [math.prod(update.shape[axis] for axis in axes) for axes in dimensions]
    scale = jnp.sqrt(max(sizes)) * 0.2
    return scale * update


def scale_by_layer_trust_ratio() -> optax.GradientTransformation:
    """LAMB's factor ‖p‖ / ‖update‖ for each kernel and embedding of each layer (arXiv 1904.00962); 1 if a norm is 0.

    It is 1 for biases and norms, as in BERT's LAMB and TensorFlow Addons: a bias begins at 0, and with a step in
    proportion to its own norm it would hardly ever leave it.
    """

    def update(updates, state, params):
        def one(path, u, p, adapted):
            if not adapted:
                return u
            p_norm, u_norm = (jnp.sqrt(_sum_per_tensor(path, x**2)) for x in (p, u))
            return u * jnp.where((p_norm > 0) & (u_norm > 0), p_norm / jnp.maximum(u_norm, 1e-30), 1.0)

        return jax.tree_util.tree_map_with_path(one, updates, params, decayed(params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def stable_adamw(
    peak: float, schedule: Callable, b1: float, b2: float, eps: float, weight_decay: float, mask: Callable | None
) -> optax.GradientTransformationExtraArgs:
    """StableAdamW: Adam with smaller steps for tensors whose gradient exceeds its second moment (arXiv 2304.13013).

    With debiased betas, r = √mean(g² / max(v, ε²)) per tensor and lr' = lr / max(1, r):
    p ← p (1 − (lr' / peak) · weight_decay) − lr' · m / (√v + ε). The weight decay does not depend on the peak.

    Args:
      peak: the peak learning rate.
      schedule: step → factor of the peak learning rate.
      b1: the decay rate of the first moment m.
      b2: the decay rate of the second moment v.
      eps: ε.
      weight_decay: the share of a weight that an update at the peak learning rate removes.
      mask: parameters → pytree of bool, True where there is weight decay; None means everywhere.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=jax.tree.map(jnp.copy, zeros))

    def update(grads, state, params, *, step=None, **extra):
        del extra
        count = state.count + 1
        beta1, beta2 = (_debiased(b, count) for b in (b1, b2))
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g**2, state.nu, grads)
        decays = mask(params) if mask else jax.tree.map(lambda _: True, params)
        factor = schedule(state.count if step is None else step)

        def one(path, g, m, v, p, decay):
            square = g**2 / jnp.maximum(v, eps**2)
            mean = _sum_per_tensor(path, square) / (square.size // (square.shape[0] if is_stacked(path) else 1))
            shrunk = factor / jnp.maximum(1.0, jnp.sqrt(mean))
            return -shrunk * (peak * m / (jnp.sqrt(v) + eps) + (weight_decay * p if decay else 0.0))

        updates = jax.tree_util.tree_map_with_path(one, grads, mu, nu, params, decays)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _debiased(beta: float, count: jax.Array) -> jax.Array:
    """β (1 − β^(t−1)) / (1 − β^t) at update t: with these values for β, moments need no bias correction."""
    t = count.astype(jnp.float32)
    return beta * (1 - beta ** (t - 1)) / (1 - beta**t)


def _sum_per_tensor(path, x: jax.Array) -> jax.Array:
    """The sum of a tensor, separate for each layer of a stack; keeps the dimensions, so that it broadcasts."""
    return jnp.sum(x, axis=tuple(range(int(is_stacked(path)), x.ndim)), keepdims=True)
