"""Effective rank of token representations, layer by layer (Representation Deficiency, arXiv 2302.02060).

rank_τ(H) is the smallest k with Σ_{i≤k} σ_i² / Σ_i σ_i² ≥ τ, where σ are the singular values of the matrix H whose rows
are the representations of many tokens. Only the d × d Gram matrix is kept, so millions of tokens take no more memory
than one batch: products of a batch are made on the device in float32 at the highest precision, and added up on the host
in float64.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass
class GramSums:
    """Sums over tokens, for each layer and each group of tokens.

    Attributes:
      count_G: float64[G], tokens in each group.
      sum_LxGxd: float64[L, G, d], their sum.
      gram_LxGxdxd: float64[L, G, d, d], Σ h hᵀ.
    """

    count_G: np.ndarray
    sum_LxGxd: np.ndarray
    gram_LxGxdxd: np.ndarray

    @classmethod
    def zeros(cls, num_layers: int, num_groups: int, width: int) -> 'GramSums':
        """No tokens yet."""
        return cls(
            np.zeros(num_groups),
            np.zeros((num_layers, num_groups, width)),
            np.zeros((num_layers, num_groups, width, width)),
        )

    def add(self, count_G, sum_LxGxd, gram_LxGxdxd) -> None:
        """Adds the sums of one batch, as `gram_sums` returns them."""
        self.count_G += np.asarray(count_G, np.float64)
        self.sum_LxGxd += np.asarray(sum_LxGxd, np.float64)
        self.gram_LxGxdxd += np.asarray(gram_LxGxdxd, np.float64)

    def spectra(self, centred: bool) -> np.ndarray:
        """float64[L, G, d]: σ², descending; `centred` subtracts the mean representation first."""
        gram = self.gram_LxGxdxd
        if centred:
            mean = self.sum_LxGxd / np.maximum(self.count_G, 1)[:, None]
            gram = gram - self.count_G[:, None, None] * mean[..., :, None] * mean[..., None, :]
        return np.maximum(np.linalg.eigvalsh(gram)[..., ::-1], 0.0)


def gram_sums(hidden_LxBxTxd: jax.Array, member_GxBxT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sums of one batch, to be added up by `GramSums.add`; made to be jitted.

    Args:
      hidden_LxBxTxd: representations of L layers.
      member_GxBxT: bool, which tokens belong to each of G groups.

    Returns:
      f32[G] counts, f32[L, G, d] sums and f32[L, G, d, d] Gram matrices.
    """
    hidden_LxNxd = hidden_LxBxTxd.astype(jnp.float32).reshape(hidden_LxBxTxd.shape[0], -1, hidden_LxBxTxd.shape[-1])
    weight_GxN = member_GxBxT.reshape(member_GxBxT.shape[0], -1).astype(jnp.float32)

    def one(hidden_Nxd, weight_N):
        weighted_Nxd = hidden_Nxd * weight_N[:, None]
        return weighted_Nxd.sum(0), jnp.matmul(weighted_Nxd.T, hidden_Nxd, precision='highest')

    # One product at a time: L·G products of [d, N] by [N, d] side by side would hold L·G·N·d numbers.
    def layer(hidden_Nxd):
        return jax.lax.map(lambda weight_N: one(hidden_Nxd, weight_N), weight_GxN)

    sum_LxGxd, gram_LxGxdxd = jax.lax.map(layer, hidden_LxNxd)
    return weight_GxN.sum(1), sum_LxGxd, gram_LxGxdxd


def effective_rank(spectrum: np.ndarray, threshold: float = 0.9) -> np.ndarray:
    """The smallest k whose k largest σ² make up `threshold` of all.

    Args:
      spectrum: float64[…, d], σ², descending.
      threshold: τ, within (0, 1].

    Returns:
      int[…]; 0 where there is nothing but zeros.
    """
    total = spectrum.sum(-1, keepdims=True)
    share = np.cumsum(spectrum, axis=-1) / np.where(total > 0, total, 1.0)
    # Rounding may leave the last share a hair below 1.
    reached = share >= threshold * (1 - 1e-12)
    return np.where(total[..., 0] > 0, np.argmax(reached, axis=-1) + 1, 0)
