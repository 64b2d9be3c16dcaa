"""What comparisons with released code share: gradients by the names of the released weights; and a small BERT."""

import functools
import json

import jax
import numpy as np
import pytest

from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.mlm import MLM
from mlm_jax.pretrained import huggingface
from mlm_jax.training.state import example_batch

SPECIALS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
TOKENIZER = {
    'version': '1.0',
    'added_tokens': [
        dict(id=i, content=c, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        for i, c in enumerate(SPECIALS)
    ],
    'pre_tokenizer': {'type': 'BertPreTokenizer'},
    'model': {
        'type': 'WordPiece',
        'unk_token': '[UNK]',
        'continuing_subword_prefix': '##',
        'max_input_chars_per_word': 100,
        'vocab': {piece: i for i, piece in enumerate([*SPECIALS, *(f'w{i}' for i in range(5, 64))])},
    },
}


@functools.partial(jax.jit, static_argnames='module')  # once for all cases of one shape
def _everything(module, params, batch, methods):
    """Outputs of the methods, and gradients of the mean loss with the LossTerms."""

    def loss(params):
        terms = module.apply({'params': params}, batch)
        return terms.loss_sum / terms.weight_sum, terms

    outputs = {name: module.apply({'params': params}, *args, method=name) for name, args in methods.items()}
    return outputs, jax.grad(loss, has_aux=True)(params)


@pytest.fixture(scope='session')
def compute():
    """(read, state_dict, batch, methods) → LossTerms, outputs of `methods` (name → arguments), gradients by name.

    `read` turns a state dict into a module and its parameters. Each weight is numbered and read like a weight: the
    numbers then tell where each gradient of the mean loss belongs; weights that are not read have none, NaN.
    """

    def function(read, state_dict, batch, methods):
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith('classification_heads')}
        ends = np.cumsum([v.size for v in state_dict.values()])
        numbered = {
            name: np.arange(end - v.size, end, dtype=np.float32).reshape(v.shape)
            for (name, v), end in zip(state_dict.items(), ends, strict=True)
        }
        module, params = read(state_dict)
        _, places = read(numbered)

        outputs, (grads, terms) = _everything(module, params, batch, methods)
        flat = np.full(ends[-1], np.nan)
        for place, grad in zip(jax.tree.leaves(places), jax.tree.leaves(grads), strict=True):
            flat[place.astype(np.int64)] = grad
        return terms, outputs, {name: flat[place.astype(np.int64)] for name, place in numbered.items()}

    return function


@pytest.fixture(scope='session')
def write_bert():
    """(directory) → the same, with a BERT of random weights for 40 positions and 64 pieces, and its tokenizer.json."""

    def write(directory):
        encoder = EncoderConfig(64, 40, num_layers=2, width=32, num_heads=2, ffn_width=64, norm_epsilon=1e-5)
        shapes = jax.eval_shape(MLM(encoder).init, jax.random.key(0), example_batch(40, 4))['params']
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: rng.normal(0.1, 0.2, x.shape).astype(np.float32), shapes)
        huggingface.to_hf(encoder, params, directory)
        (directory / 'tokenizer.json').write_text(json.dumps(TOKENIZER))
        return directory

    return write
