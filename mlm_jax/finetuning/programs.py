"""What fine-tuning compiles: a pretrained encoder with a new head, its initial parameters, updates and evaluations."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mlm_jax.finetuning.downstream import Downstream
from mlm_jax.finetuning.losses import LOSSES
from mlm_jax.finetuning.problems import Problem
from mlm_jax.finetuning.recipe import Recipe
from mlm_jax.parallel.sharding import is_stacked, path_name
from mlm_jax.training.optimizers import decayed

_INIT, _DROPOUT = 0, 1  # folded into the key of a seed: one stream of random bits for each purpose


@dataclasses.dataclass(frozen=True)
class Programs:
    """Compiled functions; the first axis of states, batches and results is the seed.

    Attributes:
      init: (seeds, encoder) → (parameters, optimizer state).
      train_step: (parameters, optimizer state, tokens, targets, seeds, step, learning rate, weights of the loss) →
        (parameters, optimizer state, loss); donates the first two arguments.
      eval_step: (parameters, tokens, which all seeds share) → outputs.
      keep_best: (best parameters, parameters, bool) → the second where True, else the first, which is donated.
    """

    init: Callable
    train_step: Callable
    eval_step: Callable
    keep_best: Callable


def make_module(objective: nn.Module, problem: Problem, recipe: Recipe, repeats: int = 1) -> Downstream:
    """The encoder of an objective, which reads each token `repeats` times, under the head of a problem.

    Both have the dropout of the recipe.
    """
    config = dataclasses.replace(objective.config, dropout=recipe.dropout, attention_dropout=recipe.dropout)
    kind = 'span' if problem.loss == 'span' else 'sequence'
    head_dropout = recipe.dropout if recipe.head_dropout < 0 else recipe.head_dropout
    return Downstream(
        objective.clone(config=config, parent=None), kind, problem.num_outputs, head_dropout, recipe.pooling, repeats
    )


def make_programs(module: Downstream, loss: str, pad_id: int, recipe: Recipe, is_alone: bool) -> Programs:
    """The programs of a model; equal arguments share one compilation.

    Args:
      module: from `make_module`.
      loss: a key of `LOSSES`.
      pad_id: of the tokenizer.
      recipe: of its settings, those of the optimizer are compiled into the programs.
      is_alone: whether there is a single seed.
    """
    built_in = ('clip_norm', 'b1', 'b2', 'eps', 'weight_decay', 'layer_decay')
    # All other settings at their defaults, so that recipes that differ only in those share programs.
    static = Recipe(**{name: getattr(recipe, name) for name in built_in})
    return _cached_programs(module, loss, pad_id, static, is_alone)


@functools.lru_cache(maxsize=8)
def _cached_programs(module: Downstream, loss: str, pad_id: int, static: Recipe, is_alone: bool) -> Programs:
    each = _alone if is_alone else jax.vmap
    optimizer = optax.chain(
        optax.clip_by_global_norm(static.clip_norm) if static.clip_norm else optax.identity(),
        optax.scale_by_adam(static.b1, static.b2, static.eps),
        optax.add_decayed_weights(static.weight_decay, decayed),
        scale_by_depth(static.layer_decay, module.objective.config.num_layers),
    )

    def init(seed, encoder):
        params = init_params(module, seed, encoder)
        return params, optimizer.init(params)

    def train_step(params, opt_state, tokens_BxT, targets_BxC, seed, step, learning_rate, weights_C):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _DROPOUT), step)
        segments_BxT = (tokens_BxT != pad_id).astype(jnp.int32)

        def mean_loss(params):
            outputs = module.apply(
                {'params': params}, tokens_BxT, segments_BxT, deterministic=False, rngs={'dropout': key}
            )
            losses, weights = LOSSES[loss](outputs, targets_BxC, segments_BxT, weights_C)
            return losses.sum() / jnp.maximum(weights.sum(), 1e-6)

        value, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
        return params, opt_state, value

    def eval_step(params, tokens_BxT):
        return module.apply({'params': params}, tokens_BxT, (tokens_BxT != pad_id).astype(jnp.int32))

    def keep_best(best, params, better):
        return jax.tree.map(lambda b, p: jnp.where(better, p, b), best, params)

    return Programs(
        init=jax.jit(each(init, in_axes=(0, None))),
        train_step=jax.jit(each(train_step, in_axes=(0, 0, 0, 0, 0, None, None, None)), donate_argnums=(0, 1)),
        eval_step=jax.jit(each(eval_step, in_axes=(0, None))),
        keep_best=jax.jit(each(keep_best, in_axes=0), donate_argnums=0),
    )


def _alone(function: Callable, in_axes: int | tuple) -> Callable:
    """What `jax.vmap` returns, for axes of a single element.

    Without `jax.vmap`, matrix products have no batch axis, and libraries have faster kernels for such products.
    """

    @functools.wraps(function)
    def with_axes(*arguments):
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(arguments)
        elements = [a if axis is None else jax.tree.map(lambda x: x[0], a) for a, axis in zip(arguments, axes)]
        return jax.tree.map(lambda x: x[None], function(*elements))

    return with_axes


def init_params(module: Downstream, seed: jax.typing.ArrayLike, encoder: Mapping | None) -> dict:
    """The initial parameters of one seed: a new head, over the given encoder or, where it is None, over a new one."""
    row_1xT = jnp.ones((1, 8), jnp.int32)
    params = module.init(jax.random.fold_in(jax.random.key(seed), _INIT), row_1xT, row_1xT)['params']
    if encoder is None:
        return params
    return {**params, 'objective': {**params['objective'], 'encoder': encoder}}


def scale_by_depth(decay: float, num_layers: int) -> optax.GradientTransformation:
    """Layer-wise learning rates (ELECTRA, arXiv 2003.10555): decay^(L − l) of layer l, decay^(L + 1) of the embeddings.

    The head, and a norm after the last layer, learn at the full rate.
    """

    def factor(path):
        name = path_name(path)
        if is_stacked(path):
            return decay ** jnp.arange(num_layers, 0, -1, dtype=jnp.float32)
        below = 'embedding' in name or 'relative_bias' in name
        return jnp.asarray(decay ** (num_layers + 1) if below else 1.0)

    def update(updates, state, params=None):
        def one(path, u):
            f = factor(path)
            return u * f.reshape(f.shape + (1,) * (u.ndim - f.ndim))

        return jax.tree_util.tree_map_with_path(one, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
