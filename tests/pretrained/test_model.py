"""What `mlm_jax.load` returns: vectors, fillings and scores that depend on nothing but the text and the parameters."""

import copy
import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest

import mlm_jax
from mlm_jax import evaluate
from mlm_jax.config import ConfigError
from mlm_jax.data import sequences
from mlm_jax.finetuning import jobs
from mlm_jax.finetuning.recipe import Recipe
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.models.pooling import POOLINGS
from mlm_jax.parallel.mesh import make_mesh
from mlm_jax.pretrained import batches
from mlm_jax.pretrained.model import Model, tokens_with_masks
from mlm_jax.tasks import blimp
from mlm_jax.tasks.examples import Example, Task, TaskData
from mlm_jax.training.workdir import write_config

pytestmark = pytest.mark.usefixtures('one_device')

WORDS = ['the', 'cat', 'is', 'red', 'dog', 'green', 'bird', 'blue', 'fish', 'black', 'horse', 'white', '.']


@pytest.fixture(scope='module')
def start_of_run(animals_config, trained, tmp_path_factory):
    """(objective) → the name of the start of such a run, with the tokenizer of `trained`."""

    def make(objective: str) -> str:
        workdir = tmp_path_factory.mktemp('starts') / objective
        workdir.mkdir()
        config = copy.deepcopy(animals_config)
        config.objective, config.model.num_layers, config.mae_lm.decoder_layers = objective, 1, 1
        if objective == 'exlm':
            config.model.update(positions='rotary_2d', norm='pre', embedding_norm=False)
            config.masking.update(mask_fraction=1.0, random_fraction=0.0)
        write_config(workdir, config)
        shutil.copy(trained[0] / 'tokenizer.model', workdir)
        return f'{workdir}@0'

    return make


@pytest.fixture(scope='module')
def bert(write_bert, tmp_path_factory) -> str:
    """The name of a checkpoint of Hugging Face."""
    pytest.importorskip('safetensors.numpy')
    pytest.importorskip('tokenizers')
    return f'hf:{write_bert(tmp_path_factory.mktemp("hf") / "bert")}'


@pytest.fixture(scope='module', params=['mlm', 'mae_lm', 'exlm', 'hf'])
def model(request, trained, start_of_run, bert) -> Model:
    """The first over eight devices."""
    if request.param == 'mlm':
        return mlm_jax.load(trained[0], make_mesh(devices=jax.local_devices()))
    return mlm_jax.load(bert if request.param == 'hf' else start_of_run(request.param))


def test_pairs_are_separated_as_in_the_pretraining_of_a_published_model(bert, trained, tmp_path):
    directory = shutil.copytree(bert.removeprefix('hf:'), tmp_path / 'bert')
    stored = json.loads((directory / 'tokenizer.json').read_text())
    processor = {'type': 'BertProcessing', 'cls': ['[CLS]', 2], 'sep': ['[SEP]', 3]}
    (directory / 'tokenizer.json').write_text(json.dumps(stored | {'post_processor': processor}))
    model = mlm_jax.load(f'hf:{directory}')
    pair = [Example('0', ('w7 w8', 'w9'), (0.0,)), Example('1', ('w7', 'w9'), (1.0,))]
    data = TaskData(Task('mine', 'classification', ('a', 'b'), ('accuracy',)), {'train': pair, 'validation': pair})
    job = jobs.Job('it', 'mine', 'default', Recipe(), {})
    assert jobs.make_problem(job, data, model, None).inputs['train'].tokens[0].tolist() == [2, 7, 8, 3, 9, 3]
    run = dataclasses.replace(model, source=trained[2].source)
    assert model.separators == 1 and run.separators == 2, 'a run may have the same tokenizer, and has seen no pairs'


def random_texts(model: Model, count: int) -> list[str]:
    """Of 0, 2 or 6 words, some of them twice."""
    words = WORDS if model.config else [f'w{i}' for i in range(5, 64)]
    rng = np.random.default_rng(0)
    texts = [' '.join(rng.choice(words, n)) for n in rng.choice((0, 2, 6), count)]  # of few lengths, to compile few
    return [*texts, *texts[:2]]


def tokens_of(model: Model, text: str) -> np.ndarray:
    v = model.tokenizer.vocabulary
    return np.array([v.cls_id, *model.tokenizer.encode(text), v.sep_id], np.int32)


def each_alone(model: Model, texts: list[str]) -> list[np.ndarray]:
    """float32[n, d] of each text: all its vectors, where it goes through the encoder by itself."""
    encode = jax.jit(lambda params, *row: model.objective.apply({'params': params}, *row, method='encode'))
    params = jax.device_get(model.params)
    rows = [jnp.asarray(tokens_of(model, text))[None] for text in texts]
    return [np.asarray(encode(params, tokens_1xT, jnp.ones_like(tokens_1xT)))[0] for tokens_1xT in rows]


def test_vectors_are_those_of_each_text_alone(model):
    """Whatever the texts beside it, their order, the size of batches and the number of devices."""
    texts = random_texts(model, 9)
    expected = each_alone(model, texts)
    mean_Nxd = np.stack([vectors.mean(0) for vectors in expected])
    found_Nxd = model.encode(texts)
    assert found_Nxd.dtype == np.float32 and model.mesh.size == (
        8 if model.objective_name == 'mlm' and model.config else 1
    )
    np.testing.assert_allclose(found_Nxd, mean_Nxd, atol=1e-5)
    np.testing.assert_allclose(model.encode(texts[::-1], batch_size=3)[::-1], mean_Nxd, atol=1e-5)
    np.testing.assert_allclose(model.encode(texts[5:6]), mean_Nxd[5:6], atol=1e-5)
    np.testing.assert_allclose(
        model.encode(iter(texts), pooling='cls'), np.stack([vectors[0] for vectors in expected]), atol=1e-5
    )
    if model.mesh.size > 1:
        few = mlm_jax.load(model.source)
        np.testing.assert_allclose(few.encode(texts), mean_Nxd, atol=1e-5)


def test_nothing_gives_nothing(model):
    assert model.encode([]).shape == (0, model.objective.config.width)
    assert model.log_likelihood([]).shape == (0,)


def test_what_is_known_of_a_model(model, trained):
    assert model.params.keys() >= {'encoder', 'head'}
    if model.source.is_hugging_face:
        assert (model.config, model.step, model.objective_name, model.max_length) == (None, None, 'mlm', 40)
        with pytest.raises(ConfigError, match='hf:.* is not a run, and has neither masks nor held-out rows'):
            model.held_out_rows()
    else:
        assert model.objective_name == model.config.objective and model.max_length == 32
        assert model.step == (150 if model.objective_name == 'mlm' else 0)
        assert len(model.held_out_rows())


def test_random_parameters_are_others(trained, bert):
    for name in (str(trained[0]), bert):
        learned, drawn = mlm_jax.load(name), mlm_jax.load(f'random:{name}')
        assert drawn.step is None
        shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model.params) for model in (learned, drawn)]
        assert shapes[0] == shapes[1]
        texts = random_texts(learned, 3)
        assert abs(drawn.encode(texts) - learned.encode(texts)).max() > 0.1
    start = mlm_jax.load(f'{trained[0]}@0')
    again = mlm_jax.load(f'random:{trained[0]}')
    jax.tree.map(np.testing.assert_array_equal, start.params, again.params)  # this run began at random


def test_long_texts_are_cut_and_counted(trained):
    model = trained[2]
    room = model.max_length - 2
    long, fitting = 'red ' * 100, 'red ' * room
    ids = model.tokenizer.encode(long)[:room]
    with pytest.warns(
        UserWarning, match='^1 of 2 texts are cut at 32 tokens, the most that this model takes'
    ) as caught:
        found = model.encode([long, 'the cat'])
    assert caught[0].filename == __file__
    np.testing.assert_allclose(found, model.encode([model.tokenizer.decode(ids.tolist()), 'the cat']), atol=1e-5)
    assert len(model.tokenizer.encode(fitting)) >= room
    with pytest.raises(ConfigError, match='this model takes 32 at most'):
        model.log_likelihood([long])


def test_what_cannot_be_encoded_is_refused(trained):
    model = trained[2]
    for method in (model.encode, model.log_likelihood):
        with pytest.raises(TypeError, match=r'takes a list of texts; of one text, give \[text\]'):
            method('the cat')
        with pytest.raises(TypeError, match='texts must be strings, and number 1 is bytes'):
            method(['the cat', b'is'])
    with pytest.raises(ConfigError, match="pooling='max' must be cls or mean"):
        model.encode(['the cat'], pooling='max')
    broken = copy.copy(model)
    object.__setattr__(broken, 'params', jax.tree.map(lambda x: x * np.nan, model.params))
    with pytest.raises(FloatingPointError, match='its parameters have diverged'):
        broken.encode(['the cat'])


def test_a_bar_is_shown_where_it_is_wanted(trained, capsys):
    trained[2].encode(['the cat'])
    assert not capsys.readouterr().err
    trained[2].encode(['the cat'] * 3, progress=True)
    assert '3/3' in capsys.readouterr().err


def test_masks_are_filled_as_the_program_fills_them(trained, bert):
    workdir, _, model = trained
    text = 'the dog is green. the [MASK] is [MASK].'
    result = programs.run('evaluate', f'--model={workdir}', f'--fill_mask={text}', '--top=3')
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == text
    shown = [[(piece.replace('▁', ''), f'{p:.1%}') for piece, p in found] for found in model.fill_mask(text, top=3)]
    assert [[tuple(entry.split(' ')) for entry in line[4:].split('   ')] for line in lines[1:]] == shown

    ids = tokens_with_masks(model.tokenizer, text)[None]
    at = np.flatnonzero(ids == model.tokenizer.vocabulary.mask_id)[None]
    batch = MaskedBatch(ids, ids, at, np.ones(at.shape, np.float32), np.ones_like(ids))
    logits = jax.jit(lambda params: model.objective.apply({'params': params}, batch, method='logits')[0])(model.params)
    expected = jax.nn.softmax(logits.at[:, np.array(model.tokenizer.vocabulary.special_ids)].set(-np.inf)).max(-1)
    assert ids.shape[1] % 4 and at.shape == (1, 2), 'the row is padded'
    best = [found[0][1] for found in model.fill_mask(text)]
    np.testing.assert_allclose(best, expected, rtol=1e-4)

    found = mlm_jax.load(bert).fill_mask('w5 [MASK] w9', top=59)
    assert len(found) == 1 and {piece for piece, _ in found[0]} == {f'▁w{i}' for i in range(5, 64)}
    assert sum(p for _, p in found[0]) == pytest.approx(1, abs=1e-5)


@pytest.fixture
def doubled(trained):
    """The same model, as one of repeated MLM."""
    model = copy.copy(trained[2])
    config = copy.deepcopy(model.config)
    config.masking.repeats = 2
    object.__setattr__(model, 'config', config)
    return model


@pytest.mark.parametrize('pooling', POOLINGS)
def test_copies_of_a_token_have_one_vector(doubled, trained, pooling):
    """That of a text in which each token stands twice: of its first two tokens, or of all."""
    model = trained[2]
    ids = sequences.join(model.tokenizer.encode_batch(['the cat is']), model.tokenizer.vocabulary)
    tokens = np.repeat(ids, 2)[None]
    encode = jax.jit(functools.partial(model.objective.apply, method='encode'))
    x = encode({'params': model.params}, tokens, np.ones_like(tokens))[0]
    expected = x[:2].mean(0) if pooling == 'cls' else x.mean(0)
    np.testing.assert_allclose(doubled.encode(['the cat is'], pooling)[0], expected, rtol=1e-4, atol=1e-5)


def test_batches_of_repeated_tokens_are_not_larger(doubled, trained, monkeypatch):
    """In tokens that the encoder reads, which is what memory limits."""
    lengths, choose = [], batches.batch_size
    monkeypatch.setattr(
        batches, 'batch_size', lambda mesh, length, *more: lengths.append(length) or choose(mesh, length, *more)
    )
    for model in (trained[2], doubled):
        model.encode(['the cat is'])
    assert lengths[1] == 2 * lengths[0]


def test_copies_of_a_mask_are_filled_together(doubled):
    """Repeated MLM reads each token several times, and its predictions for a mask are averaged."""
    model = doubled
    assert model.max_length == 16
    (found,) = model.fill_mask('the cat is [MASK]', top=4)
    assert len(found) == 4 and [p for _, p in found] == sorted((p for _, p in found), reverse=True)


def test_each_mask_is_filled_from_all_tokens_however_many_are_masked(model):
    """The last words of the text are read, which the few slots of MAE-LM's encoder would leave out."""
    words = WORDS if model.config else ['w5', 'w6', 'w7']
    masks = ' '.join([words[0], *['[MASK]'] * 9])
    found = [model.fill_mask(f'{masks} {last} {last}')[0] for last in words[1:3]]
    assert found[0] != found[1]


def test_likelihoods_are_sums_over_single_masks(model):
    """Those of the definition; and the same alone and in company."""
    texts = [text for text in random_texts(model, 6) if text]
    found = model.log_likelihood(texts)
    np.testing.assert_allclose([model.log_likelihood([text])[0] for text in texts[:2]], found[:2], rtol=1e-5)
    if model.objective_name != 'mlm':
        return
    score = jax.jit(lambda params, batch: model.objective.apply({'params': params}, batch, method='log_likelihood'))
    ids, v = tokens_of(model, texts[0]), model.tokenizer.vocabulary
    total = 0.0
    for place in range(1, len(ids) - 1):
        masked = jnp.asarray(np.where(np.arange(len(ids)) == place, v.mask_id, ids), jnp.int32)[None]
        tokens = jnp.asarray(ids)[None]
        batch = MaskedBatch(tokens, masked, jnp.array([[place]]), jnp.ones((1, 1)), jnp.ones_like(tokens))
        total += float(score(model.params, batch)[0, 0])
    assert found[0] == pytest.approx(total, rel=1e-5)


def test_likelihoods_judge_minimal_pairs_as_the_program_does(trained, minimal_pairs):
    _, mesh, model = trained
    pairs = blimp.read(minimal_pairs, 100.0)
    sentences = [pair.good for pair in pairs] + [pair.bad for pair in pairs]
    for within_word in (False, True):
        with jax.set_mesh(mesh):
            report = evaluate.judge_minimal_pairs([model.source], mesh, minimal_pairs, 100.0, within_word)
        good, bad = np.split(model.log_likelihood(sentences, within_word), 2)
        (entry,) = report['models'].values()
        assert entry['accuracy'] == pytest.approx(np.mean(good > bad))


def test_the_program_takes_checkpoints_of_hugging_face_where_it_can(bert, tmp_path):
    result = programs.run('evaluate', f'--model={bert}', '--fill_mask=w5 [MASK]')
    assert result.returncode == 0 and result.stdout.startswith('w5 [MASK]\n    w'), result.stderr
    result = programs.run('evaluate', f'--model={bert}')
    assert result.returncode == 1 and result.stderr.startswith('error: evaluate reads the held-out rows that a run was')


def test_the_program_evaluates_what_has_learned_nothing(trained):
    result = programs.run('evaluate', f'--model=random:{trained[0]}', f'--model={trained[0]}@150')
    assert result.returncode == 0, result.stderr
    random, learned = map(json.loads, result.stdout.splitlines())
    assert (random['model'], random['step'], learned['model'], learned['step']) == ('random-run', None, 'run@150', 150)
    assert random['loss'] > learned['loss'] + 1
