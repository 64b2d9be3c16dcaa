"""The encoder: the part of a model that downstream tasks use."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mlm_jax.masking.batch import gather_positions
from mlm_jax.models import positions as positions_lib
from mlm_jax.models import token_dropout
from mlm_jax.models.dropout import Dropout
from mlm_jax.models.layers import (
    Block,
    Context,
    EncoderConfig,
    RelativeBias,
    layer_switches,
    norm_layer,
    remat_policy,
)
from mlm_jax.models.token_table import products_with_tokens, token_table
from mlm_jax.parallel.mesh import split_rows
from mlm_jax.parallel.sharding import gather_width, path_name


def block_for_use(config: EncoderConfig, initializing: bool) -> type[nn.Module]:
    """`Block`, with its kernels cast to the dtype of matmuls and its weights gathered along the width before use.

    The cast comes first, so that fewer bytes are gathered; gradients are then summed over `fsdp` in that dtype, too.

    Args:
      config: the encoder whose layers these are.
      initializing: returns a Block that creates its parameters in the form in which they are stored.
    """

    def weights_for_use(variables):
        def cast(path, x):
            return x.astype(config.dtype) if path_name(path).endswith('/kernel') else x

        return gather_width(jax.tree_util.tree_map_with_path(cast, variables), config.width)

    block = Block if initializing else nn.map_variables(Block, 'params', trans_in_fn=weights_for_use)
    if config.remat == 'none':
        return block
    return nn.remat(block, policy=remat_policy(config.remat), prevent_cse=False)


def scanned_layers(config: EncoderConfig, num_layers: int, deterministic: bool, initializing: bool) -> nn.Module:
    """`num_layers` Blocks as one scan named `layers`, whose parameters are stacked along a first dimension."""
    block = block_for_use(config, initializing)
    return _scan(block, config, num_layers)(config, deterministic, name='layers')


def _scan(block, config: EncoderConfig, num_layers: int):
    """A scan over `num_layers` layers; `block` is a Block class or a function of a Block.

    Where layers are recomputed, it remains a loop: without one, the compiler would find what is recomputed to be the
    same as what was computed before, and keep that (`prevent_cse=False` in `block_for_use`).
    """
    unroll = config.scan_unroll or (num_layers if num_layers <= 4 else 1)
    if config.remat != 'none' and unroll >= num_layers:
        unroll = 1
    return nn.scan(
        block,
        variable_axes={'params': 0, 'intermediates': 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=(nn.broadcast, 0),  # the context of all layers, and the switches of each
        length=num_layers,
        unroll=unroll,
    )


def _read_last_layer_at(at_BxM, config: EncoderConfig, deterministic: bool, x_BxTxd, context, switches):
    """[B, M, d]: the output of `scanned_layers`, with the same parameters, but only at the positions `at_BxM`."""
    layers = block_for_use(config, initializing=False)(config, deterministic, name='layers')

    def of(part, function):
        return nn.map_variables(function, 'params', trans_in_fn=lambda stack: jax.tree.map(lambda x: x[part], stack))

    if config.num_layers > 1:
        scan = _scan(lambda block, x_BxTxd, *inputs: block(x_BxTxd, *inputs), config, config.num_layers - 1)
        x_BxTxd, _ = of(slice(-1), scan)(layers, x_BxTxd, context, jax.tree.map(lambda x: x[:-1], switches))
    last = jax.tree.map(lambda x: x[-1], switches)
    if not config.local_layers[-1]:
        last.pop('is_local', None)  # then its queries need no places in the row
    return of(-1, lambda block: block(x_BxTxd, context, last, at_BxM)[0])(layers)


class Encoder(nn.Module):
    """A bidirectional transformer; `config` makes it BERT, RoBERTa, ModernBERT or others."""

    config: EncoderConfig

    def setup(self) -> None:
        c = self.config
        normal = nn.initializers.normal(c.init_stddev)
        self.token_embedding = nn.Embed(c.vocab_size, c.width, embedding_init=normal)
        if c.positions == 'learned':
            self.position_embedding = nn.Embed(c.max_length, c.width, embedding_init=normal)
        if c.relative_buckets:
            self.relative_bias = RelativeBias(c)
        if c.embedding_norm:
            self.embedding_norm = norm_layer(c, None)
        if c.norm == 'pre':
            self.final_norm = norm_layer(c, None)

    @nn.compact
    def __call__(
        self,
        tokens_BxT: jax.Array,
        segments_BxT: jax.Array,
        positions_BxT: jax.Array | None = None,
        deterministic: bool = True,
        copies_BxT: jax.Array | None = None,
        at_BxM: jax.Array | None = None,
    ) -> jax.Array:
        """Encodes rows.

        Args:
          tokens_BxT: int32[B, T].
          segments_BxT: int32[B, T]; tokens attend only to their own segment, and 0 is padding.
          positions_BxT: int32[B, T], the position of each token, between which windows measure distances, too; None
            counts from the start of each document.
          deterministic: False applies dropout, from the rng stream 'dropout'.
          copies_BxT: int32[B, T], the second coordinate of 'rotary_2d' positions; None means 0.
          at_BxM: int32[B, M], the positions at which the output is needed, T in unused slots; None means all. For other
            tokens, the last layer computes only keys and values.

        Returns:
          [B, T, d], or [B, M, d] with `at_BxM`, undefined in unused slots; in the dtype of the configuration.
        """
        c = self.config
        bias_BxHxTxT = None
        if c.relative_buckets:
            # Documents are contiguous: unless positions are given, distances in a document are differences of indices.
            index_BxT = jnp.arange(tokens_BxT.shape[1])[None] if positions_BxT is None else positions_BxT
            bias_BxHxTxT = self.relative_bias(index_BxT)
        places_BxT = positions_BxT
        if positions_BxT is None:
            positions_BxT = positions_lib.positions_in_documents(segments_BxT)
        coordinates: tuple[jax.Array, ...] = (positions_BxT,)
        if c.positions == 'rotary_2d':
            coordinates += (jnp.zeros_like(positions_BxT) if copies_BxT is None else copies_BxT,)
        turns_BxTx2xAxR, local_turns_BxTx2xAxR = self._rotary_turns(coordinates)
        x_BxTxd = self.embed(tokens_BxT, segments_BxT, positions_BxT, deterministic)
        context = Context(segments_BxT, turns_BxTx2xAxR, bias_BxHxTxT, local_turns_BxTx2xAxR, places_BxT)
        switches = layer_switches(c)
        if at_BxM is None or self.is_initializing() or self.is_mutable_collection('intermediates'):
            layers = scanned_layers(c, c.num_layers, deterministic, self.is_initializing())
            x_BxTxd, _ = layers(x_BxTxd, context, switches)
            if at_BxM is not None:
                self.sow('intermediates', 'at', at_BxM)  # who reads the outputs of all layers reads them there
                x_BxTxd = gather_positions(x_BxTxd, at_BxM)
        else:
            x_BxTxd = _read_last_layer_at(at_BxM, c, deterministic, x_BxTxd, context, switches)
        return self.final_norm(x_BxTxd) if c.norm == 'pre' else x_BxTxd

    def _rotary_turns(self, coordinates: tuple[jax.Array, ...]) -> tuple[jax.Array | None, jax.Array | None]:
        """f32[B, T, 2, A, R] or None each: for all layers, and for local layers where these have another base."""
        c = self.config
        if c.positions == 'learned':
            return None, None
        turns_BxTx2xAxR = positions_lib.rotary_turns(coordinates, c.head_width, c.rotary_base)
        if not any(c.local_layers) or c.rotary_base_local in (None, c.rotary_base):
            return turns_BxTx2xAxR, None
        return turns_BxTx2xAxR, positions_lib.rotary_turns(coordinates, c.head_width, c.rotary_base_local)

    def embed(
        self, tokens_BxT: jax.Array, segments_BxT: jax.Array, positions_BxT: jax.Array, deterministic: bool
    ) -> jax.Array:
        """[B, T, d]: token and position embeddings, then LayerNorm, then dropout."""
        c = self.config
        x_BxTxd = self.token_vectors(tokens_BxT)
        if c.zeroed_token >= 0:
            x_BxTxd = token_dropout.rescaled(x_BxTxd, tokens_BxT, segments_BxT, c.zeroed_token)
        if c.positions == 'learned':
            x_BxTxd += self.position_embedding(positions_BxT)
        x_BxTxd = split_rows(x_BxTxd.astype(c.dtype))
        if c.embedding_norm:
            x_BxTxd = self.embedding_norm(x_BxTxd)
        return Dropout(c.dropout, deterministic)(x_BxTxd)

    def token_vectors(self, tokens: jax.Array) -> jax.Array:
        """f32[…, d]: rows of the token embedding."""
        return jnp.take(token_table(self.token_embedding), tokens, axis=0)

    def token_logits(self, x: jax.Array) -> jax.Array:
        """f32[…, V]: products with the token embedding, accumulated in float32."""
        return products_with_tokens(x, token_table(self.token_embedding))
