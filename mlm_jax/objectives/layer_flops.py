"""Floating-point operations (FLOPs) of stacks of layers and heads. A multiply-add counts as two operations."""

import dataclasses
from typing import Protocol


class LayerSizes(Protocol):
    """The sizes of a layer, as attributes: of a configuration, an `EncoderConfig` or a `Stack`."""

    @property
    def width(self) -> int:
        """d."""

    @property
    def ffn_width(self) -> int:
        """F, the number of hidden units of the MLP."""

    @property
    def mlp(self) -> str:
        """'gelu' or 'geglu'."""


class EncoderSizes(LayerSizes, Protocol):
    """The sizes of an encoder, as attributes."""

    @property
    def num_layers(self) -> int:
        """L."""

    @property
    def num_heads(self) -> int:
        """H."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers of tokens in the parts of a model for one row of text.

    Attributes:
      length: n, the tokens of the row.
      masked: m, the tokens that are predicted.
      encoded: the tokens that the encoder reads: n, the kept tokens of MAE-LM, or the expanded row of ExLM.
      expanded: e, the tokens that ExLM expands.
    """

    length: float
    masked: float
    encoded: float
    expanded: float = 0.0


@dataclasses.dataclass(frozen=True)
class Stack:
    """A stack of equal layers: how many there are, how many tokens of a row they read, and how wide they are."""

    num_layers: int
    tokens: float
    width: int
    ffn_width: int
    mlp: str


def layer_weights(m: LayerSizes) -> int:
    """W = 4d² + g·d·F, the number of weights of a layer, with g = 2 for GELU and 3 for GeGLU."""
    return 4 * m.width**2 + (3 if m.mlp == 'geglu' else 2) * m.width * m.ffn_width


def layer_flops(m: LayerSizes, n: float, document_share: float) -> float:
    """2nW + 4n²d·`document_share`: the FLOPs of a layer on n tokens; attention stays within documents."""
    return 2 * n * layer_weights(m) + 4 * n**2 * m.width * document_share


def stack_flops(m: LayerSizes, num_layers: int, n: float, read: float, document_share: float) -> float:
    """FLOPs of `num_layers` layers on n tokens. For all but `read` tokens, the last layer has only keys and values."""
    keys_and_values = 2 * m.width**2
    last = 2 * n * keys_and_values + 2 * read * (layer_weights(m) - keys_and_values)
    last += 4 * n * read * m.width * document_share
    return (num_layers - 1) * layer_flops(m, n, document_share) + last


def head_flops(num_positions: float, width: int, model_width: int, vocab_size: int) -> float:
    """r·(2d_h² + 2dV): a prediction head of width d_h at r positions, and the token embedding of width d after it."""
    return num_positions * (2 * width**2 + 2 * model_width * vocab_size)


def encoder_and_head(m: EncoderSizes, vocab_size: int, sizes: Sizes, document_share: float) -> float:
    """FLOPs of a forward pass of MLM on n tokens, r of them predicted: (L − 1)·(2nW + 4n²d) + last + r·(2d² + 2dV).

    The last layer computes keys and values for all tokens, and the rest only for the predicted positions: last =
    4nd² + 2r(W − 2d²) + 4nr·d.
    """
    head = head_flops(sizes.masked, m.width, m.width, vocab_size)
    return stack_flops(m, m.num_layers, sizes.encoded, sizes.masked, document_share) + head
