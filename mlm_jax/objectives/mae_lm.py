"""MAE-LM: the encoder sees the tokens that are kept, and a shallow decoder predicts the others.

Meng et al., Representation Deficiency in Masked Language Modeling, ICLR 2024, arXiv 2302.02060; what the paper leaves
open is as in the released code, yumeng5/MAE-LM. [MASK] never enters the encoder, so no dimension of it serves [MASK].
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from mlm_jax.losses.cross_entropy import cross_entropy_terms
from mlm_jax.losses.terms import LossTerms
from mlm_jax.masking.batch import MaskedBatch, gather_positions, positions_of, selected_of
from mlm_jax.models.encoder import Encoder, block_for_use, scanned_layers
from mlm_jax.models.heads import MLMHead
from mlm_jax.models.layers import EncoderConfig, dense, layer_norm
from mlm_jax.models.positions import positions_in_documents, rotary_turns
from mlm_jax.objectives.mae_lm_spec import MAELMConfig, decoder_sizes, hidden_slots, kept_slots
from mlm_jax.objectives.objective import Objective
from mlm_jax.parallel.mesh import split_rows


@flax.struct.dataclass
class KeptTokens:
    """What the encoder reads, gathered to the front of each row. All shapes are static.

    Attributes:
      tokens: int32[B, K].
      segments: int32[B, K], the documents of the row; 0 in unused slots.
      positions: int32[B, K], within the document, for absolute and relative positions; 0 in unused slots.
      index: int32[B, K], where in the row; T in unused slots.
      masked: bool[B, T], the positions to predict.
      slot: int32[B, T], the inverse of `index`; K where the encoder does not see the token.
      overflow: int32[B], the kept tokens that found no slot.
    """

    tokens: jax.Array
    segments: jax.Array
    positions: jax.Array
    index: jax.Array
    masked: jax.Array
    slot: jax.Array
    overflow: jax.Array


def keep_tokens(batch: MaskedBatch, options: MAELMConfig) -> KeptTokens:
    """Gathers the tokens of each row that the encoder sees.

    Kept tokens past K, the last ones of the row, are treated as masked positions that are not predicted: the encoder
    does not see them, and the decoder finds [MASK] in their place. `overflow` counts them.
    """
    length, max_masked = batch.tokens.shape[1], batch.positions.shape[1]
    num_slots = kept_slots(length, max_masked, options)
    masked_BxT = selected_of(batch.positions, length)
    hidden_M = jnp.asarray(hidden_slots(max_masked, options.masked_in_encoder))
    visible_BxT = (batch.segments > 0) & ~selected_of(jnp.where(hidden_M, batch.positions, length), length)

    index_BxK = positions_of(visible_BxT, num_slots)
    segments_BxK = gather_positions(batch.segments, index_BxK)
    original_BxT = positions_in_documents(batch.segments)
    renumbered = options.renumber_positions
    rank_BxT = jnp.cumsum(visible_BxT, axis=1, dtype=jnp.int32) - 1
    return KeptTokens(
        tokens=gather_positions(jnp.where(masked_BxT, batch.inputs, batch.tokens), index_BxK),
        segments=segments_BxK,
        positions=positions_in_documents(segments_BxK) if renumbered else gather_positions(original_BxT, index_BxK),
        index=index_BxK,
        masked=masked_BxT,
        slot=jnp.where(visible_BxT, jnp.minimum(rank_BxT, num_slots), num_slots),
        overflow=jnp.maximum(visible_BxT.sum(1) - num_slots, 0),
    )


class Decoder(nn.Module):
    """Transformer over the whole row, read at the masked positions; pretraining only.

    `config` is that of `decoder_config`: layers like the encoder's, no dropout, no relative bias, learned positions of
    its own. Under a rotary encoder, whose outputs do not tell where they stand, its attention is rotary besides. Of the
    last layer, queries, MLP and output are computed at the masked positions only; its parameters are a Block's.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BxTxd, segments_BxT, at_BxM):
        """Decodes rows.

        Args:
          x_BxTxd: encoder outputs, and the embedding of [MASK] elsewhere.
          segments_BxT: int32[B, T], the documents of the row.
          at_BxM: int32[B, M], where to read; T in unused slots.

        Returns:
          [B, M, d_d], of no meaning in unused slots.
        """
        c = self.config
        if x_BxTxd.shape[-1] != c.width:
            x_BxTxd = dense(c, c.width, 'project')(x_BxTxd)
        normal = nn.initializers.normal(c.init_stddev)
        position_embedding = nn.Embed(c.max_length, c.width, embedding_init=normal, name='position_embedding')
        positions_BxT = positions_in_documents(segments_BxT)
        turns_BxTx2xAxR = rotary_turns((positions_BxT,), c.head_width) if c.positions != 'learned' else None
        x_BxTxd += position_embedding(positions_BxT)  # at every position, kept ones too
        x_BxTxd = layer_norm(c, 'embedding_norm')(split_rows(x_BxTxd.astype(c.dtype)))
        if c.num_layers > 1:
            layers = scanned_layers(c, c.num_layers - 1, True, self.is_initializing())
            x_BxTxd, _ = layers(x_BxTxd, segments_BxT, turns_BxTx2xAxR, None)
        last_layer = block_for_use(c, self.is_initializing())(c, True, name='last_layer')
        x_BxMxd = last_layer(x_BxTxd, segments_BxT, turns_BxTx2xAxR, None, at_BxM)[0]
        return layer_norm(c, 'final_norm')(x_BxMxd) if c.norm == 'pre' else x_BxMxd


def decoder_config(config: EncoderConfig, options: MAELMConfig) -> EncoderConfig:
    """The decoder of an encoder."""
    sizes = decoder_sizes(config, options)
    if sizes.width % config.num_heads:
        raise ValueError(f'decoder_width={sizes.width} is no multiple of the number of heads {config.num_heads}')
    return dataclasses.replace(
        config,
        num_layers=options.decoder_layers,
        width=sizes.width,
        ffn_width=sizes.ffn_width,
        relative_buckets=0,
        embedding_norm=True,
        dropout=0.0,
        attention_dropout=0.0,
        scan_unroll=min(config.scan_unroll, max(1, options.decoder_layers - 1)),
    )


class MAELM(Objective):
    """An encoder of the kept tokens, with a decoder and a prediction head for the masked ones.

    Attributes:
      config: of the encoder.
      mask_id: the row of the token embedding that stands at masked positions before the decoder.
      options: the decoder, and the switches.
    """

    mask_id: int
    options: MAELMConfig = MAELMConfig()

    @classmethod
    def make(cls, config: EncoderConfig, options: MAELMConfig, vocabulary) -> 'MAELM':
        """As `Objective.make`."""
        return cls(config, vocabulary.mask_id, options)

    def setup(self):
        c, d = self.config, decoder_config(self.config, self.options)
        self.encoder = Encoder(c)
        self.decoder = Decoder(d)
        self.head = MLMHead(d)
        if d.width != c.width:
            self.widen = dense(c, c.width, None, bias=False)

    def __call__(self, batch: MaskedBatch, deterministic: bool = True) -> LossTerms:
        """Cross-entropy at the masked positions; metrics `accuracy` and `kept_overflow`, a share of the real tokens.

        Where `kept_overflow` is not 0, raise `kept_margin`.
        """
        terms = cross_entropy_terms(self.logits(batch, deterministic), batch.targets, batch.weights)
        overflow = keep_tokens(batch, self.options).overflow.sum().astype(jnp.float32)
        real = (batch.segments > 0).sum().astype(jnp.float32)
        return terms.replace(metrics={**terms.metrics, 'kept_overflow': (overflow, real)})

    def logits(self, batch: MaskedBatch, deterministic: bool = True) -> jax.Array:
        """f32[B, M, V] at the masked positions; of no meaning in unused slots."""
        return self.head(self.decode(batch, batch.positions, deterministic), self._token_logits)

    def decode(self, batch: MaskedBatch, at_BxM: jax.Array, deterministic: bool = True) -> jax.Array:
        """float[B, M, d_d]: the decoder's output at any positions of the rows."""
        return self.decoder(self.decoder_inputs(batch, deterministic), batch.segments, at_BxM)

    def decoder_inputs(self, batch: MaskedBatch, deterministic: bool = True) -> jax.Array:
        """float[B, T, d]: encoder outputs at their original places, and the embedding of [MASK] at the others."""
        kept = keep_tokens(batch, self.options)
        encoded_BxKxd = self.encode_kept(kept, deterministic)
        unseen_BxT = kept.slot == encoded_BxKxd.shape[1]
        if self.options.reset_masked:
            unseen_BxT |= kept.masked
        mask_d = self.encoder.token_vectors(jnp.asarray(self.mask_id)).astype(encoded_BxKxd.dtype)
        return jnp.where(unseen_BxT[..., None], mask_d, gather_positions(encoded_BxKxd, kept.slot))

    def encode_kept(self, kept: KeptTokens, deterministic: bool = True) -> jax.Array:
        """float[B, K, d]: the encoder's output for the kept tokens; of no meaning in unused slots."""
        return self.encoder(kept.tokens, kept.segments, kept.positions, deterministic)

    def encode_masked(self, batch: MaskedBatch, deterministic: bool = True) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The encoder's output for its pretraining input, the kept tokens: as `Objective.encode_masked`, with S = K."""
        kept = keep_tokens(batch, self.options)
        masked_BxK = gather_positions(kept.masked, kept.index)
        return self.encode_kept(kept, deterministic), kept.segments, masked_BxK

    def at_any_ratio(self) -> 'MAELM':
        """With a slot in the encoder for each token of the row: how many it needs was decided by the training."""
        return self.clone(options=dataclasses.replace(self.options, kept_margin=1.0))

    def _token_logits(self, x_BxMxd: jax.Array) -> jax.Array:
        narrow = x_BxMxd.shape[-1] != self.config.width
        return self.encoder.token_logits(self.widen(x_BxMxd) if narrow else x_BxMxd)
