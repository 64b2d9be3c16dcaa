"""Does an attention kernel compute, on this machine, what the reference computes?"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlm_jax.models import attention

# Against the reference in float32, a kernel may be off by so many times what the reference in its own dtype is, plus
# what nobody would notice.
FACTOR, SLACK = 2.0, 1e-3


def errors(
    backend: str, length: int, num_heads: int, head_width: int, dtype: str, attend: Callable = attention.attend
) -> dict[str, tuple[float, float]]:
    """How far a backend, and the reference in the same dtype, are from the reference in float32.

    Two rows, one of two documents and padding, one full; forwards and backwards, from the same random numbers.

    Args:
      backend: 'cudnn' or 'splash'.
      length: T.
      num_heads: H.
      head_width: D.
      dtype: that the backend computes in.
      attend: `models.attention.attend`, or what a test puts in its place.

    Returns:
      'output', 'd query', 'd key', 'd value' → the norm of the difference by that of the exact one, over real tokens:
      of the backend, and of the reference.
    """
    first, padding = length // 3, length // 8
    sizes = jnp.array([first, length - first - padding, padding])
    documents_T = jnp.repeat(jnp.array([1, 2, 0]), sizes, total_repeat_length=length)
    segments_BxT = jnp.stack([documents_T, jnp.ones_like(documents_T)])
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = [2 * jax.random.normal(key, (2, length, num_heads, head_width)) for key in keys]
    *qkv, weight_BxTxHxD = [x * (segments_BxT > 0)[..., None, None] for x in inputs]

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def outputs(backend, dtype):
        def loss(*qkv):
            out = attend(*(x.astype(dtype) for x in qkv), segments_BxT, segments_BxT, backend=backend)
            out = out.astype(jnp.float32)
            return jnp.sum(out * weight_BxTxHxD), out * (weight_BxTxHxD != 0)

        gradients, out = jax.grad(loss, (0, 1, 2), has_aux=True)(*qkv)
        return [out, *gradients]

    with jax.default_matmul_precision('highest'):  # else accelerators round what goes into products
        exact = outputs('xla', 'float32')

    def error(found, wanted) -> float:
        return float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted))

    pairs = zip(outputs(backend, dtype), outputs('xla', dtype), exact, strict=True)
    return {
        name: (error(ours, wanted), error(reference, wanted))
        for name, (ours, reference, wanted) in zip(('output', 'd query', 'd key', 'd value'), pairs, strict=True)
    }


def agrees(found: dict[str, tuple[float, float]]) -> bool:
    """Whether `errors` are those of rounding."""
    return all(ours <= FACTOR * reference + SLACK for ours, reference in found.values())
