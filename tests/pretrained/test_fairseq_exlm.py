"""ExLM against numbers that the paper's own code computed (float64, tiny sizes).

Where one of these fails, the model is no longer the published one, or its weights are read differently.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.losses.dag import dag_log_likelihood
from mlm_jax.masking.batch import MaskedBatch, positions_of
from mlm_jax.objectives.mlm import MLM
from mlm_jax.pretrained import fairseq

GOLDEN = pathlib.Path(__file__).parents[3] / 'shared' / 'golden'
FILES = {'exlm_k4_h4': 4, 'exlm_k2_h8': 2}
PAD = 1
# In float32, by the page that comes with the numbers.
OUTPUT, LOSS, GRADIENT = dict(rtol=0, atol=3e-5), dict(rel=1e-6, abs=1e-4), dict(rtol=0, atol=1e-5)

log_likelihood = jax.jit(dag_log_likelihood)


@functools.cache
def golden(file: str) -> dict[str, np.ndarray]:
    if not GOLDEN.exists():
        pytest.skip(f'the golden numbers are not at {GOLDEN}')
    with np.load(GOLDEN / f'{file}.npz') as arrays:
        return dict(arrays)


def released_weights(numbers: dict, case: str = '') -> dict[str, np.ndarray]:
    """The weights by their released names; those of `smallemb` have a smaller token table."""
    weights = {k.removeprefix('param/'): v for k, v in numbers.items() if k.startswith('param/')}
    table = 'encoder.sentence_encoder.embed_tokens.weight'
    return {k: v / 16 if case == 'smallemb' and k == table else v for k, v in weights.items()}


def read(numbers: dict, num_states: int, state_dict: dict):
    return fairseq.exlm(
        state_dict, num_heads=int(numbers['cfg/heads']), num_states=num_states, mask_id=int(numbers['cfg/V']) - 1
    )


def batch_of(numbers: dict, case: str) -> MaskedBatch:
    """The rows of a case, and rows of padding up to the number of `prepad`: one program serves all."""
    case = 'pre' if case == 'smallemb' else case
    inputs, targets = numbers[f'{case}/src_tokens'], numbers[f'{case}/target']
    missing = ((0, len(numbers['prepad/target']) - len(targets)), (0, 0))
    inputs, targets = (np.pad(x, missing, constant_values=PAD) for x in (inputs, targets))
    masked = targets != PAD
    positions = positions_of(jnp.asarray(masked), int(masked.sum(1).max()))
    weights = (positions < masked.shape[1]).astype(jnp.float32)
    tokens, segments = np.where(masked, targets, inputs), (inputs != PAD).astype(np.int32)
    return MaskedBatch(jnp.asarray(tokens), jnp.asarray(inputs), positions, weights, jnp.asarray(segments))


def check_gradients(numbers: dict, case: str, grads: dict[str, np.ndarray]) -> None:
    listed = [k.removeprefix(f'{case}/grad/') for k in numbers if k.startswith(f'{case}/grad/')]
    for name in listed:
        # The first two rows of the table of link positions are never used, and have no place here.
        np.testing.assert_allclose(np.nan_to_num(grads[name]), numbers[f'{case}/grad/{name}'], **GRADIENT, err_msg=name)
    for name, norm in zip(numbers[f'{case}/gradnorm_names'], numbers[f'{case}/gradnorm_l2'], strict=True):
        assert np.linalg.norm(np.nan_to_num(grads[name])) == pytest.approx(norm, rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize(
    ('file', 'case'), [*((file, case) for file in FILES for case in ('pre', 'smallemb')), ('exlm_k4_h4', 'prepad')]
)
def test_exlm_computes_what_the_released_code_computes(compute, file, case):
    numbers, num_states = golden(file), FILES[file]
    batch = batch_of(numbers, case)
    methods = {'encode_masked': (batch,), 'alignment': (batch,)}
    reader = functools.partial(read, numbers, num_states)
    terms, outputs, grads = compute(reader, released_weights(numbers, case), batch, methods)
    assert float(terms.loss_sum / terms.weight_sum) == pytest.approx(float(numbers[f'{case}/loss']), **LOSS)
    check_gradients(numbers, case, grads)

    (states, match, _), (features, _, _) = outputs['alignment'], outputs['encode_masked']
    log_z = log_likelihood(match, states.links, states.rows.num_targets, num_states * states.rows.num_targets)
    rows = 'pre' if case == 'smallemb' else case
    num_rows = len(numbers[f'{rows}/n_targets'])
    states, match, features, log_z = jax.tree.map(lambda x: x[:num_rows], (states, match, features, log_z))
    slots = np.arange(numbers[f'{case}/features'].shape[1]) < numbers[f'{rows}/expanded_length'][:, None]
    cut = slots.shape[1]
    assert np.array_equal(states.rows.positions[:, :cut][slots], numbers[f'{rows}/pos1'][slots])
    assert np.array_equal(states.rows.copies[:, :cut][slots], numbers[f'{rows}/pos2'][slots])
    assert np.array_equal(states.rows.index[:, :cut][slots], numbers[f'{rows}/ext_source_index'][slots])
    np.testing.assert_allclose(features[:, :cut][slots], numbers[f'{case}/features'][slots], **OUTPUT)

    num_targets, count = numbers[f'{rows}/n_targets'], numbers[f'{rows}/n_states']
    assert np.array_equal(states.rows.num_targets, num_targets)
    links, expected_links = np.asarray(states.links), numbers[f'{case}/links']
    links = links[:, : expected_links.shape[1], : expected_links.shape[2]]
    assert np.array_equal(np.isfinite(links), np.isfinite(expected_links))
    np.testing.assert_allclose(links[np.isfinite(links)], expected_links[np.isfinite(expected_links)], **OUTPUT)
    for row, (m, n) in enumerate(zip(num_targets, count, strict=True)):
        assert np.array_equal(states.rows.state_slot[row, :n], numbers[f'{rows}/state_slot'][row, :n])
        np.testing.assert_allclose(match[row, :m, :n], numbers[f'{case}/match_all'][row, :m, :n], **OUTPUT)
        if f'{case}/state_logits' in numbers:
            np.testing.assert_allclose(states.logits[row, :n], numbers[f'{case}/state_logits'][row, :n], **OUTPUT)
    np.testing.assert_allclose(log_z, numbers[f'{case}/logZ'], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize('file', FILES)
def test_features_of_whole_rows_for_fine_tuning(file):
    numbers = golden(file)
    module, params = read(numbers, FILES[file], released_weights(numbers))
    tokens = numbers['ft/src_tokens']
    valid = tokens != PAD
    encode = jax.jit(lambda params, *rows: module.apply({'params': params}, *rows, method='encode'))
    features = encode(params, tokens, jnp.asarray(valid, jnp.int32))
    for row, index in enumerate(numbers['ft/ext_source_index']):
        _, first = np.unique(np.where(numbers['ft/ext_tokens'][row] != PAD, index, 10**6), return_index=True)
        expected = numbers['ft/features'][row, first[: valid[row].sum()]]
        np.testing.assert_allclose(features[row][valid[row]], expected, **OUTPUT)
    head = {k.removeprefix('param/classification_heads.h.'): v for k, v in numbers.items() if '_heads.h.' in k}
    hidden = np.tanh(features[:, 0] @ head['dense.weight'].T + head['dense.bias'])
    logits = hidden @ head['out_proj.weight'].T + head['out_proj.bias']
    np.testing.assert_allclose(logits, numbers['ft/cls_logits'], **OUTPUT)


@pytest.mark.parametrize('file', FILES)
def test_its_mlm_baseline_is_the_same_encoder_without_expansion(compute, file):
    numbers = golden(file)
    batch = batch_of(numbers, 'mlm')

    def baseline(state_dict):
        module, params = read(numbers, FILES[file], state_dict)
        return MLM(module.config), {name: params[name] for name in ('encoder', 'head')}

    methods = {'encode': (batch.inputs, batch.segments), 'logits': (batch,)}
    terms, outputs, grads = compute(baseline, released_weights(numbers), batch, methods)
    assert float(terms.loss_sum) == pytest.approx(float(numbers['mlm/loss_sum']), **LOSS)
    assert int(terms.weight_sum) == int(numbers['mlm/n_masked'])
    check_gradients(numbers, 'mlm', grads)
    valid, used = np.asarray(batch.segments > 0), np.asarray(batch.weights > 0)
    np.testing.assert_allclose(outputs['encode'][valid], numbers['mlm/features'][valid], **OUTPUT)
    np.testing.assert_allclose(outputs['logits'][used], numbers['mlm/logits'], **OUTPUT)


def released_names(width=16, heads=2, ffn=16, layers=2, vocab=20, link_positions=30):
    """A state dict of the released shapes, with nothing in it."""
    rng = np.random.default_rng(0)
    root, shapes = 'encoder.sentence_encoder', {}
    for i in range(layers):
        linear = {f'self_attn.{p}_proj': (width, width) for p in ('q', 'k', 'v', 'out')}
        for name, shape in (linear | {'fc1': (ffn, width), 'fc2': (width, ffn)}).items():
            shapes |= {f'{root}.layers.{i}.{name}.weight': shape, f'{root}.layers.{i}.{name}.bias': shape[:1]}
        for name in ('self_attn_layer_norm', 'final_layer_norm'):
            shapes |= {f'{root}.layers.{i}.{name}.{p}': (width,) for p in ('weight', 'bias')}
    shapes |= {f'{root}.embed_tokens.weight': (vocab, width), 'encoder.lm_head.bias': (vocab,)}
    for name in (f'{root}.emb_layer_norm_after', 'encoder.lm_head.layer_norm'):
        shapes |= {f'{name}.{p}': (width,) for p in ('weight', 'bias')}
    for name, outputs, inputs in (
        ('encoder.lm_head.dense', width, width),
        ('encoder.query_linear', width, 2 * width),
        ('encoder.key_linear', width, 2 * width),
        ('encoder.gate_linear', heads, 2 * width),
    ):
        shapes |= {f'{name}.weight': (outputs, inputs), f'{name}.bias': (outputs,)}
    shapes['encoder.link_positional.weight'] = (link_positions + 2, width)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_missing_and_unused_names_and_wrong_arguments_are_errors():
    arrays = released_names()
    reader = functools.partial(fairseq.exlm, num_heads=2, num_states=3, mask_id=19)
    module, params = reader(arrays)
    tokens = jnp.array([[0, 5, 6, 2, 7, 8, 2]])  # two ends of sentences: both are anchors
    positions = jnp.array([[2]])
    batch = MaskedBatch(tokens, tokens.at[0, 2].set(19), positions, jnp.ones((1, 1)), jnp.ones_like(tokens))
    apply = jax.jit(lambda p: [module.apply({'params': p}, batch, method=m) for m in ('__call__', 'states')])
    terms, states = apply(params)
    assert np.isfinite(float(terms.loss_sum))
    assert states.rows.expanded[0, :5].tolist() == [0, 2, 3, 6, 7]
    for missing in arrays:
        with pytest.raises(ValueError, match=missing.rpartition('.fc1')[0] or missing):
            reader({k: v for k, v in arrays.items() if k != missing})
    links = arrays['encoder.link_positional.weight']
    for pad_id in (1, 4):
        _, read_params = reader(arrays, pad_id=pad_id)
        table = read_params['transitions']['position_embedding']['embedding']
        np.testing.assert_array_equal(table, links[pad_id + 1 :], 'positions count from the padding on')
    with pytest.raises(ValueError, match=r'pad_id=40'):
        reader({**arrays, 'encoder.sentence_encoder.embed_tokens.weight': np.zeros((50, 16))}, pad_id=40)
    with pytest.raises(ValueError, match=r'relative_attention_bias'):
        reader({**arrays, 'encoder.relative_attention_bias.weight': np.zeros(3)})
    table = arrays['encoder.sentence_encoder.embed_tokens.weight']
    reader({**arrays, 'encoder.lm_head.weight': table})
    with pytest.raises(ValueError, match='tied'):
        reader({**arrays, 'encoder.lm_head.weight': table + 1})
    for arguments, message in (
        (dict(num_heads=3), 'num_heads=3'),
        (dict(num_heads=4), 'gate'),
        (dict(num_heads=8), 'multiple of 4'),
        (dict(eos_id=20), 'eos_id'),
    ):
        with pytest.raises(ValueError, match=message):
            reader(arrays, **arguments)
