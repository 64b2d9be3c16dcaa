"""The entropy of predictions, in bits per masked token over the whole vocabulary.

MLM and MAE-LM predict a masked token by one distribution P, whose entropy is H(P). ExLM predicts it by several states u
with a distribution P_u each, weighted by γ(u), the probability that u emits the target (Zheng et al., arXiv
2501.13397). There are two definitions of its entropy, each with its own negative log-likelihood (NLL):

    states:   Σ_u γ(u)·H(P_u)        −Σ_u γ(u)·log P_u(y)
    mixture:  H(Σ_u γ(u)·P_u)        −log Σ_u γ(u)·P_u(y)

There are also two choices of γ: the prior, which depends on the transitions alone, and the posterior, given all targets
of the row. The posterior depends on the tokens that are to be predicted, so among the four combinations only the
mixture with the prior can be compared with MLM.

The mean of NLL − entropy is 0 if the text is distributed as the model predicts, and above 0 if the model is
overconfident. This is true of a single distribution, of the mixture with the prior, and of the states with the
posterior, because y ~ P_u when u emits y. It is not true of the states with the prior: their NLL includes the
differences between the states, so the mean is above 0 even for a perfect model. It is not true of the mixture with the
posterior either, because the posterior depends on the target.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.objectives import registry
from mlm_jax.objectives.objective import Distributions, Objective


def token_bits(objective: Objective, params: Mapping, batch: MaskedBatch) -> Distributions:
    """What `Objective.distributions` returns for a batch and these parameters."""
    # The type that `apply` declares is that of `__call__`, whatever the method.
    return cast(Distributions, objective.apply({'params': params}, batch, method='distributions'))


def row_sums(objective: Objective, params: Mapping, batch: MaskedBatch) -> dict[str, Any]:
    """The sums of `token_bits` over each row.

    Returns:
      `tokens`, float32[B]: the number of predictions of masked tokens; `left_out`, float32[B]: the number of masked
      positions without a prediction; `bits`: definition → float32[B, 2], the sums of entropy and NLL.
    """
    bits, masked_BxN = token_bits(objective, params, batch)
    tokens_B = masked_BxN.sum(1).astype(jnp.float32)
    used_B = (batch.positions < batch.tokens.shape[1]).sum(1).astype(jnp.float32)
    sums = {
        name: jnp.stack([jnp.where(masked_BxN, value, 0.0).sum(1) for value in pair], axis=1)
        for name, pair in bits.items()
    }
    return {'tokens': tokens_B, 'left_out': used_B - tokens_B, 'bits': sums}


def mean_and_error(sum_R: np.ndarray, tokens_R: np.ndarray) -> tuple[float, float]:
    """The mean over all tokens, and its standard error, which counts rows because tokens of one row are dependent.

    Args:
      sum_R: float[R], the sum of the values over the tokens of each row.
      tokens_R: float[R], the number of these tokens; at least one row must have some.

    Returns:
      The mean and the standard error, which is infinite for a single row.
    """
    sum_R, tokens_R = np.asarray(sum_R, np.float64), np.asarray(tokens_R, np.float64)
    sum_R, tokens_R = sum_R[tokens_R > 0], tokens_R[tokens_R > 0]
    total, rows = tokens_R.sum(), len(tokens_R)
    mean = sum_R.sum() / total
    squares = ((sum_R - mean * tokens_R) ** 2).sum()
    return float(mean), float(np.sqrt(squares * rows / (rows - 1)) / total) if rows > 1 else math.inf


def summarize(sums: Mapping[str, Any]) -> dict[str, Any]:
    """The means over all rows.

    Args:
      sums: what `row_sums` returns, for all rows at one mask ratio.

    Returns:
      `tokens`, `left_out`, and `bits`: definition → `entropy`, `nll` and `gap` = nll − entropy, each as
      [bits per masked token, standard error].
    """
    tokens_R = sums['tokens']
    bits = {}
    for name in sorted(sums['bits'], key=registry.distributions().index):  # `jax.jit` sorts them by name
        entropy_R, nll_R = np.asarray(sums['bits'][name], np.float64).T
        values = {'entropy': entropy_R, 'nll': nll_R, 'gap': nll_R - entropy_R}
        bits[name] = {key: list(mean_and_error(value_R, tokens_R)) for key, value_R in values.items()}
    return {'tokens': int(np.sum(tokens_R)), 'left_out': int(np.sum(sums['left_out'])), 'bits': bits}
