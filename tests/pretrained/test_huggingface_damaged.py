"""A checkpoint of Hugging Face that is damaged or incomplete is refused in words, whatever is wrong with it."""

import json
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.mlm import MLM
from mlm_jax.pretrained import huggingface

safetensors_numpy = pytest.importorskip('safetensors.numpy')
CONFIG = EncoderConfig(31, 12, 2, 16, 4, 40)


@pytest.fixture(scope='module')
def params():
    row, slots = jnp.zeros((1, 12), jnp.int32), jnp.zeros((1, 3), jnp.int32)
    batch = MaskedBatch(row, row, slots, slots.astype(float), row)
    shapes = jax.eval_shape(MLM(CONFIG).init, jax.random.key(0), batch)['params']
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0.2, 0.2, x.shape).astype(np.float32), shapes)


@pytest.fixture
def bert(params, tmp_path):
    huggingface.to_hf(CONFIG, params, tmp_path / 'bert')
    return tmp_path / 'bert'


@pytest.fixture
def roberta(bert, tmp_path):
    """The same weights by the names of RoBERTa, with two positions before the first."""
    arrays = {}
    for name, array in safetensors_numpy.load_file(bert / 'model.safetensors').items():
        name = name.replace('bert.', 'roberta.', 1).replace('cls.predictions.transform.', 'lm_head.')
        name = name.replace('cls.predictions.', 'lm_head.').replace('lm_head.LayerNorm', 'lm_head.layer_norm')
        if 'position_embeddings' in name:
            array = np.concatenate([np.ones((2, 16), np.float32), array])
        arrays[name] = array
    safetensors_numpy.save_file(arrays, bert / 'model.safetensors')
    change(bert, architectures=['RobertaForMaskedLM'], model_type='roberta', pad_token_id=1, max_position_embeddings=14)
    return bert


def change(directory, **keys):
    """Sets keys of config.json, None as null; those given as `...` are removed."""
    path = directory / 'config.json'
    stored = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in stored.items() if value is not ...}))


def change_arrays(directory, **arrays):
    """Replaces arrays; `__` stands for a dot."""
    stored = safetensors_numpy.load_file(directory / 'model.safetensors')
    stored |= {name.replace('__', '.'): array for name, array in arrays.items()}
    safetensors_numpy.save_file(stored, directory / 'model.safetensors')


@pytest.mark.parametrize('pad_id', [None, ...])
def test_bert_needs_no_padding(bert, params, pad_id):
    change(bert, pad_token_id=pad_id)
    module, read = huggingface.from_hf(bert)
    assert module.config.max_length == 12
    assert jax.tree.all(jax.tree.map(np.array_equal, read, params))


def test_roberta_counts_positions_from_its_padding(roberta, params):
    for pad_id in (1, ...):
        change(roberta, pad_token_id=pad_id)
        module, read = huggingface.from_hf(roberta)
        assert module.config.max_length == 12
        assert jax.tree.all(jax.tree.map(np.array_equal, read, params))
    change(roberta, pad_token_id=None)
    with pytest.raises(ValueError, match='pad_token_id=null: it should be the id .* published, 1'):
        huggingface.read_encoder_config(roberta)
    change(roberta, pad_token_id=13)
    with pytest.raises(ValueError, match=r'max_position_embeddings=14: RoBERTa leaves the first .* 14 of them out'):
        huggingface.read_encoder_config(roberta)


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        (dict(vocab_size=None), 'vocab_size=None should be a positive integer'),
        (dict(hidden_size='16'), "hidden_size='16' should be"),
        (dict(num_hidden_layers=2.0), 'num_hidden_layers=2.0'),
        (dict(num_hidden_layers=True), 'num_hidden_layers=True'),
        (dict(num_hidden_layers=0), 'num_hidden_layers=0'),
        (dict(num_attention_heads=...), "lacks 'num_attention_heads'"),
        (dict(intermediate_size=10**40), 'intermediate_size='),
        (dict(max_position_embeddings=-1), 'max_position_embeddings=-1'),
        (dict(hidden_dropout_prob=None), 'hidden_dropout_prob=None should be a number of 0 or more'),
        (dict(layer_norm_eps=float('nan')), 'layer_norm_eps=nan'),
        (dict(pad_token_id=-1), 'pad_token_id=-1'),
        (dict(pad_token_id=31), 'pad_token_id=31, which is no id'),
        (dict(architectures=[['BertForMaskedLM']]), 'describes'),
        (dict(architectures=7), 'describes 7'),
        (dict(hidden_act=None), 'hidden_act=None'),
    ],
)
def test_values_that_cannot_be_are_named(bert, keys, message):
    change(bert, **keys)
    with pytest.raises(ValueError, match=re.escape(message) if '.*' not in message else message):
        huggingface.read_encoder_config(bert)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'[]', 'holds a value of another type: a list'),
        (b'', 'is damaged'),
        (b'{"model_type": "bert"', 'is damaged'),
        (b'\xff\xfe{', 'is damaged'),
        (b'[' * 100_000, 'is damaged'),
        (
            b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n',
            'is damaged: it is a Git LFS pointer',
        ),
    ],
)
def test_a_description_that_is_none_is_refused(bert, content, message):
    (bert / 'config.json').write_bytes(content)
    with pytest.raises(ValueError, match=f'config.json {message}'):
        huggingface.read_encoder_config(bert)


def test_a_byte_order_mark_is_no_damage(bert):
    path = bert / 'config.json'
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    assert huggingface.read_encoder_config(bert).vocab_size == 31


@pytest.mark.parametrize(
    ('arrays', 'message'),
    [
        (dict(bert__encoder__layer__1__output__dense__weight=np.ones((16, 16))), r'\[16, 16\], not 16 × 40'),
        (dict(bert__encoder__layer__1__attention__self__query__bias=np.ones((4, 4))), r'\[4, 4\], not 16'),
        (dict(bert__embeddings__token_type_embeddings__weight=np.ones(16)), r'\[16\], not any × 16'),
        (dict(bert__embeddings__LayerNorm__weight=np.ones(17)), r'\[17\], not 16'),
        (dict(cls__predictions__bias=np.ones(30)), r'are \[30\], where .* vocab_size = \[31\]'),
        (dict(cls__predictions__bias=np.full(31, np.nan)), 'NaN or infinite'),
        (dict(cls__predictions__bias=np.ones(31, np.int64)), 'as int64'),
    ],
)
def test_weights_that_do_not_fit_are_named(bert, arrays, message):
    change_arrays(bert, **arrays)
    with pytest.raises(ValueError, match=message):
        huggingface.from_hf(bert)


def test_files_that_are_not_the_weights_are_refused_before_they_are_needed(bert):
    path = bert / 'model.safetensors'
    whole = path.read_bytes()
    pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'
    for content in (pointer, b'', whole[:5], whole[:100], whole[:-1], whole + b'0', b'PK\x03\x04' + whole[4:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'model\.safetensors is damaged'):
            huggingface.read_encoder_config(bert)
    path.rename(bert / 'pytorch_model.bin')
    with pytest.raises(FileNotFoundError, match=r'lacks model\.safetensors.*pytorch_model\.bin'):
        huggingface.read_encoder_config(bert)


@pytest.mark.parametrize('index', [[], {}, {'weight_map': {}}, {'weight_map': {'a': 3}}, {'weight_map': {'a': '../b'}}])
def test_an_index_that_names_no_files_beside_it_is_refused(bert, index):
    (bert / 'model.safetensors').unlink()
    (bert / 'model.safetensors.index.json').write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r'index\.json (is damaged|holds a value)'):
        huggingface.read_encoder_config(bert)


def test_flipped_bits_end_in_words_or_in_weights_of_the_right_shapes(bert, params):
    path = bert / 'model.safetensors'
    whole, rng = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], 'little')
    refused = 0
    for trial in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(header if trial % 2 else len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            _, read = huggingface.from_hf(bert)
        except ValueError:
            refused += 1
        else:
            assert jax.tree.map(np.shape, read) == jax.tree.map(np.shape, params)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(read))
    assert refused > 20
