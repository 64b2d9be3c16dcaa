"""MAE-LM: the encoder reads only the tokens that are not masked, and a shallow decoder predicts the others.

Meng et al., Representation Deficiency in Masked Language Modeling, ICLR 2024, arXiv 2302.02060. What the paper leaves
open follows the released code, yumeng5/MAE-LM. [MASK] never enters the encoder, so the encoder does not spend
dimensions of its representations on [MASK].
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from mlm_jax.losses.cross_entropy import cross_entropy_terms
from mlm_jax.losses.terms import LossTerms
from mlm_jax.masking.batch import MaskedBatch, gather_positions, positions_of, selected_of
from mlm_jax.masking.vocabulary import Vocabulary
from mlm_jax.models.encoder import Encoder, block_for_use, scanned_layers
from mlm_jax.models.layers import Context, EncoderConfig, dense, norm_layer
from mlm_jax.models.positions import positions_in_documents, rotary_turns
from mlm_jax.models.prediction_head import MLMHead
from mlm_jax.objectives.mae_lm_spec import MAELMConfig, decoder_sizes, hidden_slots, kept_slots
from mlm_jax.objectives.objective import Objective
from mlm_jax.parallel.mesh import split_rows


@flax.struct.dataclass
class KeptTokens:
    """The tokens that the encoder reads, gathered to the front of each row. All shapes are static.

    Attributes:
      tokens: int32[B, K], the ids.
      segments: int32[B, K], the document of each token; 0 in unused slots.
      positions: int32[B, K], the position within the document, absolute and for relative distances; 0 in unused slots.
      index: int32[B, K], the index of each token in the row; T in unused slots.
      masked: bool[B, T], whether a position is to be predicted.
      slot: int32[B, T], the slot of each token, the inverse of `index`; K for tokens that the encoder does not read.
      overflow: int32[B], the number of kept tokens for which there was no slot.
    """

    tokens: jax.Array
    segments: jax.Array
    positions: jax.Array
    index: jax.Array
    masked: jax.Array
    slot: jax.Array
    overflow: jax.Array


def keep_tokens(batch: MaskedBatch, options: MAELMConfig) -> KeptTokens:
    """Gathers the tokens of each row that the encoder reads.

    If a row has more than K kept tokens, the last ones are treated as masked positions that are not predicted: the
    encoder does not read them, and the decoder reads the embedding of [MASK] in their place. `overflow` counts them.
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
    """A transformer that reads the whole row and returns outputs at the masked positions; used only in pretraining.

    `config` comes from `decoder_config`: layers like the encoder's, but all of them global and with all norms, without
    dropout and without relative bias. The decoder has a learned position embedding of its own. If the encoder has
    rotary positions, its outputs do not contain their positions, and the attention of the decoder is rotary, too. The
    last layer computes queries, MLP and output only at the masked positions; its parameters are those of a Block.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BxTxd: jax.Array, segments_BxT: jax.Array, at_BxM: jax.Array) -> jax.Array:
        """Decodes rows.

        Args:
          x_BxTxd: the outputs of the encoder, and the embedding of [MASK] where there are none.
          segments_BxT: int32[B, T], the document of each token.
          at_BxM: int32[B, M], the positions of the outputs; T in unused slots.

        Returns:
          [B, M, d_d], undefined in unused slots.
        """
        c = self.config
        if x_BxTxd.shape[-1] != c.width:
            x_BxTxd = dense(c, c.width, 'project')(x_BxTxd)
        normal = nn.initializers.normal(c.init_stddev)
        position_embedding = nn.Embed(c.max_length, c.width, embedding_init=normal, name='position_embedding')
        positions_BxT = positions_in_documents(segments_BxT)
        is_rotary = c.positions != 'learned'
        turns_BxTx2xAxR = rotary_turns((positions_BxT,), c.head_width, c.rotary_base) if is_rotary else None
        context = Context(segments_BxT, turns_BxTx2xAxR)
        x_BxTxd += position_embedding(positions_BxT)  # at all positions, masked or kept
        x_BxTxd = norm_layer(c, 'embedding_norm')(split_rows(x_BxTxd.astype(c.dtype)))
        if c.num_layers > 1:
            layers = scanned_layers(c, c.num_layers - 1, True, self.is_initializing())
            x_BxTxd, _ = layers(x_BxTxd, context, {})
        last_layer = block_for_use(c, self.is_initializing())(c, True, name='last_layer')
        x_BxMxd = last_layer(x_BxTxd, context, {}, at_BxM)[0]
        return norm_layer(c, 'final_norm')(x_BxMxd) if c.norm == 'pre' else x_BxMxd


def decoder_config(config: EncoderConfig, options: MAELMConfig) -> EncoderConfig:
    """The configuration of the decoder, given that of the encoder; ValueError if heads do not divide its width."""
    sizes = decoder_sizes(config, options)
    if sizes.width % config.num_heads:
        raise ValueError(f'decoder_width={sizes.width} is not a multiple of the number of heads, {config.num_heads}')
    return dataclasses.replace(
        config,
        num_layers=options.decoder_layers,
        width=sizes.width,
        ffn_width=sizes.ffn_width,
        relative_buckets=0,
        local_window=0,
        embedding_norm=True,
        first_norm=True,
        dropout=0.0,
        attention_dropout=0.0,
        scan_unroll=min(config.scan_unroll, max(1, options.decoder_layers - 1)),
    )


class MAELM(Objective):
    """An encoder of the kept tokens, with a decoder and a prediction head for the masked tokens.

    Attributes:
      config: the configuration of the encoder.
      mask_id: the id of [MASK], whose token embedding the decoder reads at masked positions.
      options: the decoder, and the settings of ablations.
    """

    mask_id: int
    options: MAELMConfig = MAELMConfig()

    @classmethod
    def make(cls, config: EncoderConfig, options: MAELMConfig, vocabulary: Vocabulary) -> 'MAELM':
        """The module that a configuration describes; arguments as for `Objective.make`."""
        return cls(config, vocabulary.mask_id, options)

    def setup(self) -> None:
        c, d = self.config, decoder_config(self.config, self.options)
        self.encoder = Encoder(c)
        self.decoder = Decoder(d)
        self.head = MLMHead(d)
        if d.width != c.width and c.tied_head:
            self.widen = dense(c, c.width, None, bias=False)

    def __call__(self, batch: MaskedBatch, deterministic: bool = True) -> LossTerms:
        """Cross-entropy at the masked positions, with the metrics of `cross_entropy_terms` and `kept_overflow`.

        `kept_overflow` is the share of the tokens that the encoder should read but for which there was no slot. If it
        is not 0, raise `kept_margin`.
        """
        terms = cross_entropy_terms(self.logits(batch, deterministic), batch.targets, batch.weights)
        overflow = keep_tokens(batch, self.options).overflow.sum().astype(jnp.float32)
        real = (batch.segments > 0).sum().astype(jnp.float32)
        return terms.replace(metrics={**terms.metrics, 'kept_overflow': (overflow, real)})

    def logits(self, batch: MaskedBatch, deterministic: bool = True) -> jax.Array:
        """f32[B, M, V]: the logits at the masked positions; undefined in unused slots."""
        return self.head(self.decode(batch, batch.positions, deterministic), self._token_logits)

    def decode(self, batch: MaskedBatch, at_BxM: jax.Array, deterministic: bool = True) -> jax.Array:
        """float[B, M, d_d]: the decoder's output at the positions `at_BxM` of the rows, masked or not."""
        return self.decoder(self.decoder_inputs(batch, deterministic), batch.segments, at_BxM)

    def decoder_inputs(self, batch: MaskedBatch, deterministic: bool = True) -> jax.Array:
        """float[B, T, d]: the encoder's outputs at their original positions, and [MASK]'s embedding at the others."""
        kept = keep_tokens(batch, self.options)
        encoded_BxKxd = self.encode_kept(kept, deterministic)
        unseen_BxT = kept.slot == encoded_BxKxd.shape[1]
        if self.options.reset_masked:
            unseen_BxT |= kept.masked
        mask_d = self.encoder.token_vectors(jnp.asarray(self.mask_id)).astype(encoded_BxKxd.dtype)
        return jnp.where(unseen_BxT[..., None], mask_d, gather_positions(encoded_BxKxd, kept.slot))

    def encode_kept(self, kept: KeptTokens, deterministic: bool = True) -> jax.Array:
        """float[B, K, d]: the encoder's output for the kept tokens; undefined in unused slots."""
        return self.encoder(kept.tokens, kept.segments, kept.positions, deterministic)

    def encode_masked(self, batch: MaskedBatch, deterministic: bool = True) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The encoder's output for the kept tokens, its pretraining input; as `Objective.encode_masked`, with S = K."""
        kept = keep_tokens(batch, self.options)
        masked_BxK = gather_positions(kept.masked, kept.index)
        return self.encode_kept(kept, deterministic), kept.segments, masked_BxK

    def at_any_ratio(self) -> 'MAELM':
        """The same model with a slot in the encoder for every token of a row, whatever `kept_margin` training used."""
        return self.clone(options=dataclasses.replace(self.options, kept_margin=1.0))

    def _token_logits(self, x_BxMxd: jax.Array) -> jax.Array:
        narrow = x_BxMxd.shape[-1] != self.config.width
        return self.encoder.token_logits(self.widen(x_BxMxd) if narrow else x_BxMxd)
