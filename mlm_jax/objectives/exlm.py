"""ExLM: each masked token is expanded into k states; the likelihood is a sum over alignments of targets to states.

Zheng et al., ExLM: Rethinking the Impact of [MASK] Tokens in Masked Language Models, ICML 2025, arXiv 2501.13397. What
the paper leaves open follows the released code, zhengkangjie/ExLM. A masked text has several possible meanings; the
states give the encoder room to represent them, and the transitions make the predictions of a row depend on each other.
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
from mlm_jax.models.prediction_head import MLMHead
from mlm_jax.objectives.exlm_spec import DISTRIBUTIONS, ExLMConfig
from mlm_jax.objectives.expansion import ExpandedRows, alignments, ends, expand
from mlm_jax.objectives.objective import NATS, Distributions, Objective
from mlm_jax.objectives.transitions import Transitions


@flax.struct.dataclass
class States:
    """The outputs of the model at the states of expanded rows.

    Attributes:
      rows: the expanded rows, with E expanded tokens and S = k·E states each.
      logits: f32[B, S, V].
      hidden: float[B, S, d], the vectors whose products with the output matrix are the logits.
      links: f32[B, S, S], the log-probabilities of the transitions; None without transitions.
    """

    rows: ExpandedRows
    logits: jax.Array
    hidden: jax.Array
    links: jax.Array | None


class ExLM(Objective):
    """An encoder of expanded rows, with transitions and a prediction head on the states.

    Attributes:
      config: the configuration of the encoder.
      options: the expansion, and the settings of ablations.
    """

    options: ExLMConfig = ExLMConfig()

    def setup(self) -> None:
        c, o = self.config, self.options
        self.encoder = Encoder(c)
        self.head = MLMHead(c)
        if o.transitions != 'none':
            num_positions = o.link_positions or o.num_states * c.max_length
            self.transitions = Transitions(c, o.transition_heads or c.num_heads, num_positions)

    def __call__(self, batch: MaskedBatch, deterministic: bool = True) -> LossTerms:
        """Mean over rows of −log Z / E, where E counts the anchors, too.

        The weight of a row is the mean of the weights of its masked positions, or their sum with `weigh_by_count`.

        With the ratio schedule 'diffusion', a row masked at ratio t has the weight 1/t at each of its t·N masked
        positions, which is meant for a loss that sums over positions: every row then has the total weight N, whatever
        its ratio. −log Z / E is a mean over positions, so the weight of the row must be the sum of these weights.

        Metrics over the masked positions: `posterior_nll` and `accuracy` are those of predictions that know which
        states emitted the targets of the row, by the posterior; accuracy uses the most likely state. If
        `deterministic`, there is also `masked_nll`, the loss of predictions from the context alone, which is comparable
        with other objectives. `own_states` is the posterior probability that a target is emitted by a state of its own
        token, which is 1 unless transitions are dense. `infeasible` is the share of the rows without an alignment,
        which have weight 0, and `shared_alignment` that of the rows in which several documents share one.
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
        feasible_B = ~jnp.isneginf(log_z_B)  # NaN is no missing alignment: it shall show in the loss
        weight_B = jnp.where(feasible_B, weight_B, 0.0)
        loss_B = jnp.where(feasible_B, -log_z_B, 0.0) / jnp.maximum(rows.num_targets, 1)

        masked_BxE = gather_positions(selected_of(batch.positions, length), rows.expanded) & feasible_B[:, None]
        best_BxE = jnp.argmax(posterior_BxExS, axis=2)
        best_logits_BxExV = jnp.take_along_axis(states.logits, best_BxE[..., None], axis=1)
        metrics = {
            'accuracy': _mean_terms(is_most_likely(best_logits_BxExV, targets_BxE), masked_BxE),
            'posterior_nll': _mean_terms(_mixture_nll(posterior_BxExS, match_BxExS), masked_BxE),
            'own_states': _mean_terms((posterior_BxExS * rows.own_states).sum(2), masked_BxE),
            'infeasible': _mean_terms(~feasible_B, used_BxM.any(1)),
            'shared_alignment': _mean_terms(batch.segments.max(1) > self.options.num_alignments, used_BxM.any(1)),
        }
        if deterministic:  # this takes another recursion, which training does not need
            prior_BxExS = self.prior(states)
            metrics['masked_nll'] = _mean_terms(_mixture_nll(prior_BxExS, match_BxExS), masked_BxE)
        return LossTerms(loss_sum=jnp.sum(weight_B * loss_B), weight_sum=jnp.sum(weight_B), metrics=metrics)

    def logits(self, batch: MaskedBatch, deterministic: bool = True) -> jax.Array:
        """f32[B, M, V]: log-probabilities at the masked positions, from the context alone, averaged over alignments."""
        states = self.states(batch, deterministic)
        log_prob_BxSxV = jax.nn.log_softmax(states.logits, axis=-1)
        mixture_BxExV = jnp.einsum('bes,bsv->bev', self.prior(states), jnp.exp(log_prob_BxSxV))
        return jnp.log(gather_positions(mixture_BxExV, states.rows.place(batch.positions)))

    def log_likelihood(self, batch: MaskedBatch) -> jax.Array:
        """f32[B, M]: as `Objective.log_likelihood`, from the context alone: independent of the other targets."""
        states = self.states(batch)
        match_BxExS = self._match(states, gather_positions(batch.tokens, states.rows.expanded))
        nll_BxE = _mixture_nll(self.prior(states), match_BxExS)
        return -gather_positions(nll_BxE, states.rows.place(batch.positions))

    def states(self, batch: MaskedBatch, deterministic: bool = True) -> States:
        """Expands and encodes the rows, and computes the outputs at the states."""
        rows = self._expand(batch)
        state_BxSxd = self._encode(rows, deterministic, rows.state_slot)
        hidden_BxSxd = self.head.hidden(state_BxSxd)
        links_BxSxS = None
        if self.options.transitions != 'none':
            links_BxSxS = self.transitions(state_BxSxd, rows.state_place, self._allowed(rows, batch.step))
        logits_BxSxV = self.head.logits(hidden_BxSxd, self.encoder.token_logits)
        return States(rows=rows, logits=logits_BxSxV, hidden=hidden_BxSxd, links=links_BxSxS)

    def distributions(self, batch: MaskedBatch) -> Distributions:
        """As `Objective.distributions`, with four predictions for each of the N = E expanded tokens.

        The states are weighted by the prior or by the posterior. For each weighting, 'mixture' is the mixture of the
        distributions of the states, and 'states' is the mean over the states. Anchors, and rows without an alignment,
        do not count as masked positions.
        """
        states, match_BxExS, posterior_BxExS = self.alignment(batch)
        probability_BxSxV = jax.nn.softmax(states.logits.astype(jnp.float32))
        state_entropy_BxS = entr(probability_BxSxV).sum(-1)

        def of_weights(weight_BxExS):
            mixture_BxExV = jnp.einsum('bes,bsv->bev', weight_BxExS, probability_BxSxV, precision='highest')
            mixture = entr(mixture_BxExV).sum(-1), -jax.nn.logsumexp(match_BxExS, axis=2, b=weight_BxExS)
            # The match may be −∞ where the weight is 0, and 0 · ∞ would be NaN.
            surprise_BxExS = jnp.where(weight_BxExS > 0, -weight_BxExS * match_BxExS, 0.0)
            return mixture, ((weight_BxExS * state_entropy_BxS[:, None]).sum(2), surprise_BxExS.sum(2))

        pairs = *of_weights(self.prior(states)), *of_weights(posterior_BxExS)
        bits = {name: (h / NATS, nll / NATS) for name, (h, nll) in zip(DISTRIBUTIONS, pairs, strict=True)}
        masked_BxT = selected_of(batch.positions, batch.tokens.shape[1])
        feasible_BxE = posterior_BxExS.sum(2) > 0.5  # the sum is 1, or 0 in rows without an alignment
        return bits, gather_positions(masked_BxT, states.rows.expanded) & feasible_BxE

    def num_logits(self, length: int, max_masked: int) -> int:
        """Each state has logits."""
        return self.options.num_states * min(length, max_masked + self.options.anchor_slots)

    def refuses_single_tokens(self) -> str:
        """Without anchors, the alignment of a single target starts and ends with it, which is impossible for k > 1."""
        o = self.options
        if o.transitions == 'none' or o.num_states == 1 or o.anchors:
            return ''
        return (
            'this model was trained without anchors (exlm.anchors=false): a row with one masked token then has no '
            'alignment, and so no pseudo-log-likelihood. Give a model with exlm.anchors=true or exlm.transitions=none'
        )

    def refuses_alignment(self) -> str:
        """Without transitions, each target belongs to its own states, and there is nothing to align."""
        if self.options.transitions == 'none':
            return (
                'the model has exlm.transitions=none, and without transitions there is no graph to draw: give a model '
                'with exlm.transitions=dense or sparse'
            )
        return ''

    def alignment(self, batch: MaskedBatch) -> tuple[States, jax.Array, jax.Array]:
        """The states, and f32[B, E, S] each, the log-probabilities of targets under states and the posterior."""
        states = self.states(batch)
        match_BxExS = self._match(states, gather_positions(batch.tokens, states.rows.expanded))
        return states, match_BxExS, self._align(match_BxExS, states)[1]

    def encode_masked(self, batch: MaskedBatch, deterministic: bool = True) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The encoder's output for expanded rows, its pretraining input; as `Objective.encode_masked`, with S = L."""
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
        """float[B, T, d]: representations of unmasked rows for downstream tasks; [B, M, d] at `at_BxM` if given.

        The anchors are expanded, as in pretraining and in the released code; an anchor's representation is that of its
        first copy.
        """
        nothing_BxM = jnp.zeros((len(tokens_BxT), 0), jnp.int32)
        batch = MaskedBatch(tokens_BxT, tokens_BxT, nothing_BxM, nothing_BxM.astype(jnp.float32), segments_BxT)
        rows = self._expand(batch)
        slots_BxM = rows.first_slot if at_BxM is None else gather_positions(rows.first_slot, at_BxM)
        return self._encode(rows, deterministic, slots_BxM)

    def _expand(self, batch: MaskedBatch) -> ExpandedRows:
        o = self.options
        alignment_BxT = alignments(batch.segments, o.num_alignments)
        if o.anchor_ids:
            anchors_BxT = jnp.isin(batch.inputs, jnp.asarray(o.anchor_ids))
        else:
            anchors_BxT = ends(alignment_BxT) & o.anchors
        return expand(batch, alignment_BxT, anchors_BxT, o.anchor_slots, o.num_states)

    def _encode(self, rows: ExpandedRows, deterministic: bool, at_BxS: jax.Array | None = None) -> jax.Array:
        return self.encoder(rows.tokens, rows.segments, rows.positions, deterministic, rows.copies, at_BxS)

    def _allowed(self, rows: ExpandedRows, step_B: jax.Array | None) -> jax.Array:
        """bool[B, S, S]: whether a transition from state v to state u is allowed.

        In the first `sparse_steps` steps of a run, dense transitions are sparse; where nothing is trained, and so there
        is no step, they are dense. From one alignment of a row to the next there is one transition, from the last state
        to the first, so that it is certain, and the log Z of a row is the sum over its alignments.
        """
        num_states, num_expanded = self.options.num_states, rows.expanded.shape[1]
        index_S = jnp.arange(num_states * num_expanded)
        token_S = index_S // num_states
        later_SxS = {'sparse': token_S[:, None] < token_S, 'dense': index_S[:, None] < index_S}
        allowed_BxSxS = later_SxS[self.options.transitions][None]
        if self.options.sparse_steps and step_B is not None:
            sparse_Bx1x1 = (step_B < self.options.sparse_steps)[:, None, None]
            allowed_BxSxS = jnp.where(sparse_Bx1x1, later_SxS['sparse'], allowed_BxSxS)
        exists_BxS = index_S < num_states * rows.num_targets[:, None]
        is_same_BxSxS = rows.state_alignment[:, :, None] == rows.state_alignment[:, None, :]
        is_next_SxS = index_S[:, None] + 1 == index_S
        return allowed_BxSxS & (is_same_BxSxS | is_next_SxS) & exists_BxS[:, None, :]

    def _match(self, states: States, targets_BxE: jax.Array) -> jax.Array:
        """f32[B, E, S]: log-probability of each target under each state; −∞ under those of other alignments.

        The logits of the targets are computed again from the targets' embeddings: the gradient of gathering them from
        the [B, S, V] logits would be a scatter into an array of that size.
        """
        normalizer_BxS = jax.nn.logsumexp(states.logits, axis=-1)
        logit_BxExS = self.head.logits_of(targets_BxE, states.hidden, self.encoder.token_vectors)
        return jnp.where(states.rows.shares_alignment, logit_BxExS - normalizer_BxS[:, None, :], -jnp.inf)

    def _align(self, match_BxExS: jax.Array, states: States) -> tuple[jax.Array, jax.Array]:
        """f32[B], log Z; f32[B, E, S], the posterior probability, given all targets, that a state emits a target."""
        rows, num_states = states.rows, self.options.num_states
        if states.links is not None:
            return dag_forward_backward(match_BxExS, states.links, rows.num_targets, num_states * rows.num_targets)
        uniform_BxExS = self.prior(states)
        log_joint_BxExS = jnp.where(uniform_BxExS > 0, match_BxExS - jnp.log(num_states), -1e30)
        log_z_B = jnp.where(rows.used, jax.nn.logsumexp(log_joint_BxExS, axis=2), 0.0).sum(1)
        posterior_BxExS = jax.nn.softmax(log_joint_BxExS, axis=2) * rows.used[..., None]
        return jnp.where(rows.num_targets > 0, log_z_B, -jnp.inf), jax.lax.stop_gradient(posterior_BxExS)

    def prior(self, states: States) -> jax.Array:
        """f32[B, E, S]: the probability that a state emits a target, given only the number of targets."""
        rows, num_states = states.rows, self.options.num_states
        if states.links is not None:
            no_match_BxExS = jnp.where(rows.shares_alignment, 0.0, -jnp.inf)
            sizes = (rows.num_targets, num_states * rows.num_targets)
            return dag_forward_backward(no_match_BxExS, jax.lax.stop_gradient(states.links), *sizes)[1]
        return rows.own_states * rows.used[..., None] / num_states


def _mixture_nll(share_BxExS: jax.Array, match_BxExS: jax.Array) -> jax.Array:
    """f32[B, E]: −log Σ_u share(u)·exp(match(u))."""
    return -jax.nn.logsumexp(match_BxExS, axis=2, b=share_BxExS)


def _mean_terms(value: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f32[] each: the sum of `value` where `mask` is True, and the number of these entries."""
    return jnp.where(mask, value, 0).astype(jnp.float32).sum(), mask.sum().astype(jnp.float32)
