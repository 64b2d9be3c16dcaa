"""Encoders of other recipes against NumPy: windows, rotary bases, RMSNorm, SwiGLU, grouped heads, output heads."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.models import positions
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.mlm import MLM

VOCAB, LENGTH = 40, 24
PLAIN = EncoderConfig(
    VOCAB, LENGTH, num_layers=3, width=16, num_heads=4, ffn_width=24, dropout=0.0, attention_dropout=0.0
)
# The last layer of both with windows is local: 2 is no multiple of 3, and 1 none of 2.
MODERNBERT = dataclasses.replace(
    PLAIN, positions='rotary', norm='pre', mlp='geglu', bias=False, first_norm=False, local_window=7,
    rotary_base=160_000.0, rotary_base_local=10.0,
)  # fmt: skip
RECIPES = {
    'ModernBERT': MODERNBERT,
    'EuroBERT': dataclasses.replace(
        PLAIN, num_layers=2, positions='rotary', norm='pre', norm_type='rms_norm', mlp='swiglu', bias=False,
        embedding_norm=False, num_kv_heads=2, rotary_base=250_000.0, tied_head=False, head='plain',
    ),
    'MPNet': dataclasses.replace(PLAIN, num_layers=2, relative_buckets=8, relative_max_distance=12,
                                 relative_bucketing='t5'),
    'Nomic': dataclasses.replace(
        PLAIN, num_layers=2, positions='rotary', rotary_base=1000.0, mlp='swiglu', bias=False, norm_bias=True,
        local_window=4, global_every=2, num_kv_heads=1,
    ),
    'biases but of norms': dataclasses.replace(PLAIN, num_layers=2, norm_bias=False, num_kv_heads=2, tied_head=False),
}  # fmt: skip
SEGMENTS = np.array([[1] * 15 + [2] * 6 + [0] * 3, [1] * LENGTH], np.int32)
AT = np.array([[0, 3, 14, 15, 20, LENGTH], [1, 2, 9, 12, 22, 23]], np.int32)


def batch() -> MaskedBatch:
    tokens = jax.random.randint(jax.random.key(0), SEGMENTS.shape, 5, VOCAB)
    return MaskedBatch(tokens, tokens, jnp.asarray(AT), jnp.asarray(AT < LENGTH, jnp.float32), jnp.asarray(SEGMENTS))


@functools.cache
def model(recipe: str):
    """(module, parameters away from their initial symmetry)."""
    module = MLM(RECIPES[recipe])
    params = jax.jit(module.init)(jax.random.key(1), batch())['params']
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return module, jax.tree.unflatten(structure, noisy)


# ---- By hand ---------------------------------------------------------------------------------------------------------


def by_hand(c: EncoderConfig, params: dict, tokens_T: np.ndarray, places_T=None) -> tuple[np.ndarray, np.ndarray]:
    """(encoder's output [T, d], logits [T, V]) of one document, in float64, a loop for each head."""
    places_T = np.arange(len(tokens_T)) if places_T is None else places_T
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    encoder, head = params['encoder'], params.get('head', {})
    table = encoder['token_embedding']['embedding']
    x = table[tokens_T]
    if c.positions == 'learned':
        x = x + encoder['position_embedding']['embedding'][: len(x)]
    x = norm(c, encoder['embedding_norm'], x) if c.embedding_norm else x
    for number in range(c.num_layers):
        layer = jax.tree.map(lambda leaf, number=number: leaf[number], encoder['layers'])
        if c.norm == 'pre':
            y = x if number == 0 and not c.first_norm else norm(c, layer['attention_norm'], x)
            x = x + attention(c, encoder, layer['attention'], y, number, places_T)
            x = x + mlp(c, layer['mlp'], norm(c, layer['mlp_norm'], x))
        else:
            x = norm(c, layer['attention_norm'], x + attention(c, encoder, layer['attention'], x, number, places_T))
            x = norm(c, layer['mlp_norm'], x + mlp(c, layer['mlp'], x))
    x = norm(c, encoder['final_norm'], x) if c.norm == 'pre' else x
    hidden = norm(c, head['norm'], gelu(linear(head['dense'], x))) if c.head == 'dense' else x
    matrix = table if c.tied_head else head['output_embedding']['embedding']
    return x, hidden @ matrix.T + (head['bias'] if c.head == 'dense' else 0)


def norm(c, p, x):
    if c.norm_type == 'layer_norm':
        x = x - x.mean(-1, keepdims=True)
    assert ('bias' in p) == (c.norm_type == 'layer_norm' and (c.bias if c.norm_bias is None else c.norm_bias))
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_epsilon) * p['scale'] + p.get('bias', 0)


def linear(p, x):
    return np.tensordot(x, p['kernel'], 1) + p.get('bias', 0)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def mlp(c, p, x):
    if c.mlp == 'gelu':
        return linear(p['down'], gelu(linear(p['up'], x)))
    gate, up = np.moveaxis(linear(p['gate_and_up'], x), 1, 0)
    return linear(p['down'], (gelu(gate) if c.mlp == 'geglu' else gate / (1 + np.exp(-gate))) * up)


def attention(c, encoder, p, x, number, places_T):
    if c.num_kv_heads in (0, c.num_heads):
        q, k, v = np.moveaxis(linear(p['qkv'], x), 1, 0)
    else:
        q, (k, v) = linear(p['query'], x), np.moveaxis(linear(p['key_value'], x), 1, 0)
    is_local = c.local_window > 0 and number % c.global_every > 0
    base = c.rotary_base_local if is_local and c.rotary_base_local else c.rotary_base
    distance = places_T[None] - places_T[:, None]
    out = np.zeros_like(q)
    for h in range(c.num_heads):
        g = h * k.shape[1] // c.num_heads
        keys, queries = (rotated(y, base, places_T) if c.positions == 'rotary' else y for y in (k[:, g], q[:, h]))
        scores = queries @ keys.T / math.sqrt(q.shape[2])
        if c.relative_buckets:
            scores = scores + encoder['relative_bias']['embedding'][np.vectorize(t5_bucket)(distance), h]
        if is_local:
            scores = np.where(np.abs(distance) <= c.local_window // 2, scores, -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[:, h] = weights / weights.sum(1, keepdims=True) @ v[:, g]
    return np.tensordot(out, p['out']['kernel'], 2) + p['out'].get('bias', 0)


def rotated(x, base, places_T):
    half = x.shape[1] // 2
    angle = places_T[:, None] * base ** -(np.arange(half) / half)
    first, second = x[:, :half], x[:, half:]
    return np.hstack([first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)])


def t5_bucket(distance: int, buckets: int = 8, largest: int = 12) -> int:
    half, size = buckets // 2, abs(distance)
    exact = half // 2
    if size >= exact:
        size = min(half - 1, exact + int(math.log(size / exact) / math.log(largest / exact) * (half - exact)))
    return size + (half if distance > 0 else 0)


# ---- The tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('recipe', RECIPES)
def test_each_document_of_a_packed_row_is_encoded_as_by_hand(recipe):
    """The scan over all layers, and the last layer at the masked positions alone, whether it is local or not."""
    module, params = model(recipe)

    @jax.jit
    def both(params, b):
        variables = {'params': params}
        return module.apply(variables, b.tokens, b.segments, method='encode'), module.apply(
            variables, b, method='logits'
        )

    encoded, logits = both(params, batch())
    for row, documents in enumerate(SEGMENTS):
        for document in set(documents) - {0}:
            (at,) = np.nonzero(documents == document)
            expected, expected_logits = by_hand(module.config, params, np.asarray(batch().tokens[row, at]))
            np.testing.assert_allclose(encoded[row, at], expected, atol=3e-5, rtol=1e-4)
            slots = np.isin(AT[row], at)
            np.testing.assert_allclose(
                logits[row, slots], expected_logits[AT[row, slots] - at[0]], atol=1e-4, rtol=1e-4
            )


def test_a_scan_over_layers_that_differ_is_the_same_unrolled_and_the_unused_norm_learns_nothing():
    module, params = model('ModernBERT')

    @functools.partial(jax.jit, static_argnums=0)
    def step(scan_unroll, params):
        config = dataclasses.replace(
            module.config, scan_unroll=scan_unroll, remat='full' if scan_unroll == 1 else 'none'
        )
        value, gradient = jax.value_and_grad(lambda p: MLM(config).apply({'params': p}, batch()).loss_sum)(params)
        return value, gradient, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)

    (loss, gradient, after), unrolled = step(1, params), step(3, params)
    for one, other in zip(jax.tree.leaves((loss, gradient, after)), jax.tree.leaves(unrolled), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-4)
    scale_LxD = gradient['encoder']['layers']['attention_norm']['scale']
    assert not scale_LxD[0].any() and all(scale.all() for scale in scale_LxD[1:])


def test_the_buckets_of_t5_begin_where_those_of_mpnet_do():
    table = positions.relative_buckets(512, 32, 128, 't5')
    down, up = table[:512][::-1], table[511:]  # from 0 on
    for side, first in ((down, 0), (up[1:], 17)):
        assert side[0] == first
    edges = [int(np.argmax(down == bucket)) for bucket in range(8, 16)]
    assert edges == [8, 12, 16, 23, 32, 46, 64, 91]
    assert np.array_equal(down[1:] + 16, up[1:]) and table.max() == 31
    small = positions.relative_buckets(LENGTH, 8, 12, 't5')
    assert small.tolist() == [t5_bucket(distance) for distance in range(1 - LENGTH, LENGTH)]


def test_windows_reach_as_far_in_the_text_where_a_row_leaves_tokens_out():
    """As MAE-LM's rows do; in ExLM's, several copies of a token have the same position."""
    module, params = model('ModernBERT')
    places = np.array([0, 1, 2, 6, 7, 7, 7, 11, 12, 20])
    tokens = np.asarray(batch().tokens[0, :10])
    encode = jax.jit(lambda p, *rows: module.apply({'params': p}, *rows, method=lambda m, *rows: m.encoder(*rows)))
    rows = [np.pad(x, (0, LENGTH - 10))[None] for x in (tokens, np.ones(10, np.int32), places)]
    expected, _ = by_hand(module.config, params, tokens, places)
    np.testing.assert_allclose(encode(params, *rows)[0, :10], expected, atol=3e-5, rtol=1e-4)
