"""What is known of ExLM without its module: its options, and what it costs."""

import dataclasses

from mlm_jax.objectives import costs
from mlm_jax.objectives.costs import Sizes
from mlm_jax.objectives.spec import Spec, option
from mlm_jax.parallel.parameters import Parameter

# What ExLM's predictions are called: two weights of the states, and two ways to use them (`exlm.ExLM.distributions`).
COMPARABLE = 'prior, mixture'
DISTRIBUTIONS = (COMPARABLE, 'prior, states', 'posterior, mixture', 'posterior, states')


@dataclasses.dataclass(frozen=True)
class ExLMConfig:
    """The expansion, and the switches of the paper's ablations. The defaults are ExLM.

    Attributes:
      num_states: k, states of each expanded token.
      transitions: 'dense' (to every later state, those of the same token included), 'sparse' (to states of later tokens
        only: then target i is emitted by a state of token i), or 'none' (each target by the states of its own token,
        all equally likely).
      transition_heads: C; 0 means the encoder's number of heads, 1 the single softmax of the paper's formula.
      anchors: the first and the last token of each row are expanded too, and predict themselves: the alignment starts
        and ends there. Without, a row with one masked token has no alignment when k > 1.
      link_positions: rows of the position embedding of the transitions; 0 means k times the longest row.
      anchor_ids: tokens with these ids are the anchors instead, wherever `inputs` has them (the released code).
      max_anchors: the most anchors of a row.
      weigh_by_count: a row weighs the sum, not the mean, of the weights of its masked positions, as rows do in MLM: for
        rows masked at different ratios, whose weights undo just that.
    """

    num_states: int = option(4, 'k, states of each expanded token', low=1, high=256, shapes_state=True)
    transitions: str = option(
        'dense',
        'to all later states | to those of later tokens only | none: states are equally likely',
        choices=('dense', 'sparse', 'none'),
        shapes_state=True,
    )
    transition_heads: int = option(
        0,
        "0: as many as the encoder; 1: the single softmax of the paper's formula",
        low=0,
        high=2**17,
        shapes_state=True,
    )
    anchors: bool = option(True, 'the ends of a row are expanded too: alignments start and end there')
    link_positions: int = 0
    anchor_ids: tuple[int, ...] = ()
    max_anchors: int = 2
    weigh_by_count: bool = False


def row_slots(length: int, max_expanded: int, num_states: int) -> int:
    """L, the static length of an expanded row: T + (k − 1)·E, rounded up to a multiple of 8 for matrix units."""
    return -(-(length + (num_states - 1) * max_expanded) // 8) * 8


class ExLMSpec(Spec):
    """ExLM: each token to predict is expanded into k states, and its prediction summed over alignments with them."""

    module = 'mlm_jax.objectives.exlm:ExLM'
    options = ExLMConfig
    positions = ('rotary', 'rotary_2d')  # which copies of a token share
    relative_bias = False
    parameters = (
        Parameter(r'transitions/(query|key)/kernel', (None, None, None), inputs=(0,), outputs=(1, 2)),
        Parameter(r'transitions/(query|key)/bias', (None, None)),
        Parameter(r'transitions/gate/kernel', (None, None), inputs=(0,), outputs=(1,)),
        Parameter(r'transitions/gate/bias', (None,)),
    )
    distributions = DISTRIBUTIONS

    def problems(self, config, options, has_fixed_count):
        """Heads of the transitions that divide the width."""
        if options.transition_heads and config.model.width % options.transition_heads:
            return [
                f'exlm.transition_heads={options.transition_heads} must be 0, or divide '
                f'model.width={config.model.width}'
            ]
        return []

    def settings(self, config):
        """Rows that are masked at ratios of their own weigh by their masked tokens."""
        return {'weigh_by_count': config.masking.ratio_schedule == 'diffusion'}

    def sizes(self, options, length, masked):
        """The masked tokens and the anchors are expanded."""
        expanded = masked + 2 * options.anchors
        return Sizes(length, masked, length + (options.num_states - 1) * expanded, expanded)

    def slots(self, options, length, max_masked):
        """As `sizes`, with no more expanded tokens than a row has."""
        expanded = min(length, max_masked + 2 * options.anchors)
        return Sizes(length, max_masked, row_slots(length, expanded, options.num_states), expanded)

    def row_flops(self, model, options, vocab_size, sizes, document_share):
        """Forward pass: the encoder on n' = n + (k − 1)e slots, its last layer and the head on S = k·e states.

        Transitions take 2·S·2d(2d + C) for queries, keys and gates, and 2S²d for their products. The logits of the
        targets under each state, 2·e·S·d, are computed beside those of the vocabulary. The likelihood sums 2·e·S²
        products, whose gradient is made of the same sums from both ends: it counts 3 times like all else.
        """
        states, width = options.num_states * sizes.expanded, model.width
        layers = costs.stack_flops(model, model.num_layers, sizes.encoded, states, document_share)
        head = costs.head_flops(states, width, width, vocab_size) + 2 * sizes.expanded * states * width
        if options.transitions == 'none':
            return layers + head
        heads = options.transition_heads or model.num_heads
        links = 4 * states * width * (2 * width + (heads if heads > 1 else 0)) + 2 * states**2 * width
        return layers + head + links + 2 * sizes.expanded * states**2

    def num_logits(self, options, sizes):
        """For each state."""
        return options.num_states * sizes.expanded
