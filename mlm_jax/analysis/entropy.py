"""The entropy of predictions, in bits per masked token over the whole vocabulary.

MLM and MAE-LM predict a masked token by one distribution P: H(P). ExLM predicts it by several states u, each with its
P_u, weighted by γ(u), the probability that u emits the target (Zheng et al., arXiv 2501.13397). Two definitions, each
with the negative log-likelihood that belongs to it:

    states:   Σ_u γ(u)·H(P_u)        −Σ_u γ(u)·log P_u(y)
    mixture:  H(Σ_u γ(u)·P_u)        −log Σ_u γ(u)·P_u(y)

and two weights: the prior, of the transitions alone, and the posterior, given all targets of the row. The posterior has
seen what it predicts: of the four, only the mixture by the prior compares with MLM.

NLL less entropy is 0 on average where text is distributed as the model says, more where the model is surer than right.
This holds of one distribution, of the mixture by the prior, and of the states by the posterior, as y ~ P_u when u emits
it. It does not hold of the states by the prior, whose NLL includes how much they differ: there it is above 0 even then;
nor of the mixture by the posterior, which the target itself has chosen.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr

from mlm_jax.losses.cross_entropy import negative_log_likelihood
from mlm_jax.masking.batch import MaskedBatch, gather_positions, selected_of
from mlm_jax.objectives.exlm import ExLM

NATS = math.log(2)  # in a bit

# What ExLM gives, and what the others give; a definition is the name of a line in tables and pictures.
COMPARABLE = 'prior, mixture'
EXLM_DEFINITIONS = (COMPARABLE, 'prior, states', 'posterior, mixture', 'posterior, states')
PREDICTION = 'prediction'


def token_bits(objective, params, batch: MaskedBatch) -> tuple[dict[str, tuple[jax.Array, jax.Array]], jax.Array]:
    """Entropy and negative log-likelihood of each prediction.

    Args:
      objective: MLM, MAE-LM, ExLM, or any other with MLM's `logits`.
      params: its parameters.
      batch: with M masked positions.

    Returns:
      Definition → (entropy, NLL), f32[B, N] each, in bits: `EXLM_DEFINITIONS`, or `PREDICTION` alone. And bool[B, N],
      which of them are of masked positions: of ExLM, without the anchors, and without rows that have no alignment.
    """
    if isinstance(objective, ExLM):
        return _exlm_bits(objective, params, batch)
    logits_BxMxV = objective.apply({'params': params}, batch, method='logits').astype(jnp.float32)
    nll_BxM = negative_log_likelihood(logits_BxMxV, batch.targets)
    entropy_BxM = entr(jax.nn.softmax(logits_BxMxV)).sum(-1)
    return {PREDICTION: (entropy_BxM / NATS, nll_BxM / NATS)}, batch.positions < batch.tokens.shape[1]


def _exlm_bits(objective: ExLM, params, batch: MaskedBatch):
    states, match_BxExS, posterior_BxExS = objective.apply({'params': params}, batch, method='alignment')
    prior_BxExS = objective.apply({'params': params}, states, method='prior')
    probability_BxSxV = jax.nn.softmax(states.logits.astype(jnp.float32))
    state_entropy_BxS = entr(probability_BxSxV).sum(-1)

    def of_weights(weight_BxExS):
        mixture_BxExV = jnp.einsum('bes,bsv->bev', weight_BxExS, probability_BxSxV, precision='highest')
        mixture = entr(mixture_BxExV).sum(-1), -jax.nn.logsumexp(match_BxExS, axis=2, b=weight_BxExS)
        # Where the weight is 0, the match may be −∞.
        surprise_BxExS = jnp.where(weight_BxExS > 0, -weight_BxExS * match_BxExS, 0.0)
        return mixture, ((weight_BxExS * state_entropy_BxS[:, None]).sum(2), surprise_BxExS.sum(2))

    pairs = *of_weights(prior_BxExS), *of_weights(posterior_BxExS)
    bits = {name: (h / NATS, nll / NATS) for name, (h, nll) in zip(EXLM_DEFINITIONS, pairs, strict=True)}
    masked_BxT = selected_of(batch.positions, batch.tokens.shape[1])
    feasible_BxE = posterior_BxExS.sum(2) > 0.5  # 1, or 0 in rows without an alignment
    return bits, gather_positions(masked_BxT, states.rows.expanded) & feasible_BxE


def row_sums(objective, params, batch: MaskedBatch) -> dict:
    """`token_bits`, summed over each row.

    Returns:
      `tokens`, f32[B]: the predictions that count; `left_out`, f32[B]: masked positions without one; `bits`: definition
      → f32[B, 2], the sums of entropy and NLL.
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
    """The mean over all tokens, and its standard error over rows: tokens of a row are not independent.

    Args:
      sum_R: float, of each row, over its tokens.
      tokens_R: float, their number, positive in one row at least.
    """
    sum_R, tokens_R = np.asarray(sum_R, np.float64), np.asarray(tokens_R, np.float64)
    sum_R, tokens_R = sum_R[tokens_R > 0], tokens_R[tokens_R > 0]
    total, rows = tokens_R.sum(), len(tokens_R)
    mean = sum_R.sum() / total
    squares = ((sum_R - mean * tokens_R) ** 2).sum()
    return float(mean), float(np.sqrt(squares * rows / (rows - 1)) / total) if rows > 1 else math.inf


def summarize(sums: dict) -> dict:
    """What the rows say together.

    Args:
      sums: of `row_sums`, all rows of a ratio.

    Returns:
      `tokens`, `left_out`, and `bits`: definition → `entropy`, `nll` and `gap` = nll − entropy, each as
      [bits per masked token, standard error].
    """
    tokens_R = sums['tokens']
    bits = {}
    for name in sorted(sums['bits'], key=(PREDICTION, *EXLM_DEFINITIONS).index):  # jit has sorted them by name
        entropy_R, nll_R = np.asarray(sums['bits'][name], np.float64).T
        values = {'entropy': entropy_R, 'nll': nll_R, 'gap': nll_R - entropy_R}
        bits[name] = {key: list(mean_and_error(value_R, tokens_R)) for key, value_R in values.items()}
    return {'tokens': int(np.sum(tokens_R)), 'left_out': int(np.sum(sums['left_out'])), 'bits': bits}
