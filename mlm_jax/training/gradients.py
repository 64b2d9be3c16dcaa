"""The gradients of a batch: summed over its microbatches, and over the devices that share its rows.

Each device sums the gradients of its own rows over all microbatches, and the devices add up their sums once. The
program is traced for one device with its own rows (`jax.shard_map`): the partitioner would add up over devices in every
microbatch. Masks are drawn before, for the whole batch, and dropout draws the bits of the rows that a device has
(models/dropout.py), so both are the same bits on any mesh.

Where `fsdp` splits the weights, they are gathered, and their gradients are reduce-scattered: each device receives the
sum only for its part of the weights. This happens once in a step, for which each device holds whole weights and
gradients; or for each layer when it is computed, in every microbatch, where the sum over `fsdp` has the dtype of the
model. All other sums are in float32.

Where `tensor` splits products, the partitioner does all of this by itself, layer by layer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from mlm_jax.losses.terms import LossTerms
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.parallel.mesh import BATCH_AXES, DATA, FSDP, TENSOR
from mlm_jax.parallel.parameters import Parameter
from mlm_jax.parallel.sharding import partition_spec, path_name

Gradient = Callable[[Any, MaskedBatch, jax.Array], tuple[Any, LossTerms]]


@dataclasses.dataclass(frozen=True)
class GradientSums:
    """How gradients are summed over devices.

    Attributes:
      preset: how the parameters are sharded (`parallel.sharding.PRESETS`).
      parameters: the rules for the sharding of the parameters.
      dtype: of matrix products, in which kernels are gathered.
      by_layer: whether the kernels of layers, where `fsdp` splits them, are gathered layer by layer; their gradients
        are then summed over `fsdp` in `dtype`, and all others in float32.
    """

    preset: str
    parameters: tuple[Parameter, ...]
    dtype: str
    by_layer: bool

    def specs(self, params: Any, mesh: AbstractMesh) -> Any:
        """The PartitionSpec of each parameter."""
        return _map(lambda path, x: partition_spec(path, x.shape, self.preset, mesh, self.parameters), params)


def gradients(
    objective: nn.Module,
    params: Any,
    batch: MaskedBatch,
    dropout_key: jax.Array,
    num_microbatches: int,
    sums: GradientSums | None = None,
) -> tuple[dict, LossTerms]:
    """The gradients of `loss_sum`, and the LossTerms, both summed over microbatches and devices.

    Microbatch j of n holds the rows j, j + n, j + 2n, …, so that no rows move between devices.

    Args:
      objective: the Linen module.
      params: its parameters.
      batch: the rows of the batch, masked.
      dropout_key: the key of the batch for dropout.
      num_microbatches: n.
      sums: how to sum over devices; None leaves it to the partitioner.
    """

    def loss(params, batch, key) -> tuple[jax.Array, LossTerms]:
        terms = objective.apply({'params': params}, batch, deterministic=False, rngs={'dropout': key})
        return cast(LossTerms, terms).loss_sum, cast(LossTerms, terms)

    gradient = jax.grad(loss, has_aux=True)
    mesh = jax.sharding.get_abstract_mesh()
    if sums is None or mesh.empty or mesh.size == 1 or mesh.shape[TENSOR] > 1:
        return _over_microbatches(gradient, params, batch, dropout_key, num_microbatches)
    specs = sums.specs(params, mesh)
    if num_microbatches == 1 and not any(FSDP in spec for spec in jax.tree.leaves(specs)):
        return _over_microbatches(gradient, params, batch, dropout_key, num_microbatches)  # the sums are the same

    def of_device(params, batch, key):
        whole = _map(lambda path, x, spec: _gathered(path, x, spec, sums), params, specs)
        grads, terms = _over_microbatches(gradient, whole, batch, key, num_microbatches)
        grads = _map(lambda path, grad, spec: _summed(path, grad, spec, sums), grads, specs)
        return grads, jax.lax.psum(terms, BATCH_AXES)

    rows, same = PartitionSpec(BATCH_AXES), PartitionSpec()
    return jax.shard_map(
        of_device, in_specs=(specs, rows, same), out_specs=(specs, same), check_vma=False
    )(params, batch, dropout_key)  # fmt: skip


def _over_microbatches(
    gradient: Gradient, params: Any, batch: MaskedBatch, dropout_key: jax.Array, num_microbatches: int
) -> tuple[Any, LossTerms]:
    """The gradients and the LossTerms of the batch, summed over its microbatches in float32."""
    if num_microbatches == 1:
        return gradient(params, batch, dropout_key)

    def split(x):
        return jnp.moveaxis(x.reshape(x.shape[0] // num_microbatches, num_microbatches, *x.shape[1:]), 1, 0)

    def body(sums, xs):
        index, microbatch = xs
        part = gradient(params, microbatch, jax.random.fold_in(dropout_key, index))
        return jax.tree.map(lambda total, x: total + x.astype(total.dtype), sums, part), None

    microbatches = jax.tree.map(split, batch)
    first = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], microbatches), dropout_key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), first)
    sums, _ = jax.lax.scan(body, zeros, (jnp.arange(num_microbatches), microbatches))
    return sums


def _map(function: Callable, *trees: Any) -> Any:
    return jax.tree_util.tree_map_with_path(function, *trees)


def _split_dimension(spec: PartitionSpec) -> int | None:
    """The dimension that `fsdp` splits; None if it splits none."""
    return list(spec).index(FSDP) if FSDP in spec else None


def _is_kernel(path) -> bool:
    """Whether a parameter that `fsdp` splits is one of a layer: `gather_width` can gather it, and products read it."""
    return path_name(path).endswith('/kernel')


def _gathered(path, x: jax.Array, spec: PartitionSpec, sums: GradientSums) -> jax.Array:
    """A whole parameter from the parts that devices hold, or the part, if it is gathered with its layer."""
    dimension = _split_dimension(spec)
    if dimension is None or (sums.by_layer and _is_kernel(path)):
        return x
    x = x.astype(sums.dtype) if _is_kernel(path) else x
    return jax.lax.all_gather(x, FSDP, axis=dimension, tiled=True)


def _summed(path, grad: jax.Array, spec: PartitionSpec, sums: GradientSums) -> jax.Array:
    """The sum of a gradient over the devices, or the part of it that the device holds, in float32.

    The gradient of a kernel that is gathered by layer is already summed over `fsdp`, in the dtype of the model.
    `fsdp` comes first: only the parts are summed over `data`, which may cross a data-center network.
    """
    dimension = _split_dimension(spec)
    if dimension is None:
        return jax.lax.psum(grad, BATCH_AXES)
    if not (sums.by_layer and _is_kernel(path)):
        grad = jax.lax.psum_scatter(grad.astype(jnp.float32), FSDP, scatter_dimension=dimension, tiled=True)
    return jax.lax.psum(grad.astype(jnp.float32), DATA)
