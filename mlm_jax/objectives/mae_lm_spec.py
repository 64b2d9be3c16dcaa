"""What the program must know about MAE-LM without importing its module: its options, its slots, and its FLOPs."""

import dataclasses
import math
from typing import Any

import numpy as np

from mlm_jax.objectives import layer_flops
from mlm_jax.objectives.layer_flops import EncoderSizes, LayerSizes, Sizes, Stack
from mlm_jax.objectives.spec import Spec, option
from mlm_jax.parallel.parameters import Parameter

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class MAELMConfig:
    """The decoder, and the settings of the paper's ablations. The defaults are those of MAE-LM.

    Attributes:
      decoder_layers: L_d, the number of layers of the decoder.
      decoder_width: d_d; 0 means the width of the encoder. The number of heads is that of the encoder.
      decoder_ffn_width: F_d; 0 means the same ratio to the width as in the encoder.
      masked_in_encoder: δ, the share of the masked positions that the encoder reads, with the tokens that they have in
        `MaskedBatch.inputs`: [MASK], or random tokens if the masking is configured so.
      reset_masked: whether the encoder's outputs at those positions are replaced by the embedding of [MASK] before the
        decoder, as at the other masked positions.
      renumber_positions: whether the encoder numbers the kept tokens consecutively; otherwise each token keeps its
        original position.
      kept_margin: the share of the masked slots that a row may leave unused before its kept tokens overflow; see
        `kept_slots`. With 1 there is a slot for every token of the row, and nothing overflows.
    """

    decoder_layers: int = option(4, 'layers of the decoder', low=1, high=4096, shapes_state=True)
    decoder_width: int = option(0, 'width of the decoder; 0: that of the encoder', low=0, high=2**17, shapes_state=True)
    decoder_ffn_width: int = option(
        0, 'hidden units of its MLPs; 0: in proportion', low=0, high=2**20, shapes_state=True
    )
    masked_in_encoder: float = option(
        0.0, 'share of the masked positions that the encoder reads, as masking replaced them', low=0, high=1
    )
    reset_masked: bool = option(False, "the decoder reads [MASK]'s embedding at those positions")
    renumber_positions: bool = option(
        False, 'number the kept tokens consecutively; else they keep their original positions'
    )
    kept_margin: float = option(
        0.125,
        'share of a row that may be special tokens before its kept tokens overflow; 1 always fits',
        low=0,
        high=1,
    )


def hidden_slots(max_masked: int, masked_in_encoder: float) -> np.ndarray:
    """bool[M]: whether the j-th masked position of a row is hidden from the encoder.

    The share 1 − δ is hidden, also among the first few positions: the fractional parts of multiples of the golden ratio
    are spread as evenly as possible. The choice is the same in training and evaluation; as masked positions are random,
    so is the subset. A larger δ only adds visible positions.
    """
    return np.arange(1, max_masked + 1) * GOLDEN_RATIO % 1 >= masked_in_encoder


def kept_slots(length: int, max_masked: int, options: MAELMConfig) -> int:
    """K, the static number of slots for the tokens that the encoder reads.

    A strategy with a fixed count has M = ⌊ratio·T⌋ + 1 slots and masks at least ⌊ratio·E⌋ of the E eligible tokens of a
    row. If at most the share `kept_margin` of a row is special tokens and padding, at least ⌊(1 − kept_margin)(M − 1)⌋
    tokens are therefore masked. K is T minus the number of these that are hidden, rounded up to a multiple of 8. The
    default of an eighth allows one document, with its [CLS] and [SEP], every 16 tokens. A strategy whose count varies
    more than that needs a `kept_margin` of 1.

    Args:
      length: T.
      max_masked: M, the width of `MaskedBatch.positions`.
      options: an object with `kept_margin` and `masked_in_encoder`.
    """
    surely_masked = math.floor((1 - options.kept_margin) * (max_masked - 1) + 1e-9)
    surely_hidden = int(hidden_slots(surely_masked, options.masked_in_encoder).sum())
    return min(length, -(-(length - surely_hidden) // 8) * 8)  # matrix units prefer multiples of 8


@dataclasses.dataclass(frozen=True)
class DecoderSizes:
    """The sizes of a layer of the decoder, with the names of `layer_flops.LayerSizes`."""

    width: int
    ffn_width: int
    mlp: str
    num_heads: int
    num_kv_heads: int


def decoder_sizes(model: LayerSizes, options: MAELMConfig) -> DecoderSizes:
    """The sizes of a layer of the decoder, given the sizes `model` of a layer of the encoder."""
    width = options.decoder_width or model.width
    ffn_width = options.decoder_ffn_width or model.ffn_width * width // model.width
    return DecoderSizes(width, ffn_width, model.mlp, model.num_heads, model.num_kv_heads)


class MAELMSpec(Spec):
    """MAE-LM: the encoder reads only the tokens that are not masked, and a shallow decoder predicts the others."""

    module = 'mlm_jax.objectives.mae_lm:MAELM'
    options = MAELMConfig
    export_note = (
        'its prediction head sits on a decoder that only pretraining needs, and is left out: it encodes texts, and '
        'fills no masks'
    )
    parameters = (
        Parameter(r'decoder/project/kernel', (None, None), inputs=(0,), outputs=(1,)),
        Parameter(r'decoder/project/bias', (None,)),
        Parameter(r'widen/kernel', (None, None), inputs=(0,), outputs=(1,)),
    )

    def problems(self, config: Any, options: Any, has_fixed_count: bool) -> list[str]:
        """The decoder must fit the heads, a reset must have something to reset, and kept tokens must have slots."""
        m, found = config.model, []
        if options.decoder_width % m.num_heads:
            found.append(
                f'mae_lm.decoder_width={options.decoder_width} must be 0 or a multiple of model.num_heads={m.num_heads}'
            )
        elif m.positions != 'learned' and options.decoder_width // m.num_heads % 2:
            found.append(
                f'model.positions={m.positions} needs heads of even width in the decoder, but mae_lm.decoder_width='
                f'{options.decoder_width} makes them {options.decoder_width // m.num_heads} wide'
            )
        if options.reset_masked and not options.masked_in_encoder:
            found.append(
                'mae_lm.reset_masked=true needs masked positions in the encoder: set mae_lm.masked_in_encoder=1.0'
            )
        if not has_fixed_count and options.kept_margin < 1:
            found.append(
                'with this masking, some rows have far fewer masked tokens than others, and MAE-LM would not have '
                'enough slots for their other tokens: set mae_lm.kept_margin=1'
            )
        return found

    def sizes(self, options: Any, length: float, masked: float) -> Sizes:
        """The encoder reads the kept tokens."""
        return Sizes(length, masked, encoded=length - (1 - options.masked_in_encoder) * masked)

    def slots(self, options: Any, length: int, max_masked: int) -> Sizes:
        """The encoder has K slots, by `kept_slots`."""
        return Sizes(length, max_masked, encoded=kept_slots(length, max_masked, options))

    def row_flops(
        self, model: EncoderSizes, options: Any, vocab_size: int, sizes: Sizes, document_share: float
    ) -> float:
        """Forward pass: the encoder on k = n − (1 − δ)m kept tokens, the decoder on n tokens, the head on m tokens.

        The paper's decoder costs L_d·(2nW_d + 4n²d_d); here its last layer is cheaper, as its output is computed only
        at the masked positions. If d_d ≠ d, projections take 2d·d_d more for each of the n + m tokens, or, if the
        output matrix is not tied and so has the width d_d, of the n tokens.
        """
        decoder, n, masked = decoder_sizes(model, options), sizes.length, sizes.masked
        output_width = model.width if model.tied_head else decoder.width
        head = layer_flops.head_flops(masked, model.head, decoder.width, output_width, vocab_size)
        projected = n + masked * (output_width != decoder.width)
        between = 2 * model.width * decoder.width * projected if decoder.width != model.width else 0
        encoder = model.num_layers * layer_flops.layer_flops(model, sizes.encoded, document_share)
        decoding = layer_flops.stack_flops(decoder, options.decoder_layers, n, masked, document_share)
        return encoder + decoding + head + between

    def stacks(self, model: EncoderSizes, options: Any, sizes: Sizes) -> tuple[Stack, ...]:
        """The encoder, and the decoder, which reads whole rows."""
        decoder = layer_flops.stack_of(decoder_sizes(model, options), options.decoder_layers, sizes.length)
        return (*super().stacks(model, options, sizes), decoder)
