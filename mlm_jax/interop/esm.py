"""ESM-2's class: pre-LN with rotary positions and biases, and the encoder of ExLM."""

from typing import Any, ClassVar

import numpy as np

from mlm_jax.interop import architecture, names
from mlm_jax.interop.architecture import LM_HEAD, Architecture, Constant, Encoder
from mlm_jax.interop.description import Description
from mlm_jax.interop.names import Rule
from mlm_jax.interop.rotary import POSITIONS, frequencies, halves_first

_FREQUENCIES = 'base^(−2j / D), the frequencies of the rotary positions that config.json describes'


class Esm(Architecture):
    """EsmForMaskedLM. The frequencies of its rotary positions are stored, so that they can be those of two coordinates.

    Of those, only the first moves in a text without copies: a frequency of 0 leaves the other half of a head alone.
    """

    title, model_type, prefix = 'ESM', 'esm', 'esm'
    masked_lm, base = 'EsmForMaskedLM', 'EsmModel'
    head = LM_HEAD
    fixed: ClassVar = {
        'tie_word_embeddings': True,
        'is_decoder': False,
        'add_cross_attention': False,
        'is_folding_model': False,
    }
    recipe: ClassVar = architecture.recipe(
        'zeroed_token', norm='pre', positions=POSITIONS, embedding_norm=(True, False)
    )
    left_out = (
        'esm.pooler.', 'pooler.', 'esm.contact_head.', 'contact_head.', 'esm.embeddings.position_',
        'embeddings.position_',
    )  # fmt: skip

    def read(self, d: Description, pad_id: int) -> dict[str, Any]:
        if (kind := d.stored.get('position_embedding_type', 'absolute')) != 'rotary':
            raise ValueError(f"{d.path} has position_embedding_type={kind!r}: only ESM-2's 'rotary' has a place here")
        has_token_dropout = bool(d.has('token_dropout') and d.flag('token_dropout', False))
        sizes = architecture.bert_sizes(d, d.whole('max_position_embeddings', 1026))
        return sizes | {
            'positions': d.own('positions', 'rotary', POSITIONS),
            'rotary_base': d.number('rope_theta', 10_000.0),
            'zeroed_token': d.whole('mask_token_id') if has_token_dropout else -1,
            'embedding_norm': bool(d.has('emb_layer_norm_before') and d.flag('emb_layer_norm_before', False)),
        }

    def pad_id(self, d: Description) -> int:
        return d.pad_id(1)

    def describe(self, e: Encoder, pad_id: int) -> dict[str, Any]:
        return architecture.describe_sizes(e, e.max_length) | {
            'position_embedding_type': 'rotary',
            'rope_theta': e.rotary_base,
            'emb_layer_norm_before': e.embedding_norm,
            'token_dropout': e.zeroed_token >= 0,
            'mask_token_id': e.zeroed_token if e.zeroed_token >= 0 else None,
            'hidden_act': 'gelu',
        }

    def own_keys(self, e: Encoder) -> dict[str, Any]:
        return {'positions': e.positions}

    def encoder_rules(self, e: Encoder, prefix: str, pad_id: int) -> list[Rule]:
        layers = architecture.bert_layers(
            e, f'{prefix}encoder.layer.{{}}', order=halves_first(e), attention_norm='attention.LayerNorm',
            mlp_norm='LayerNorm',
        )  # fmt: skip
        norm = names.norm('encoder/embedding_norm', f'{prefix}embeddings.layer_norm', e.width)
        return [
            names.token_table(f'{prefix}embeddings.word_embeddings.weight', e.vocab_size, e.width),
            *(norm if e.embedding_norm else []),
            *layers,
            *names.norm('encoder/final_norm', f'{prefix}encoder.emb_layer_norm_after', e.width),
        ]

    def constants(self, e: Encoder, prefix: str) -> dict[str, Constant]:
        inverse = frequencies(e)
        found = {f'{prefix}rotary_embeddings.inv_freq': Constant(inverse, _FREQUENCIES)}
        for i in range(e.num_layers):  # where checkpoints before version 5 have it
            name = f'{prefix}encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq'
            found[name] = Constant(inverse, _FREQUENCIES, is_written=False)
        return found

    def modern_name(self, name: str) -> str:
        # Version 5 of transformers saves the frequencies that all layers share by the name of those of a layer "*".
        return (
            super().modern_name(name).replace('encoder.layer.*.attention.self.rotary_embeddings', 'rotary_embeddings')
        )

    def unused(self, e: Encoder, prefix: str) -> dict[str, np.ndarray]:
        """The head that predicts contacts from attention, which the class has: zeros."""
        there = f'{prefix}contact_head.regression'
        return {f'{there}.weight': np.zeros((1, e.num_layers * e.num_heads)), f'{there}.bias': np.zeros(1)}
