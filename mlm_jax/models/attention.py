"""Bidirectional attention within documents: one function, explicit backends that agree.

`xla` is the reference: it supports every option on every platform. `cudnn` (NVIDIA GPUs) and `splash` (TPUs) never hold
the T × T probabilities in memory; each raises an error for options that it does not support.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mlm_jax.masking.batch import gather_positions
from mlm_jax.models.dropout import dropout
from mlm_jax.models.products import product
from mlm_jax.models.windows import LANES, splash_block
from mlm_jax.parallel.mesh import BATCH_AXES, TENSOR, rows_are_local

MASKED_SCORE = -1e30  # finite, so that the softmax of a query without any allowed key is not NaN
# Queries and keys are padded to multiples of these. (cuDNN needs multiples of 2 in training with a mask.)
LENGTHS_IN = {'xla': 1, 'cudnn': 8, 'splash': LANES}


@dataclasses.dataclass(frozen=True)
class Window:
    """How far a query of a local layer sees.

    Attributes:
      radius: the largest distance between a query and a key that it sees.
      is_local: bool[], whether the layer is local; otherwise its queries see the whole document. It may be traced.
      at_BxT: int32, the indices in the row of the queries; None means all in order. Unused slots hold S.
      places_BxS: int32, between which the distance is measured; None means indices in the row.
    """

    radius: int
    is_local: jax.Array
    at_BxT: jax.Array | None = None
    places_BxS: jax.Array | None = None

    def places(self, length: int) -> tuple[jax.Array, jax.Array]:
        """The places of queries and keys, int32[B or 1, T] and int32[B or 1, S], in rows of S = `length` tokens."""
        k_places_BxS = jnp.arange(length, dtype=jnp.int32)[None] if self.places_BxS is None else self.places_BxS
        if self.at_BxT is None:
            return k_places_BxS, k_places_BxS
        q_places_BxT = self.at_BxT if self.places_BxS is None else gather_positions(k_places_BxS, self.at_BxT)
        return q_places_BxT, k_places_BxS


def attend(
    q_BxTxHxD: jax.Array,
    k_BxSxHxD: jax.Array,
    v_BxSxHxD: jax.Array,
    q_segments_BxT: jax.Array,
    k_segments_BxS: jax.Array,
    *,
    bias_BxHxTxS: jax.Array | None = None,
    window: Window | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    backend: str = 'xla',
) -> jax.Array:
    """softmax(q·k/√D + bias)·v over the keys of the query's own segment, and within its window if there is one.

    Padding (segment 0) attends only to padding; its output is finite, and nothing reads it.

    Args:
      q_BxTxHxD: queries.
      k_BxSxHxD: keys; they may have fewer heads, each of which serves a group of consecutive heads of queries.
      v_BxSxHxD: values, with as many heads as the keys.
      q_segments_BxT: int32, the document of each query.
      k_segments_BxS: int32, the document of each key.
      bias_BxHxTxS: added to the scaled scores; may broadcast.
      window: how far queries see; None means to the ends of their documents.
      dropout_rate: the dropout rate of the attention probabilities.
      dropout_key: a random key; None turns dropout off.
      backend: 'xla', 'cudnn' or 'splash'.

    Returns:
      [B, T, H, D] in the dtype of `q_BxTxHxD`.

    Raises:
      ValueError: if there is no such backend, or it does not support the arguments.
    """
    if backend not in LENGTHS_IN:
        raise ValueError(f'unknown attention backend {backend!r}: it must be one of {", ".join(LENGTHS_IN)}')
    has_dropout = dropout_rate > 0 and dropout_key is not None
    places: tuple[jax.Array, ...] = () if window is None else window.places(k_BxSxHxD.shape[1])
    if backend == 'xla':
        allowed_Bx1xTxS = _allowed(q_segments_BxT, k_segments_BxS, window, *places)
        return _xla(
            q_BxTxHxD,
            k_BxSxHxD,
            v_BxSxHxD,
            allowed_Bx1xTxS,
            bias_BxHxTxS,
            dropout_rate if has_dropout else 0.0,
            dropout_key,
        )
    if has_dropout:
        raise ValueError(
            f'the {backend} attention backend has no dropout; set attention_dropout=0 or use the xla backend'
        )
    if backend == 'splash':
        if bias_BxHxTxS is not None:
            raise ValueError('the splash attention backend takes no relative bias; use the xla backend')
        if window is not None and window.places_BxS is not None:
            raise ValueError('the splash attention backend measures windows by indices in the row; use the xla backend')
        if window is not None and (at_BxT := window.at_BxT) is not None:
            window = dataclasses.replace(window, at_BxT=None)
            return _splash_in_row(at_BxT, q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, k_segments_BxS, window)
    num_queries, multiple = q_BxTxHxD.shape[1], LENGTHS_IN[backend]
    q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, q_segments_BxT, k_segments_BxS = (
        _padded(x, 1, multiple) for x in (q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, q_segments_BxT, k_segments_BxS)
    )
    if backend == 'splash':
        out_BxTxHxD = splash_attention(q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, q_segments_BxT, k_segments_BxS, window=window)
    else:
        for axis in (2, 3):
            if bias_BxHxTxS is not None and bias_BxHxTxS.shape[axis] > 1:
                bias_BxHxTxS = _padded(bias_BxHxTxS, axis, multiple)
        places = tuple(_padded(x, 1, multiple) for x in places)
        allowed_Bx1xTxS = _allowed(q_segments_BxT, k_segments_BxS, window, *places)
        out_BxTxHxD = cudnn_attention(q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, allowed_Bx1xTxS, bias_BxHxTxS)
    return out_BxTxHxD[:, :num_queries]


def _padded(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """`x` padded at the end of an axis with zeros; zeros in segments mean padding."""
    missing = -x.shape[axis] % multiple
    return x if not missing else jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])


def _allowed(q_segments_BxT, k_segments_BxS, window: Window | None, *places: jax.Array) -> jax.Array:
    """bool[B, 1, T, S]: whether a query may attend to a key; `places` are those of queries and keys for the window."""
    same_BxTxS = q_segments_BxT[:, :, None] == k_segments_BxS[:, None, :]
    if window is None:
        return same_BxTxS[:, None]
    q_places_BxT, k_places_BxS = places
    near_BxTxS = jnp.abs(q_places_BxT[:, :, None] - k_places_BxS[:, None, :]) <= window.radius
    return (same_BxTxS & (near_BxTxS | ~jnp.asarray(window.is_local)))[:, None]


def _xla(q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, allowed_Bx1xTxS, bias_BxHxTxS, dropout_rate, dropout_key):
    group = q_BxTxHxD.shape[2] // k_BxSxHxD.shape[2]
    if group > 1:
        k_BxSxHxD, v_BxSxHxD = (jnp.repeat(x, group, axis=2) for x in (k_BxSxHxD, v_BxSxHxD))
    q_BxHxTxD, k_BxHxSxD, v_BxHxSxD = (x.swapaxes(1, 2) for x in (q_BxTxHxD, k_BxSxHxD, v_BxSxHxD))
    scale = q_BxHxTxD.shape[-1] ** -0.5
    score_BxHxTxS = product('bhtd,bhsd->bhts', q_BxHxTxD * scale, k_BxHxSxD, jnp.float32)
    if bias_BxHxTxS is not None:
        score_BxHxTxS += bias_BxHxTxS
    score_BxHxTxS = jnp.where(allowed_Bx1xTxS, score_BxHxTxS, MASKED_SCORE)
    prob_BxHxTxS = jax.nn.softmax(score_BxHxTxS, axis=-1).astype(v_BxSxHxD.dtype)
    if dropout_rate > 0:
        prob_BxHxTxS = dropout(dropout_key, dropout_rate, prob_BxHxTxS)
    return product('bhts,bhsd->bhtd', prob_BxHxTxS, v_BxHxSxD).swapaxes(1, 2)


def cudnn_attention(
    q_BxTxHxD: jax.Array,
    k_BxSxHxD: jax.Array,
    v_BxSxHxD: jax.Array,
    allowed_Bx1xTxS: jax.Array,
    bias_BxHxTxS: jax.Array | None = None,
    implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> jax.Array:
    """cuDNN's flash attention. Its public interface in JAX takes lengths but no segments; documents become a mask."""
    if q_BxTxHxD.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f'the cudnn attention backend needs bfloat16, not {q_BxTxHxD.dtype}; set dtype=bfloat16 or use xla'
        )
    if bias_BxHxTxS is not None:
        bias_BxHxTxS = bias_BxHxTxS.astype(q_BxTxHxD.dtype)
    return jax.nn.dot_product_attention(
        q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, bias=bias_BxHxTxS, mask=allowed_Bx1xTxS, implementation=implementation
    )


def splash_attention(
    q_BxTxHxD: jax.Array,
    k_BxSxHxD: jax.Array,
    v_BxSxHxD: jax.Array,
    q_segments_BxT: jax.Array,
    k_segments_BxS: jax.Array,
    interpret: bool = False,
    window: Window | None = None,
) -> jax.Array:
    """The Pallas kernel for TPUs; each device runs it on its own rows and heads (`interpret` emulates it on a CPU).

    Of a window, it takes the radius and `is_local`, which chooses between two kernels: that of local layers skips the
    blocks of keys that no query of a block sees.
    """
    for length in (q_BxTxHxD.shape[1], k_BxSxHxD.shape[1]):
        if length % 128:
            raise ValueError(
                f'the splash attention backend needs lengths that are multiples of 128, not {length}; use xla'
            )
    radius = None if window is None else window.radius
    kernel: Callable = functools.partial(_splash_on_one_device, radius=radius, interpret=interpret)
    is_local = jnp.asarray(False if window is None else window.is_local)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and not rows_are_local():
        # Initialization traces a single row, which a mesh cannot split; all other batches divide evenly among devices.
        batch_axes = BATCH_AXES if q_BxTxHxD.shape[0] > 1 else None
        heads, rows = PartitionSpec(batch_axes, None, TENSOR), PartitionSpec(batch_axes)
        kernel = jax.shard_map(
            kernel,
            mesh=mesh,
            in_specs=(heads, heads, heads, rows, rows, PartitionSpec()),
            out_specs=heads,
            check_vma=False,
        )
    return kernel(q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, q_segments_BxT, k_segments_BxS, is_local)


def _splash_in_row(at_BxM, q_BxMxHxD, k_BxSxHxD, v_BxSxHxD, k_segments_BxS, window: Window) -> jax.Array:
    """[B, M, H, D]: attention of queries at some positions of a row, each put back where the kernel expects it.

    The positions between them have queries of 0, whose outputs nothing reads; a local layer computes few pairs of each.
    """
    is_here_BxMxS = at_BxM[:, :, None] == jnp.arange(k_BxSxHxD.shape[1])
    slot_BxS = jnp.where(is_here_BxMxS.any(1), jnp.argmax(is_here_BxMxS, axis=1), q_BxMxHxD.shape[1])
    out_BxSxHxD = attend(
        gather_positions(q_BxMxHxD, slot_BxS),
        k_BxSxHxD,
        v_BxSxHxD,
        k_segments_BxS,
        k_segments_BxS,
        window=window,
        backend='splash',
    )
    return gather_positions(out_BxSxHxD, at_BxM)


def _splash_on_one_device(
    q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, q_segments_BxT, k_segments_BxS, is_local, radius: int | None, interpret: bool
):
    inputs = q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, q_segments_BxT, k_segments_BxS
    whole = functools.partial(_splash_kernel, radius=None, interpret=interpret)
    if radius is None:
        return whole(*inputs)
    # Both kernels keep arrays of the same shapes for their backward passes; JAX has one place in memory for them.
    return jax.lax.cond(is_local, functools.partial(_splash_kernel, radius=radius, interpret=interpret), whole, *inputs)


def _splash_kernel(
    q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, q_segments_BxT, k_segments_BxS, radius: int | None, interpret: bool
):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # imported here, as it loads Pallas

    shape = (q_BxTxHxD.shape[1], k_BxSxHxD.shape[1])
    of_head = splash.FullMask(shape) if radius is None else splash.LocalMask(shape, (radius, radius), offset=0)
    mask = splash.MultiHeadMask([of_head] * q_BxTxHxD.shape[2])
    q_block, kv_block = (splash_block(length, radius) for length in shape)
    blocks = splash.BlockSizes(
        block_q=q_block, block_kv=kv_block, block_kv_compute=kv_block,
        block_q_dkv=q_block, block_kv_dkv=kv_block, block_kv_dkv_compute=kv_block,
        block_q_dq=q_block, block_kv_dq=kv_block,
    )  # fmt: skip
    kernel = splash.make_splash_mha(mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret)
    heads_first = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
    scale = q_BxTxHxD.shape[-1] ** -0.5
    out_BxHxTxD = jax.vmap(kernel)(
        heads_first(q_BxTxHxD * scale),
        heads_first(k_BxSxHxD),
        heads_first(v_BxSxHxD),
        splash.SegmentIds(q=q_segments_BxT, kv=k_segments_BxS),
    )
    return heads_first(out_BxHxTxD).astype(q_BxTxHxD.dtype)
