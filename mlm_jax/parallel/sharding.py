"""How parameters and optimizer state are sharded over the mesh: rules on paths, and a few named presets."""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mlm_jax.files.errors import ConfigError
from mlm_jax.parallel.mesh import FSDP, TENSOR, rows_are_local
from mlm_jax.parallel.parameters import ENCODER, Parameter, find

KeyPath = tuple[Any, ...]  # of `jax.tree_util`

# Preset → kind of dimension → the mesh axis that splits it.
PRESETS: dict[str, dict[str, str]] = {
    'dp': {},
    'fsdp': {'width': FSDP},
    'fsdp_tp': {'width': FSDP, 'vocabulary': TENSOR, 'heads': TENSOR, 'hidden': TENSOR},
}


def path_name(path: KeyPath) -> str:
    """A path of `jax.tree_util` as text, such as 'encoder/layers/mlp/up/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def is_stacked(path: KeyPath) -> bool:
    """Whether the first dimension of the leaf at `path` is the index of a layer in a scan."""
    return re.search(r'(^|/)(\w+_)?layers/', path_name(path)) is not None


def partition_spec(
    path: KeyPath,
    shape: tuple[int, ...],
    preset: str,
    mesh: Mesh | AbstractMesh,
    parameters: Sequence[Parameter] = ENCODER,
) -> PartitionSpec:
    """The PartitionSpec of one leaf of the state.

    Args:
      path: the path of the leaf in `jax.tree_util`; optimizer state has the rule of the parameter that its path ends
        with.
      shape: the shape of the leaf.
      preset: a key of `PRESETS`.
      mesh: the mesh, for the sizes of its axes.
      parameters: the rules for parameters.

    Raises:
      ConfigError: if an axis does not divide a size; the message says which sizes of the mesh do.
      ValueError: if no rule matches, or two dimensions ask for the same axis.
    """
    name = path_name(path)
    if len(shape) <= is_stacked(path):  # counters
        return PartitionSpec()
    dimensions = _dimensions(name, shape, is_stacked(path), parameters)
    axes = [None if dimension is None else PRESETS[preset].get(dimension) for dimension in dimensions]
    used = [axis for axis in axes if axis]
    if len(set(used)) < len(used):
        raise ValueError(f'preset {preset!r} asks for one mesh axis twice for {name} of shape {shape}: {axes}')
    for axis, dimension, size in zip(axes, dimensions, shape, strict=True):
        if axis and size % mesh.shape[axis]:
            raise ConfigError(_indivisible(name, size, dimension, axis, mesh.shape[axis]))
    return PartitionSpec(*axes)


def _indivisible(name: str, size: int, dimension: str | None, axis: str, devices: int) -> str:
    fitting = math.gcd(size, devices)
    return (
        f'{name} has {size} {dimension}, which the mesh axis {axis!r} of size {devices} does not divide; choose a '
        f'multiple of {devices} or a smaller mesh.{axis}, such as mesh.data=-1,mesh.{axis}={fitting}'
    )


def _dimensions(
    name: str, shape: tuple[int, ...], stacked: bool, parameters: Sequence[Parameter]
) -> tuple[str | None, ...]:
    rule = find(name, parameters)
    if rule is None:
        raise ValueError(
            f'no sharding rule matches the parameter {name} of shape {shape}; add one to `parameters` of the '
            "objective's spec, or to parallel/parameters.py"
        )
    dimensions = (None,) * stacked + rule.dimensions
    if len(dimensions) != len(shape):
        raise ValueError(
            f'the sharding rule {rule.pattern!r} has {len(dimensions)} dimensions, but {name} has shape {shape}'
        )
    return dimensions


def gather_width(params: Any, width: int) -> Any:
    """The parameters of one layer, or of a module outside the stack, gathered along the width for computation.

    `fsdp` splits the state along the width, and the batch along its rows. Without this function, the partitioner may
    split the activations along the width instead: it then exchanges rows between devices, sums the statistics of norms
    over devices, and multiplies slices of the width that are too thin for a matrix unit. FSDP means that each weight is
    gathered just before its use; `tensor` still splits heads and hidden units. Outside a mesh, this does nothing.

    Where rows are local to each device (training/gradients.py), so are parts of parameters: a dimension smaller than
    `width` is gathered, and its gradient is reduce-scattered, both in the dtype of `params`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get(FSDP, 1) == 1:
        return params
    is_local = rows_are_local()

    def gather(path, x):
        dimensions = _dimensions(path_name(path), x.shape, False, ENCODER)
        if 'width' not in dimensions:
            return x
        dimension = dimensions.index('width')
        if not is_local:
            return _gather_dimension(x, dimension)
        return x if x.shape[dimension] == width else jax.lax.all_gather(x, FSDP, axis=dimension, tiled=True)

    return jax.tree_util.tree_map_with_path(gather, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather_dimension(x: jax.Array, dimension: int) -> jax.Array:
    """`x` gathered along `dimension`; the gradient has the sharding of `x` again."""
    return _along(x, dimension, None)


def _along(x: jax.Array, dimension: int, axis: str | None) -> jax.Array:
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[dimension] = axis
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def _gather_backward(dimension, _, grad):
    # The gradient is computed unsplit first: products of thin slices, passed around a ring, would waste a matrix unit.
    return (_along(_along(grad, dimension, None), dimension, FSDP),)


_gather_dimension.defvjp(lambda x, dimension: (_gather_dimension(x, dimension), None), _gather_backward)


def state_shardings(state: Any, preset: str, mesh: Mesh, parameters: Sequence[Parameter] = ENCODER) -> Any:
    """A pytree with a NamedSharding for each leaf of the pytree `state` (arrays or ShapeDtypeStructs)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, partition_spec(path, leaf.shape, preset, mesh, parameters)), state
    )
