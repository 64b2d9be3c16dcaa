"""RoFormer: post-LN with rotary positions."""

from typing import Any, ClassVar

import numpy as np

from mlm_jax.interop import architecture, names
from mlm_jax.interop.architecture import Architecture, Constant, Encoder
from mlm_jax.interop.description import Description
from mlm_jax.interop.names import Rule
from mlm_jax.interop.rotary import POSITIONS, interleaved, sines_and_cosines


class RoFormer(Architecture):
    """RoFormerForMaskedLM. Sines and cosines of all positions are stored, so that any base has a place."""

    title, model_type, prefix = 'RoFormer', 'roformer', 'roformer'
    masked_lm, base = 'RoFormerForMaskedLM', 'RoFormerModel'
    fixed: ClassVar = {
        'hidden_act': 'gelu', 'rotary_value': False, 'tie_word_embeddings': True, 'is_decoder': False,
        'add_cross_attention': False,
    }  # fmt: skip
    recipe: ClassVar = architecture.recipe(positions=POSITIONS)
    left_out = ('roformer.pooler.', 'pooler.', 'cls.seq_relationship.')

    def read(self, d: Description, pad_id: int) -> dict[str, Any]:
        found = architecture.bert_sizes(d, d.whole('max_position_embeddings', 1536))
        if d.has('embedding_size') and d.whole('embedding_size') != found['width']:
            raise ValueError(f'{d.path} has an embedding_size that is not its hidden_size, which has no place here')
        return found | {
            'positions': d.own('positions', 'rotary', POSITIONS),
            'rotary_base': d.own('rotary_base', 10_000.0),
        }

    def describe(self, e: Encoder, pad_id: int) -> dict[str, Any]:
        return architecture.describe_sizes(e, e.max_length) | {'embedding_size': e.width, 'type_vocab_size': 2}

    def own_keys(self, e: Encoder) -> dict[str, Any]:
        return {'positions': e.positions, 'rotary_base': float(e.rotary_base)}

    def encoder_rules(self, e: Encoder, prefix: str, pad_id: int) -> list[Rule]:
        there = f'{prefix}embeddings'
        return [
            names.token_table(f'{there}.word_embeddings.weight', e.vocab_size, e.width),
            *names.norm('encoder/embedding_norm', f'{there}.LayerNorm', e.width),
            *architecture.bert_layers(e, f'{prefix}encoder.layer.{{}}', order=interleaved(e)),
        ]

    def constants(self, e: Encoder, prefix: str) -> dict[str, Constant]:
        return {
            f'{prefix}encoder.embed_positions.weight': Constant(
                sines_and_cosines(e), 'the sines and cosines of the rotary positions that config.json describes'
            ),
            f'{prefix}embeddings.token_type_embeddings.weight': Constant(
                np.zeros((2, e.width)),
                'zeros for texts of one part: others would be added to embeddings that also predict tokens, and have '
                'no place here',
                rows=1,
            ),
        }
