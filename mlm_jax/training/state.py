"""The state of a run, which is created directly with its sharding on the mesh."""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.parallel.parameters import Parameter
from mlm_jax.parallel.sharding import state_shardings


@flax.struct.dataclass
class TrainState:
    """The state that an optimizer step takes and returns.

    Attributes:
      step: int32[], the number of updates so far, which is also the index of the next batch.
      params: the parameters of the objective, float32.
      opt_state: the state of the optimizer.
      ema: the moving average of the parameters (training/moving_average.py), float32; None in a run that keeps none.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ema: dict | None = None


def example_batch(length: int, max_masked: int) -> MaskedBatch:
    """A MaskedBatch with one row of zeros, for initialization: parameters depend only on these shapes."""
    row_1xT, slots_1xM = jnp.zeros((1, length), jnp.int32), jnp.zeros((1, max_masked), jnp.int32)
    return MaskedBatch(
        tokens=row_1xT, inputs=row_1xT, positions=slots_1xM, weights=slots_1xM.astype(jnp.float32), segments=row_1xT + 1
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Init:
    """A function without arguments that returns the initial TrainState; it can be traced, or run on a mesh.

    Attributes:
      objective: the Linen module.
      optimizer: the optimizer of its parameters.
      seed: the seed of the run.
      length: T, the number of tokens of a row.
      max_masked: M, the number of slots of a row for masked positions.
      parameters: the rules for the sharding of the parameters.
      has_ema: whether the state holds a moving average of the parameters, which begins as a copy of them.
    """

    objective: nn.Module
    optimizer: optax.GradientTransformation
    seed: int
    length: int
    max_masked: int
    parameters: tuple[Parameter, ...]
    has_ema: bool = False

    def __call__(self) -> TrainState:
        """Returns the initial state."""
        batch = example_batch(self.length, self.max_masked)
        params = self.objective.init(jax.random.key(self.seed), batch)['params']
        ema = _copy(params) if self.has_ema else None
        return TrainState(step=jnp.zeros([], jnp.int32), params=params, opt_state=self.optimizer.init(params), ema=ema)


def starting_from(state: TrainState, params: dict) -> TrainState:
    """A fresh `state` with other parameters, laid out as its own; a moving average begins with them."""
    if state.ema is None:
        return state.replace(params=params)
    layout = jax.tree.map(lambda x: x.sharding, state.ema)
    return state.replace(params=params, ema=jax.jit(_copy, out_shardings=layout)(params))


def _copy(params: Any) -> Any:
    """In buffers of its own: a step donates those of parameters and average alike."""
    return jax.tree.map(jnp.copy, params)


def create_state(init: Init, mesh: Mesh, preset: str) -> TrainState:
    """Runs `init`; every leaf is created directly with the sharding of the preset.

    Raises:
      ConfigError: if the mesh does not divide a size that it splits.
    """
    shardings = state_shardings(jax.eval_shape(init), preset, mesh, init.parameters)
    return jax.jit(init, out_shardings=shardings)()


def abstract_state(init: Init, mesh: Mesh, preset: str) -> TrainState:
    """The state as ShapeDtypeStructs with shardings, for compiling ahead of time and for restoring checkpoints.

    Raises:
      ConfigError: if the mesh does not divide a size that it splits.
    """
    shapes = jax.eval_shape(init)
    shardings = state_shardings(shapes, preset, mesh, init.parameters)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def num_parameters(params: Any) -> int:
    """The number of scalars in a pytree of parameters."""
    return sum(x.size for x in jax.tree.leaves(params))
