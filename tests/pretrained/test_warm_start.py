"""Pretraining from the parameters of another run."""

import jax
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax import prepare, train
from mlm_jax.config import ConfigError
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.pretrained import loading, warm_start
from mlm_jax.training import build, checkpoints
from mlm_jax.training.metrics import read_metrics
from mlm_jax.training.state import create_state

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture
def continued(trained, animals_config):
    """A configuration that goes on from the trained model, under other masks."""
    config = config_lib.from_json(config_lib.to_json(animals_config))
    config.update(init_from=str(trained[0]), total_steps=3)
    config.masking.update(strategy='fully_explored', unit='word')
    config.masking.fully_explored.segments = 4
    config.optimizer.learning_rate = 0.0
    return config


def test_a_run_starts_where_another_ended(trained, continued, tmp_path):
    """Without a learning rate, the first held-out loss and the last are those of the model it started from."""
    train.train(continued, tmp_path / 'run')
    lines = [line for line in read_metrics(tmp_path / 'run' / 'metrics.jsonl') if 'eval/loss' in line]
    last = [line for line in read_metrics(trained[0] / 'metrics.jsonl') if 'eval/loss' in line][-1]
    assert lines[0]['step'] == 0
    for line in lines:
        assert line['eval/loss'] == pytest.approx(last['eval/loss'], rel=1e-5)
    saver = checkpoints.Checkpoints(tmp_path / 'run' / 'checkpoints', read_only=True)
    assert saver.latest_step() == 3
    params = saver.restore_params(trained[2].params)
    saver.close()
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(trained[2].params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_run_keeps_the_step_that_it_started_from(trained, continued, tmp_path):
    workdir, step = trained[0], trained[2].step
    pinned = warm_start.pinned(str(workdir), tmp_path)
    assert pinned == f'{workdir}@{step}' and warm_start.pinned('', tmp_path) == ''
    continued.init_from = f'{workdir}@{step - 1}'  # of a run that has gone on since
    (tmp_path / 'config.json').write_text(config_lib.to_json(continued))
    assert warm_start.pinned(str(workdir), tmp_path) == continued.init_from
    assert warm_start.pinned(str(tmp_path / 'none'), tmp_path) == str(tmp_path / 'none')


def test_another_model_or_tokenizer_is_refused(trained, continued, tmp_path):
    manifest = manifest_lib.load(continued.data.directory)
    warm_start.check_source(continued, manifest)
    continued.model.width = 128
    with pytest.raises(ConfigError, match='model.width: 64 there, 128 here'):
        warm_start.check_source(continued, manifest)
    continued.model.width = 64
    with pytest.raises(ConfigError, match='tokenizer.model='):
        warm_start.check_source(continued, manifest_lib.dataclasses.replace(manifest, tokenizer_sha256='0'))
    continued.init_from = str(tmp_path)
    with pytest.raises(ConfigError, match='not the workdir of a run'):
        warm_start.check_source(continued, manifest)


def test_a_run_starts_from_a_step_by_its_name(trained, continued):
    """And not from parameters that have learned nothing, for which `init_from` is not needed."""
    workdir, mesh, model = trained
    manifest = manifest_lib.load(continued.data.directory)
    continued.init_from = f'{workdir}@{model.step}'
    warm_start.check_source(continued, manifest)
    run = build.make_run(config_lib.resolve(continued), manifest.vocabulary, num_rows=16)
    fresh = create_state(run.init, mesh, 'dp')
    params = warm_start.start_from(continued.init_from, fresh, workdir / 'tokenizer.model').params
    jax.tree.map(np.testing.assert_array_equal, params, model.params)
    with pytest.raises(FileNotFoundError, match='no checkpoint of step 7 '):
        warm_start.start_from(f'{workdir}@7', fresh, workdir / 'tokenizer.model')
    continued.init_from = f'random:{workdir}'
    with pytest.raises(ConfigError, match='init_from=random:.* have learned nothing: leave init_from empty'):
        warm_start.check_source(continued, manifest)


def test_new_pieces_start_as_the_mean_of_those_that_spell_them(trained, continued, tmp_path):
    workdir, mesh, model = trained
    old_size = continued.vocab_size
    words = np.random.default_rng(0).choice(['dogs', 'catfish', 'redden', 'bluebird', 'horsehair'], (300, 5))
    (tmp_path / 'text.txt').write_text('\n\n'.join(' '.join(line) + '.' for line in words))
    config = config_lib.from_json(config_lib.to_json(continued))
    config.update(vocab_size=old_size + 5, batch_size=8, total_steps=1)
    config.masking.update(strategy='uniform', unit='token')
    config.data.update(directory=str(tmp_path / 'data'), corpus=f'text:{tmp_path}/text.txt', validation_percent=20)
    config.tokenizer.model = f'extend:{workdir}/tokenizer.model'
    manifest = prepare.run(config, num_workers=1)
    warm_start.check_source(config, manifest)
    train.train(config, tmp_path / 'run')
    params = loading.load(tmp_path / 'run', mesh).params
    old, new = (
        model.params['encoder']['token_embedding']['embedding'],
        params['encoder']['token_embedding']['embedding'],
    )
    np.testing.assert_array_equal(new[:old_size], old)
    tokenizer = loading.load(f'{tmp_path}/run@0', mesh).tokenizer
    for i, piece in enumerate(tokenizer.pieces(range(old_size, old_size + 5)), start=old_size):
        spelled = model.tokenizer.encode(piece.replace('▁', ' ').strip())
        candidates = [np.mean(old[spelled], axis=0), np.mean(old[spelled[1:]], axis=0)]  # within a word, without its ▁
        assert min(np.abs(new[i] - mean).max() for mean in candidates if np.isfinite(mean).all()) < 1e-6, piece
    assert params['head']['bias'].shape == (old_size + 5,)

    continued.init_from = str(tmp_path / 'run')
    with pytest.raises(ConfigError, match=f'vocab_size: {old_size + 5} there, {old_size} here'):
        warm_start.check_source(continued, manifest_lib.load(continued.data.directory))


def test_more_ids_for_the_same_tokenizer_are_refused(trained, continued):
    manifest = manifest_lib.load(continued.data.directory)
    size = continued.vocab_size
    continued.vocab_size += 3
    with pytest.raises(ConfigError, match=f'set vocab_size={size}, and prepare the data with it'):
        warm_start.check_source(continued, manifest)


@pytest.mark.parametrize('length', [48, 16])
def test_rows_may_have_another_length(trained, continued, length):
    """A longer table of positions goes on from its start; a shorter one ends earlier; all else is as it was."""
    workdir, mesh, model = trained
    continued.sequence_length = length
    warm_start.check_source(continued, manifest_lib.load(continued.data.directory))
    fresh = create_state(
        build.make_run(config_lib.resolve(continued), model.tokenizer.vocabulary, num_rows=16).init, mesh, 'dp'
    )
    params = warm_start.start_from(str(workdir), fresh, workdir / 'tokenizer.model').params
    expected = jax.tree.map(lambda x: x, model.params)  # `trained` is shared: its own tree stays whole
    old = expected['encoder'].pop('position_embedding')['embedding']
    new = params['encoder'].pop('position_embedding')['embedding']
    np.testing.assert_array_equal(new, np.concatenate([old, old])[:length])
    jax.tree.map(np.testing.assert_array_equal, params, expected)
