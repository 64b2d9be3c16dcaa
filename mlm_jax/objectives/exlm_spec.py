"""What the program must know about ExLM without importing its module: its options, its slots, and its FLOPs."""

import dataclasses
from typing import Any

from mlm_jax.objectives import layer_flops
from mlm_jax.objectives.layer_flops import EncoderSizes, Sizes
from mlm_jax.objectives.spec import Spec, option
from mlm_jax.parallel.parameters import Parameter

# The names of ExLM's predictions, which weight and combine the states in two ways each (`exlm.ExLM.distributions`).
COMPARABLE = 'prior, mixture'
DISTRIBUTIONS = (COMPARABLE, 'prior, states', 'posterior, mixture', 'posterior, states')


@dataclasses.dataclass(frozen=True)
class ExLMConfig:
    """The expansion, and the settings of the paper's ablations. The defaults are those of ExLM.

    Attributes:
      num_states: k, the number of states of each expanded token.
      transitions: 'dense' allows transitions to every later state, also of the same token; 'sparse' allows only
        transitions to states of later tokens, so that target i is emitted by a state of token i; with 'none', each
        target is emitted by the states of its own token, which are all equally likely.
      sparse_percent: the first part of the run, in which transitions are sparse although `transitions` is 'dense'. From
        random weights, dense alignments spread the signal of a target over the states of several tokens, and models
        hardly learn more than the frequencies of words; they learn on once the states mean something.
      transition_heads: C; 0 means the encoder's number of heads, 1 the single softmax of the paper's formula.
      anchors: whether the first and the last token of each row are expanded, too, and predict themselves, so that the
        alignment starts and ends with them. Without anchors, a row with one masked token has no alignment if k > 1.
      alignments: A, the number of alignments in a row of several documents. Each document has its own, from its first
        token to its last, but the last alignment is shared by all documents from the A-th on. With 1, one alignment
        runs through the whole row, as in the released code, where a row is one text. Each alignment takes two anchors;
        without anchors, there is one alignment.
      link_positions: the number of rows of the position embedding of the transitions; 0 means k times the longest row.
      anchor_ids: if given, tokens with these ids in `inputs` are the anchors of a single alignment, as in the released
        code.
      max_anchors: the largest number of anchors in a row, if they are given by `anchor_ids`.
      sparse_steps: the number of steps that `sparse_percent` means.
      weigh_by_count: whether the weight of a row is the sum, instead of the mean, of the weights of its masked
        positions, as it is in MLM. It is set if rows have different ratios, for which the weights already compensate.
    """

    num_states: int = option(4, 'k, states of each expanded token', low=1, high=256, shapes_state=True)
    transitions: str = option(
        'dense',
        'dense: to all later states | sparse: to states of later tokens | none: states are equally likely',
        choices=('dense', 'sparse', 'none'),
        shapes_state=True,
        same_shapes=('dense', 'sparse'),
    )
    sparse_percent: float = option(
        0.0, 'the first part of the run, in which transitions are sparse before they are dense', low=0, high=100
    )
    transition_heads: int = option(
        0,
        "0: as many as the encoder; 1: the single softmax of the paper's formula",
        low=0,
        high=2**17,
        shapes_state=True,
    )
    anchors: bool = option(True, 'expand the ends of a document, too: alignments start and end there')
    alignments: int = option(
        1,
        'alignments in a row: one for each document, the last for all further ones; 1: through all, as in the paper',
        low=1,
        high=1024,
    )
    link_positions: int = 0
    anchor_ids: tuple[int, ...] = ()
    max_anchors: int = 2
    sparse_steps: int = 0
    weigh_by_count: bool = False

    @property
    def num_alignments(self) -> int:
        """A; 1 without anchors of documents."""
        return self.alignments if self.anchors and not self.anchor_ids else 1

    @property
    def anchor_slots(self) -> int:
        """The largest number of anchors in a row."""
        return self.max_anchors * self.anchors if self.anchor_ids else _anchor_slots(self)


def _anchor_slots(options: Any) -> int:
    """Two anchors for each alignment, of the options of a module or of a configuration."""
    return 2 * options.alignments * options.anchors


def row_slots(length: int, max_expanded: int, num_states: int) -> int:
    """L, the static length of an expanded row: T + (k − 1)·E, rounded up to a multiple of 8 for matrix units."""
    return -(-(length + (num_states - 1) * max_expanded) // 8) * 8


class ExLMSpec(Spec):
    """ExLM: masked tokens are expanded into k states; the likelihood is a sum over alignments of targets to states."""

    module = 'mlm_jax.objectives.exlm:ExLM'
    options = ExLMConfig
    positions = ('rotary', 'rotary_2d')  # copies of a token share their position
    relative_bias = False
    head_on_encoder = True
    export_note = (
        'in training and in mlm_jax, masked tokens and (unless exlm.anchors=false) the ends of a text are read as '
        'several states each; other programs read every token once, for which it has not been trained, so that '
        'its vectors are others than in mlm_jax, and masks are filled less well: fine-tune it before you use it'
    )
    parameters = (
        Parameter(r'transitions/(query|key)/kernel', (None, None, None), inputs=(0,), outputs=(1, 2)),
        Parameter(r'transitions/(query|key)/bias', (None, None)),
        Parameter(r'transitions/gate/kernel', (None, None), inputs=(0,), outputs=(1,)),
        Parameter(r'transitions/gate/bias', (None,)),
    )
    distributions = DISTRIBUTIONS

    def problems(self, config: Any, options: Any, has_fixed_count: bool) -> list[str]:
        """The number of heads of the transitions must divide the width."""
        if options.transition_heads and config.model.width % options.transition_heads:
            return [
                f'exlm.transition_heads={options.transition_heads} must be 0 or divide model.width={config.model.width}'
            ]
        return []

    def settings(self, config: Any) -> dict[str, Any]:
        """`sparse_steps`; and `weigh_by_count` with the ratio schedule 'diffusion', where rows have own ratios."""
        options, is_dense = config.exlm, config.exlm.transitions == 'dense'
        return {
            'sparse_steps': round(options.sparse_percent / 100 * config.total_steps) if is_dense else 0,
            'weigh_by_count': config.masking.ratio_schedule == 'diffusion',
        }

    def sizes(self, options: Any, length: float, masked: float) -> Sizes:
        """The masked tokens and the anchors are expanded."""
        expanded = masked + 2 * options.anchors
        return Sizes(length, masked, length + (options.num_states - 1) * expanded, expanded)

    def slots(self, options: Any, length: int, max_masked: int) -> Sizes:
        """As `sizes`, but at most all tokens of a row are expanded, and the length is rounded up."""
        expanded = min(length, max_masked + _anchor_slots(options))
        return Sizes(length, max_masked, row_slots(length, expanded, options.num_states), expanded)

    def row_flops(
        self, model: EncoderSizes, options: Any, vocab_size: int, sizes: Sizes, document_share: float
    ) -> float:
        """Forward pass: the encoder on n' = n + (k − 1)e slots, its last layer and the head on S = k·e states.

        Transitions take 2·S·2d(2d + C) for queries, keys and gates, and 2S²d for the products of queries and keys. The
        logits of the targets under each state, 2·e·S·d, come on top of those of the vocabulary. The likelihood takes
        2·e·S². Its gradient consists of the same sums, forward and backward, so that the factor of 3 between forward
        pass and training step holds for the likelihood, too.
        """
        states, width = options.num_states * sizes.expanded, model.width
        layers = layer_flops.stack_flops(model, model.num_layers, sizes.encoded, states, document_share)
        head = (
            layer_flops.head_flops(states, model.head, width, width, vocab_size) + 2 * sizes.expanded * states * width
        )
        if options.transitions == 'none':
            return layers + head
        heads = options.transition_heads or model.num_heads
        links = 4 * states * width * (2 * width + (heads if heads > 1 else 0)) + 2 * states**2 * width
        return layers + head + links + 2 * sizes.expanded * states**2

    def num_logits(self, options: Any, sizes: Sizes) -> float:
        """Each state has logits."""
        return options.num_states * sizes.expanded
