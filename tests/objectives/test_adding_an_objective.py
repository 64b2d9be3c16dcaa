"""The page on a new objective, docs/objectives.md, followed to the letter: its code trains, and every tool knows it."""

import json
import pathlib
import re
import sys
import types

import jax
import numpy as np
import programs
import properties
import pytest
from absl import flags
from absl.testing import flagsaver

import mlm_jax
from mlm_jax import config as config_lib
from mlm_jax import probe
from mlm_jax import train as train_lib
from mlm_jax.comparing import budgets
from mlm_jax.comparing.configurations import Candidate
from mlm_jax.config import ConfigError, slice_fitting, step_flops
from mlm_jax.objectives import registry
from mlm_jax.pretrained import huggingface, sources
from mlm_jax.training.metrics import read_metrics

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'objectives.md'


@pytest.fixture(scope='module')
def blocks():
    """The file that each block of Python is, by its name; and the lines of the registry."""
    text = PAGE.read_text(encoding='utf-8')
    files = dict(re.findall(r'`mlm_jax/objectives/(\w+)\.py`:\n\n```python\n(.*?)```', text, re.DOTALL))
    lines = files.pop('registry')
    assert list(files) == ['replaced_spec', 'replaced']
    return files, lines


@pytest.fixture(scope='module')
def registered(blocks, animals_config):
    """The objective `replaced`, in the registry while the tests of this file run.

    After `animals_config`, which every file shares: prepared later it would hold the keys of this objective.
    """
    files, lines = blocks
    before = dict(vars(registry))
    names = [f'mlm_jax.objectives.{name}' for name in files]
    for name, code in zip(names, files.values(), strict=True):
        module = types.ModuleType(name)
        sys.modules[name] = module
        exec(compile(code, name, 'exec'), vars(module))
    exec(compile(lines, registry.__file__, 'exec'), vars(registry))  # at the end of that file, with what it knows
    yield 'replaced'
    del registry.OBJECTIVES['replaced']
    for name in set(vars(registry)) - set(before):
        delattr(registry, name)
    for name in names:
        del sys.modules[name]


@pytest.fixture(scope='module')
def run(registered, animals_config, one_device, tmp_path_factory):
    """A run of it, stopped after eight steps and gone on to twelve: (configuration, workdir)."""
    config, workdir = config_lib.from_json(config_lib.to_json(animals_config)), tmp_path_factory.mktemp('run') / 'run'
    settings = {
        'objective': registered, 'total_steps': '8', 'logging.every_steps': '4', 'model.num_layers': '1',
        'schedule.name': 'constant', 'schedule.warmup_steps': '0',  # one program for both durations
    }  # fmt: skip
    config_lib.apply_overrides(config, settings)
    train_lib.train(config, workdir)
    config.total_steps = 12
    train_lib.train(config, workdir)
    return config, workdir


def test_the_code_is_short(blocks):
    files, registering = blocks
    lines = [text for code in (*files.values(), registering) for text in code.splitlines() if text.strip()]
    assert len(lines) <= 62, 'sixty lines, and two in the registry'
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize('holds', properties.OF_NEW)
def test_what_holds_of_every_objective_holds_of_it(registered, holds):
    holds(registered)


def test_it_trains_and_goes_on(run):
    config, workdir = run
    lines = read_metrics(workdir / 'metrics.jsonl')
    assert [line['step'] for line in lines if 'train/loss' in line] == [4, 8, 12]
    assert all(np.isfinite(line['train/loss']) for line in lines if 'train/loss' in line)
    config = config_lib.from_json(config_lib.to_json(config))
    config.replaced.times_narrower = 1
    with pytest.raises(ConfigError, match='replaced.times_narrower: 2 in the checkpoint, 1 now'):
        train_lib.train(config, workdir)
    config.replaced.times_narrower = 0
    with pytest.raises(ConfigError, match=r'replaced.times_narrower=0 must lie within 1 … 64'):
        train_lib.train(config, workdir)


@pytest.mark.parametrize('fits', [1, 2, 4])
def test_a_width_is_refused_where_the_heads_do_not_fit(registered, fits):
    config = properties.configuration(registered)
    config.model.num_heads, config.replaced.times_narrower = 4, fits
    config_lib.resolve(config)
    config.replaced.times_narrower = 3
    cure = r'replaced.times_narrower=3 must divide model.num_heads=4: set it to one of \[1, 2, 4\]'
    with pytest.raises(ConfigError, match=cure):
        config_lib.resolve(config)


def test_the_memory_of_a_step_holds_both_encoders(registered):
    """A generator as wide as the encoder doubles what layers take; one of half the width takes half of that."""
    config = properties.configuration('mlm')
    fixed_bytes, row_bytes = slice_fitting.step_bytes(config, 1)
    logits = slice_fitting.BYTES_OF_LOGIT * config.vocab_size * step_flops.slot_sizes(config).masked
    config.objective, added = registered, []
    for config.replaced.times_narrower in (1, 2):
        memory = slice_fitting.step_bytes(config, 1)
        added.append((memory[0] - fixed_bytes, memory[1] - row_bytes))
    (whole_fixed, whole_row), (half_fixed, half_row) = added
    assert whole_row == pytest.approx(row_bytes - logits) == pytest.approx(2 * half_row)
    assert whole_fixed == pytest.approx(4 * half_fixed) and half_fixed > 0


def test_it_is_compared_at_equal_cost(run, tmp_path):
    config = run[0]
    mlm = config_lib.from_json(config_lib.to_json(config))
    mlm.objective = 'mlm'
    candidates = [Candidate(name, name, value) for name, value in (('mlm', mlm), ('replaced', config))]
    shared = budgets.share_budget(candidates, 'flops', tmp_path)
    spent = [c.config.total_steps * step_flops.step_flops(c.config) for c in shared]
    assert shared[1].config.total_steps < shared[0].config.total_steps
    assert spent[1] == pytest.approx(spent[0], rel=0.1)


def test_it_is_evaluated_as_a_model_of_text(run):
    model = mlm_jax.load(run[1])
    assert model.encode(['the cat is red.', 'the cat is red. the dog is green.']).shape == (2, 64)
    (filling,) = model.fill_mask('the cat is [MASK].')
    assert sum(p for _, p in filling) <= 1 and len(filling) > 1
    assert np.isfinite(model.log_likelihood(['the cat is red.'])).all()


def test_its_ranks_and_its_entropy_are_probed(run, tmp_path):
    before = set(flags.FLAGS)
    probe._define_flags()
    try:
        for name in ('effective_rank', 'entropy'):
            with flagsaver.flagsaver():
                flags.FLAGS(['probe', f'--model={run[1]}', f'--output={tmp_path / name}', '--rows=8'])
                probe.PROBES[name].main(sources.parse_runs(flags.FLAGS.model, f'probe {name}'))
            assert json.loads((tmp_path / name / f'{name}.json').read_text())
        with flagsaver.flagsaver(), pytest.raises(ConfigError, match='objective=replaced: .* no states to align'):
            flags.FLAGS(['probe', f'--model={run[1]}', f'--output={tmp_path / "dag"}'])
            probe.PROBES['dag'].main(sources.parse_runs(flags.FLAGS.model, 'probe dag'))
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)


def test_it_is_fine_tuned(run, tmp_path):
    pytest.importorskip('sklearn')
    colors = ('red', 'green') * 20
    lines = [f'the cat {number} is {color}.\t{color == "red"}' for number, color in enumerate(colors)]
    (tmp_path / 'task.tsv').write_text('\n'.join(['text\tlabel', *lines]) + '\n')
    arguments = [
        f'--model={run[1]}', f'--train_file={tmp_path / "task.tsv"}', '--seeds=1', '--set=epochs=1',
        '--set=batch_size=8', f'--output={tmp_path / "out"}', '--held_out_percent=25',
    ]  # fmt: skip
    result = programs.run('finetune', *arguments)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / 'out' / 'results.json').read_text())['task']


def test_it_is_refused_in_words_as_a_bert(run, tmp_path):
    pytest.importorskip('safetensors')
    model = mlm_jax.load(run[1])
    with pytest.raises(
        ValueError, match='the parameters of the objective mlm; these have detector, encoder, generator'
    ):
        huggingface.to_hf(model.objective.config, jax.device_get(model.params), tmp_path / 'bert')
