"""What is known of MAE-LM without its module: its options, its slots, and what it costs."""

import dataclasses
import math
import types

import numpy as np

from mlm_jax.objectives import costs
from mlm_jax.objectives.costs import Sizes, Stack
from mlm_jax.objectives.spec import Spec, option
from mlm_jax.parallel.parameters import Parameter

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class MAELMConfig:
    """The decoder, and the switches of the paper's ablations. The defaults are MAE-LM.

    Attributes:
      decoder_layers: L_d.
      decoder_width: d_d; 0 means the encoder's. The number of heads is the encoder's.
      decoder_ffn_width: F_d; 0 means in proportion to the encoder's.
      masked_in_encoder: δ, the share of the masked positions that the encoder sees as `MaskedBatch.inputs` has them:
        [MASK], or with a masking that replaces at random, random tokens.
      reset_masked: before the decoder, those become the embedding of [MASK] like the other masked positions.
      renumber_positions: the encoder counts positions over the kept tokens; otherwise they keep their original ones.
      kept_margin: the share of its masked slots that a row may leave unused before its kept tokens overflow; see
        `kept_slots`. 1 always fits, at the cost of the whole row.
    """

    decoder_layers: int = option(4, 'layers of the decoder', low=1, high=4096, shapes_state=True)
    decoder_width: int = option(0, '0: as wide as the encoder', low=0, high=2**17, shapes_state=True)
    decoder_ffn_width: int = option(0, '0: in proportion', low=0, high=2**20, shapes_state=True)
    masked_in_encoder: float = option(
        0.0, 'share of the masked positions that the encoder sees, as masking replaced them', low=0, high=1
    )
    reset_masked: bool = option(False, "the decoder finds [MASK]'s embedding there, not the encoder's output")
    renumber_positions: bool = option(
        False, 'the encoder counts the kept tokens; else they keep their original positions'
    )
    kept_margin: float = option(
        0.125,
        'share of a row that may be special tokens before its kept tokens overflow; 1 always fits',
        low=0,
        high=1,
    )


def hidden_slots(max_masked: int, masked_in_encoder: float) -> np.ndarray:
    """bool[M]: whether the j-th masked position of a row is hidden from the encoder; 1 − δ of any first few.

    The fractional parts of multiples of the golden ratio are spread as evenly as can be, and masked positions are
    random: this takes any share of them, the same in training and evaluation, and a larger δ only adds to it.
    """
    return np.arange(1, max_masked + 1) * GOLDEN_RATIO % 1 >= masked_in_encoder


def kept_slots(length: int, max_masked: int, options: MAELMConfig) -> int:
    """K, the static number of slots for the tokens that the encoder sees.

    A strategy with a fixed count has M = ⌊ratio·T⌋ + 1 slots and masks at least ⌊ratio·E⌋ of the E eligible tokens of a
    row. So a row of which at most the share `kept_margin` is special tokens hides at least ⌊(1 − kept_margin)(M − 1)⌋,
    and K = T less those, rounded up to a multiple of 8, holds the rest. The default of an eighth allows one document,
    with its [CLS] and [SEP], every 16 tokens. A strategy whose count varies beyond that needs a `kept_margin` of 1.

    Args:
      length: T.
      max_masked: M, the width of `MaskedBatch.positions`.
      options: its `kept_margin` and `masked_in_encoder`.
    """
    surely_masked = math.floor((1 - options.kept_margin) * (max_masked - 1) + 1e-9)
    surely_hidden = int(hidden_slots(surely_masked, options.masked_in_encoder).sum())
    return min(length, -(-(length - surely_hidden) // 8) * 8)  # lengths in eights suit matrix units


def decoder_sizes(model, options) -> types.SimpleNamespace:
    """`width`, `ffn_width` and `mlp` of the decoder, as `model` has those of the encoder."""
    width = options.decoder_width or model.width
    ffn_width = options.decoder_ffn_width or model.ffn_width * width // model.width
    return types.SimpleNamespace(width=width, ffn_width=ffn_width, mlp=model.mlp)


class MAELMSpec(Spec):
    """MAE-LM: the encoder reads the tokens that are kept, and a shallow decoder predicts the others."""

    module = 'mlm_jax.objectives.mae_lm:MAELM'
    options = MAELMConfig
    parameters = (
        Parameter(r'decoder/project/kernel', (None, None), inputs=(0,), outputs=(1,)),
        Parameter(r'decoder/project/bias', (None,)),
        Parameter(r'widen/kernel', (None, None), inputs=(0,), outputs=(1,)),
    )

    def problems(self, config, options, has_fixed_count):
        """A decoder that fits the heads, a reset that has something to reset, and slots for all kept tokens."""
        m, found = config.model, []
        if options.decoder_width % m.num_heads:
            found.append(
                f'mae_lm.decoder_width={options.decoder_width} must be 0, or a multiple of '
                f'model.num_heads={m.num_heads}'
            )
        elif m.positions != 'learned' and options.decoder_width // m.num_heads % 2:
            found.append(
                f'rotary positions need an even head width in the decoder, not {options.decoder_width // m.num_heads}'
            )
        if options.reset_masked and not options.masked_in_encoder:
            found.append('mae_lm.reset_masked needs masked positions in the encoder: set mae_lm.masked_in_encoder=1.0')
        if not has_fixed_count and options.kept_margin < 1:
            found.append(
                'this masking leaves some rows with far fewer masked tokens than others, and MAE-LM has no slots for '
                'the tokens kept there: set mae_lm.kept_margin=1'
            )
        return found

    def sizes(self, options, length, masked):
        """The encoder reads the tokens that are kept."""
        return Sizes(length, masked, encoded=length - (1 - options.masked_in_encoder) * masked)

    def slots(self, options, length, max_masked):
        """The slots for kept tokens."""
        return Sizes(length, max_masked, encoded=kept_slots(length, max_masked, options))

    def row_flops(self, model, options, vocab_size, sizes, document_share):
        """Forward pass: the encoder on k = n − (1 − δ)m kept tokens, the decoder on n, the head on m.

        The paper's decoder costs L_d·(2nW_d + 4n²d_d); here its last layer is that of MLM, read at the masked
        positions. Where d_d ≠ d, each n and each m takes 2d·d_d more.
        """
        decoder, n, masked = decoder_sizes(model, options), sizes.length, sizes.masked
        head = costs.head_flops(masked, decoder.width, model.width, vocab_size)
        between = 2 * model.width * decoder.width * (n + masked) if decoder.width != model.width else 0
        encoder = model.num_layers * costs.layer_flops(model, sizes.encoded, document_share)
        decoding = costs.stack_flops(decoder, options.decoder_layers, n, masked, document_share)
        return encoder + decoding + head + between

    def stacks(self, model, options, sizes):
        """The encoder, and the decoder of whole rows."""
        d = decoder_sizes(model, options)
        decoder = Stack(options.decoder_layers, sizes.length, d.width, d.ffn_width, d.mlp)
        return (*super().stacks(model, options, sizes), decoder)
