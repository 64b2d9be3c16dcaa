"""The encoder: what downstream tasks keep."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mlm_jax.models import positions as positions_lib
from mlm_jax.models.layers import Block, EncoderConfig, RelativeBias, layer_norm, remat_policy


class Encoder(nn.Module):
    """A bidirectional transformer (BERT, RoBERTa, ModernBERT by `config`)."""

    config: EncoderConfig

    def setup(self):
        c = self.config
        normal = nn.initializers.normal(c.init_stddev)
        self.token_embedding = nn.Embed(c.vocab_size, c.width, embedding_init=normal)
        if c.positions == 'learned':
            self.position_embedding = nn.Embed(c.max_length, c.width, embedding_init=normal)
        if c.relative_buckets:
            self.relative_bias = RelativeBias(c)
        if c.embedding_norm:
            self.embedding_norm = layer_norm(c, None)
        if c.norm == 'pre':
            self.final_norm = layer_norm(c, None)

    @nn.compact
    def __call__(self, tokens_BxT, segments_BxT, positions_BxT=None, deterministic: bool = True):
        """Encodes rows.

        Args:
          tokens_BxT: int32[B, T].
          segments_BxT: int32[B, T]; tokens see only their own segment, and 0 is padding.
          positions_BxT: int32[B, T]; None counts from the start of each document.
          deterministic: False applies dropout, from the rng stream 'dropout'.

        Returns:
          [B, T, d] in the dtype of the configuration.
        """
        c = self.config
        bias_BxHxTxT = None
        if c.relative_buckets:
            # Documents are contiguous: unless positions are given, distances within them are those of a plain range.
            index_BxT = jnp.arange(tokens_BxT.shape[1])[None] if positions_BxT is None else positions_BxT
            bias_BxHxTxT = self.relative_bias(index_BxT)
        if positions_BxT is None:
            positions_BxT = positions_lib.positions_in_documents(segments_BxT)
        angles_BxTxR = positions_lib.rotary_angles(positions_BxT, c.head_width) if c.positions == 'rotary' else None
        x_BxTxd = self.embed(tokens_BxT, positions_BxT, deterministic)
        x_BxTxd, _ = self._layers(deterministic)(x_BxTxd, segments_BxT, angles_BxTxR, bias_BxHxTxT)
        return self.final_norm(x_BxTxd) if c.norm == 'pre' else x_BxTxd

    def embed(self, tokens_BxT, positions_BxT, deterministic: bool):
        """[B, T, d]: token and position embeddings → LayerNorm → dropout."""
        c = self.config
        x_BxTxd = self.token_embedding(tokens_BxT)
        if c.positions == 'learned':
            x_BxTxd += self.position_embedding(positions_BxT)
        x_BxTxd = x_BxTxd.astype(c.dtype)
        if c.embedding_norm:
            x_BxTxd = self.embedding_norm(x_BxTxd)
        return nn.Dropout(c.dropout, deterministic=deterministic)(x_BxTxd)

    def _layers(self, deterministic: bool):
        c, block = self.config, Block
        if c.remat != 'none':
            block = nn.remat(Block, policy=remat_policy(c.remat), prevent_cse=False)
        return nn.scan(
            block,
            variable_axes={'params': 0},
            split_rngs={'params': True, 'dropout': True},
            in_axes=(nn.broadcast,) * 3,
            length=c.num_layers,
            unroll=c.scan_unroll,
        )(c, deterministic, name='layers')

    def token_logits(self, x: jax.Array) -> jax.Array:
        """f32[…, V]: products with the token embedding, accumulated in float32."""
        table_Vxd = self.token_embedding.embedding.astype(x.dtype)
        return jnp.einsum('...d,vd->...v', x, table_Vxd, preferred_element_type=jnp.float32)
