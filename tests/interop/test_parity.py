"""Each class of transformers computes what its encoder here does, and weights survive the way there and back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.interop import checkpoint as checkpoint_lib
from mlm_jax.interop import comparison, registry
from mlm_jax.interop.architecture import Encoder
from mlm_jax.interop.checkpoint import Checkpoint
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.mlm import MLM
from mlm_jax.pretrained import huggingface
from mlm_jax.training.state import example_batch

pytest.importorskip('safetensors.numpy')
VOCABULARY, LENGTH = 61, 24
SIZES = dict(vocab_size=VOCABULARY, max_length=LENGTH, num_layers=4, width=32, num_heads=2, ffn_width=48)
MODERN = dict(
    positions='rotary', norm='pre', first_norm=False, mlp='geglu', bias=False, dropout=0.0, attention_dropout=0.0
)
EURO = MODERN | dict(first_norm=True, embedding_norm=False, mlp='swiglu', norm_type='rms_norm', head='plain')
PRE_ROTARY = dict(positions='rotary', norm='pre', embedding_norm=False)
# Name → the attributes of the encoder, and the class that it goes to.
ENCODERS = {
    'bert': ({}, 'BertForMaskedLM'),
    'modern': (MODERN, 'ModernBertForMaskedLM'),
    'modern_biases': (MODERN | dict(bias=True, rotary_base=500.0), 'ModernBertForMaskedLM'),
    'modern_norm_biases_untied': (MODERN | dict(norm_bias=True, tied_head=False), 'ModernBertForMaskedLM'),
    'modern_windows': (
        MODERN | dict(local_window=8, rotary_base=160_000.0, rotary_base_local=10_000.0), 'ModernBertForMaskedLM'
    ),
    'modern_windows_every_2': (MODERN | dict(local_window=5, global_every=2), 'ModernBertForMaskedLM'),
    'mpnet': (dict(relative_buckets=32, relative_bucketing='t5'), 'MPNetForMaskedLM'),
    'exlm': (PRE_ROTARY | dict(positions='rotary_2d'), 'EsmForMaskedLM'),
    'pre_rotary': (PRE_ROTARY | dict(rotary_base=1000.0), 'EsmForMaskedLM'),
    'pre_rotary_normed': (PRE_ROTARY | dict(embedding_norm=True), 'EsmForMaskedLM'),
    'esm2': (PRE_ROTARY | dict(zeroed_token=7), 'EsmForMaskedLM'),
    'post_rotary': (dict(positions='rotary', rotary_base=1000.0), 'RoFormerForMaskedLM'),
    'post_rotary_2d': (dict(positions='rotary_2d'), 'RoFormerForMaskedLM'),
    'pre_learned': (dict(norm='pre'), 'RobertaPreLayerNormForMaskedLM'),
    'euro': (EURO | dict(tied_head=False), 'EuroBertForMaskedLM'),
    'euro_grouped': (EURO | dict(num_kv_heads=2, num_heads=4, rotary_base=250_000.0), 'EuroBertForMaskedLM'),
}  # fmt: skip
OTHERS = ('roberta', 'xlm-roberta', 'camembert', 'distilbert')  # by name only: their encoder is that of a BERT


def make(attributes, architecture: str = '', has_head: bool = True, pad_id: int = 1):
    """The encoder, random parameters (biases and norms, too), and what they are exported as."""
    config = EncoderConfig(**{**SIZES, 'norm_epsilon': 1e-12, **attributes})
    shapes = jax.eval_shape(MLM(config).init, jax.random.key(0), example_batch(LENGTH, 4))['params']
    rng = np.random.default_rng(0)

    def draw(path, x):  # large enough that attention is far from uniform, so that positions and windows count
        name = jax.tree_util.keystr(path)
        return rng.normal('scale' in name, 0.2 if 'kernel' not in name else 0.4, x.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    if not config.first_norm:  # not used in the first layer, and not exported: as it starts
        for name, leaf in params['encoder']['layers']['attention_norm'].items():
            leaf[0] = name == 'scale'
    encoder = Encoder(**dataclasses.asdict(config))
    home = registry.home_of(encoder, architecture, has_head)
    if not has_head:
        del params['head']
    return config, params, Checkpoint(home, encoder, has_head, pad_id)


def rows(pad_id: int = 1):
    """Rows of 24, 17, 9 and 2 tokens and where they are real."""
    real = np.arange(LENGTH) < np.array([[24], [17], [9], [2]])
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, real.shape)
    return np.where(real, tokens, pad_id).astype(np.int32), real


@jax.jit
def _every(tokens):
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)


@functools.cache  # several architectures have the same encoder
def _apply(config):
    return jax.jit(MLM(dataclasses.replace(config, dtype='float64')).apply, static_argnames='method')


def logits(config, params, tokens, segments):
    """f64[B, T, V]: rounding of activations to float32, which steep weights enlarge, depends on the processor."""
    with jax.enable_x64(True):
        batch = MaskedBatch(tokens, tokens, _every(tokens), jnp.ones(tokens.shape), jnp.asarray(segments, jnp.int32))
        return np.asarray(_apply(config)({'params': params}, batch, method='logits'))


@pytest.mark.parametrize('name', [*ENCODERS, *OTHERS])
def test_logits_are_those_of_transformers_and_weights_come_back_to_the_bit(name, tmp_path):
    pytest.importorskip('transformers')
    pytest.importorskip('torch')
    attributes, class_name = ENCODERS.get(name, ({}, registry.BY_TYPE.get(name, registry.ARCHITECTURES[0]).masked_lm))
    config, params, checkpoint = make(attributes, architecture=name if name in OTHERS else '')
    assert checkpoint.class_name == class_name
    checkpoint_lib.write(checkpoint, params, tmp_path)

    module, read = huggingface.from_hf(tmp_path)
    assert dataclasses.replace(module.config, norm_bias=config.norm_bias) == config
    assert jax.tree.all(jax.tree.map(np.array_equal, read, params))

    tokens, real = rows()
    theirs = comparison.outputs(tmp_path, tokens, real, has_head=True)
    ours = logits(config, params, tokens, real)
    np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4, rtol=0)
    assert np.std(ours[real]) > 0.1  # so that the tolerance means something
