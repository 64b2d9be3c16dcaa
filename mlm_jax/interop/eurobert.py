"""EuroBERT: pre-LN with RMSNorm, SwiGLU, rotary positions, grouped heads, and a plain head of its own."""

from typing import Any, ClassVar

from mlm_jax.interop import architecture, names
from mlm_jax.interop.architecture import Architecture, Encoder
from mlm_jax.interop.description import Description
from mlm_jax.interop.names import Rule


class EuroBert(Architecture):
    """EuroBertForMaskedLM."""

    title, model_type, prefix = 'EuroBERT', 'eurobert', 'model'
    masked_lm, base = 'EuroBertForMaskedLM', 'EuroBertModel'
    # Its head has a bias where its MLPs have one, and the plain head here has none.
    fixed: ClassVar = {'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False}
    recipe: ClassVar = architecture.recipe(
        'num_kv_heads', 'norm_bias', positions='rotary', norm='pre', embedding_norm=False, bias=False, mlp='swiglu',
        norm_type='rms_norm', head='plain', tied_head=(True, False),
    )  # fmt: skip

    def read(self, d: Description, pad_id: int) -> dict[str, Any]:
        rotary = d.within('rope_parameters')
        if rotary.stored.get('rope_type', 'default') != 'default' or d.has('rope_scaling'):
            raise ValueError(f'{d.path} scales its rotary positions: that has no place here')
        num_heads = d.whole('num_attention_heads')
        num_kv_heads = d.whole('num_key_value_heads') if d.has('num_key_value_heads') else num_heads
        width = d.whole('hidden_size')
        if d.has('head_dim') and d.whole('head_dim') * num_heads != width:
            raise ValueError(f'{d.path} has heads of width {d.whole("head_dim")}: only hidden_size / heads has a place')
        if num_heads % num_kv_heads:
            raise ValueError(f'{d.path}: num_key_value_heads={num_kv_heads} does not divide {num_heads} heads')
        return {
            'vocab_size': d.whole('vocab_size'),
            'max_length': d.whole('max_position_embeddings'),
            'num_layers': d.whole('num_hidden_layers'),
            'width': width,
            'num_heads': num_heads,
            'num_kv_heads': 0 if num_kv_heads == num_heads else num_kv_heads,
            'ffn_width': d.whole('intermediate_size'),
            'norm_epsilon': d.number('rms_norm_eps', 1e-5),
            'dropout': 0.0,
            'attention_dropout': d.number('attention_dropout', 0.0),
            'init_stddev': d.number('initializer_range', 0.02),
            'tied_head': d.flag('tie_word_embeddings', False),
            'rotary_base': rotary.number('rope_theta', d.number('rope_theta', 250_000.0)),
        }

    def describe(self, e: Encoder, pad_id: int) -> dict[str, Any]:
        return {
            'vocab_size': e.vocab_size,
            'hidden_size': e.width,
            'num_hidden_layers': e.num_layers,
            'num_attention_heads': e.num_heads,
            'num_key_value_heads': e.num_kv_heads or e.num_heads,
            'head_dim': e.width // e.num_heads,
            'intermediate_size': e.ffn_width,
            'max_position_embeddings': e.max_length,
            'rms_norm_eps': e.norm_epsilon,
            'attention_dropout': e.attention_dropout,
            'initializer_range': e.init_stddev,
            'tie_word_embeddings': e.tied_head,
            'rope_parameters': {'rope_type': 'default', 'rope_theta': e.rotary_base},
            'rope_theta': e.rotary_base,
        }

    def encoder_rules(self, e: Encoder, prefix: str, pad_id: int) -> list[Rule]:
        layer, ours = f'{prefix}layers.{{}}', 'encoder/layers'
        projections = tuple(f'{layer}.self_attn.{part}_proj' for part in 'qkv')
        heads = e.width, e.num_heads
        if e.num_kv_heads in (0, e.num_heads):
            attention = names.queries_keys_values(f'{ours}/attention/qkv', projections, *heads, bias=False)
        else:
            attention = names.grouped_queries_keys_values(
                f'{ours}/attention', projections, *heads, e.num_kv_heads, bias=False
            )
        gate_and_up = (f'{layer}.mlp.gate_proj', f'{layer}.mlp.up_proj')
        return [
            names.token_table(f'{prefix}embed_tokens.weight', e.vocab_size, e.width),
            *names.norm(f'{ours}/attention_norm', f'{layer}.input_layernorm', e.width, False),
            *attention,
            *names.attention_output(f'{ours}/attention/out', f'{layer}.self_attn.o_proj', *heads, bias=False),
            *names.norm(f'{ours}/mlp_norm', f'{layer}.post_attention_layernorm', e.width, False),
            *names.gated(f'{ours}/mlp/gate_and_up', gate_and_up, e.width, e.ffn_width, False),
            *names.linear(f'{ours}/mlp/down', f'{layer}.mlp.down_proj', e.ffn_width, e.width, False),
            *names.norm('encoder/final_norm', f'{prefix}norm', e.width, False),
        ]

    def head_rules(self, e: Encoder) -> list[Rule]:
        return names.output_table('lm_head.weight', e)

    def tied(self, e: Encoder, prefix: str) -> dict[str, str]:
        return {'lm_head.weight': names.TOKEN_TABLE} if e.tied_head else {}
