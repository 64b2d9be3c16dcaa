"""The Trainer of transformers is given what fine-tuning here does: the same batches, and the same updates."""

import dataclasses

import jax
import numpy as np
import pytest

import mlm_jax
from mlm_jax.config import ConfigError
from mlm_jax.finetuning import inputs, loop, problems, programs
from mlm_jax.finetuning.recipe import Recipe
from mlm_jax.parallel.mesh import make_mesh
from mlm_jax.performance import transformers_peer
from mlm_jax.tasks.examples import Example, Task, TaskData

torch = pytest.importorskip('torch')
pytest.importorskip('accelerate')

SEED = 3
# Adam's first update would be ±lr whatever the gradient; with a large ε it is proportional to it.
RECIPE = Recipe(
    learning_rate=1.0,
    batch_size=4,
    epochs=1,
    warmup_percent=0.0,
    weight_decay=0.1,
    eps=1.0,
    clip_norm=0.5,
    dropout=0.0,
)


def test_batches_are_those_of_fine_tuning_here():
    lengths = np.random.default_rng(0).integers(3, 30, 50)
    batches = transformers_peer._Batches(lengths, RECIPE, SEED)
    for epoch in range(2):
        expected = [rows.tolist() for rows in inputs.epoch_batches(lengths, RECIPE.batch_size, SEED, epoch)]
        assert list(batches) == expected and len(batches) == len(expected)


def test_recipes_that_the_trainer_cannot_follow_are_refused():
    with pytest.raises(ConfigError, match=r'layer_decay=1.0, pooling=cls$'):
        transformers_peer.check(dataclasses.replace(RECIPE, layer_decay=0.9, pooling='mean'))


def test_updates_are_those_of_fine_tuning_here(trained, tmp_path, monkeypatch):
    model = mlm_jax.load(trained[0], make_mesh(devices=jax.devices()[:1]))
    model.export(tmp_path / 'model')
    texts = [f'the {animal} is {color}.' for animal in ('cat', 'crow', 'fox') for color in ('white', 'black', 'red')]
    examples = [Example(str(i), (text,), (float(i % 2),)) for i, text in enumerate(texts)]
    task = TaskData(
        Task('pets', 'classification', ('a', 'b'), ('accuracy',)), dict.fromkeys(('train', 'validation'), examples)
    )
    problem, _ = problems.make_problem(task, model.tokenizer, RECIPE, model.max_length)
    with jax.set_mesh(model.mesh):
        (ours,) = loop.fine_tune(
            model.objective,
            model.params['encoder'],
            model.tokenizer.vocabulary.pad_id,
            problem,
            RECIPE,
            [SEED],
            model.mesh,
        )
        module = programs.make_module(model.objective, problem, RECIPE)
        init = jax.jit(programs.init_params, static_argnums=0)
        head = jax.device_get(init(module, SEED, model.params['encoder']))
    make = transformers_peer._classifier

    def with_our_head(*arguments):
        classifier = make(*arguments)
        classifier.bert.embeddings.token_type_embeddings.requires_grad_(False)  # there are none here
        for layer, name in ((classifier.bert.pooler.dense, 'dense'), (classifier.classifier, 'output')):
            layer.load_state_dict(
                {'weight': torch.tensor(head[name]['kernel'].T), 'bias': torch.tensor(head[name]['bias'])}
            )
        return classifier

    monkeypatch.setattr(transformers_peer, '_classifier', with_our_head)
    rows = transformers_peer.encode(tmp_path / 'model', texts, problem.inputs['train'])
    assert all(map(np.array_equal, rows.tokens, problem.inputs['train'].tokens))
    trainer, seconds = transformers_peer.fine_tune(tmp_path / 'model', rows, 2, RECIPE, SEED, same_batches=True)
    assert seconds > 0
    theirs = transformers_peer.predict(trainer, rows)

    np.testing.assert_allclose(theirs, np.array(ours.outputs['validation']), atol=1e-4)
