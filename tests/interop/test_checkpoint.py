"""Directories of transformers: what is damaged, or has no place here, is refused with the reason; files and forms."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_parity import ENCODERS, VOCABULARY, make

import mlm_jax
from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError
from mlm_jax.interop import checkpoint as checkpoint_lib
from mlm_jax.interop import registry
from mlm_jax.interop.architecture import Encoder, deciding
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.parallel.mesh import make_mesh
from mlm_jax.pretrained import warm_start
from mlm_jax.training import build
from mlm_jax.training.state import create_state

safetensors_numpy = pytest.importorskip('safetensors.numpy')
POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'
# One for each architecture that an export can choose.
HOMES = {class_name: name for name, (_, class_name) in reversed(ENCODERS.items())}


def written(name, directory):
    _, params, checkpoint = make(ENCODERS[name][0])
    directory.mkdir()
    checkpoint_lib.write(checkpoint, params, directory)
    return params, checkpoint


def change(directory, **keys):
    """Sets keys of config.json, None as null; those given as `...` are removed."""
    path = directory / 'config.json'
    stored = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in stored.items() if value is not ...}))


@pytest.mark.parametrize('name', HOMES.values())
def test_damage_of_every_class_is_refused_in_words(name, tmp_path):
    params, _ = written(name, tmp_path / 'a')
    path, config = tmp_path / 'a' / 'model.safetensors', (tmp_path / 'a' / 'config.json').read_text()
    whole, arrays = path.read_bytes(), safetensors_numpy.load_file(path)

    def refused(message, kind=ValueError):
        with pytest.raises(kind, match=message):
            checkpoint_lib.read(tmp_path / 'a')

    layer = next(key for key in arrays if '.1.' in key and key.endswith('.weight') and arrays[key].ndim == 2)
    for change_of, message in [
        ({key: array for key, array in arrays.items() if key != layer}, f'has no {layer!r}'),
        (arrays | {'adapter.weight': np.ones(3)}, r'without a place here: adapter\.weight'),
        (arrays | {layer: arrays[layer][:-1]}, rf'are not what config.json says: {layer} is '),
        (arrays | {layer: np.full_like(arrays[layer], np.nan)}, 'NaN or infinite'),
    ]:
        safetensors_numpy.save_file(change_of, path)
        refused(message)
    path.write_bytes(whole)
    layers_key = next(key for key in ('num_hidden_layers', 'n_layers') if key in config)
    for key in ('vocab_size', layers_key):
        change(tmp_path / 'a', **{key: None})
        refused(f'{key}=None should be a positive integer')
        (tmp_path / 'a' / 'config.json').write_text(config)
    if 'layer_types' not in config:
        change(tmp_path / 'a', **{layers_key: 3})
        refused(r'are \[4, 48\], where .* num_hidden_layers × intermediate_size = \[3, 48\]')
        (tmp_path / 'a' / 'config.json').write_text(config)
    change(tmp_path / 'a', architectures=['LlamaForCausalLM'])
    refused('describes LlamaForCausalLM .*only BertForMaskedLM, ModernBertForMaskedLM, .* can be read')
    (tmp_path / 'a' / 'config.json').write_text(config)
    assert jax.tree.all(jax.tree.map(np.array_equal, checkpoint_lib.read(tmp_path / 'a')[1], params))
    path.write_bytes(POINTER)
    refused('is damaged: it is a Git LFS pointer')
    path.rename(tmp_path / 'a' / 'pytorch_model.bin')
    refused('lacks model.safetensors. Where it has pytorch_model.bin', FileNotFoundError)


@pytest.mark.parametrize(
    ('name', 'keys', 'message'),
    [
        ('exlm', dict(token_dropout=True, mask_token_id=None), 'mask_token_id=None should be a positive integer'),
        ('exlm', dict(position_embedding_type='absolute'), "only ESM-2's 'rotary'"),
        ('exlm', dict(mlm_jax=dict(positions='learned')), 'mlm_jax.positions=.learned. should be .rotary. or'),
        ('exlm', dict(mlm_jax=...), r'other numbers in .*inv_freq than base'),
        ('post_rotary', dict(mlm_jax=...), 'other numbers in .*embed_positions.weight than the sines'),
        ('post_rotary', dict(rotary_value=True), 'rotary_value=True: only False'),
        ('mpnet', dict(relative_attention_num_buckets=64), 'relative_attention_num_buckets=64: only 32'),
        ('modern', dict(mlp_bias=True), 'attention_bias=False, mlp_bias=True, .*either all linear layers'),
        ('modern', dict(decoder_bias=False), 'decoder_bias=False'),
        ('modern', dict(rope_scaling=dict(factor=2)), 'scales its rotary positions'),
        ('modern', dict(layer_types=['full_attention'] * 3), 'layer_types=.* a list of 4 of'),
        (
            'modern',
            dict(layer_types=['full_attention', 'sliding_attention', 'full_attention', 'full_attention']),
            'layer_types that do not repeat',
        ),
        ('modern', dict(layer_types=['sliding_attention'] + ['full_attention'] * 3), 'layer_types that do not repeat'),
        ('euro', dict(hidden_act='gelu'), "hidden_act='gelu': only 'silu'"),
        ('euro', dict(num_key_value_heads=3), 'num_key_value_heads=3 does not divide'),
    ],
)
def test_what_has_no_place_here_is_named(name, keys, message, tmp_path):
    written(name, tmp_path / 'a')
    change(tmp_path / 'a', **keys)
    with pytest.raises(ValueError, match=message):
        checkpoint_lib.read(tmp_path / 'a')


def test_the_keys_of_older_versions_say_the_same(tmp_path):
    """A config.json of ModernBERT as published: without layer types, and with a base for each kind of layer."""
    written('modern_windows', tmp_path / 'a')
    before = checkpoint_lib.describe(tmp_path / 'a').encoder
    change(tmp_path / 'a', layer_types=..., rope_parameters=...)
    assert checkpoint_lib.describe(tmp_path / 'a').encoder == before
    assert (before.local_window, before.rotary_base, before.rotary_base_local) == (8, 160_000.0, 10_000.0)


def test_an_encoder_alone_is_read_by_either_name_and_fills_no_masks(tmp_path):
    _, params, checkpoint = make(ENCODERS['modern'][0], has_head=False)
    checkpoint_lib.write(checkpoint, params, tmp_path)
    assert json.loads((tmp_path / 'config.json').read_text())['architectures'] == ['ModernBertModel']
    arrays = safetensors_numpy.load_file(tmp_path / 'model.safetensors')
    assert 'embeddings.tok_embeddings.weight' in arrays
    safetensors_numpy.save_file({f'model.{key}': x for key, x in arrays.items()}, tmp_path / 'model.safetensors')
    found, read = checkpoint_lib.read(tmp_path)
    assert not found.has_head and set(read) == {'encoder'}
    assert jax.tree.all(jax.tree.map(np.array_equal, read, params))


@pytest.mark.parametrize(
    ('attributes', 'message'),
    [
        (
            dict(relative_buckets=32),
            "closest is MPNetForMaskedLM, but for relative_bucketing='mae_lm', where MPNet has",
        ),
        (dict(relative_buckets=64, relative_bucketing='t5'), 'a new run with model.relative_buckets=32 can'),
        (
            dict(positions='rotary', norm='pre', mlp='geglu', bias=False),
            'closest is ModernBertForMaskedLM, but for first_norm=True, where .* has False.*model.first_norm=False',
        ),
        (dict(bias=False), 'bias=False, where BERT has True'),
    ],
)
def test_an_encoder_without_a_home_is_refused_with_the_key_that_gives_it_one(attributes, message):
    encoder = Encoder(**vars(EncoderConfig(61, 24, 2, 16, 4, 40, **attributes)))
    with pytest.raises(ValueError, match=message):
        registry.home_of(encoder)


@pytest.mark.parametrize('name', ['modern_windows', 'euro_grouped', 'mpnet', 'bert'])
def test_a_configuration_follows_from_a_checkpoint(name, tmp_path):
    _, checkpoint = written(name, tmp_path / 'a')
    config = config_lib.load(f'continue:hf:{tmp_path / "a"},total_steps=7')
    assert config.init_from == f'hf:{tmp_path / "a"}' and config.total_steps == 7 and config.sequence_length == 24
    resolved = config_lib.resolve(config)
    assert config_lib.from_json(config_lib.to_json(resolved)).to_dict() == resolved.to_dict()  # so a run can resume
    here = build.encoder_config(resolved)
    assert deciding(here) == deciding(checkpoint.encoder) and here.vocab_size == 61


@pytest.mark.parametrize('has_head', [True, False])
def test_a_run_starts_with_the_parameters_of_a_checkpoint_without_a_position_table(has_head, tmp_path):
    _, params, checkpoint = make(ENCODERS['modern_windows'][0], has_head=has_head)
    checkpoint_lib.write(checkpoint, params, tmp_path)
    config = config_lib.resolve(config_lib.load(f'continue:hf:{tmp_path},total_steps=7,batch_size=8'))
    run = build.make_run(config, standard_vocabulary(VOCABULARY), num_rows=16)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        fresh = create_state(run.init, mesh, 'dp')
        started = warm_start.start_from(config.init_from, fresh, tmp_path / 'tokenizer.json').params
    expected = params if has_head else {**params, 'head': fresh.params['head']}
    assert jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(started), jax.device_get(expected)))


def test_a_configuration_of_no_checkpoint_is_refused(tmp_path):
    for argument, message in [
        (f'hf:{tmp_path}', 'has no config.json'),
        ('base', "and not 'base'. A run of mlm_jax goes on"),
        (f'hf:{tmp_path},small', "'small' in the configuration argument 'small' is not key=value"),
    ]:
        (tmp_path / 'config.json').unlink(missing_ok=True)
        if 'small' in argument:
            checkpoint_lib.write(make({})[2], make({})[1], tmp_path)
        with pytest.raises(ConfigError, match=message):
            config_lib.load(f'continue:{argument}')


@pytest.mark.parametrize('name', ['bert', 'mpnet', 'pre_learned'])
@pytest.mark.parametrize('has_head', [True, False])
def test_positions_that_old_checkpoints_hold_are_left_out(name, has_head, tmp_path):
    _, params, checkpoint = make(ENCODERS[name][0], has_head=has_head)
    checkpoint_lib.write(checkpoint, params, tmp_path)
    arrays = safetensors_numpy.load_file(tmp_path / 'model.safetensors')
    positions = {f'{checkpoint.prefix()}embeddings.position_ids': np.arange(24, dtype=np.int64)[None]}
    safetensors_numpy.save_file(arrays | positions, tmp_path / 'model.safetensors')
    _, read = checkpoint_lib.read(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, read, params)


def rotary(kind):
    """The name of an encoder whose class holds tables of rotary positions."""
    return next(name for name, (_, class_name) in ENCODERS.items() if class_name == kind)


@pytest.mark.parametrize('kind', ['EsmForMaskedLM', 'RoFormerForMaskedLM'])
def test_rotary_tables_are_exact_in_half_precision(kind, tmp_path):
    _, params, checkpoint = make(ENCODERS[rotary(kind)][0])
    checkpoint_lib.write(checkpoint, params, tmp_path, dtype='bfloat16')
    path = tmp_path / 'model.safetensors'
    arrays = safetensors_numpy.load_file(path)
    names = [
        name for name in checkpoint.architecture.constants(checkpoint.encoder, checkpoint.prefix()) if name in arrays
    ]
    assert names and all(arrays[name].dtype == np.float32 for name in names)
    assert {array.dtype.name for name, array in arrays.items() if name not in names} == {'bfloat16'}
    checkpoint_lib.read(tmp_path)
    rounded = {name: arrays[name].astype(jnp.bfloat16) for name in names}  # as versions before wrote them
    safetensors_numpy.save_file(arrays | rounded, path)
    checkpoint_lib.read(tmp_path)
    safetensors_numpy.save_file(arrays | {name: array * 1.01 for name, array in rounded.items()}, path)
    with pytest.raises(ValueError, match='have other numbers in'):
        checkpoint_lib.read(tmp_path)


def test_half_precision_and_shards_are_read(tmp_path):
    _, params, checkpoint = make({})
    checkpoint_lib.write(checkpoint, params, tmp_path, dtype='bfloat16', shard_bytes=4000)
    files = sorted(path.name for path in tmp_path.glob('*.safetensors'))
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # who may read one may read all
    assert len(files) > 3 and files[0] == f'model-00001-of-{len(files):05}.safetensors'
    _, read = checkpoint_lib.read(tmp_path)
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(params), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)
    with pytest.raises(ConfigError, match='holds no prepared data|no tokenizer.json'):
        mlm_jax.load(f'hf:{tmp_path}')
