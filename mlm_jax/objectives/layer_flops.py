"""Floating-point operations (FLOPs) of stacks of layers and heads. A multiply-add counts as two operations."""

import dataclasses
from typing import Protocol

from mlm_jax.models.windows import local_layers, pairs_in_windows


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
        """'gelu', 'geglu' or 'swiglu'."""

    @property
    def num_heads(self) -> int:
        """H."""

    @property
    def num_kv_heads(self) -> int:
        """K, the number of heads of keys and values; 0 means H."""


class EncoderSizes(LayerSizes, Protocol):
    """The sizes of an encoder, as attributes."""

    @property
    def num_layers(self) -> int:
        """L."""

    @property
    def tied_head(self) -> bool:
        """Whether the token embedding is the output matrix."""

    @property
    def head(self) -> str:
        """'dense' or 'plain'."""

    @property
    def attention_backend(self) -> str:
        """'xla', 'cudnn' or 'splash'."""

    @property
    def local_window(self) -> int:
        """W; 0 means that all layers are global."""

    @property
    def global_every(self) -> int:
        """Layer i is global if i is a multiple of this."""


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
    num_heads: int = 1
    num_kv_heads: int = 0


def stack_of(m: LayerSizes, num_layers: int, tokens: float) -> Stack:
    """A stack of layers of the sizes `m`."""
    return Stack(num_layers, tokens, m.width, m.ffn_width, m.mlp, m.num_heads, m.num_kv_heads)


def key_value_weights(m: LayerSizes) -> int:
    """2d²·K/H, the number of weights for keys and values."""
    return 2 * m.width**2 * (m.num_kv_heads or m.num_heads) // m.num_heads


def layer_weights(m: LayerSizes) -> int:
    """W = 2d² + 2d²·K/H + g·d·F, the number of weights of a layer, with g = 2 for GELU and 3 for GeGLU and SwiGLU."""
    return 2 * m.width**2 + key_value_weights(m) + (2 if m.mlp == 'gelu' else 3) * m.width * m.ffn_width


def layer_flops(m: LayerSizes, n: float, document_share: float) -> float:
    """2nW + 4n²d·`document_share`: the FLOPs of a layer on n tokens; attention stays within documents."""
    return 2 * n * layer_weights(m) + 4 * n**2 * m.width * document_share


def stack_flops(m: LayerSizes, num_layers: int, n: float, read: float, document_share: float) -> float:
    """FLOPs of `num_layers` layers on n tokens. For all but `read` tokens, the last layer has only keys and values."""
    keys_and_values = key_value_weights(m)
    last = 2 * n * keys_and_values + 2 * read * (layer_weights(m) - keys_and_values)
    last += 4 * n * read * m.width * document_share
    return (num_layers - 1) * layer_flops(m, n, document_share) + last


def head_flops(num_positions: float, head: str, width: int, output_width: int, vocab_size: int) -> float:
    """r·(2d_h² + 2dV): a dense head of width d_h at r positions, and an output matrix of width d after it.

    A plain head is only the output matrix: r·2dV.
    """
    return num_positions * (2 * width**2 * (head == 'dense') + 2 * output_width * vocab_size)


def skipped_flops(m: EncoderSizes, n: float, read: float, document_share: float) -> float:
    """The FLOPs that `stack_flops` counts for attention in local layers of rows of n tokens, and a kernel skips.

    Only splash skips anything, in whole blocks. A last layer that is local has queries at all n positions there, though
    only those of `read` tokens count, and the difference may be negative.
    """
    if not m.local_window or m.attention_backend != 'splash':
        return 0.0
    pairs = pairs_in_windows(n, m.local_window // 2)
    is_local = local_layers(m.num_layers, m.local_window, m.global_every)
    skipped = sum(is_local[:-1]) * (n**2 - pairs) + is_local[-1] * (n * read - pairs)
    return 4 * m.width * document_share * skipped


def encoder_and_head(m: EncoderSizes, vocab_size: int, sizes: Sizes, document_share: float) -> float:
    """FLOPs of a forward pass of MLM on n tokens, r of them predicted: (L − 1)·(2nW + 4n²d) + last + r·(2d² + 2dV).

    The last layer computes keys and values for all tokens, and the rest only for the predicted positions: last =
    4nd² + 2r(W − 2d²) + 4nr·d. What a kernel skips outside windows is left out.
    """
    n, read = sizes.encoded, sizes.masked
    head = head_flops(read, m.head, m.width, m.width, vocab_size)
    skipped = skipped_flops(m, n, read, document_share)
    return stack_flops(m, m.num_layers, n, read, document_share) - skipped + head
