"""Activations, computed in float32. Their backward passes keep only the inputs and recompute everything else."""

import jax
import jax.numpy as jnp


@jax.checkpoint
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU (arXiv 1606.08415), x·Φ(x), in the dtype of `x`."""
    return _gelu(x.astype(jnp.float32)).astype(x.dtype)


@jax.checkpoint
def geglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """GELU(gate)·up (arXiv 2002.05202), in the dtype of `up`."""
    return (_gelu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(up.dtype)


@jax.checkpoint
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """SiLU(gate)·up, SiLU(x) = x·sigmoid(x) (arXiv 2002.05202), in the dtype of `up`."""
    return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(up.dtype)


def _gelu(x):
    return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))
