"""The encoder: what downstream tasks keep."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mlm_jax.models import positions as positions_lib
from mlm_jax.models.layers import Block, EncoderConfig, RelativeBias, layer_norm, remat_policy
from mlm_jax.parallel.mesh import split_rows
from mlm_jax.parallel.sharding import gather_width, path_name


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
        x_BxTxd = jnp.take(self._token_table(), tokens_BxT, axis=0)
        if c.positions == 'learned':
            x_BxTxd += self.position_embedding(positions_BxT)
        x_BxTxd = split_rows(x_BxTxd.astype(c.dtype))
        if c.embedding_norm:
            x_BxTxd = self.embedding_norm(x_BxTxd)
        return nn.Dropout(c.dropout, deterministic=deterministic)(x_BxTxd)

    def _layers(self, deterministic: bool):
        c, block = self.config, Block
        if not self.is_initializing():  # which makes the parameters as they are kept, not as they are used
            block = nn.map_variables(block, 'params', trans_in_fn=self._weights_for_use)
        if c.remat != 'none':
            block = nn.remat(block, policy=remat_policy(c.remat), prevent_cse=False)
        return nn.scan(
            block,
            variable_axes={'params': 0},
            split_rngs={'params': True, 'dropout': True},
            in_axes=(nn.broadcast,) * 3,
            length=c.num_layers,
            unroll=c.scan_unroll,
        )(c, deterministic, name='layers')

    def _weights_for_use(self, variables):
        """One layer's parameters, gathered from the devices that share them; kernels in the dtype of matmuls."""

        def cast(path, x):
            return x.astype(self.config.dtype) if path_name(path).endswith('/kernel') else x

        return gather_width(jax.tree_util.tree_map_with_path(cast, variables))

    def _token_table(self) -> jax.Array:
        """f32[V, d]."""
        (table_Vxd,) = jax.tree.leaves(gather_width({'token_embedding': {'embedding': self.token_embedding.embedding}}))
        return table_Vxd

    def token_logits(self, x: jax.Array) -> jax.Array:
        """f32[…, V]: products with the token embedding, accumulated in float32."""
        table_Vxd = self._token_table().astype(x.dtype)
        return jnp.einsum('...d,vd->...v', x, table_Vxd, preferred_element_type=jnp.float32)
