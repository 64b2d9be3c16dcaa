"""Each attention backend against plain NumPy, against each other, and against leaks between documents."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax.masking.batch import MaskedBatch, gather_positions
from mlm_jax.models import attention
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.mlm import MLM
from mlm_jax.parallel.mesh import make_mesh

BATCH, LENGTH, HEADS, WIDTH = 4, 128, 2, 8


def segments_of(lengths: list[int], length: int = LENGTH) -> np.ndarray:
    """int32[T]: documents of the given lengths, then padding."""
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return np.pad(ids, (0, length - len(ids))).astype(np.int32)


SEGMENTS = np.stack([segments_of(x) for x in ([128], [60, 40], [1, 126, 1], [30, 30, 30, 30])])


def random_inputs(seed: int = 0, dtype=jnp.float32) -> list[jax.Array]:
    """Queries, keys and values [4, 128, 2, 8], with scores large enough to make sharp probabilities."""
    keys = jax.random.split(jax.random.key(seed), 3)
    return [2 * jax.random.normal(key, (BATCH, LENGTH, HEADS, WIDTH), dtype) for key in keys]


def attend(backend: str, q, k, v, segments, bias=None):
    """The backends as far as a CPU can run them."""
    if backend == 'xla':
        return attention.attend(q, k, v, segments, segments, bias_BxHxTxS=bias)
    if backend == 'splash':
        return attention.splash_attention(q, k, v, segments, segments, interpret=True)
    allowed = (segments[:, :, None] == segments[:, None, :])[:, None]
    return attention.cudnn_attention(q, k, v, jnp.asarray(allowed), bias, implementation='xla')


def by_hand(q, k, v, segments, bias, radius=LENGTH):
    """Softmax over the keys of one document at a time, in float64."""
    q, k, v, bias = (np.asarray(x, np.float64) for x in (q, k, v, bias))
    out = np.zeros(q.shape)
    for b in range(len(q)):
        for document in np.unique(segments[b]):
            (at,) = np.nonzero(segments[b] == document)
            for h in range(q.shape[2]):
                scores = q[b, at, h] @ k[b, at, h].T / np.sqrt(q.shape[3]) + bias[b, h][np.ix_(at, at)]
                scores = np.where(np.abs(at[:, None] - at) <= radius, scores, -np.inf)
                weights = np.exp(scores - scores.max(1, keepdims=True))
                out[b, at, h] = weights / weights.sum(1, keepdims=True) @ v[b, at, h]
    return out


@pytest.mark.smoke
def test_xla_is_a_softmax_within_each_document():
    q, k, v = random_inputs()
    bias = jax.random.normal(jax.random.key(9), (BATCH, HEADS, LENGTH, LENGTH))
    np.testing.assert_allclose(attend('xla', q, k, v, SEGMENTS, bias), by_hand(q, k, v, SEGMENTS, bias), atol=1e-5)


def loss_and_gradients(attend, q, k, v, segments):
    """The output, and gradients of a weighted sum of it over real tokens."""
    weights = jax.random.normal(jax.random.key(5), q.shape) * (segments > 0)[..., None, None]

    def loss(q, k, v):
        out = attend(q, k, v, segments)
        return jnp.sum(out.astype(jnp.float32) * weights), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *grads


def test_splash_equals_xla_forward_and_backward():
    inputs = random_inputs()
    expected = loss_and_gradients(functools.partial(attend, 'xla'), *inputs, SEGMENTS)
    for ours, theirs in zip(loss_and_gradients(functools.partial(attend, 'splash'), *inputs, SEGMENTS), expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize('length, block', [(384, 384), (640, 128)])
def test_splash_takes_the_largest_blocks_that_divide_a_row(length, block):
    assert attention.splash_block(length) == block
    q, k, v = jax.random.normal(jax.random.key(3), (3, 1, length, 1, WIDTH))
    segments = segments_of([200, length - 210], length)[None]  # a document across the ends of blocks, and padding
    expected = loss_and_gradients(functools.partial(attend, 'xla'), q, k, v, segments)
    for ours, theirs in zip(loss_and_gradients(functools.partial(attend, 'splash'), q, k, v, segments), expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_splash_equals_xla_on_a_mesh_of_rows_and_heads():
    inputs = random_inputs()
    expected = loss_and_gradients(functools.partial(attend, 'xla'), *inputs, SEGMENTS)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        ours = loss_and_gradients(functools.partial(attend, 'splash'), *inputs, SEGMENTS)
    assert ours[0].sharding.spec[0] == ('data', 'fsdp') and ours[0].sharding.spec[2] == 'tensor'
    for one, other in zip(ours, expected):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_splash_takes_the_single_row_of_initialisation_on_a_mesh():
    q, k, v = (x[:1] for x in random_inputs())
    with jax.set_mesh(make_mesh(2, 2, 2)):
        out = jax.jit(functools.partial(attend, 'splash'))(q, k, v, SEGMENTS[:1])
    np.testing.assert_allclose(out, attend('xla', q, k, v, SEGMENTS[:1]), atol=1e-5)


def local(backend: str, radius: int, q, k, v, segments, is_local=True):
    """As `attend`, with a window; keys and values may have fewer heads."""
    window = attention.Window(radius, is_local)
    if backend == 'splash':
        return attention.splash_attention(q, k, v, segments, segments, interpret=True, window=window)
    return attention.attend(q, k, v, segments, segments, window=window)


def test_windows_are_a_softmax_over_near_keys_or_over_all():
    q, k, v = random_inputs()
    bias = np.zeros((BATCH, HEADS, LENGTH, LENGTH))
    for is_local, radius in ((True, 9), (False, LENGTH)):
        found = local('xla', 9, q, k, v, SEGMENTS, is_local)
        np.testing.assert_allclose(found, by_hand(q, k, v, SEGMENTS, bias, radius), atol=1e-5)


@pytest.mark.parametrize('is_local', [True, False])
def test_splash_windows_and_grouped_heads_equal_those_of_xla(is_local):
    """In a row of five blocks, of which most lie outside; whether the layer is local is not known to the compiler."""
    length, radius = 640, 40
    keys = jax.random.split(jax.random.key(3), 3)
    q, k, v = (jax.random.normal(key, (1, length, heads, WIDTH)) for key, heads in zip(keys, (4, 2, 2)))
    segments = segments_of([200, length - 210], length)[None]

    def gradients(backend):
        run = functools.partial(local, backend, radius, is_local=jnp.asarray(is_local))
        return loss_and_gradients(run, q, k, v, segments)

    for ours, theirs in zip(gradients('splash'), gradients('xla'), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_splash_puts_single_queries_where_their_windows_are(monkeypatch):
    monkeypatch.setattr(attention, 'splash_attention', functools.partial(attention.splash_attention, interpret=True))
    q, k, v = random_inputs()
    at = jnp.array([[3, 64, 127, LENGTH]] * BATCH)  # the last slot is unused
    at_q, at_segments = gather_positions(q, at), gather_positions(jnp.asarray(SEGMENTS), at)
    window = attention.Window(9, jnp.asarray(True), at)
    ours, theirs = (
        attention.attend(at_q, k, v, at_segments, SEGMENTS, window=window, backend=b) for b in ('splash', 'xla')
    )
    np.testing.assert_allclose(ours[:, :3], theirs[:, :3], atol=1e-5)
    np.testing.assert_allclose(theirs[:, :3], local('xla', 9, q, k, v, SEGMENTS)[:, [3, 64, 127]], atol=1e-5)


def test_cudnn_takes_windows_as_a_mask_and_grouped_heads(monkeypatch):
    name = 'cudnn_attention'
    monkeypatch.setattr(attention, name, functools.partial(attention.cudnn_attention, implementation='xla'))
    q, k, v = random_inputs(dtype=jnp.bfloat16)
    inputs = q[:, :99], k[:, :99, :1], v[:, :99, :1], SEGMENTS[:, :99], SEGMENTS[:, :99]
    window = attention.Window(9, True)
    ours, theirs = (
        np.asarray(attention.attend(*inputs, window=window, backend=b), np.float32) for b in ('cudnn', 'xla')
    )
    np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_cudnn_equals_xla_to_the_precision_of_bfloat16():
    # The same call as on a GPU, with another implementation behind it; only the kernel itself is not tried here.
    inputs = random_inputs(dtype=jnp.bfloat16)
    expected = loss_and_gradients(functools.partial(attend, 'xla'), *inputs, SEGMENTS)
    for ours, theirs in zip(loss_and_gradients(functools.partial(attend, 'cudnn'), *inputs, SEGMENTS), expected):
        ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
        assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()


def test_cudnn_lowers_to_its_kernels_with_the_documents_as_a_mask(monkeypatch):
    # JAX asks the GPU of this machine for its cuDNN before it lowers for any; the answers of an H100 stand in.
    probes = 'jax._src.cudnn.fused_attention_stablehlo'
    monkeypatch.setattr(f'{probes}.check_cudnn_version', lambda: 91000, raising=False)
    monkeypatch.setattr(f'{probes}.check_compute_capability', lambda _: True, raising=False)
    inputs = [jnp.zeros((BATCH, LENGTH, HEADS, 64), jnp.bfloat16)] * 3

    def loss(q, k, v):
        return jnp.sum(attention.attend(q, k, v, SEGMENTS, SEGMENTS, backend='cudnn').astype(jnp.float32))

    try:
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*inputs).lower(lowering_platforms=('cuda',))
    except RuntimeError as error:
        pytest.skip(f'this version of JAX lowers for CUDA only where cuDNN is: {error}')
    kernels = set(re.findall(r'__cudnn\$(\w+)', lowered.as_text()))
    assert kernels == {'fmhaScaleBiasSoftmax', 'fmhaScaleBiasSoftmaxBackward'}  # the mask goes in as a bias


@pytest.mark.parametrize('backend', ['xla', 'splash', 'cudnn'])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_no_document_sees_another(backend, data):
    """Whatever happens to the other documents of a row, outputs stay the same to the bit."""
    cuts = data.draw(st.lists(st.integers(1, LENGTH - 1), min_size=1, max_size=5, unique=True))
    lengths = np.diff([0, *sorted(cuts)]).tolist()  # what remains is padding
    segments = np.tile(segments_of(lengths), (BATCH, 1))
    kept = data.draw(st.integers(1, len(lengths)))
    dtype = jnp.bfloat16 if backend == 'cudnn' else jnp.float32
    first, second = random_inputs(1, dtype), random_inputs(2, dtype)
    same = (segments == kept)[..., None, None]
    mixed = [jnp.where(same, a, 100 * b) for a, b in zip(first, second)]
    before, after = (np.asarray(jitted(backend)(*x, segments), np.float32) for x in (first, mixed))
    np.testing.assert_array_equal(before[segments == kept], after[segments == kept])
    assert np.isfinite(after).all()


@functools.cache
def jitted(backend):
    return jax.jit(functools.partial(attend, backend))


REFUSALS = {
    'dropout on splash': (dict(backend='splash', dropout_rate=0.1), 'splash attention backend has no dropout'),
    'dropout on cudnn': (dict(backend='cudnn', dropout_rate=0.1), 'cudnn attention backend has no dropout'),
    'float32 on cudnn': (dict(backend='cudnn'), 'needs bfloat16, not float32'),
    'other places on splash': (
        dict(backend='splash', window=attention.Window(3, True, places_BxS=SEGMENTS)),
        'measures windows by indices',
    ),
    'a bias on splash': (dict(backend='splash', bias_BxHxTxS=jnp.zeros((1, 1, 1, 1))), 'takes no relative bias'),
    'an unknown backend': (dict(backend='flash'), "backend 'flash': it must be one of xla, cudnn, splash"),
}


@pytest.mark.parametrize('name', REFUSALS)
def test_a_backend_refuses_what_it_cannot_do(name):
    arguments, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        attention.attend(*random_inputs(), SEGMENTS, SEGMENTS, dropout_key=jax.random.key(0), **arguments)


def test_splash_refuses_lengths_that_its_blocks_do_not_divide():
    q, k, v = (x[:, :100] for x in random_inputs())
    with pytest.raises(ValueError, match='multiples of 128, not 100; use xla'):
        attend('splash', q, k, v, SEGMENTS[:, :100])


@pytest.mark.parametrize(('backend', 'dtype', 'option'), [
    ('splash', jnp.float32, dict(interpret=True)), ('cudnn', jnp.bfloat16, dict(implementation='xla'))
])  # fmt: skip
def test_kernels_take_any_number_of_queries_and_keys(backend, dtype, option, monkeypatch):
    name, taken = f'{backend}_attention', []
    function = functools.partial(getattr(attention, name), **option)

    def kernel(q, k, *args, **options):
        taken.extend([q.shape[1], k.shape[1]])
        return function(q, k, *args, **options)

    monkeypatch.setattr(attention, name, kernel)
    q, k, v = random_inputs(dtype=dtype)
    inputs = q[:, 5:26], k[:, :99], v[:, :99], SEGMENTS[:, 5:26], SEGMENTS[:, :99]
    out = attention.attend(*inputs, backend=backend)
    assert all(length % attention.LENGTHS_IN[backend] == 0 for length in taken)
    assert out.shape == (BATCH, 21, HEADS, WIDTH)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    expected = np.asarray(attention.attend(*inputs), np.float32)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=tolerance)


def test_a_rate_without_a_key_drops_nothing_and_dropout_keeps_the_mean():
    q, k, v = random_inputs()
    plain = attend('xla', q, k, v, SEGMENTS)
    call = functools.partial(attention.attend, q, k, v, SEGMENTS, SEGMENTS, dropout_rate=0.5)
    np.testing.assert_array_equal(call(), plain)
    dropped = jnp.mean(jax.vmap(lambda key: call(dropout_key=key))(jax.random.split(jax.random.key(3), 200)), axis=0)
    assert np.abs(dropped - plain).mean() < 0.1 * np.abs(plain).mean()


# ---- Whole models ----------------------------------------------------------------------------------------------------

ROBERTA = EncoderConfig(vocab_size=60, max_length=LENGTH, num_layers=2, width=16, num_heads=2, ffn_width=32)
MODERN = dataclasses.replace(ROBERTA, positions='rotary', norm='pre', mlp='geglu', bias=False)
RECIPES = {
    'roberta': ROBERTA,
    'modern': MODERN,
    'windows': dataclasses.replace(MODERN, first_norm=False, local_window=16, global_every=2, rotary_base_local=100.0),
    'relative': dataclasses.replace(ROBERTA, relative_buckets=32),
    'bfloat16': dataclasses.replace(MODERN, dtype='bfloat16'),
}


@functools.cache
def model(recipe: str):
    """The jitted `logits` and `encode`, with weights larger than at the start, so that leaks would show."""
    module = MLM(RECIPES[recipe])
    row = masked(jnp.zeros((1, LENGTH), jnp.int32), SEGMENTS[:1])
    params = jax.jit(module.init)(jax.random.key(0), row)['params']
    params = jax.tree.map(lambda x: 4 * x if x.ndim > 2 else x, params)
    return (
        jax.jit(lambda batch: module.apply({'params': params}, batch, method='logits')),
        jax.jit(lambda tokens, segments: module.apply({'params': params}, tokens, segments, method='encode')),
    )


def masked(tokens, segments) -> MaskedBatch:
    """Every position is predicted."""
    positions = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32), tokens.shape)
    return MaskedBatch(tokens, tokens, positions, jnp.ones(tokens.shape), jnp.asarray(segments))


@pytest.mark.parametrize('recipe', RECIPES)
def test_changing_one_document_leaves_the_logits_of_the_others_as_they_are(recipe):
    logits, encode = model(recipe)
    tokens = jax.random.randint(jax.random.key(1), SEGMENTS.shape, 5, 60)
    others = SEGMENTS != 2
    changed = jnp.where(others, tokens, (tokens + 7) % 60)
    for before, after in (
        (logits(masked(tokens, SEGMENTS)), logits(masked(changed, SEGMENTS))),
        (encode(tokens, SEGMENTS), encode(changed, SEGMENTS)),
    ):
        np.testing.assert_array_equal(np.asarray(before, np.float32)[others], np.asarray(after, np.float32)[others])
        assert not np.array_equal(before, after)


@pytest.mark.parametrize('recipe', [name for name in RECIPES if name != 'bfloat16'])
def test_a_document_in_a_packed_row_is_encoded_as_it_is_alone(recipe):
    logits, encode = model(recipe)
    tokens = jax.random.randint(jax.random.key(1), SEGMENTS.shape, 5, 60)
    packed = encode(tokens, SEGMENTS), logits(masked(tokens, SEGMENTS))
    for row, document in ((1, 2), (2, 2), (3, 4)):
        (at,) = np.nonzero(SEGMENTS[row] == document)
        alone = np.zeros((1, LENGTH), np.int32)
        alone[0, : len(at)] = tokens[row, at]
        segments = segments_of([len(at)])[None]
        for whole, single in zip(packed, (encode(alone, segments), logits(masked(jnp.asarray(alone), segments)))):
            np.testing.assert_allclose(whole[row, at], single[0, : len(at)], atol=1e-5, rtol=1e-5)
