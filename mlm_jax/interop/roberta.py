"""RoBERTa and what shares its weights (XLM-R, CamemBERT), and RoBERTa with LayerNorms before the sublayers."""

from typing import Any, ClassVar

from mlm_jax.interop import architecture, names
from mlm_jax.interop.architecture import LM_HEAD, Architecture, Encoder
from mlm_jax.interop.bert import FIXED
from mlm_jax.interop.description import Description
from mlm_jax.interop.names import Rule


class Roberta(Architecture):
    """RobertaForMaskedLM. Its positions count from pad_id + 1: that many rows of its table come before the first."""

    title, model_type, prefix = 'RoBERTa', 'roberta', 'roberta'
    masked_lm, base = 'RobertaForMaskedLM', 'RobertaModel'
    head = LM_HEAD
    fixed = FIXED
    left_out = ('roberta.pooler.', 'pooler.')

    def pad_id(self, d: Description) -> int:
        return d.pad_id(1, places=self.title)

    def read(self, d: Description, pad_id: int) -> dict[str, Any]:
        num_positions = d.whole('max_position_embeddings')
        if num_positions <= pad_id + 1:
            raise ValueError(
                f'{d.path} has max_position_embeddings={num_positions}: {self.title} leaves the first '
                f'pad_token_id + 1 = {pad_id + 1} of them out, and none are left'
            )
        return architecture.bert_sizes(d, num_positions - pad_id - 1)

    def describe(self, e: Encoder, pad_id: int) -> dict[str, Any]:
        return architecture.describe_sizes(e, e.max_length + pad_id + 1) | {'type_vocab_size': 1}

    def encoder_rules(self, e: Encoder, prefix: str, pad_id: int) -> list[Rule]:
        return [
            *architecture.bert_embeddings(e, f'{prefix}embeddings', first=pad_id + 1, num_types=1),
            *self.layers(e, prefix),
        ]

    def layers(self, e: Encoder, prefix: str) -> list[Rule]:
        """The weights behind the embeddings."""
        return architecture.bert_layers(e, f'{prefix}encoder.layer.{{}}')


class XLMRoberta(Roberta):
    """XLM-R."""

    title, model_type = 'XLM-R', 'xlm-roberta'
    masked_lm, base = 'XLMRobertaForMaskedLM', 'XLMRobertaModel'


class Camembert(Roberta):
    """CamemBERT."""

    title, model_type = 'CamemBERT', 'camembert'
    masked_lm, base = 'CamembertForMaskedLM', 'CamembertModel'


class RobertaPreLayerNorm(Roberta):
    """RobertaPreLayerNormForMaskedLM: pre-LN with learned positions."""

    title, model_type, prefix = 'RoBERTa-PreLayerNorm', 'roberta-prelayernorm', 'roberta_prelayernorm'
    masked_lm, base = 'RobertaPreLayerNormForMaskedLM', 'RobertaPreLayerNormModel'
    recipe: ClassVar = architecture.recipe(norm='pre')
    left_out = ('roberta_prelayernorm.pooler.', 'pooler.')

    def layers(self, e: Encoder, prefix: str) -> list[Rule]:
        layers = architecture.bert_layers(
            e, f'{prefix}encoder.layer.{{}}', attention_norm='attention.LayerNorm', mlp_norm='intermediate.LayerNorm'
        )
        return [*layers, *names.norm('encoder/final_norm', f'{prefix}LayerNorm', e.width)]
