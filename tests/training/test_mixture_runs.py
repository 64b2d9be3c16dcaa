"""Runs on mixtures of directories, with rows read in blocks: logs, resumption, and what other programs make of them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from prepared_rows import write_prepared

from mlm_jax import config as config_lib
from mlm_jax import doctor, evaluate, inspect_masks, prepare, train
from mlm_jax.config import ConfigError
from mlm_jax.data import mixtures, prepared_data
from mlm_jax.interop import card
from mlm_jax.training import checkpoints, loss_curve, resuming, run_log
from mlm_jax.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def mixed_config(make_tiny_config, tmp_path_factory):
    """A configuration for a mixture of two directories, read in blocks of 16 rows."""
    root = tmp_path_factory.mktemp('mixture')
    write_prepared(root / 'en', documents=120)
    write_prepared(root / 'de', documents=40)
    config = make_tiny_config()
    config.data.update(directory=f'{root}/en:0.75,{root}/de:0.25', block_kib=1, window_blocks=2)
    config.model.update(num_layers=1, width=16, num_heads=1, ffn_width=16)
    return config


def changed(config, **settings):
    config = config_lib.from_json(config_lib.to_json(config))
    config_lib.apply_overrides(config, {key.replace('__', '.'): value for key, value in settings.items()})
    return config


def reading_of(config) -> mixtures.Reading:
    return prepared_data.load(config.data).reading(config.data.window_blocks)


def position_of(workdir) -> checkpoints.Position:
    saver = checkpoints.Checkpoints(workdir / 'checkpoints', read_only=True)
    position = saver.restore_position()
    saver.close()
    return position


def test_a_run_logs_each_source_and_goes_on_after_new_weights(mixed_config, tmp_path, capfd):
    last = train.train(mixed_config, tmp_path / 'run')
    lines = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
    *_, line = (line for line in lines if 'eval/loss' in line)
    assert line['eval/loss'] == pytest.approx(0.75 * line['eval/en/loss'] + 0.25 * line['eval/de/loss'])
    assert last['de/accuracy'] == line['eval/de/accuracy']
    rows = {
        source.name: source.manifest.split('train').rows for source in prepared_data.load(mixed_config.data).sources
    }
    *_, epochs = (line for line in lines if 'data/epochs_en' in line)
    assert epochs['data/epochs_en'] == pytest.approx(48 / rows['en'])
    assert epochs['data/epochs_de'] == pytest.approx(16 / rows['de'])
    assert 'mixture: en 75 % from' in capfd.readouterr().err
    reading = mixtures.Reading.from_json(position_of(tmp_path / 'run').data)
    assert reading == reading_of(mixed_config)

    directory = mixed_config.data.directory.replace('0.75', '0.5').replace('0.25', '0.5')
    train.train(changed(mixed_config, total_steps='5', data__directory=directory), tmp_path / 'run')
    said = capfd.readouterr().err
    assert 'mixture: en 75 % of the rows before, 50 % now; 48 of its rows have been read' in said
    reading = mixtures.Reading.from_json(position_of(tmp_path / 'run').data)
    assert (reading.first_example, [reader.consumed for reader in reading.readers]) == (64, [48, 16])
    lines = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
    assert [line['data/epochs_de'] for line in lines if 'data/epochs_de' in line][-1] == pytest.approx(24 / rows['de'])

    (tmp_path / 'run' / 'tokenizer.model').unlink()  # these manifests know no checksum of it
    before, after = (
        card._data(tmp_path / 'run', step, changed(mixed_config, data__directory=directory)) for step in (4, 5)
    )
    assert before == [('rows', f'not described: {directory} holds others now, or the same in other shares')]
    assert dict(after)['corpus de'] == '?, 50.00% of the rows'


def test_the_progress_line_has_room_for_few_sources():
    assert run_log._describe_epochs({}) == ''
    assert run_log._describe_epochs({'en': 0.254, 'de': 3.0}) == '  epochs en 0.25, de 3.00'
    many = {f's{i}': i / 10 for i in (3, 1, 2, 0, 4)}
    assert run_log._describe_epochs(many) == '  epochs s0 0.00, s4 0.40'
    assert [label for _, label, _ in loss_curve._of_sources([{'eval/de/loss': 1.0, 'eval/loss': 1.0}])] == [
        'held out, de'
    ]


def test_a_run_keeps_the_order_of_its_rows(mixed_config):
    stored = config_lib.resolve(mixed_config).to_dict()
    for key in ('data__block_kib', 'data__window_blocks'):
        with pytest.raises(ConfigError, match=rf'(?s){key.replace("__", ".")}: .* a run keeps its order'):
            resuming.check_resume(stored, config_lib.resolve(changed(mixed_config, **{key: '3'})), print)
    by_rows = config_lib.resolve(changed(mixed_config, data__block_kib='0'))
    resuming.check_resume(by_rows.to_dict(), changed(by_rows, data__window_blocks='3'), print)


def test_a_checkpoint_of_an_earlier_version_read_one_directory(mixed_config):
    alone = changed(mixed_config, data__directory=mixed_config.data.directory.partition(':')[0])
    position = checkpoints.Position(32, 0.0, [], json.loads(config_lib.to_json(alone)))
    now = reading_of(alone)
    assert resuming.resumed_reading(position, now, print) == now
    after = resuming.resumed_reading(position, reading_of(mixed_config), lambda _: None)
    assert [(reader.consumed, reader.window) for reader in after.readers] == [(32, 2), (0, 1)]


def test_inspect_masks_shows_the_rows_of_the_mixture(mixed_config):
    config = changed(mixed_config, masking__strategy='fully_explored', masking__fully_explored__schedule='subset')
    config, data = prepared_data.resolve(config)
    ((batch, _),) = inspect_masks.masked_batches(config, data, 3, 1)
    expected = data.training_rows().read(data.order(config)(np.arange(48, 64)))
    assert np.array_equal(batch.tokens[::2], expected)


def test_doctor_checks_each_directory_and_prepare_takes_one(mixed_config, tmp_path):
    found = list(doctor._check_prepared(config_lib.resolve(mixed_config), verify=True))
    assert all(fine for fine, _ in found), found
    assert 'mixture: en 75 % from' in found[0][1] and [text[-4:] for _, text in found[1:]] == ['/en)', '/de)']
    (corpus, *_), _ = card._data(tmp_path, None, mixed_config)[:2]
    assert corpus == 'corpus en'
    with pytest.raises(ConfigError, match='is a mixture of several directories, and prepare writes one at a time'):
        prepare.run(mixed_config)


def test_held_out_rows_of_two_copies_are_judged_as_those_of_one(trained, tmp_path):
    _, mesh, model = trained
    expected = evaluate.held_out_metrics(model, mesh)
    first = model.config.data.directory
    shutil.copytree(first, tmp_path / 'copy')
    config = changed(
        model.config,
        data__directory=f'{first}:1,{tmp_path}/copy:2',
        evaluation__rows=str(2 * model.config.evaluation.rows),
    )
    mixture = dataclasses.replace(model, config=config)
    found = evaluate.held_out_metrics(mixture, mesh)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert {name: found[f'copy/{name}'] for name in expected if name != 'unigram_entropy'} == pytest.approx(
        {name: value for name, value in expected.items() if name != 'unigram_entropy'}
    )
    rows = mixture.held_out_rows().read(np.arange(3))
    assert len(np.unique(rows, axis=0)) == 2, 'one row of the first and two of its copy'
