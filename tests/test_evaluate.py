"""The evaluation program on a model that has been prepared for, trained and saved like any other."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax import evaluate, prepare, train
from mlm_jax.config import ConfigError
from mlm_jax.parallel.mesh import make_mesh
from mlm_jax.training import loading
from mlm_jax.training.metrics import read_metrics

COLOURS = ('red', 'green', 'blue', 'black', 'white')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A model that has learned that each animal has its colour: (workdir, mesh, model)."""
    root = tmp_path_factory.mktemp('evaluate')
    animals = ('cat', 'dog', 'bird', 'fish', 'horse')
    rng = np.random.default_rng(0)
    sentences = [f'the {animals[i]} is {COLOURS[i]}.' for i in rng.integers(5, size=2000)]
    (root / 'text.txt').write_text('\n\n'.join(' '.join(sentences[i : i + 4]) for i in range(0, 2000, 4)))
    config = config_lib.default_config()
    overrides = {
        'vocab_size': '300', 'tokenizer.byte_fallback': 'False', 'sequence_length': '32', 'batch_size': '16',
        'total_steps': '150',
        'data.directory': str(root / 'data'), 'data.corpus': f'text:{root}/text.txt', 'data.validation_percent': '10',
        'model.num_layers': '2', 'model.width': '64', 'model.num_heads': '2', 'model.ffn_width': '128',
        'model.dropout': '0.0', 'model.attention_dropout': '0.0', 'optimizer.learning_rate': '3e-3',
        'compilation_cache': '', 'evaluation.rows': '20',
    }  # fmt: skip
    config_lib.apply_overrides(config, overrides)
    try:
        prepare.run(config, num_workers=1)
    except ConfigError as error:  # the text has few pieces: take as many as it yields
        config.vocab_size = int(str(error).split('largest that works is ')[1].split('.')[0])
        prepare.run(config, num_workers=1)
    train.train(config, root / 'run')
    mesh = make_mesh()
    return root / 'run', mesh, loading.load(root / 'run', mesh)


def test_held_out_loss_is_that_of_training(trained):
    workdir, mesh, model = trained
    with jax.set_mesh(mesh):
        metrics = evaluate.held_out_metrics(model, mesh)
    last = [line for line in read_metrics(workdir / 'metrics.jsonl') if 'eval/loss' in line][-1]
    assert metrics['loss'] == pytest.approx(last['eval/loss'], rel=1e-5)
    assert metrics['accuracy'] == pytest.approx(last['eval/accuracy'])
    assert metrics['loss'] < metrics['unigram_entropy'], 'context helps'


def test_fill_mask_gives_the_word_that_was_learned(trained):
    _, mesh, model = trained
    with jax.set_mesh(mesh):
        (candidates,) = evaluate.fill_mask(model, 'the dog is green. the cat is [MASK].', top=3)
    assert len(candidates) == 3
    assert candidates[0][1] >= candidates[1][1]
    assert candidates[0][0].startswith('▁')
    assert 'red'.startswith(candidates[0][0].lstrip('▁'))


def test_a_mask_stands_for_a_word_with_its_space(trained):
    tokenizer = trained[2].tokenizer
    v = tokenizer.vocabulary
    ids = evaluate.encode_with_masks(tokenizer, '[MASK] dog is [MASK]. the[MASK]').tolist()
    assert ids[0] == v.cls_id and ids[-1] == v.sep_id and ids.count(v.mask_id) == 3
    assert tokenizer.decode([i for i in ids if i not in v.special_ids]) == 'dog is. the'
    assert evaluate.encode_with_masks(tokenizer, 'a [MASK] b [MASK]').tolist().count(v.mask_id) == 2


def test_texts_that_cannot_be_filled_are_refused(trained):
    _, _, model = trained
    with pytest.raises(ConfigError, match='holds no'):
        evaluate.fill_mask(model, 'nothing to fill in')
    with pytest.raises(ConfigError, match='takes 32 at most'):
        evaluate.fill_mask(model, 'cat ' * 100 + '[MASK]')


def test_a_missing_checkpoint_is_named(trained):
    workdir, mesh, _ = trained
    with pytest.raises(FileNotFoundError, match='no checkpoint of step 7 '):
        loading.load(workdir, mesh, step=7)


@pytest.mark.smoke
def test_the_program_prints_json_or_words(trained):
    workdir, _, model = trained
    command = [sys.executable, '-m', 'mlm_jax.evaluate', f'--workdir={workdir}']
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(result.stdout)['step'] == model.step
    result = subprocess.run([*command, '--fill_mask=the cat is [MASK].'], capture_output=True, text=True, timeout=120)
    assert result.stdout.startswith('the cat is [MASK].\n    ') and '%' in result.stdout
