"""Pretraining from a checkpoint of Hugging Face."""

import dataclasses

import jax
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax import train
from mlm_jax.config import ConfigError
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data.rows import place_rows
from mlm_jax.data.shards import Shards
from mlm_jax.files import atomic
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.mlm import MLM
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.pretrained import huggingface, loading, warm_start
from mlm_jax.training import build, resuming
from mlm_jax.training.metrics import read_metrics
from mlm_jax.training.state import create_state, example_batch
from mlm_jax.training.step import make_eval_step

pytestmark = pytest.mark.usefixtures('one_device')

pytest.importorskip('safetensors.numpy')
pytest.importorskip('tokenizers')


@pytest.fixture
def source(tiny_config, write_bert, tmp_path):
    """A checkpoint with 40 positions, and `tiny_config`, with rows of 32 tokens, that starts from it."""
    directory = write_bert(tmp_path / 'bert')
    data = tmp_path / 'data'
    data.mkdir()
    for file in manifest_lib.pathlib.Path(tiny_config.data.directory).iterdir():
        (data / file.name).write_bytes(file.read_bytes())
    (data / 'tokenizer.model').write_bytes((directory / 'tokenizer.json').read_bytes())
    digest = atomic.sha256(directory / 'tokenizer.json')
    manifest_lib.save(dataclasses.replace(manifest_lib.load(data), tokenizer_sha256=digest), data)
    tiny_config.data.directory = str(data)
    tiny_config.init_from = f'hf:{directory}'
    return tiny_config, directory


def test_a_run_starts_at_the_loss_of_the_checkpoint(source, tmp_path):
    config, directory = source
    train.train(config, tmp_path / 'run')
    workdir = tmp_path / 'run'
    (first, *_) = [line for line in read_metrics(workdir / 'metrics.jsonl') if 'eval/loss' in line]
    assert first['step'] == 0

    module, params = huggingface.from_hf(directory)
    manifest = manifest_lib.load(config.data.directory)
    masking = build.evaluation_masking(config, manifest.vocabulary)
    step = jax.jit(make_eval_step(module, masking))
    mesh = mesh_lib.make_mesh()
    with jax.set_mesh(mesh):
        rows = place_rows(Shards(config.data.directory, 'validation'), np.arange(24), mesh_lib.batch_sharding(mesh))
        terms = step(params, rows, np.int32(0))
    total, weight = jax.device_get(terms['loss'])
    assert first['eval/loss'] == pytest.approx(total / weight, rel=1e-5)

    model = loading.load(f'{workdir}@0', mesh)
    assert model.tokenizer.decode(model.tokenizer.encode('w7 w20')) == 'w7 w20'
    positions = model.params['encoder']['position_embedding']['embedding']
    np.testing.assert_array_equal(positions, params['encoder']['position_embedding']['embedding'][:32])


@pytest.mark.parametrize('width', [0, 16])
def test_mae_lm_takes_the_encoder_and_a_head_that_fits(source, width):
    config, directory = source
    config.objective, config.mae_lm.decoder_layers, config.mae_lm.decoder_width = 'mae_lm', 1, width
    manifest = manifest_lib.load(config.data.directory)
    warm_start.check_source(config, manifest)
    run = build.make_run(config_lib.resolve(config), manifest.vocabulary, num_rows=16)
    fresh = create_state(run.init, mesh_lib.make_mesh(), 'dp')
    params = warm_start.start_from(config.init_from, fresh, config.data.directory).params
    _, stored = huggingface.from_hf(directory)
    positions = params['encoder']['position_embedding']['embedding']
    np.testing.assert_array_equal(positions, stored['encoder']['position_embedding']['embedding'][:32])
    np.testing.assert_array_equal(
        params['encoder']['layers']['mlp']['up']['kernel'], stored['encoder']['layers']['mlp']['up']['kernel']
    )
    expected = fresh.params['head'] if width else stored['head']
    assert jax.tree.all(jax.tree.map(np.array_equal, params['head'], expected))
    assert jax.tree.all(jax.tree.map(np.array_equal, params['decoder'], fresh.params['decoder']))
    assert jax.tree.map(lambda x: (x.shape, x.sharding), params) == jax.tree.map(
        lambda x: (x.shape, x.sharding), fresh.params
    )


@pytest.mark.parametrize(
    'keys, message',
    [
        ({'vocab_size': 65}, 'vocab_size: 64 there, 65 here\nSet vocab_size=64'),
        ({'model.num_layers': 3, 'model.width': 64}, 'Set model.num_layers=2,model.width=32$'),
        ({'model.norm_epsilon': 1e-12}, 'Set model.norm_epsilon=1e-05'),
        ({'model.norm': 'pre'}, "model.norm: 'post' there, 'pre' here"),
        ({'sequence_length': 64}, 'has 40 positions, .* set sequence_length=40 or less'),
        ({'masking.repeats': 2}, 'set sequence_length=20 or less'),
        ({'objective': 'exlm'}, 'rotary'),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_with_the_values_to_set(source, keys, message):
    config, _ = source
    config_lib.apply_overrides(config, {key: str(value) for key, value in keys.items()})
    with pytest.raises(ConfigError, match=message):
        warm_start.check_source(config, manifest_lib.load(config.data.directory))


def test_rows_of_the_embedding_that_no_piece_uses_may_be_left_out(source, capsys):
    """Its embedding is padded to 72 rows: with vocab_size=64 the first 64 are taken, to the bit."""
    config, directory = source
    encoder = EncoderConfig(72, 40, num_layers=2, width=32, num_heads=2, ffn_width=64, norm_epsilon=1e-5)
    shapes = jax.eval_shape(MLM(encoder).init, jax.random.key(0), example_batch(40, 4))['params']
    rng = np.random.default_rng(1)
    stored = jax.tree.map(lambda x: rng.normal(0.1, 0.2, x.shape).astype(np.float32), shapes)
    huggingface.to_hf(encoder, stored, directory)
    manifest = manifest_lib.load(config.data.directory)
    warm_start.check_source(config, manifest)
    run = build.make_run(config_lib.resolve(config), manifest.vocabulary, num_rows=16)
    fresh = create_state(run.init, mesh_lib.make_mesh(), 'dp')
    params = warm_start.start_from(config.init_from, fresh, config.data.directory).params
    table = params['encoder']['token_embedding']['embedding']
    np.testing.assert_array_equal(table, stored['encoder']['token_embedding']['embedding'][:64])
    np.testing.assert_array_equal(params['head']['bias'], stored['head']['bias'][:64])
    assert '8 rows of its embedding beyond vocab_size=64' in capsys.readouterr().err
    config.vocab_size = 72  # with data that were prepared so, nothing is left out
    warm_start.check_source(config, manifest)
    run = build.make_run(config_lib.resolve(config), manifest.vocabulary.padded(72), num_rows=16)
    fresh = create_state(run.init, mesh_lib.make_mesh(), 'dp')
    params = warm_start.start_from(config.init_from, fresh, config.data.directory).params
    np.testing.assert_array_equal(
        params['encoder']['token_embedding']['embedding'], stored['encoder']['token_embedding']['embedding']
    )


def test_another_tokenizer_or_checkpoint_is_refused(source):
    config, directory = source
    manifest = manifest_lib.load(config.data.directory)
    (directory / 'tokenizer.json').write_text('{"another": 1}')
    with pytest.raises(ConfigError, match='tokenizer.model=.*tokenizer.json'):
        warm_start.check_source(config, manifest)
    (directory / 'tokenizer.json').unlink()
    with pytest.raises(ConfigError, match='has no tokenizer.json'):
        warm_start.check_source(config, manifest)
    (directory / 'config.json').write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(ConfigError, match='init_from=hf:.*GPT2LMHeadModel'):
        warm_start.check_source(config, manifest)


def test_a_checkpoint_from_before_norm_epsilon_goes_on():
    config = config_lib.default_config()
    stored = config.to_dict()
    del stored['model']['norm_epsilon']
    notes = []
    resuming.check_resume(stored, config, notes.append)
    assert not notes
    config.model.norm_epsilon = 1e-12
    with pytest.raises(ConfigError, match='model.norm_epsilon: 1e-05 in the checkpoint, 1e-12 now'):
        resuming.check_resume(stored, config, notes.append)
