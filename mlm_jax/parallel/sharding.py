"""How parameters and optimizer state lie on the mesh: rules on paths, in a few named presets."""

import functools
import re
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlm_jax.parallel.mesh import FSDP, TENSOR
from mlm_jax.parallel.parameters import ENCODER, Parameter, find

# Which mesh axis splits which kind of dimension.
PRESETS: dict[str, dict[str, str]] = {
    'dp': {},
    'fsdp': {'width': FSDP},
    'fsdp_tp': {'width': FSDP, 'vocabulary': TENSOR, 'heads': TENSOR, 'hidden': TENSOR},
}


def path_name(path) -> str:
    """'encoder/layers/mlp/up/kernel' for a path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def is_stacked(path) -> bool:
    """Whether the first dimension of the leaf at `path` counts the layers of a scan."""
    return re.search(r'(^|/)(\w+_)?layers/', path_name(path)) is not None


def partition_spec(
    path, shape: tuple[int, ...], preset: str, mesh: Mesh, parameters: Sequence[Parameter] = ENCODER
) -> PartitionSpec:
    """The PartitionSpec of one leaf of the state.

    Args:
      path: of `jax.tree_util`; optimizer state counts as the parameter at the end of its path.
      shape: of the leaf.
      preset: a key of `PRESETS`.
      mesh: gives the sizes of the axes.
      parameters: the rules.

    Raises:
      ValueError: when no rule matches, two dimensions ask for one axis, or a size is no multiple of its axis.
    """
    name = path_name(path)
    if len(shape) <= is_stacked(path):  # counters
        return PartitionSpec()
    dimensions = _dimensions(name, shape, is_stacked(path), parameters)
    axes = [PRESETS[preset].get(dimension) for dimension in dimensions]
    used = [axis for axis in axes if axis]
    if len(set(used)) < len(used):
        raise ValueError(f'preset {preset!r} asks for one mesh axis twice for {name} of shape {shape}: {axes}')
    for axis, dimension, size in zip(axes, dimensions, shape, strict=True):
        if axis and size % mesh.shape[axis]:
            raise ValueError(
                f'{name} has {size} {dimension}, which the mesh axis {axis!r} of size {mesh.shape[axis]} does not '
                f'divide; choose a multiple of {mesh.shape[axis]} or a smaller mesh.{axis}'
            )
    return PartitionSpec(*axes)


def _dimensions(name: str, shape: tuple[int, ...], stacked: bool, parameters) -> tuple[str | None, ...]:
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


def gather_width(params):
    """The parameters of one layer, or of a part outside the stack, as computations read them: whole along the width.

    `fsdp` splits the state along the width and the batch along its rows. Left alone, the partitioner may well take the
    width of a weight into the activations instead: rows are exchanged, statistics of norms are summed over devices, and
    products run over slices of the width too thin for a matrix unit. Gathering each weight just before its use is what
    FSDP means; `tensor` still splits heads and hidden units. Outside a mesh nothing happens.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get(FSDP, 1) == 1:
        return params

    def gather(path, x):
        dimensions = _dimensions(path_name(path), x.shape, False, ENCODER)
        return _gather_dimension(x, dimensions.index('width')) if 'width' in dimensions else x

    return jax.tree_util.tree_map_with_path(gather, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather_dimension(x: jax.Array, dimension: int) -> jax.Array:
    """`x` whole along `dimension`; its gradient lies like `x` again."""
    return _along(x, dimension, None)


def _along(x: jax.Array, dimension: int, axis: str | None) -> jax.Array:
    spec = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[dimension] = axis
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def _gather_backward(dimension, _, grad):
    # Whole first: products of thin slices, passed around a ring, would waste most of a matrix unit.
    return (_along(_along(grad, dimension, None), dimension, FSDP),)


_gather_dimension.defvjp(lambda x, dimension: (_gather_dimension(x, dimension), None), _gather_backward)


def state_shardings(state, preset: str, mesh: Mesh, parameters: Sequence[Parameter] = ENCODER):
    """A NamedSharding for each leaf of `state` (arrays or ShapeDtypeStructs), by the rules for its parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, partition_spec(path, leaf.shape, preset, mesh, parameters)), state
    )
