"""Checks whether an attention kernel computes on this machine what the reference computes."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlm_jax.models import attention

# Compared with the reference in float32, the error of a kernel may be at most FACTOR times the error of the reference
# in the kernel's dtype, plus SLACK, a relative error that does not matter.
FACTOR, SLACK = 2.0, 1e-3


def errors(
    backend: str,
    length: int,
    num_heads: int,
    head_width: int,
    dtype: str,
    num_kv_heads: int = 0,
    window: int = 0,
    attend: Callable = attention.attend,
) -> dict[str, tuple[float, float]]:
    """The errors of a backend, and of the reference in the same dtype, compared with the reference in float32.

    The inputs are two rows of random numbers: one with two documents and padding, and one that a single document fills.
    Both the outputs and the gradients are compared.

    Args:
      backend: 'cudnn' or 'splash'.
      length: T.
      num_heads: H.
      head_width: D.
      dtype: the dtype that the backend computes in.
      num_kv_heads: the number of heads of keys and values; 0 means H.
      window: W of a local layer; 0 means a global layer.
      attend: the attention function, with the arguments of `models.attention.attend`.

    Returns:
      'output', 'd query', 'd key', 'd value' → (error of the backend, error of the reference). An error is the norm of
      the difference divided by the norm of the exact array, over all tokens except padding.
    """
    first, padding = length // 3, length // 8
    sizes = jnp.array([first, length - first - padding, padding])
    documents_T = jnp.repeat(jnp.array([1, 2, 0]), sizes, total_repeat_length=length)
    segments_BxT = jnp.stack([documents_T, jnp.ones_like(documents_T)])
    keys = jax.random.split(jax.random.key(0), 4)
    kv_heads = num_kv_heads or num_heads
    heads = (num_heads, kv_heads, kv_heads, num_heads)  # of queries, keys, values, and weights of the outputs
    inputs = [2 * jax.random.normal(key, (2, length, n, head_width)) for key, n in zip(keys, heads, strict=True)]
    options = {'window': attention.Window(window // 2, jnp.asarray(True))} if window else {}
    *qkv, weight_BxTxHxD = [x * (segments_BxT > 0)[..., None, None] for x in inputs]

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def outputs(backend: str, dtype: str) -> list[jax.Array]:
        def loss(*qkv):
            out = attend(*(x.astype(dtype) for x in qkv), segments_BxT, segments_BxT, backend=backend, **options)
            out = out.astype(jnp.float32)
            return jnp.sum(out * weight_BxTxHxD), out * (weight_BxTxHxD != 0)

        gradients, out = jax.grad(loss, (0, 1, 2), has_aux=True)(*qkv)
        return [out, *gradients]

    with jax.default_matmul_precision('highest'):  # by default, accelerators round the operands of products
        exact = outputs('xla', 'float32')

    def error(found: jax.Array, wanted: jax.Array) -> float:
        return float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted))

    pairs = zip(outputs(backend, dtype), outputs('xla', dtype), exact, strict=True)
    return {
        name: (error(ours, wanted), error(reference, wanted))
        for name, (ours, reference, wanted) in zip(('output', 'd query', 'd key', 'd value'), pairs, strict=True)
    }


def agrees(found: dict[str, tuple[float, float]]) -> bool:
    """Whether the result of `errors` can be explained by rounding."""
    return all(ours <= FACTOR * reference + SLACK for ours, reference in found.values())
