"""BERT, and DistilBERT, which is a BERT by other names."""

from typing import Any, ClassVar

from mlm_jax.interop import architecture
from mlm_jax.interop.architecture import Architecture, Encoder, Head
from mlm_jax.interop.description import Description
from mlm_jax.interop.names import Rule

# Post-LN BERT and RoBERTa: what a config.json may say of what has one value here. `hidden_act` is the exact GELU;
# gelu_new and gelu_pytorch_tanh are approximations.
FIXED = {
    'hidden_act': 'gelu',
    'position_embedding_type': 'absolute',
    'tie_word_embeddings': True,
    'is_decoder': False,
    'add_cross_attention': False,
}


class Bert(Architecture):
    """BertForMaskedLM; of a BertForPreTraining, what predicts the next sentence is left out."""

    title, model_type, prefix = 'BERT', 'bert', 'bert'
    masked_lm, base, also_read = 'BertForMaskedLM', 'BertModel', ('BertForPreTraining',)
    fixed = FIXED
    left_out = ('bert.pooler.', 'pooler.', 'cls.seq_relationship.')

    def read(self, d: Description, pad_id: int) -> dict[str, Any]:
        return architecture.bert_sizes(d, d.whole('max_position_embeddings'))

    def describe(self, e: Encoder, pad_id: int) -> dict[str, Any]:
        return architecture.describe_sizes(e, e.max_length) | {'type_vocab_size': 2}

    def encoder_rules(self, e: Encoder, prefix: str, pad_id: int) -> list[Rule]:
        return [
            *architecture.bert_embeddings(e, f'{prefix}embeddings', first=0, num_types=2),
            *architecture.bert_layers(e, f'{prefix}encoder.layer.{{}}'),
        ]


class DistilBert(Architecture):
    """DistilBertForMaskedLM: no token types, and one ε."""

    title, model_type, prefix = 'DistilBERT', 'distilbert', 'distilbert'
    masked_lm, base = 'DistilBertForMaskedLM', 'DistilBertModel'
    fixed: ClassVar = {'activation': 'gelu', 'sinusoidal_pos_embds': False, 'tie_word_embeddings': True}
    recipe: ClassVar = architecture.recipe(norm_epsilon=1e-12)
    head = Head('vocab_transform', 'vocab_layer_norm', 'vocab_projector.bias', 'vocab_projector')

    def read(self, d: Description, pad_id: int) -> dict[str, Any]:
        return {
            'vocab_size': d.whole('vocab_size'),
            'max_length': d.whole('max_position_embeddings'),
            'num_layers': d.whole('n_layers'),
            'width': d.whole('dim'),
            'num_heads': d.whole('n_heads'),
            'ffn_width': d.whole('hidden_dim'),
            'dropout': d.number('dropout', 0.1),
            'attention_dropout': d.number('attention_dropout', 0.1),
            'init_stddev': d.number('initializer_range', 0.02),
        }

    def describe(self, e: Encoder, pad_id: int) -> dict[str, Any]:
        return {
            'vocab_size': e.vocab_size, 'max_position_embeddings': e.max_length, 'n_layers': e.num_layers,
            'dim': e.width, 'n_heads': e.num_heads, 'hidden_dim': e.ffn_width, 'dropout': e.dropout,
            'attention_dropout': e.attention_dropout, 'initializer_range': e.init_stddev,
        }  # fmt: skip

    def encoder_rules(self, e: Encoder, prefix: str, pad_id: int) -> list[Rule]:
        layers = architecture.bert_layers(
            e, f'{prefix}transformer.layer.{{}}', query='attention.q_lin', key='attention.k_lin',
            value='attention.v_lin', out='attention.out_lin', attention_norm='sa_layer_norm', up='ffn.lin1',
            down='ffn.lin2', mlp_norm='output_layer_norm',
        )  # fmt: skip
        return [*architecture.bert_embeddings(e, f'{prefix}embeddings', first=0), *layers]
