"""ExLM: each token to predict is expanded into k states, and its prediction summed over all alignments with them.

Zheng et al., ExLM: Rethinking the Impact of [MASK] Tokens in Masked Language Models, ICML 2025, arXiv 2501.13397; what
the paper leaves open is as in the released code, zhengkangjie/ExLM. Masking leaves the rest of a text with several
meanings; states give the encoder room for them, and transitions tie the predictions of a row together.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from mlm_jax.losses.cross_entropy import is_most_likely
from mlm_jax.losses.dag import dag_forward_backward
from mlm_jax.losses.terms import LossTerms
from mlm_jax.masking.batch import MaskedBatch, gather_positions, selected_of
from mlm_jax.models.encoder import Encoder
from mlm_jax.models.heads import MLMHead
from mlm_jax.models.products import product
from mlm_jax.objectives.exlm_spec import DISTRIBUTIONS, ExLMConfig
from mlm_jax.objectives.expansion import ExpandedRows, expand, row_ends
from mlm_jax.objectives.objective import NATS, Distributions, Objective
from mlm_jax.objectives.transitions import Transitions


@flax.struct.dataclass
class States:
    """What the model makes of the states of expanded rows.

    Attributes:
      rows: the expansion, with E expanded tokens in a row and S = k·E states.
      logits: f32[B, S, V].
      hidden: float[B, S, d], what met the token embedding in them.
      links: f32[B, S, S], log-probabilities of the transitions; None without transitions.
    """

    rows: ExpandedRows
    logits: jax.Array
    hidden: jax.Array
    links: jax.Array | None


class ExLM(Objective):
    """An encoder of expanded rows, with transitions and a prediction head on the states.

    Attributes:
      config: of the encoder.
      options: the expansion, and the switches.
    """

    options: ExLMConfig = ExLMConfig()

    def setup(self):
        c, o = self.config, self.options
        self.encoder = Encoder(c)
        self.head = MLMHead(c)
        if o.transitions != 'none':
            num_positions = o.link_positions or o.num_states * c.max_length
            self.transitions = Transitions(c, o.transition_heads or c.num_heads, num_positions)

    def __call__(self, batch: MaskedBatch, deterministic: bool = True) -> LossTerms:
        """Mean over rows of −log Z / E, E counting the anchors; a row weighs what its masked positions do on average.

        With diffusion ratios t, weights 1/t are those of a sum over masked positions, of which there are t·N: each row
        weighs N, in whatever share it is masked. A mean has its 1/t already, in E, so rows have the sum of the weights
        there (`weigh_by_count`).

        Metrics, over the masked positions: `posterior_nll` and `accuracy` of the prediction given which states have
        emitted the row's targets, the most likely one of them for accuracy; when deterministic, also `masked_nll`, the
        prediction from the context alone, which compares with that of other objectives. `infeasible`: the share of the
        rows without an alignment, which have no weight.
        """
        states = self.states(batch, deterministic)
        rows, length = states.rows, batch.tokens.shape[1]
        targets_BxE = gather_positions(batch.tokens, rows.expanded)
        match_BxExS = self._match(states, targets_BxE)
        log_z_B, posterior_BxExS = self._align(match_BxExS, states)

        used_BxM = batch.positions < length
        weight_B = jnp.sum(batch.weights, axis=1)
        if not self.options.weigh_by_count:
            weight_B /= jnp.maximum(used_BxM.sum(1), 1)
        feasible_B = log_z_B > -jnp.inf
        weight_B = jnp.where(feasible_B, weight_B, 0.0)
        loss_B = jnp.where(feasible_B, -log_z_B, 0.0) / jnp.maximum(rows.num_targets, 1)

        masked_BxE = gather_positions(selected_of(batch.positions, length), rows.expanded) & feasible_B[:, None]
        best_BxE = jnp.argmax(posterior_BxExS, axis=2)
        best_logits_BxExV = jnp.take_along_axis(states.logits, best_BxE[..., None], axis=1)
        metrics = {
            'accuracy': _mean_terms(is_most_likely(best_logits_BxExV, targets_BxE), masked_BxE),
            'posterior_nll': _mean_terms(_mixture_nll(posterior_BxExS, match_BxExS), masked_BxE),
            'infeasible': _mean_terms(~feasible_B, used_BxM.any(1)),
        }
        if deterministic:  # another recursion, of no use to training
            prior_BxExS = self.prior(states)
            metrics['masked_nll'] = _mean_terms(_mixture_nll(prior_BxExS, match_BxExS), masked_BxE)
        return LossTerms(loss_sum=jnp.sum(weight_B * loss_B), weight_sum=jnp.sum(weight_B), metrics=metrics)

    def logits(self, batch: MaskedBatch, deterministic: bool = True) -> jax.Array:
        """f32[B, M, V], log-probabilities at the masked positions from the context alone, over all alignments."""
        states = self.states(batch, deterministic)
        log_prob_BxSxV = jax.nn.log_softmax(states.logits, axis=-1)
        mixture_BxExV = jnp.einsum('bes,bsv->bev', self.prior(states), jnp.exp(log_prob_BxSxV))
        return jnp.log(gather_positions(mixture_BxExV, states.rows.place(batch.positions)))

    def log_likelihood(self, batch: MaskedBatch) -> jax.Array:
        """f32[B, M]: as `Objective.log_likelihood`; from the context alone, over all alignments, of no other target."""
        states = self.states(batch)
        match_BxExS = self._match(states, gather_positions(batch.tokens, states.rows.expanded))
        nll_BxE = _mixture_nll(self.prior(states), match_BxExS)
        return -gather_positions(nll_BxE, states.rows.place(batch.positions))

    def states(self, batch: MaskedBatch, deterministic: bool = True) -> States:
        """Encodes expanded rows, and reads them at the states."""
        rows = self._expand(batch)
        state_BxSxd = self._encode(rows, deterministic, rows.state_slot)
        hidden_BxSxd = self.head.hidden(state_BxSxd)
        links_BxSxS = None
        if self.options.transitions != 'none':
            links_BxSxS = self.transitions(state_BxSxd, rows.state_slot, self._allowed(rows))
        logits_BxSxV = self.encoder.token_logits(hidden_BxSxd) + self.head.bias
        return States(rows=rows, logits=logits_BxSxV, hidden=hidden_BxSxd, links=links_BxSxS)

    def distributions(self, batch: MaskedBatch) -> Distributions:
        """By each of the two weights of the states, the mixture of their distributions, and the states themselves.

        Which are of masked positions leaves out the anchors, and rows that have no alignment.
        """
        states, match_BxExS, posterior_BxExS = self.alignment(batch)
        probability_BxSxV = jax.nn.softmax(states.logits.astype(jnp.float32))
        state_entropy_BxS = entr(probability_BxSxV).sum(-1)

        def of_weights(weight_BxExS):
            mixture_BxExV = jnp.einsum('bes,bsv->bev', weight_BxExS, probability_BxSxV, precision='highest')
            mixture = entr(mixture_BxExV).sum(-1), -jax.nn.logsumexp(match_BxExS, axis=2, b=weight_BxExS)
            # Where the weight is 0, the match may be −∞.
            surprise_BxExS = jnp.where(weight_BxExS > 0, -weight_BxExS * match_BxExS, 0.0)
            return mixture, ((weight_BxExS * state_entropy_BxS[:, None]).sum(2), surprise_BxExS.sum(2))

        pairs = *of_weights(self.prior(states)), *of_weights(posterior_BxExS)
        bits = {name: (h / NATS, nll / NATS) for name, (h, nll) in zip(DISTRIBUTIONS, pairs, strict=True)}
        masked_BxT = selected_of(batch.positions, batch.tokens.shape[1])
        feasible_BxE = posterior_BxExS.sum(2) > 0.5  # 1, or 0 in rows without an alignment
        return bits, gather_positions(masked_BxT, states.rows.expanded) & feasible_BxE

    def num_logits(self, length: int, max_masked: int) -> int:
        """For each state."""
        return self.options.num_states * min(length, max_masked + self.options.max_anchors)

    def refuses_single_tokens(self) -> str:
        """Without anchors, nothing is there to start and to end the alignment of a single token."""
        o = self.options
        if o.transitions == 'none' or o.num_states == 1 or o.anchors:
            return ''
        return (
            'without anchors (exlm.anchors=false), ExLM has no alignment for a row with one masked token, and so no '
            'pseudo-log-likelihood: it can be given to models with exlm.anchors=true or exlm.transitions=none only'
        )

    def refuses_alignment(self) -> str:
        """Without transitions, states are not tied together."""
        if self.options.transitions == 'none':
            return 'the model has exlm.transitions=none: without transitions there is no graph to draw'
        return ''

    def alignment(self, batch: MaskedBatch) -> tuple[States, jax.Array, jax.Array]:
        """For analyses: the states, f32[B, E, S], log-probabilities of the targets under them, and their posterior."""
        states = self.states(batch)
        match_BxExS = self._match(states, gather_positions(batch.tokens, states.rows.expanded))
        return states, match_BxExS, self._align(match_BxExS, states)[1]

    def encode_masked(self, batch: MaskedBatch, deterministic: bool = True) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the encoder makes of its pretraining input, expanded rows: as `Objective.encode_masked`, with S = L."""
        rows = self._expand(batch)
        masked_BxL = gather_positions(selected_of(batch.positions, batch.tokens.shape[1]), rows.index)
        return self._encode(rows, deterministic), rows.segments, masked_BxL

    def encode(
        self,
        tokens_BxT: jax.Array,
        segments_BxT: jax.Array,
        deterministic: bool = True,
        at_BxM: jax.Array | None = None,
    ) -> jax.Array:
        """float[B, T, d]: the representation of unmasked rows, for downstream tasks; `at_BxM`, if any: [B, M, d].

        The anchors are expanded, as in pretraining and in the released code, and stand for their first copies.
        """
        nothing_BxM = jnp.zeros((len(tokens_BxT), 0), jnp.int32)
        batch = MaskedBatch(tokens_BxT, tokens_BxT, nothing_BxM, nothing_BxM.astype(jnp.float32), segments_BxT)
        rows = self._expand(batch)
        slots_BxM = rows.first_slot if at_BxM is None else gather_positions(rows.first_slot, at_BxM)
        return self._encode(rows, deterministic, slots_BxM)

    def _expand(self, batch: MaskedBatch) -> ExpandedRows:
        o = self.options
        if o.anchor_ids:
            anchors_BxT = jnp.isin(batch.inputs, jnp.asarray(o.anchor_ids))
        else:
            anchors_BxT = row_ends(batch.segments) & o.anchors
        max_anchors = o.max_anchors if o.anchors else 0
        return expand(batch, anchors_BxT, max_anchors, o.num_states)

    def _encode(self, rows: ExpandedRows, deterministic: bool, at_BxS: jax.Array | None = None) -> jax.Array:
        return self.encoder(rows.tokens, rows.segments, rows.positions, deterministic, rows.copies, at_BxS)

    def _allowed(self, rows: ExpandedRows) -> jax.Array:
        """bool[B, S, S]: to which u the transitions from v may go."""
        num_states = self.options.num_states
        index_S = jnp.arange(rows.state_slot.shape[1])
        order_S = index_S // num_states if self.options.transitions == 'sparse' else index_S
        exists_BxS = index_S < num_states * rows.num_targets[:, None]
        return (order_S[:, None] < order_S)[None] & exists_BxS[:, None, :]

    def _match(self, states: States, targets_BxE: jax.Array) -> jax.Array:
        """f32[B, E, S]: log-probability of each target under each state.

        The logits of the targets are computed again, from their embeddings: reading them off the [B, S, V] logits would
        scatter their gradients into an array of that size.
        """
        normalizer_BxS = jax.nn.logsumexp(states.logits, axis=-1)
        vectors_BxExd = self.encoder.token_vectors(targets_BxE).astype(states.hidden.dtype)
        logit_BxExS = product('bed,bsd->bes', vectors_BxExd, states.hidden, jnp.float32)
        return logit_BxExS + self.head.bias[targets_BxE][..., None] - normalizer_BxS[:, None, :]

    def _align(self, match_BxExS: jax.Array, states: States) -> tuple[jax.Array, jax.Array]:
        """log Z, f32[B], and the posterior of the states given the targets, f32[B, E, S]."""
        rows, num_states = states.rows, self.options.num_states
        if states.links is not None:
            return dag_forward_backward(match_BxExS, states.links, rows.num_targets, num_states * rows.num_targets)
        uniform_BxExS = self.prior(states)
        log_joint_BxExS = jnp.where(uniform_BxExS > 0, match_BxExS - jnp.log(num_states), -1e30)
        log_z_B = jnp.where(rows.used, jax.nn.logsumexp(log_joint_BxExS, axis=2), 0.0).sum(1)
        posterior_BxExS = jax.nn.softmax(log_joint_BxExS, axis=2) * rows.used[..., None]
        return jnp.where(rows.num_targets > 0, log_z_B, -jnp.inf), jax.lax.stop_gradient(posterior_BxExS)

    def prior(self, states: States) -> jax.Array:
        """f32[B, E, S]: which state emits which target when nothing is known of the targets but their number."""
        rows, num_states = states.rows, self.options.num_states
        num_expanded = rows.expanded.shape[1]
        if states.links is not None:
            no_match_BxExS = jnp.zeros((len(rows.expanded), num_expanded, num_states * num_expanded))
            sizes = (rows.num_targets, num_states * rows.num_targets)
            return dag_forward_backward(no_match_BxExS, jax.lax.stop_gradient(states.links), *sizes)[1]
        own_ExS = jnp.arange(num_states * num_expanded) // num_states == jnp.arange(num_expanded)[:, None]
        return own_ExS * rows.used[..., None] / num_states


def _mixture_nll(share_BxExS: jax.Array, match_BxExS: jax.Array) -> jax.Array:
    """f32[B, E]: −log Σ_u share(u)·exp(match(u))."""
    return -jax.nn.logsumexp(match_BxExS, axis=2, b=share_BxExS)


def _mean_terms(value: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum of `value` where `mask`, and how many there are."""
    return jnp.where(mask, value, 0).astype(jnp.float32).sum(), mask.sum().astype(jnp.float32)
