"""How much of the variance of a gradient is due to the masks of a text, and how much to the differences between texts.

For one text, let g(m) be the gradient of the mean loss over the positions of a mask m, and let

    μ = E g(m),    σ² = E ‖g(m) − μ‖²,    c_o = E ⟨g(m) − μ, g(m') − μ⟩

for masks m and m' of s positions each that share o positions; their Hamming distance is 2(s − o). The mean of g over K
independent masks has the variance σ²/K, and the mean over K disjoint masks has the variance (σ² + (K − 1) c_0)/K. Let
D = E ‖μ − E μ‖² be the variance of μ between texts. The gradient of a step on B·K rows then has the variance
(D + σ²)/(BK) if all rows are distinct texts, and (D + (σ² + (K − 1) c_0)/K)/B if the rows are B texts with K disjoint
masks each. The second variance is smaller if and only if c_0 < −D. The question whether it is comes from fully-explored
masking (Zheng et al., arXiv 2010.06040).

The estimates. A draw is one random order of the eligible positions of a text. The masks of a draw are windows of s
positions in that order, so each mask is uniformly distributed, and two masks share the positions that their windows
share. P draws are independent. Let ḡ_p be the mean of g over the K disjoint windows of draw p, L_p the mean of all ḡ_q
with q ≠ p, and V_p the sample variance of these ḡ_q. Then

    E ⟨g − L_p, g' − L_p⟩ = E ⟨g − μ, g' − μ⟩ + E ‖L_p − μ‖²    and    E V_p / (P − 1) = E ‖L_p − μ‖²

for any g and g' of draw p, because L_p is independent of draw p. Hence ⟨g − L_p, g' − L_p⟩ − V_p / (P − 1) is unbiased.
(With a mean that includes draw p itself, every estimate would be biased towards 0.) D is estimated by the sample
variance of the texts' means, minus the variance of each mean around its μ. Standard errors are those of the jackknife
over texts.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mlm_jax.analysis.sketch import SIZE, sketch
from mlm_jax.data.packing import segment_ids
from mlm_jax.masking import corruption
from mlm_jax.masking.batch import MaskedBatch, positions_of
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.selection import eligible_positions
from mlm_jax.objectives.objective import Objective
from mlm_jax.parallel.mesh import BATCH_AXES

# The shares of a mask that a second mask has in common with it; a share of 0 is always measured too. A share of 1 means
# the same positions with another random corruption, and is useful only where the corruption is random.
OVERLAPS = (0.25, 0.5, 0.75)
MIN_MASK = 4  # positions in a mask: with fewer, the shares above would not give different numbers of positions


@dataclasses.dataclass(frozen=True)
class Design:
    """Which masks are drawn for each text.

    Attributes:
      segments: K, the number of disjoint masks in a draw; a mask has ⌊N/K⌋ of the N eligible positions.
      draws: P, the number of draws, at least 3.
      overlaps: for each further mask of a draw, the share of its positions that it has in common with the first mask.
      seed: of all draws.
      sketch_size: k, the size of a sketch of a gradient.
    """

    segments: int = 7
    draws: int = 8
    overlaps: tuple[float, ...] = OVERLAPS
    seed: int = 0
    sketch_size: int = SIZE

    def __post_init__(self) -> None:
        if self.segments < 2 or self.draws < 3:
            raise ValueError(f'segments={self.segments} must be at least 2, and draws={self.draws} at least 3')

    @property
    def num_masks(self) -> int:
        """The number of masks in a draw."""
        return self.segments + len(self.overlaps)


def window_masks(key: jax.Array, eligible_T: jax.Array, size: jax.Array, starts_M: jax.Array) -> jax.Array:
    """Masks of one size with prescribed overlaps.

    Args:
      key: a random key.
      eligible_T: bool[T], the positions that a mask may contain.
      size: int32[], s.
      starts_M: int32[M], where each window starts in a random order of the eligible positions; two windows share
        max(0, s − |difference of their starts|) positions.

    Returns:
      bool[M, T]; each row alone is a uniformly distributed mask of s positions, provided that its window ends within
      the eligible positions.
    """
    score_T = jnp.where(eligible_T, jax.random.uniform(key, eligible_T.shape), 2.0)
    rank_T = jnp.argsort(jnp.argsort(score_T))
    return eligible_T & (rank_T >= starts_M[:, None]) & (rank_T < starts_M[:, None] + size)


def window_starts(size: jax.Array, design: Design) -> jax.Array:
    """int32[M]: the starts of K adjacent windows, followed by those of the windows that overlap the first window."""
    shared = jnp.round(jnp.asarray(design.overlaps) * size).astype(jnp.int32)
    return jnp.concatenate([jnp.arange(design.segments, dtype=jnp.int32) * size, size - shared])


def window_batches(key: jax.Array, tokens_T: jax.Array, masking: Masking, design: Design) -> MaskedBatch:
    """The masks of one draw: a MaskedBatch of M rows with the same text, corrupted as `masking` corrupts it."""
    order_key, corrupt_key = jax.random.split(key)
    segments_1xT = jnp.repeat(segment_ids(tokens_T[None], masking.vocabulary), masking.repeats, axis=1)
    tokens_T = jnp.repeat(tokens_T, masking.repeats)
    eligible_T = eligible_positions(tokens_T[None], segments_1xT, masking.vocabulary)[0]
    size = eligible_T.sum(dtype=jnp.int32) // design.segments
    selected_MxT = window_masks(order_key, eligible_T, size, window_starts(size, design))
    length = len(tokens_T)
    positions_MxS = positions_of(selected_MxT, length // design.segments + 1)
    tokens_MxT = jnp.broadcast_to(tokens_T, selected_MxT.shape)
    return MaskedBatch(
        tokens=tokens_MxT,
        inputs=corruption.corrupt(
            corrupt_key,
            tokens_MxT,
            selected_MxT,
            masking.vocabulary,
            masking.mask_fraction,
            masking.random_fraction,
        ),
        positions=positions_MxS,
        weights=(positions_MxS < length).astype(jnp.float32),
        segments=jnp.broadcast_to(segments_1xT[0], selected_MxT.shape),
    )


def make_sketched_gradients(objective: Objective, masking: Masking, design: Design, mesh: Mesh) -> Callable:
    """A jitted function of `(params, tokens int32[B, T], numbers int32[B])` that computes sketches of gradients.

    The texts and their numbers are divided over `mesh`. The number of a text selects its masks. Each device computes
    the gradients of its texts one after the other, so that it holds one gradient at a time, not one for each mask.

    Returns:
      The function. It returns sketches of the gradients of mean losses, without dropout: float32[B, P, M, k] for the
      windows of each draw, and float32[B, P, k] for P draws of `masking` itself, which may make several rows of a text.
      A ratio that changes during a run is that of its start; `Masking.at_step` gives that of another step.
    """
    sketch_key, texts_key = jax.random.split(jax.random.key(design.seed))

    def of_row(params, row):
        def loss(params):
            terms = objective.apply({'params': params}, jax.tree.map(lambda x: x[None], row), deterministic=True)
            return terms.loss_sum, terms.weight_sum

        grads, weight = jax.grad(loss, has_aux=True)(params)
        return sketch(grads, sketch_key, design.sketch_size), weight

    def of_rows(params, batch):
        return jax.lax.map(lambda row: of_row(params, row), batch)

    def of_text(params, tokens_T, number):
        text_key = jax.random.fold_in(texts_key, number)

        def of_windows(draw):
            batch = window_batches(jax.random.fold_in(text_key, draw), tokens_T, masking, design)
            sum_Mxk, weight_M = of_rows(params, batch)
            return sum_Mxk / jnp.maximum(weight_M, 1e-6)[:, None]

        def of_masking(draw):
            key = jax.random.fold_in(text_key, design.draws + draw)
            # Some maskings depend on how often a row was visited and not on the key: each draw is another visit.
            step = draw * max(masking.num_rows, 1) if masking.by_visit else 0
            batch = masking(key, tokens_T[None], segment_ids(tokens_T[None], masking.vocabulary), step)
            sum_Rxk, weight_R = of_rows(params, batch)  # sketches are linear: their sum is the sketch of the sum
            return sum_Rxk.sum(0) / jnp.maximum(weight_R.sum(), 1e-6)

        draws = jnp.arange(design.draws)
        return jax.lax.map(of_windows, draws), jax.lax.map(of_masking, draws)

    def of_texts(params, tokens_BxT, number_B):
        return jax.lax.map(lambda text: of_text(params, *text), (tokens_BxT, number_B))

    rows, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
    return jax.jit(
        jax.shard_map(of_texts, mesh=mesh, in_specs=(whole, rows, rows), out_specs=(rows, rows), check_vma=False)
    )


@dataclasses.dataclass(frozen=True)
class TextMoments:
    """Unbiased estimates for one text.

    Attributes:
      variance: σ².
      covariances: float64[1 + number of overlaps], c_o for o = 0 and for the overlaps of the design.
      disjoint: the variance of the mean over K disjoint masks.
      mean_k: float64[k], the sketch of μ.
      mean_variance: the variance of `mean_k`.
    """

    variance: float
    covariances: np.ndarray
    disjoint: float
    mean_k: np.ndarray
    mean_variance: float


def window_moments(windows_PxMxk: np.ndarray, segments: int) -> TextMoments:
    """Estimates from the sketched gradients of P draws of one text; the first K windows of a draw are disjoint."""
    windows_PxMxk = np.asarray(windows_PxMxk, np.float64)
    draws = len(windows_PxMxk)
    means_Pxk = windows_PxMxk[:, :segments].mean(1)
    mean_k = means_Pxk.mean(0)
    others_Pxk = (draws * mean_k - means_Pxk) / (draws - 1)  # L_p
    # V_p / (P − 1): the sample variance of the P − 1 values ḡ_q with q ≠ p, divided by their number.
    square_PxP = ((means_Pxk[None] - others_Pxk[:, None]) ** 2).sum(-1)
    excess_P = (square_PxP.sum(1) - np.diag(square_PxP)) / ((draws - 1) * (draws - 2))

    centered_PxMxk = windows_PxMxk - others_Pxk[:, None]
    disjoint_PxKxk, first_Pxk = centered_PxMxk[:, :segments], centered_PxMxk[:, 0]
    squares_P = (disjoint_PxKxk**2).sum((1, 2))
    pairs_P = ((disjoint_PxKxk.sum(1) ** 2).sum(1) - squares_P) / (segments * (segments - 1))
    overlapping_PxO = np.einsum('pk,pok->po', first_Pxk, centered_PxMxk[:, segments:])
    excess = excess_P.mean()
    disjoint = ((means_Pxk - mean_k) ** 2).sum() / (draws - 1)
    return TextMoments(
        variance=squares_P.mean() / segments - excess,
        covariances=np.concatenate([[pairs_P.mean()], overlapping_PxO.mean(0)]) - excess,
        disjoint=disjoint,
        mean_k=mean_k,
        mean_variance=disjoint / draws,
    )


def draw_moments(draws_Pxk: np.ndarray) -> tuple[float, np.ndarray, float]:
    """The variance of one draw, the mean float64[k], and the variance of that mean, from independent draws."""
    draws_Pxk = np.asarray(draws_Pxk, np.float64)
    mean_k = draws_Pxk.mean(0)
    variance = float(((draws_Pxk - mean_k) ** 2).sum() / (len(draws_Pxk) - 1))
    return variance, mean_k, variance / len(draws_Pxk)


def between_texts(means_Sxk: np.ndarray, mean_variance_S: np.ndarray) -> float:
    """D: the sample variance of the estimated means, minus the mean variance of the estimates themselves."""
    spread = ((means_Sxk - means_Sxk.mean(0)) ** 2).sum() / (len(means_Sxk) - 1)
    return float(spread - mean_variance_S.mean())


def jackknife(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """A statistic of independent items, and its standard error by the jackknife.

    Args:
      statistic: a function from the indices of items, int[n], to float64[…].
      count: the number of items, at least 2.
    """
    everything = np.arange(count)
    without = np.stack([statistic(np.delete(everything, i)) for i in everything])
    return statistic(everything), np.sqrt((count - 1) * ((without - without.mean(0)) ** 2).mean(0))


def summarize(
    texts: Sequence[TextMoments], own: Sequence[tuple[float, np.ndarray, float]], design: Design
) -> dict[str, list]:
    """The estimates over all texts: name → [estimate, standard error].

    Args:
      texts: of at least 3 texts.
      own: what `draw_moments` returns for the same texts with the masking of the run.
      design: of the draws.

    Returns:
      Also `covariance_over_variance`: such a pair for each of `TextMoments.covariances`.
    """
    k = design.segments
    variance_S = np.array([text.variance for text in texts])
    disjoint_S = np.array([text.disjoint for text in texts])
    covariance_SxO = np.stack([text.covariances for text in texts])
    means_Sxk = np.stack([text.mean_k for text in texts])
    mean_variance_S = np.array([text.mean_variance for text in texts])
    own_variance_S, own_mean_variance_S = (np.array([moments[i] for moments in own]) for i in (0, 2))
    own_means_Sxk = np.stack([moments[1] for moments in own])

    def statistic(index: np.ndarray) -> np.ndarray:
        variance, disjoint = variance_S[index].mean(), disjoint_S[index].mean()
        covariance_O = covariance_SxO[index].mean(0)
        between = between_texts(means_Sxk[index], mean_variance_S[index])
        scalars = [
            variance,
            between,
            disjoint / (variance / k),
            (between + disjoint) * k / (between + variance),
            (covariance_O[0] + between) / variance,
            between / variance,
            own_variance_S[index].mean(),
            between_texts(own_means_Sxk[index], own_mean_variance_S[index]),
        ]
        return np.concatenate([scalars, covariance_O / variance])

    pairs = np.stack(jackknife(statistic, len(texts)), -1).tolist()
    names = (
        'variance', 'between_texts', 'disjoint_over_independent', 'disjoint_over_distinct_texts',
        'c0_plus_between_over_variance', 'between_over_variance', 'own_variance', 'own_between_texts',
    )  # fmt: skip
    return {**dict(zip(names, pairs, strict=False)), 'covariance_over_variance': pairs[len(names) :]}
