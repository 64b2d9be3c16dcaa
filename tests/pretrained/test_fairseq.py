"""MAE-LM and its MLM baseline against numbers that the papers' own code computed (float64, tiny sizes).

Where one of these fails, the model is no longer the published one, or its weights are read differently.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.masking.batch import MaskedBatch, gather_positions, positions_of
from mlm_jax.objectives.mae_lm import MAELMConfig, keep_tokens
from mlm_jax.pretrained import fairseq

GOLDEN = pathlib.Path(__file__).parents[3] / 'shared' / 'golden'
MAE_LM_FILES, MLM_FILE = ('maelm_ae_b32_d128', 'maelm_ae_b64_d128'), 'maelm_mlm_b32_d128'
# The second file has other buckets of relative positions; padding and length are the same code.
MAE_LM_CASES = [(MAE_LM_FILES[0], case) for case in ('nopad', 'pad', 'long', 'smallemb')]
MAE_LM_CASES += [(MAE_LM_FILES[1], case) for case in ('nopad', 'smallemb')]
# In float32, by the page that comes with the numbers; a wrong detail of the model moves them by 1e-4 or more.
OUTPUT, LOSS, GRADIENT = dict(rtol=0, atol=3e-5), dict(rel=1e-6, abs=1e-4), dict(rtol=0, atol=1e-5)

keep = jax.jit(keep_tokens, static_argnums=1)


class Golden:
    """One file of golden numbers."""

    def __init__(self, file: str):
        if not GOLDEN.exists():
            pytest.skip(f'the golden numbers are not at {GOLDEN}')
        with np.load(GOLDEN / f'{file}.npz') as arrays:
            self.arrays = dict(arrays)
        self.released = fairseq.mae_lm if '_ae_' in file else fairseq.mlm

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def state_dict(self, case: str = '') -> dict[str, np.ndarray]:
        """The weights by their released names; those of `smallemb` have smaller embeddings."""
        weights = {k.removeprefix('param/'): v for k, v in self.arrays.items() if k.startswith('param/')}
        small = ('embed_tokens.weight', 'embed_positions.weight') if case == 'smallemb' else ()
        return {k: v / 16 if k.endswith(small) and small else v for k, v in weights.items()}

    def read(self, state_dict: dict[str, np.ndarray]):
        """The module and its parameters."""
        cfg = {name: int(self[f'cfg/{name}']) for name in ('heads', 'V', 'bins', 'maxrel')}
        return self.released(
            state_dict,
            num_heads=cfg['heads'],
            mask_id=cfg['V'] - 1,
            relative_buckets=cfg['bins'],
            relative_max_distance=cfg['maxrel'],
        )

    def batch(self, case: str) -> MaskedBatch:
        """The rows of a case. What stands in the input at masked positions is garbage for MAE-LM.

        Of 32 buckets, `nopad` is padded to the sizes of `pad`, so that one program serves both.
        """
        case = 'nopad' if case == 'smallemb' else case
        masked, mask_id = self[f'{case}/masked'], int(self['cfg/V']) - 1
        if f'{case}/full_tokens' in self:
            tokens, valid = self[f'{case}/full_tokens'], ~self[f'{case}/pad_mask_full']
            inputs = np.where(masked, 5, tokens)
        else:
            inputs, valid = self[f'{case}/src_tokens'], self[f'{case}/valid']
            tokens = np.where(masked, self[f'{case}/target'], inputs)
            assert np.all(inputs[masked] == mask_id)
        num_masked = masked.sum(1).max()
        if case == 'nopad' and self['cfg/bins'] == 32:
            missing = [(0, full - size) for full, size in zip(self['pad/masked'].shape, masked.shape, strict=True)]
            tokens, inputs, masked, valid = (np.pad(x, missing) for x in (tokens, inputs, masked, valid))
            num_masked = self['pad/masked'].sum(1).max()
        positions = positions_of(jnp.asarray(masked), int(num_masked))
        weights = (positions < masked.shape[1]).astype(jnp.float32)
        return MaskedBatch(
            *(jnp.asarray(x) for x in (tokens, inputs)), positions, weights, jnp.asarray(valid.astype(np.int32))
        )


@functools.cache
def golden(file: str) -> Golden:
    return Golden(file)


def assert_close(actual, expected, where) -> None:
    """Of the sizes that are expected, which may be less than those of the batch."""
    sizes = tuple(map(slice, expected.shape))
    np.testing.assert_allclose(np.asarray(actual)[sizes][where], expected[where], **OUTPUT)


def check_loss_and_gradients(numbers: Golden, case: str, terms, grads: dict[str, np.ndarray]) -> None:
    assert float(terms.loss_sum) == pytest.approx(float(numbers[f'{case}/loss_sum']), **LOSS)
    assert float(terms.loss_sum / terms.weight_sum) == pytest.approx(float(numbers[f'{case}/loss_mean']), **LOSS)
    for name in (k.removeprefix(f'{case}/grad/') for k in numbers.arrays if k.startswith(f'{case}/grad/')):
        np.testing.assert_allclose(grads[name], numbers[f'{case}/grad/{name}'], **GRADIENT, err_msg=name)
    for name, norm in zip(numbers[f'{case}/gradnorm_names'], numbers[f'{case}/gradnorm_l2'], strict=True):
        assert np.linalg.norm(grads[name]) == pytest.approx(norm, rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize(('file', 'case'), MAE_LM_CASES)
def test_mae_lm_computes_what_the_released_code_computes(compute, file, case):
    numbers = golden(file)
    batch = numbers.batch(case)
    options = MAELMConfig(kept_margin=1.0)
    everywhere = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]), batch.tokens.shape)
    methods = {
        'logits': (batch,),
        'encode_kept': (keep(batch, options),),
        'decoder_inputs': (batch,),
        'decode': (batch, everywhere),
    }
    terms, outputs, grads = compute(numbers.read, numbers.state_dict(case), batch, methods)
    check_loss_and_gradients(numbers, case, terms, grads)
    assert float(terms.metrics['kept_overflow'][0]) == 0

    rows = 'nopad' if case == 'smallemb' else case
    used, real = np.asarray(batch.weights > 0), ~numbers[f'{rows}/pad_mask_full']
    np.testing.assert_allclose(outputs['logits'][used], numbers[f'{case}/logits'], **OUTPUT)
    assert_close(outputs['decode'], numbers[f'{case}/decoder_out'], real)
    assert_close(outputs['encode_kept'], numbers[f'{case}/encoder_out'], numbers[f'{rows}/kept_valid'])
    if case != 'smallemb':
        assert int(terms.weight_sum) == int(numbers[f'{case}/n_masked'])
        assert_close(outputs['decoder_inputs'], numbers[f'{case}/decoder_in'], real)


@pytest.mark.parametrize('file', MAE_LM_FILES)
@pytest.mark.parametrize('case', ['ft_nopad', 'ft_pad'])
def test_features_of_whole_rows_for_fine_tuning(file, case):
    numbers = golden(file)
    module, params = numbers.read(numbers.state_dict())
    valid, tokens = numbers[f'{case}/valid'], numbers[f'{case}/src_tokens']
    encode = jax.jit(lambda params, *rows: module.apply({'params': params}, *rows, method='encode'))
    features = encode(params, tokens, jnp.asarray(valid, jnp.int32))
    np.testing.assert_allclose(features[valid], numbers[f'{case}/features'][valid], **OUTPUT)
    head = {k.removeprefix('param/classification_heads.h.'): v for k, v in numbers.arrays.items() if '_heads.h.' in k}
    hidden = np.tanh(features[:, 0] @ head['dense.weight'].T + head['dense.bias'])
    logits = hidden @ head['out_proj.weight'].T + head['out_proj.bias']
    np.testing.assert_allclose(logits, numbers[f'{case}/cls_logits'], **OUTPUT)


@pytest.mark.parametrize('case', ['nopad', 'long', 'pad'])
def test_the_mlm_baseline_computes_what_the_released_code_computes(compute, case):
    numbers = golden(MLM_FILE)
    batch = numbers.batch(case)
    methods = {'encode': (batch.inputs, batch.segments), 'logits': (batch,)}
    terms, outputs, grads = compute(numbers.read, numbers.state_dict(case), batch, methods)
    check_loss_and_gradients(numbers, case, terms, grads)
    used = np.asarray(batch.weights > 0)
    assert_close(outputs['encode'], numbers[f'{case}/encoder_out'], numbers[f'{case}/valid'])
    np.testing.assert_allclose(outputs['logits'][used], numbers[f'{case}/logits'], **OUTPUT)


@pytest.mark.parametrize('file', MAE_LM_FILES)
@pytest.mark.parametrize('case', ['nopad', 'pad'])
def test_relative_bias_of_kept_tokens(file, case):
    numbers = golden(file)
    module, params = numbers.read(numbers.state_dict())
    kept = keep(numbers.batch(case), module.options)
    bias = module.apply(
        {'params': params}, kept.positions, method=lambda m, positions: m.encoder.relative_bias(positions)
    )
    valid = numbers[f'{case}/kept_valid']
    pairs = np.broadcast_to((valid[:, None, :, None] & valid[:, None, None, :]), numbers[f'{case}/rel_bias'].shape)
    size = valid.shape[1]
    bias = np.asarray(bias)[: len(valid), :, :size, :size]
    np.testing.assert_array_equal(bias[pairs], numbers[f'{case}/rel_bias'][pairs])


# A state dict of the released shape, with nothing in it.
def released_names(width=8, decoder_width=8, layers=2, decoder_layers=2, ffn=16, vocab=20, length=12, buckets=32):
    def block(prefix, d, f):
        linear = {f'self_attn.{p}_proj': (d, d) for p in 'qkv'} | {
            'self_attn.out_proj': (d, d),
            'fc1': (f, d),
            'fc2': (d, f),
        }
        norms = ('self_attn_layer_norm', 'final_layer_norm')
        return (
            {f'{prefix}.{n}.weight': s for n, s in linear.items()}
            | {f'{prefix}.{n}.bias': s[:1] for n, s in linear.items()}
            | {f'{prefix}.{n}.{p}': (d,) for n in norms for p in ('weight', 'bias')}
        )

    def stack(prefix, d, f, count):
        shapes = {f'{prefix}.embed_positions.weight': (length, d)}
        shapes |= {f'{prefix}.emb_layer_norm.{p}': (d,) for p in ('weight', 'bias')}
        for i in range(count):
            shapes |= block(f'{prefix}.layers.{i}', d, f)
        return shapes

    d, e = decoder_width, width
    shapes = stack('encoder.sentence_encoder', e, ffn, layers) | stack(
        'gen_decoder.sentence_encoder', d, ffn, decoder_layers
    )
    shapes |= {'encoder.sentence_encoder.embed_tokens.weight': (vocab, e), 'gen_decoder.lm_head.bias': (vocab,)}
    shapes |= {'gen_decoder.lm_head.dense.weight': (d, d), 'gen_decoder.lm_head.dense.bias': (d,)}
    shapes |= {f'gen_decoder.lm_head.layer_norm.{p}': (d,) for p in ('weight', 'bias')}
    if buckets:
        shapes['encoder.sentence_encoder.relative_attention_bias.weight'] = (buckets, 2)
    if d != e:
        shapes |= {'encoder_to_decoder.weight': (d, e), 'encoder_to_decoder.bias': (d,)}
        shapes['gen_decoder.lm_head.embed_linear.weight'] = (e, d)
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def one_batch(length=12):
    tokens = jnp.arange(3, 3 + length)[None]
    positions = jnp.array([[2, 7, length]])
    return MaskedBatch(tokens, tokens, positions, (positions < length).astype(jnp.float32), jnp.ones_like(tokens))


@pytest.mark.parametrize('shapes', [{}, dict(decoder_width=4), dict(decoder_layers=1), dict(buckets=0), dict(layers=3)])
def test_everything_else_is_read_off_the_shapes(shapes):
    buckets = shapes.get('buckets', 32)
    module, params = fairseq.mae_lm(released_names(**shapes), num_heads=2, mask_id=19, relative_buckets=buckets)
    init = jax.eval_shape(module.init, jax.random.key(0), one_batch())['params']
    assert jax.tree.map(lambda x: x.shape, init) == jax.tree.map(lambda x: x.shape, params)
    terms = jax.jit(lambda p, b: module.apply({'params': p}, b))(params, one_batch())
    assert np.isfinite(float(terms.loss_sum))
    assert float(terms.weight_sum) == 2


@pytest.mark.parametrize('name', ['mae_lm', 'mlm'])
def test_missing_and_unused_names_are_errors_that_name_them(name):
    arrays = released_names()
    if name == 'mlm':
        arrays = {k.replace('gen_decoder.lm_head', 'encoder.lm_head'): v for k, v in arrays.items()}
        arrays = {k: v for k, v in arrays.items() if not k.startswith('gen_decoder')}
    read = functools.partial(getattr(fairseq, name), num_heads=2, mask_id=19)
    read(arrays)
    for missing in arrays:
        # Without its first linear layer, a last layer is not there at all, and the rest of it has no place.
        with pytest.raises(ValueError, match=missing.rpartition('.fc1')[0] or missing):
            read({k: v for k, v in arrays.items() if k != missing})
    for unused in (
        'encoder.sentence_encoder.layers.7.fc2.bias',
        'gen_decoder.sentence_encoder.relative_attention_bias',
    ):
        with pytest.raises(ValueError, match=unused):
            read({**arrays, unused: np.zeros(3)})


def test_arguments_that_disagree_with_the_weights_are_errors():
    arrays = released_names()
    for arguments, message in (
        (dict(num_heads=3), 'num_heads=3'),
        (dict(num_heads=4), 'relative_bias'),
        (dict(relative_buckets=64), 'relative_bias'),
        (dict(relative_buckets=0), 'relative_attention_bias'),
        (dict(mask_id=20), 'mask_id=20'),
        (dict(pad_id=-1), 'pad_id=-1'),
    ):
        with pytest.raises(ValueError, match=message):
            fairseq.mae_lm(arrays, **{'num_heads': 2, 'mask_id': 19, **arguments})


def test_copies_of_tied_weights_must_be_equal_and_heads_of_tasks_are_left_out():
    arrays = released_names()
    table = arrays['encoder.sentence_encoder.embed_tokens.weight']
    copies = {k: table for k in ('gen_decoder.lm_head.weight', 'gen_decoder.sentence_encoder.embed_tokens.weight')}
    heads = {'classification_heads.mnli.dense.weight': np.zeros((8, 8))}
    _, expected = fairseq.mae_lm(arrays, num_heads=2, mask_id=19)
    _, params = fairseq.mae_lm({**arrays, **copies, **heads}, num_heads=2, mask_id=19)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    with pytest.raises(ValueError, match='tied'):
        fairseq.mae_lm({**arrays, 'gen_decoder.lm_head.weight': table + 1}, num_heads=2, mask_id=19)


def test_unmasked_slots_of_the_golden_rows_are_gathered_in_order():
    numbers = golden(MAE_LM_FILES[0])
    batch = numbers.batch('pad')
    kept = keep(batch, numbers.read(numbers.state_dict())[0].options)
    valid = numbers['pad/kept_valid']
    assert np.array_equal(np.asarray(kept.tokens)[:, : valid.shape[1]][valid], numbers['pad/src_tokens'][valid])
    assert np.array_equal(np.asarray(kept.positions)[:, : valid.shape[1]][valid], numbers['pad/pos'][valid])
    assert np.array_equal(gather_positions(batch.tokens, kept.index), kept.tokens)
