"""Floating-point operations of stacks of layers, of which the costs of objectives are made. A multiply-add is two."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Tokens in the parts of one row of the model.

    Attributes:
      length: n, of the row.
      masked: m, that are predicted.
      encoded: that the encoder reads: n, MAE-LM's kept tokens, or ExLM's expanded row.
      expanded: e, of ExLM.
    """

    length: float
    masked: float
    encoded: float
    expanded: float = 0.0


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers that a row passes: how many, how many tokens they read, and how wide they are."""

    num_layers: int
    tokens: float
    width: int
    ffn_width: int
    mlp: str


def layer_weights(m) -> int:
    """W = 4d² + g·d·F, g = 2 (GELU) or 3 (GeGLU): the weights of a layer, by its `width`, `ffn_width` and `mlp`."""
    return 4 * m.width**2 + (3 if m.mlp == 'geglu' else 2) * m.width * m.ffn_width


def layer_flops(m, n: float, document_share: float) -> float:
    """2nW + 4n²d for n tokens that see each other."""
    return 2 * n * layer_weights(m) + 4 * n**2 * m.width * document_share


def stack_flops(m, num_layers: int, n: float, read: float, document_share: float) -> float:
    """`num_layers` layers of n tokens; the last one is read at some of them, and needs keys and values of all."""
    keys_and_values = 2 * m.width**2
    last = 2 * n * keys_and_values + 2 * read * (layer_weights(m) - keys_and_values)
    last += 4 * n * read * m.width * document_share
    return (num_layers - 1) * layer_flops(m, n, document_share) + last


def head_flops(num_positions: float, width: int, model_width: int, vocab_size: int) -> float:
    """r·(2d_h² + 2dV): the prediction head of `width` d_h at r positions, and the embedding of width d behind it."""
    return num_positions * (2 * width**2 + 2 * model_width * vocab_size)


def encoder_and_head(m, vocab_size: int, sizes: Sizes, document_share: float) -> float:
    """Forward pass of MLM on n tokens, r of them predicted: (L − 1)·(2nW + 4n²d) + last + r·(2d² + 2dV).

    The last layer computes all but keys and values for the predicted positions only: 4nd² + 2r(W − 2d²) + 4nr·d.
    """
    head = head_flops(sizes.masked, m.width, m.width, vocab_size)
    return stack_flops(m, m.num_layers, sizes.encoded, sizes.masked, document_share) + head
