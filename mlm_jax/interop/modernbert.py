"""ModernBERT, and what shares its class: Ettin, mmBERT, GTE-modern."""

from typing import Any, ClassVar

from mlm_jax.interop import architecture, names
from mlm_jax.interop.architecture import Architecture, Encoder
from mlm_jax.interop.description import Description
from mlm_jax.interop.names import Rule

FULL, LOCAL = 'full_attention', 'sliding_attention'
# Base of the rotary positions in a kind of layer, where a config.json does not tell.
BASES = {FULL: 160_000.0, LOCAL: 10_000.0}
OLD_BASES = {FULL: 'global_rope_theta', LOCAL: 'local_rope_theta'}
EVERY = 3


class ModernBert(Architecture):
    """ModernBertForMaskedLM: pre-LN without the first norm, which would follow that of the embeddings; GeGLU; RoPE.

    In layers whose number is no multiple of `global_every`, tokens see those at most `local_attention // 2` away.
    """

    title, model_type, prefix = 'ModernBERT', 'modernbert', 'model'
    masked_lm, base = 'ModernBertForMaskedLM', 'ModernBertModel'
    fixed: ClassVar = {'hidden_activation': 'gelu', 'classifier_activation': 'gelu', 'decoder_bias': True}
    recipe: ClassVar = architecture.recipe(
        'local_window', positions='rotary', norm='pre', first_norm=False, mlp='geglu', bias=(False, True),
        norm_bias=(False, True), tied_head=(True, False),
    )  # fmt: skip

    def read(self, d: Description, pad_id: int) -> dict[str, Any]:
        num_layers = d.whole('num_hidden_layers')
        window, every = _windows(d, num_layers)
        bases = {kind: _base(d, kind) for kind in BASES}
        return {
            'vocab_size': d.whole('vocab_size'),
            'max_length': d.whole('max_position_embeddings'),
            'num_layers': num_layers,
            'width': d.whole('hidden_size'),
            'num_heads': d.whole('num_attention_heads'),
            'ffn_width': d.whole('intermediate_size'),
            'bias': _bias(d),
            'norm_bias': d.flag('norm_bias', False),
            'norm_epsilon': d.number('norm_eps', 1e-5),
            'dropout': d.number('embedding_dropout', 0.0),
            'attention_dropout': d.number('attention_dropout', 0.0),
            'init_stddev': d.number('initializer_range', 0.02),
            'tied_head': d.flag('tie_word_embeddings', True),
            'rotary_base': bases[FULL],
            'rotary_base_local': bases[LOCAL] if window and bases[LOCAL] != bases[FULL] else None,
            'local_window': window,
            'global_every': every,
        }

    def describe(self, e: Encoder, pad_id: int) -> dict[str, Any]:
        every = e.global_every if e.local_window else 1
        local_base = e.rotary_base if e.rotary_base_local is None or not e.local_window else e.rotary_base_local
        norm_bias = e.bias if e.norm_bias is None else e.norm_bias
        return {
            'vocab_size': e.vocab_size,
            'hidden_size': e.width,
            'num_hidden_layers': e.num_layers,
            'num_attention_heads': e.num_heads,
            'intermediate_size': e.ffn_width,
            'max_position_embeddings': e.max_length,
            'norm_eps': e.norm_epsilon,
            'norm_bias': norm_bias,
            'attention_bias': e.bias,
            'mlp_bias': e.bias,
            'classifier_bias': e.bias,
            'embedding_dropout': e.dropout,
            'mlp_dropout': 0.0,
            'attention_dropout': e.attention_dropout,
            'classifier_pooling': 'cls',  # as fine-tuning here does, and what transformers has by default
            'initializer_range': e.init_stddev,
            'tie_word_embeddings': e.tied_head,
            'layer_types': [LOCAL if i % every else FULL for i in range(e.num_layers)],
            'rope_parameters': {
                kind: {'rope_type': 'default', 'rope_theta': base}
                for kind, base in ((FULL, e.rotary_base), (LOCAL, local_base))
            },
            # The same by the names that versions before 5 of transformers, and other programs, read.
            'local_attention': e.local_window or 128,
            'global_attn_every_n_layers': every,
            OLD_BASES[FULL]: e.rotary_base,
            OLD_BASES[LOCAL]: local_base,
        }

    def encoder_rules(self, e: Encoder, prefix: str, pad_id: int) -> list[Rule]:
        bias = e.bias
        norm_bias = bias if e.norm_bias is None else e.norm_bias
        layer, ours = f'{prefix}layers.{{}}', 'encoder/layers'
        return [
            names.token_table(f'{prefix}embeddings.tok_embeddings.weight', e.vocab_size, e.width),
            *names.norm('encoder/embedding_norm', f'{prefix}embeddings.norm', e.width, norm_bias),
            *names.norm(f'{ours}/attention_norm', f'{layer}.attn_norm', e.width, norm_bias, missing=(0,)),
            *names.queries_keys_values(f'{ours}/attention/qkv', (f'{layer}.attn.Wqkv',), e.width, e.num_heads, bias),
            *names.attention_output(f'{ours}/attention/out', f'{layer}.attn.Wo', e.width, e.num_heads, bias),
            *names.norm(f'{ours}/mlp_norm', f'{layer}.mlp_norm', e.width, norm_bias),
            *names.gated(f'{ours}/mlp/gate_and_up', (f'{layer}.mlp.Wi',), e.width, e.ffn_width, bias),
            *names.linear(f'{ours}/mlp/down', f'{layer}.mlp.Wo', e.ffn_width, e.width, bias),
            *names.norm('encoder/final_norm', f'{prefix}final_norm', e.width, norm_bias),
        ]

    def head_rules(self, e: Encoder) -> list[Rule]:
        return [
            *names.linear('head/dense', 'head.dense', e.width, e.width, e.bias),
            *names.norm('head/norm', 'head.norm', e.width, e.bias if e.norm_bias is None else e.norm_bias),
            names.plain('head/bias', 'decoder.bias', (e.vocab_size,), 'vocab_size'),
            *names.output_table('decoder.weight', e),
        ]

    def tied(self, e: Encoder, prefix: str) -> dict[str, str]:
        return {'decoder.weight': names.TOKEN_TABLE} if e.tied_head else {}


def _bias(d: Description) -> bool:
    """Whether linear layers have biases: all of them, or none."""
    values = {key: d.flag(key, False) for key in ('attention_bias', 'mlp_bias', 'classifier_bias')}
    if len(set(values.values())) > 1:
        found = ', '.join(f'{key}={value}' for key, value in values.items())
        raise ValueError(f'{d.path} has {found}: either all linear layers have biases here, or none')
    return values['mlp_bias']


def _windows(d: Description, num_layers: int) -> tuple[int, int]:
    """(local_window, global_every) of a config.json; (0, 3) where all layers see everything."""
    kinds = d.stored.get('layer_types')
    if kinds is None:
        every = d.whole('global_attn_every_n_layers', EVERY)
        kinds = [LOCAL if i % every else FULL for i in range(num_layers)]
    if not isinstance(kinds, list) or len(kinds) != num_layers or not {*map(str, kinds)} <= {FULL, LOCAL}:
        raise d.wrong_type('layer_types', kinds, f'a list of {num_layers} of {FULL} and {LOCAL}')
    if LOCAL not in kinds:
        return 0, EVERY
    every = next((i for i in range(1, num_layers) if kinds[i] == FULL), num_layers)
    if kinds != [LOCAL if i % every else FULL for i in range(num_layers)]:
        raise ValueError(
            f'{d.path} has layer_types that do not repeat: layers 0, n, 2n, … see the whole text here, and all others '
            'a window'
        )
    return d.whole('local_attention', 128), every


def _base(d: Description, kind: str) -> float:
    """The base of the rotary positions in one kind of layer."""
    parameters = d.within('rope_parameters').within(kind)
    if parameters.stored.get('rope_type', 'default') != 'default' or d.has('rope_scaling'):
        raise ValueError(f'{d.path} scales its rotary positions: that has no place here')
    if parameters.has('rope_theta'):
        return _positive(parameters.number('rope_theta'), d, 'rope_theta')
    return _positive(d.number(OLD_BASES[kind], BASES[kind]), d, OLD_BASES[kind])


def _positive(base: float, d: Description, key: str) -> float:
    if base <= 1:
        raise d.wrong_type(key, base, 'a number above 1')
    return float(base)
