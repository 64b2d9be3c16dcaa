"""Effective rank of token representations, layer by layer (Representation Deficiency, arXiv 2302.02060).

rank_τ(H) is the smallest k with Σ_{i≤k} σ_i² / Σ_i σ_i² ≥ τ, where the σ_i are the singular values of the matrix H,
whose rows are the representations of many tokens. Only the d × d Gram matrix of H is kept, so millions of tokens need
no more memory than one batch: the device computes the Gram matrix of each batch in float32 at the highest precision,
and the host adds these matrices in float64.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


@dataclasses.dataclass
class GramSums:
    """Sums over tokens, for each layer and each group of tokens.

    Attributes:
      count_G: float64[G], the number of tokens in each group.
      sum_LxGxd: float64[L, G, d], Σ h, the sum of their representations.
      gram_LxGxdxd: float64[L, G, d, d], Σ h hᵀ.
    """

    count_G: np.ndarray
    sum_LxGxd: np.ndarray
    gram_LxGxdxd: np.ndarray

    @classmethod
    def zeros(cls, num_layers: int, num_groups: int, width: int) -> 'GramSums':
        """The sums over no tokens."""
        return cls(
            np.zeros(num_groups),
            np.zeros((num_layers, num_groups, width)),
            np.zeros((num_layers, num_groups, width, width)),
        )

    def add(self, count_G: ArrayLike, sum_LxGxd: ArrayLike, gram_LxGxdxd: ArrayLike) -> None:
        """Adds the sums of one batch, as `gram_sums` returns them."""
        self.count_G += np.asarray(count_G, np.float64)
        self.sum_LxGxd += np.asarray(sum_LxGxd, np.float64)
        self.gram_LxGxdxd += np.asarray(gram_LxGxdxd, np.float64)

    def spectra(self, centered: bool) -> np.ndarray:
        """float64[L, G, d]: σ², largest first; `centered` subtracts the mean representation from each row first."""
        gram = self.gram_LxGxdxd
        if centered:
            mean = self.sum_LxGxd / np.maximum(self.count_G, 1)[:, None]
            gram = gram - self.count_G[:, None, None] * mean[..., :, None] * mean[..., None, :]
        return np.maximum(np.linalg.eigvalsh(gram)[..., ::-1], 0.0)


def gram_sums(hidden_LxBxTxd: jax.Array, member_GxBxT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sums of one batch, which `GramSums.add` adds up. Call it inside `jax.jit`.

    Args:
      hidden_LxBxTxd: representations of L layers.
      member_GxBxT: bool, which tokens belong to each of G groups.

    Returns:
      float32[G] counts, float32[L, G, d] sums and float32[L, G, d, d] Gram matrices.
    """
    hidden_LxNxd = hidden_LxBxTxd.astype(jnp.float32).reshape(hidden_LxBxTxd.shape[0], -1, hidden_LxBxTxd.shape[-1])
    weight_GxN = member_GxBxT.reshape(member_GxBxT.shape[0], -1).astype(jnp.float32)

    def one(hidden_Nxd, weight_N):
        weighted_Nxd = hidden_Nxd * weight_N[:, None]
        return weighted_Nxd.sum(0), jnp.matmul(weighted_Nxd.T, hidden_Nxd, precision='highest')

    # One product at a time, because the operands of all L·G products together would take L·G·N·d numbers.
    def layer(hidden_Nxd):
        return jax.lax.map(lambda weight_N: one(hidden_Nxd, weight_N), weight_GxN)

    sum_LxGxd, gram_LxGxdxd = jax.lax.map(layer, hidden_LxNxd)
    return weight_GxN.sum(1), sum_LxGxd, gram_LxGxdxd


def effective_rank(spectrum: np.ndarray, threshold: float = 0.9) -> np.ndarray:
    """The smallest k for which the k largest σ² sum to at least the share `threshold` of the sum of all σ².

    Args:
      spectrum: float64[…, d], σ², largest first.
      threshold: τ, with 0 < τ ≤ 1.

    Returns:
      int[…], k; 0 where all σ² are 0.
    """
    total = spectrum.sum(-1, keepdims=True)
    share = np.cumsum(spectrum, axis=-1) / np.where(total > 0, total, 1.0)
    # Rounding can make the last share slightly smaller than 1.
    reached = share >= threshold * (1 - 1e-12)
    return np.where(total[..., 0] > 0, np.argmax(reached, axis=-1) + 1, 0)
