"""MPNet: post-LN with learned positions and T5's relative bias, as in MAE-LM."""

from typing import Any, ClassVar

from mlm_jax.interop import architecture, names
from mlm_jax.interop.architecture import LM_HEAD, Architecture, Encoder
from mlm_jax.interop.description import Description
from mlm_jax.interop.names import Rule

BUCKETS = 32
PAD_ID = 1  # fixed in the class: positions count from it, whatever config.json says


class MPNet(Architecture):
    """MPNetForMaskedLM."""

    title, model_type, prefix = 'MPNet', 'mpnet', 'mpnet'
    masked_lm, base = 'MPNetForMaskedLM', 'MPNetModel'
    head = LM_HEAD
    fixed: ClassVar = {'hidden_act': 'gelu', 'tie_word_embeddings': True, 'relative_attention_num_buckets': BUCKETS}
    recipe: ClassVar = architecture.recipe(relative_buckets=BUCKETS, relative_max_distance=128, relative_bucketing='t5')
    left_out = ('mpnet.pooler.', 'pooler.')

    def pad_id(self, d: Description) -> int:
        return d.pad_id(PAD_ID)

    def read(self, d: Description, pad_id: int) -> dict[str, Any]:
        num_positions = d.whole('max_position_embeddings')
        if num_positions <= PAD_ID + 1:
            raise ValueError(
                f'{d.path} has max_position_embeddings={num_positions}: MPNet leaves the first {PAD_ID + 1} of them '
                'out, and none are left'
            )
        return architecture.bert_sizes(d, num_positions - PAD_ID - 1)

    def describe(self, e: Encoder, pad_id: int) -> dict[str, Any]:
        return architecture.describe_sizes(e, e.max_length + PAD_ID + 1) | {'relative_attention_num_buckets': BUCKETS}

    def notes(self, e: Encoder, pad_id: int) -> list[str]:
        if pad_id == PAD_ID:
            return []
        return [
            f'MPNet takes id {PAD_ID} for the padding ({pad_id} here) when it counts positions: a text that holds the '
            f'token of id {PAD_ID} is read with other positions from there on'
        ]

    def encoder_rules(self, e: Encoder, prefix: str, pad_id: int) -> list[Rule]:
        layers = architecture.bert_layers(
            e, f'{prefix}encoder.layer.{{}}', query='attention.attn.q', key='attention.attn.k',
            value='attention.attn.v', out='attention.attn.o', attention_norm='attention.LayerNorm',
        )  # fmt: skip
        return [
            *architecture.bert_embeddings(e, f'{prefix}embeddings', first=PAD_ID + 1),
            names.plain(
                'encoder/relative_bias/embedding', f'{prefix}encoder.relative_attention_bias.weight',
                (BUCKETS, e.num_heads),
            ),
            *layers,
        ]  # fmt: skip
