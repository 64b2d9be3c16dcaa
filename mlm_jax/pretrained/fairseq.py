"""Weights of the released fairseq code of MAE-LM and ExLM as objectives here: to continue or to fine-tune them.

Plain arrays in, a module and its parameters out: neither PyTorch nor fairseq is imported. Names and shapes are those of
`yumeng5/MAE-LM`, whose position tables count from 0, unlike RoBERTa's, and of `zhengkangjie/ExLM`. Reading is strict:
a name that is missing, or that has no place here, is an error. Two kinds of names hold nothing of the objective, and
are left out: copies of tied weights, which must be equal, and `classification_heads.…`, the heads of tasks that a model
was fine-tuned for.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mlm_jax.interop.state_dict import StateDict
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.exlm import ExLM, ExLMConfig
from mlm_jax.objectives.mae_lm import MAELM, MAELMConfig
from mlm_jax.objectives.mlm import MLM
from mlm_jax.pretrained.state_dict import block_params, stack_layers

ENCODER, DECODER = 'encoder.sentence_encoder', 'gen_decoder.sentence_encoder'


def mae_lm(
    state_dict: Mapping[str, np.ndarray],
    *,
    num_heads: int,
    mask_id: int,
    pad_id: int = 1,
    relative_buckets: int = 32,
    relative_max_distance: int = 128,
) -> tuple[MAELM, dict]:
    """MAE-LM from the released model `ae`.

    Args:
      state_dict: name → array, float, such as {k: v.numpy() for k, v in checkpoint['model'].items()}.
      num_heads: H, of the encoder and of the decoder.
      mask_id: the id of [MASK].
      pad_id: the id of the padding; models here read padding off the segments, so it is only checked.
      relative_buckets: rows of the relative position bias; 0 means that the model has none.
      relative_max_distance: where its logarithmic buckets end.

    Returns:
      The module, for batches of any masking (it has a slot for every token, `kept_margin` = 1), and its parameters,
      float32.

    Raises:
      ValueError: for missing names, names without a place, shapes and arguments that disagree, and copies of tied
        weights that differ.
    """
    source = _without_classification(state_dict)
    config, encoder = _encoder(source, num_heads, mask_id, pad_id, relative_buckets, relative_max_distance)
    width = source[f'{DECODER}.embed_positions.weight'].shape[1]
    layers = _layers(source, DECODER, num_heads)
    decoder = {
        'position_embedding': {'embedding': source[f'{DECODER}.embed_positions.weight']},
        'embedding_norm': source.norm(f'{DECODER}.emb_layer_norm'),
        'last_layer': layers[-1],
    }
    if len(layers) > 1:
        decoder['layers'] = stack_layers(layers[:-1])
    params = {'encoder': encoder, 'decoder': decoder, 'head': _head(source, 'gen_decoder.lm_head')}
    if width != config.width:
        decoder['project'] = source.linear('encoder_to_decoder')
        params['widen'] = {'kernel': source['gen_decoder.lm_head.embed_linear.weight'].T}
    _check_tied(source, encoder, f'{DECODER}.embed_tokens.weight', 'gen_decoder.lm_head.weight')
    source.check_all_read()
    options = MAELMConfig(
        decoder_layers=len(layers),
        decoder_width=width,
        decoder_ffn_width=layers[0]['mlp']['up']['bias'].shape[0],
        kept_margin=1.0,
    )
    module = MAELM(config, mask_id, options)
    _check_shapes(module, params)
    return module, params


def mlm(
    state_dict: Mapping[str, np.ndarray],
    *,
    num_heads: int,
    mask_id: int,
    pad_id: int = 1,
    relative_buckets: int = 32,
    relative_max_distance: int = 128,
) -> tuple[MLM, dict]:
    """The MLM baseline of the same code. Arguments, results and errors are those of `mae_lm`."""
    source = _without_classification(state_dict)
    config, encoder = _encoder(source, num_heads, mask_id, pad_id, relative_buckets, relative_max_distance)
    params = {'encoder': encoder, 'head': _head(source, 'encoder.lm_head')}
    _check_tied(source, encoder, 'encoder.lm_head.weight')
    source.check_all_read()
    module = MLM(config)
    _check_shapes(module, params)
    return module, params


def exlm(
    state_dict: Mapping[str, np.ndarray],
    *,
    num_heads: int,
    num_states: int,
    mask_id: int,
    bos_id: int = 0,
    pad_id: int = 1,
    eos_id: int = 2,
) -> tuple[ExLM, dict]:
    """ExLM from its released model.

    Args:
      state_dict: name → array, float.
      num_heads: H, of the encoder and of the transitions.
      num_states: k.
      mask_id: the id of [MASK]; it is only checked: rows come as MaskedBatch has them.
      bos_id, eos_id: every token with these ids is an anchor, as in the released code.
      pad_id: the id of the padding; positions in the table of the links count from pad_id + 1.

    Returns:
      The module and its parameters, float32. The module has slots for rows in which every token is an anchor; where
      rows have one of each, `module.clone(options=dataclasses.replace(module.options, max_anchors=2))` saves time.

    Raises:
      ValueError: for missing names, names without a place, shapes and arguments that disagree, and copies of tied
        weights that differ.
    """
    source = _without_classification(state_dict)
    tokens_Vxd = source[f'{ENCODER}.embed_tokens.weight']
    vocab_size, width = tokens_Vxd.shape
    _check_ids(vocab_size, mask_id=mask_id, bos_id=bos_id, pad_id=pad_id, eos_id=eos_id)
    layers = _layers(source, ENCODER, num_heads)
    if width // num_heads % 4:
        raise ValueError(
            f'num_heads={num_heads}: positions of two coordinates need heads whose width is a multiple of 4'
        )
    links_Lxd = source['encoder.link_positional.weight'][pad_id + 1 :]  # where its positions start
    if not len(links_Lxd):
        raise ValueError(
            f'pad_id={pad_id}: the table encoder.link_positional has no rows behind the one of the padding'
        )
    heads = (num_heads, width // num_heads)
    params = {
        'encoder': {
            'token_embedding': {'embedding': tokens_Vxd},
            'layers': stack_layers(layers),
            'final_norm': source.norm(f'{ENCODER}.emb_layer_norm_after'),
        },
        'transitions': {
            'position_embedding': {'embedding': links_Lxd},
            'query': _in_heads(source.linear('encoder.query_linear'), heads),
            'key': _in_heads(source.linear('encoder.key_linear'), heads),
            'gate': source.linear('encoder.gate_linear'),
        },
        'head': _head(source, 'encoder.lm_head'),
    }
    _check_tied(source, params['encoder'], 'encoder.lm_head.weight')
    source.check_all_read()
    config = EncoderConfig(
        vocab_size=vocab_size,
        max_length=len(links_Lxd),
        num_layers=len(layers),
        width=width,
        num_heads=num_heads,
        ffn_width=layers[0]['mlp']['up']['bias'].shape[0],
        positions='rotary_2d',
        norm='pre',
        embedding_norm=False,
    )
    options = ExLMConfig(
        num_states=num_states,
        link_positions=len(links_Lxd),
        anchor_ids=(bos_id, eos_id),
        max_anchors=len(links_Lxd),
    )
    module = ExLM(config, options)
    _check_shapes(module, params)
    return module, params


def _in_heads(linear: dict, heads: tuple[int, int]) -> dict:
    return {
        'kernel': linear['kernel'].reshape(linear['kernel'].shape[0], *heads),
        'bias': linear['bias'].reshape(heads),
    }


def _check_ids(vocab_size: int, **ids: int) -> None:
    for name, token in ids.items():
        if not 0 <= token < vocab_size:
            raise ValueError(f'{name}={token} lies outside the {vocab_size} rows of the token embedding')


def _without_classification(state_dict: Mapping[str, np.ndarray]) -> StateDict:
    """The weights without heads of fine-tuning, which the released loader leaves out as well."""
    return StateDict({k: v for k, v in state_dict.items() if not k.startswith('classification_heads.')})


def _layers(source: StateDict, prefix: str, num_heads: int) -> list[dict]:
    """The layers of an encoder or decoder, first to last."""
    found: list[dict] = []
    while f'{prefix}.layers.{len(found)}.fc1.weight' in source:
        name = f'{prefix}.layers.{len(found)}'
        block = block_params(
            source,
            num_heads,
            query=f'{name}.self_attn.q_proj',
            key=f'{name}.self_attn.k_proj',
            value=f'{name}.self_attn.v_proj',
            out=f'{name}.self_attn.out_proj',
            attention_norm=f'{name}.self_attn_layer_norm',
            up=f'{name}.fc1',
            down=f'{name}.fc2',
            mlp_norm=f'{name}.final_layer_norm',
        )
        found.append(block)
    if not found:
        raise ValueError(f'the state dict has no layers named {prefix}.layers.0, …')
    return found


def _encoder(
    source: StateDict,
    num_heads: int,
    mask_id: int,
    pad_id: int,
    relative_buckets: int,
    relative_max_distance: int,
) -> tuple[EncoderConfig, dict]:
    tokens_Vxd, positions_Txd = (source[f'{ENCODER}.embed_{name}.weight'] for name in ('tokens', 'positions'))
    vocab_size, width = tokens_Vxd.shape
    _check_ids(vocab_size, mask_id=mask_id, pad_id=pad_id)
    layers = _layers(source, ENCODER, num_heads)
    params = {
        'token_embedding': {'embedding': tokens_Vxd},
        'position_embedding': {'embedding': positions_Txd},
        'embedding_norm': source.norm(f'{ENCODER}.emb_layer_norm'),
        'layers': stack_layers(layers),
    }
    if relative_buckets:
        params['relative_bias'] = {'embedding': source[f'{ENCODER}.relative_attention_bias.weight']}
    config = EncoderConfig(
        vocab_size=vocab_size,
        max_length=positions_Txd.shape[0],
        num_layers=len(layers),
        width=width,
        num_heads=num_heads,
        ffn_width=layers[0]['mlp']['up']['bias'].shape[0],
        relative_buckets=relative_buckets,
        relative_max_distance=relative_max_distance,
    )
    return config, params


def _head(source: StateDict, name: str) -> dict:
    return {
        'dense': source.linear(f'{name}.dense'),
        'norm': source.norm(f'{name}.layer_norm'),
        'bias': source[f'{name}.bias'],
    }


def _check_tied(source: StateDict, encoder: dict, *copies: str) -> None:
    for name in copies:
        if name in source:
            source.skip_equal(name, encoder['token_embedding']['embedding'])


def _check_shapes(module, params: dict) -> None:
    """Raises ValueError where a parameter has another shape than the module's: an argument does not fit the weights."""
    row, slots = (jax.ShapeDtypeStruct((1, length), np.int32) for length in (module.config.max_length, 1))
    weights = jax.ShapeDtypeStruct((1, 1), np.float32)
    shapes: Any = dict(tokens=row, inputs=row, positions=slots, weights=weights, segments=row)
    expected = jax.eval_shape(module.init, jax.random.key(0), MaskedBatch(**shapes))['params']
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        actual = params
        for key in path:
            actual = actual[key.key]
        if actual.shape != leaf.shape:
            name = jax.tree_util.keystr(path, simple=True, separator='/')
            raise ValueError(f'the weights for {name} have the shape {actual.shape}, not {leaf.shape}')
