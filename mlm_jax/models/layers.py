"""The layers of the encoder."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from mlm_jax.masking.batch import gather_positions
from mlm_jax.models import positions as positions_lib
from mlm_jax.models.activations import geglu, gelu, swiglu
from mlm_jax.models.attention import Window, attend
from mlm_jax.models.dropout import Dropout
from mlm_jax.models.products import PRODUCT, Linear, linear
from mlm_jax.models.windows import local_layers
from mlm_jax.parallel.mesh import split_rows


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The shape and the recipe of an encoder. The defaults are those of RoBERTa.

    Attributes:
      vocab_size: V, the number of rows of the token embedding.
      max_length: the number of tokens of the longest row, and of rows of the learned position embedding.
      num_layers: L.
      width: d.
      num_heads: H, each of width d / H.
      num_kv_heads: K, the number of heads of keys and values, which divides H; each serves H / K heads of queries
        (grouped-query attention, arXiv 2305.13245). 0 means H.
      ffn_width: F, the number of hidden units of the MLP.
      positions: 'learned' (absolute, within the document), 'rotary', or 'rotary_2d' (ExLM: one half of each head is
        rotated by the position, the other half by the number of the copy of an expanded token).
      rotary_base: the base of the wavelengths of rotary positions.
      rotary_base_local: the same in local layers; None means `rotary_base`.
      local_window: W; local layers attend to keys at a distance of at most W // 2, as ModernBERT's (arXiv 2412.13663)
        with `local_attention` = W. 0 means that all layers attend to the whole document.
      global_every: with a window, layer i is global if i is a multiple of this, and local otherwise.
      relative_buckets: the number of buckets of a relative bias, a table shared by all layers; 0 means no bias.
      relative_max_distance: the distance at which the logarithmic buckets end.
      relative_bucketing: whose buckets: 'mae_lm', or 't5' (also MPNet's).
      norm: 'post' (after each residual) or 'pre' (before each sublayer, and once after the last layer).
      norm_type: 'layer_norm' or 'rms_norm' (arXiv 1910.07467, never with a bias), wherever there is a norm.
      norm_bias: whether LayerNorms have biases; None means as `bias`.
      embedding_norm: whether a norm follows the embeddings.
      first_norm: whether the first layer has a norm before attention. ModernBERT has none there, as the embeddings have
        just been normalized. Pre-LN only.
      bias: whether linear layers have biases.
      mlp: 'gelu', 'geglu', both with the exact GELU, or 'swiglu', with SiLU in its place.
      zeroed_token: the id of [MASK] in an encoder with ESM-2's token dropout (`token_dropout.py`); −1 means none.
      tied_head: whether the token embedding is also the output matrix; otherwise the head has one of its own.
      head: 'dense' (dense layer, GELU, norm, output matrix, a bias for each token) or 'plain' (the output matrix only).
      dropout: the dropout rate of embeddings and sublayer outputs, rounded to a multiple of 1/256.
      attention_dropout: the dropout rate of attention probabilities.
      dtype: the dtype of activations and matmuls; parameters, norms and softmax are float32.
      attention_backend: 'xla', 'cudnn' or 'splash'.
      scan_unroll: the number of layers in one iteration of the scan over layers; 0 unrolls all layers if there are at
        most four (faster on CPUs) and nothing is recomputed (`remat`), and none otherwise.
      remat: what the backward pass recomputes: 'none', 'full', or 'matmuls' (everything but the outputs of matmuls).
      norm_epsilon: ε of the norms.
      init_stddev: the standard deviation of the initial values of all embeddings and kernels.
    """

    vocab_size: int
    max_length: int
    num_layers: int = 12
    width: int = 768
    num_heads: int = 12
    ffn_width: int = 3072
    positions: str = 'learned'
    relative_buckets: int = 0
    relative_max_distance: int = 128
    norm: str = 'post'
    embedding_norm: bool = True
    bias: bool = True
    mlp: str = 'gelu'
    num_kv_heads: int = 0
    rotary_base: float = 10_000.0
    rotary_base_local: float | None = None
    local_window: int = 0
    global_every: int = 3
    relative_bucketing: str = 'mae_lm'
    norm_type: str = 'layer_norm'
    norm_bias: bool | None = None
    first_norm: bool = True
    zeroed_token: int = -1
    tied_head: bool = True
    head: str = 'dense'
    dropout: float = 0.1
    attention_dropout: float = 0.1
    dtype: str = 'float32'
    attention_backend: str = 'xla'
    scan_unroll: int = 1
    remat: str = 'none'
    norm_epsilon: float = 1e-5
    init_stddev: float = 0.02

    @property
    def head_width(self) -> int:
        """D = d / H."""
        return self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        """K, the number of heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def norms_have_bias(self) -> bool:
        """Whether norms have biases."""
        return self.norm_type == 'layer_norm' and (self.bias if self.norm_bias is None else self.norm_bias)

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """Whether each of the L layers attends within a window."""
        return local_layers(self.num_layers, self.local_window, self.global_every)


def dense(
    config: EncoderConfig,
    features: int | tuple[int, ...],
    name: str | None,
    *,
    bias: bool | None = None,
    **options: Any,
) -> Linear:
    """A linear layer by the recipe of `config`; `options` are further attributes of `Linear`."""
    return Linear(
        (features,) if isinstance(features, int) else features,
        use_bias=config.bias if bias is None else bias,
        dtype=config.dtype,
        stddev=config.init_stddev,
        name=name,
        **options,
    )


@flax.struct.dataclass
class Context:
    """What all layers of a stack read besides the output of the layer before.

    Attributes:
      segments: int32[B, T]; tokens attend only to their own segment, and 0 is padding.
      turns: f32[B, T, 2, A, R], the cosines and sines of rotary positions; None without these.
      bias: f32[B or 1, H, T, T], added to the scaled scores; None means nothing.
      local_turns: as `turns`, for local layers; None means the same as for the others.
      places: int32[B, T], between which the distance is measured that a window limits; None means indices in the row.
    """

    segments: jax.Array
    turns: jax.Array | None = None
    bias: jax.Array | None = None
    local_turns: jax.Array | None = None
    places: jax.Array | None = None


def norm_layer(config: EncoderConfig, name: str | None) -> nn.Module:
    """The norm of `config.norm_type`, with statistics in float32.

    The variance of LayerNorm is the mean square of centered values, which is accurate.

    The backward pass keeps only the input: the centered and the scaled values would be two more arrays in float32. (If
    forward and backward pass are not in separate loops, the compiler may merge the recomputation with the forward pass
    and keep these values after all.)
    """
    if config.norm_type == 'rms_norm':
        return nn.remat(nn.RMSNorm, prevent_cse=False)(epsilon=config.norm_epsilon, dtype=config.dtype, name=name)
    return nn.remat(nn.LayerNorm, prevent_cse=False)(
        epsilon=config.norm_epsilon,
        use_bias=config.norms_have_bias,
        dtype=config.dtype,
        use_fast_variance=False,
        name=name,
    )


class SelfAttention(nn.Module):
    """Multi-head self-attention within documents."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self,
        x_BxTxd: jax.Array,
        context: Context,
        deterministic: bool,
        at_BxM: jax.Array | None = None,
        is_local: jax.Array | None = None,
    ) -> jax.Array:
        """Mixes tokens: [B, T, d] → [B, T, d].

        With `at_BxM`, queries and outputs are computed only at these positions: [B, M, d]. Unused slots hold T.
        `is_local`, bool[], says whether the layer attends within windows; None if no layer does.
        """
        c = self.config
        segments_BxT, bias_BxHxTxT = context.segments, context.bias
        window = None if is_local is None else Window(c.local_window // 2, is_local, at_BxM, context.places)
        q_segments_BxT = segments_BxT if at_BxM is None else gather_positions(segments_BxT, at_BxM)
        if at_BxM is not None and bias_BxHxTxT is not None:
            bias_BxHxTxT = jnp.take_along_axis(bias_BxHxTxT, at_BxM[:, None, :, None], axis=2, mode='clip')
        q_BxTxHxD, k_BxTxHxD, v_BxTxHxD = self._queries_keys_values(x_BxTxd, at_BxM)
        if turns := [x for x in (context.turns, context.local_turns) if x is not None]:  # [B, T, 2, A, R] each
            q_turns = turns if at_BxM is None else [gather_positions(x, at_BxM) for x in turns]
            q_BxTxHxD = _rotated(q_BxTxHxD, q_turns, is_local)
            k_BxTxHxD = _rotated(k_BxTxHxD, turns, is_local)
        has_dropout = c.attention_dropout > 0 and not deterministic
        out_BxTxHxD = attend(
            q_BxTxHxD,
            k_BxTxHxD,
            v_BxTxHxD,
            q_segments_BxT,
            segments_BxT,
            bias_BxHxTxS=bias_BxHxTxT,
            window=window,
            dropout_rate=c.attention_dropout,
            dropout_key=self.make_rng('dropout') if has_dropout else None,
            backend=c.attention_backend,
        )
        return dense(c, c.width, 'out', num_contracted=2)(out_BxTxHxD)

    def _queries_keys_values(self, x_BxTxd, at_BxM):
        c = self.config
        if c.kv_heads != c.num_heads:
            # One kernel for all three would need equal numbers of heads; so would its sharding over heads.
            query, key_value = (
                dense(c, shape, name)
                for name, shape in (
                    ('query', (c.num_heads, c.head_width)),
                    ('key_value', (2, c.kv_heads, c.head_width)),
                )
            )
            q_BxTxHxD = query(x_BxTxd if at_BxM is None else gather_positions(x_BxTxd, at_BxM))
            return q_BxTxHxD, *_parts(key_value(x_BxTxd))
        qkv = dense(c, (3, c.num_heads, c.head_width), 'qkv')
        if at_BxM is None or self.is_initializing():
            qkv_BxTx3xHxD = qkv(x_BxTxd)
            q_BxTxHxD, k_BxTxHxD, v_BxTxHxD = _parts(qkv_BxTx3xHxD)
            return (q_BxTxHxD if at_BxM is None else gather_positions(q_BxTxHxD, at_BxM)), k_BxTxHxD, v_BxTxHxD
        # The same parameters, but queries are computed only for the requested positions.
        kernel_dx3xHxD, bias_3xHxD = (qkv.variables['params'].get(name) for name in ('kernel', 'bias'))
        q_bias_HxD, kv_bias_2xHxD = (None, None) if bias_3xHxD is None else (bias_3xHxD[0], bias_3xHxD[1:])
        q_BxMxHxD = linear(gather_positions(x_BxTxd, at_BxM), kernel_dx3xHxD[:, 0], q_bias_HxD, c.dtype)
        kv_BxTx2xHxD = linear(x_BxTxd, kernel_dx3xHxD[:, 1:], kv_bias_2xHxD, c.dtype)
        return q_BxMxHxD, *_parts(kv_BxTx2xHxD)


def _rotated(x_BxTxHxD, turns: list[jax.Array], is_local: jax.Array | None) -> jax.Array:
    """[B, T, H, D] rotated by the only turns of a list, or by the second of two in local layers."""
    if is_local is None or len(turns) == 1:
        return positions_lib.rotate(x_BxTxHxD, turns[0])
    return positions_lib.rotate_by_either(x_BxTxHxD, *turns, is_local)


def _parts(x_BxTxPxE):
    """P arrays [B, T, …]. The gradient of a split is one concatenation; that of P slices would add P padded arrays."""
    parts = jnp.split(x_BxTxPxE, x_BxTxPxE.shape[2], axis=2)
    return [jnp.squeeze(part, axis=2) for part in parts]


class MLP(nn.Module):
    """The feed-forward sublayer, with GELU, GeGLU or SwiGLU (arXiv 2002.05202)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BxTxd: jax.Array) -> jax.Array:
        """[B, T, d] → [B, T, d]."""
        c = self.config
        if c.mlp in ('geglu', 'swiglu'):
            gate_and_up_BxTxF = _parts(dense(c, (2, c.ffn_width), 'gate_and_up')(x_BxTxd))
            activation = geglu if c.mlp == 'geglu' else swiglu
            return dense(c, c.width, 'down', activation=activation)(*gate_and_up_BxTxF)
        return dense(c, c.width, 'down', activation=gelu)(dense(c, c.ffn_width, 'up')(x_BxTxd))


def layer_switches(config: EncoderConfig) -> dict[str, jax.Array]:
    """What distinguishes the layers besides their parameters, which a scan reads along with these; often nothing.

    Returns:
      A dict with bool[L] each: 'is_first', if the first layer has no norm before attention; 'is_local', if some layers
      attend within windows. The scale of the norm that the first layer does not use stays in the stack, so that every
      layer has the same parameters: its gradient is 0, and nothing reads its value.
    """
    switches = {}
    if not config.first_norm:
        switches['is_first'] = jnp.arange(config.num_layers) == 0
    if any(config.local_layers):
        switches['is_local'] = jnp.array(config.local_layers)
    return switches


class Block(nn.Module):
    """One layer of the encoder, post-LN or pre-LN, in the form of the body of a scan."""

    config: EncoderConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        x_BxTxd: jax.Array,
        context: Context,
        switches: dict[str, jax.Array] | None = None,
        at_BxM: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        """Returns the layer's output, which is the carry of the scan, and None, as a scan has no per-layer output here.

        With `at_BxM`, the output is computed only at these positions: [B, M, d]. All tokens still serve as keys and
        values. `switches`, bool[] each, are those of `layer_switches` for this layer.
        """
        c, switches = self.config, switches or {}

        def sublayer(x_BxTxd, function, norm_name, at_BxM=None, skips_norm=None):
            norm = norm_layer(c, norm_name)
            y_BxTxd = norm(x_BxTxd) if c.norm == 'pre' else x_BxTxd
            y_BxTxd = function(y_BxTxd if skips_norm is None else jnp.where(skips_norm, x_BxTxd, y_BxTxd))
            x_BxTxd = x_BxTxd if at_BxM is None else gather_positions(x_BxTxd, at_BxM)
            y_BxTxd = x_BxTxd + Dropout(c.dropout, self.deterministic)(y_BxTxd)
            return y_BxTxd if c.norm == 'pre' else norm(y_BxTxd)

        def attention(y_BxTxd):
            return SelfAttention(c, name='attention')(
                y_BxTxd, context, self.deterministic, at_BxM, switches.get('is_local')
            )

        x_BxTxd = sublayer(x_BxTxd, attention, 'attention_norm', at_BxM, switches.get('is_first'))
        x_BxTxd = sublayer(x_BxTxd, MLP(c, name='mlp'), 'mlp_norm')
        x_BxTxd = split_rows(x_BxTxd)
        self.sow('intermediates', 'output', x_BxTxd)  # has no effect unless `intermediates` is mutable
        return x_BxTxd, None


class RelativeBias(nn.Module):
    """A relative position bias: one table of buckets × heads, shared by all layers."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, positions_BxT: jax.Array) -> jax.Array:
        """f32[B, H, T, T], added to the scaled scores of each query and key; `positions_BxT` may be [1, T]."""
        c = self.config
        table = self.param('embedding', nn.initializers.normal(c.init_stddev), (c.relative_buckets, c.num_heads))
        buckets = positions_lib.relative_buckets(
            c.max_length, c.relative_buckets, c.relative_max_distance, c.relative_bucketing
        )
        distance_BxTxT = positions_BxT[:, None, :] - positions_BxT[:, :, None]
        bias_BxTxTxH = table[jnp.asarray(buckets)[distance_BxTxT + c.max_length - 1]]
        return jnp.moveaxis(bias_BxTxTxH, -1, 1)


def remat_policy(name: str) -> Callable[..., bool] | None:
    """The policy for `jax.checkpoint`: which values of the forward pass are kept for the backward pass."""
    return {'full': None, 'matmuls': jax.checkpoint_policies.save_only_these_names(PRODUCT)}[name]
