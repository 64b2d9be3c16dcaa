"""`mlm_jax.export`: the directory that it writes is what the run is, to transformers and to this package."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

import mlm_jax
from mlm_jax import config as config_lib
from mlm_jax import export
from mlm_jax.config import ConfigError
from mlm_jax.data import fast_tokenizer
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.interop import card
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.objectives.registry import OBJECTIVES
from mlm_jax.parallel.mesh import make_mesh
from mlm_jax.pretrained import exporting
from mlm_jax.training import build
from mlm_jax.training.state import example_batch

pytest.importorskip('safetensors.numpy')
pytest.importorskip('tokenizers')


@pytest.fixture(scope='module')
def model(trained):
    return mlm_jax.load(trained[0], make_mesh(devices=jax.devices()[:1]))  # programs for one device compile sooner


@pytest.fixture(scope='module')
def exported(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp('models') / 'animals'
    assert model.export(directory) == 'BertForMaskedLM'
    return directory


def test_a_directory_holds_what_others_need(exported, model):
    names = {path.relative_to(exported).as_posix() for path in exported.rglob('*') if path.is_file()}
    assert names == {
        'config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json',
        'modules.json', '1_Pooling/config.json', 'sentence_bert_config.json', 'README.md',
    }  # fmt: skip
    assert [path.name for path in exported.parent.iterdir()] == ['animals']
    config = json.loads((exported / 'config.json').read_text())
    v = model.tokenizer.vocabulary
    assert (config['pad_token_id'], config['mask_token_id'], config['bos_token_id']) == (v.pad_id, v.mask_id, v.cls_id)
    pooling = json.loads((exported / '1_Pooling' / 'config.json').read_text())
    assert pooling['pooling_mode_mean_tokens'] and pooling['word_embedding_dimension'] == config['hidden_size']


def test_it_is_the_same_model_when_it_is_loaded_again(exported, model):
    again = mlm_jax.load(f'hf:{exported}', model.mesh)
    texts = ['the cat is white.', 'the crow is black.']
    np.testing.assert_allclose(again.encode(texts), model.encode(texts), atol=1e-5)
    ((piece, probability), *_), *_ = again.fill_mask('the crow is [MASK]')
    ((expected, there), *_), *_ = model.fill_mask('the crow is [MASK]')
    assert piece == expected and probability == pytest.approx(there, abs=1e-4)
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, {k: model.params[k] for k in again.params}))


def test_transformers_computes_the_same_on_held_out_text(model, tmp_path):
    pytest.importorskip('transformers')
    plan = exporting.plan(model, dtype='bfloat16')
    texts = export.held_out_texts(model, 4)
    found = exporting.write(model, plan, tmp_path / 'out', texts=texts, shard_bytes=20_000)
    assert found is not None and found.difference < 1e-4 and found.num_texts == len(texts)
    assert (tmp_path / 'out' / 'model.safetensors.index.json').exists()
    wrong = {**plan.params, 'head': {**plan.params['head'], 'bias': plan.params['head']['bias'] + 1e-3}}
    wrong = exporting.Export(plan.checkpoint, wrong, 'float32', ())
    with pytest.raises(ConfigError, match=r'differ by up to 0\.001, and 0\.0001 is allowed'):
        exporting.compare(model, wrong, tmp_path / 'out', texts)


def test_the_card_holds_the_numbers_of_the_run_and_no_others(exported, model):
    text = (exported / card.FILE).read_text()
    config = model.config
    assert f' | {model.step * config.batch_size * config.sequence_length:,}, padding included ' in text
    assert '`eval/loss`' in text and 'commit of mlm_jax' in text and 'documents' in text and 'BLiMP' not in text
    assert '## What it is not good for' in text and 'None' not in text.split('## Configuration')[0]
    assert text.startswith('---\nlibrary_name: transformers\npipeline_tag: fill-mask\n')


def test_the_card_names_the_corpus_that_was_prepared_whatever_the_run_says(model, tmp_path):
    config, workdir = config_lib.from_json(config_lib.to_json(model.config)), model.source.directory
    config.data.corpus = 'demo'
    rows = dict(card._data(workdir, model.step, config))
    assert rows['corpus'] == model.config.data.corpus and 'documents' in rows['training text']
    config.data.directory = str(tmp_path / 'gone')
    assert card._data(workdir, model.step, config) == [('rows', f'gone: {tmp_path}/gone holds none that can be read')]
    config.data.corpus = 'text:mine'
    assert card._data(workdir, model.step, config)[0] == ('corpus', 'text:mine')


TRAINED_HERE, LEARNED = 'pretrained with masked-language modeling by mlm_jax', 'It has learned from text'


def card_of(name, exported, model, tmp_path):
    model = mlm_jax.load(name.format(exported, model.source.directory), model.mesh)
    exporting.write(model, exporting.plan(model), tmp_path / 'out')
    return (tmp_path / 'out' / card.FILE).read_text()


def test_the_card_of_a_converted_model_tells_of_no_training_here(exported, model, tmp_path):
    text = card_of('hf:{0}', exported, model, tmp_path)
    assert TRAINED_HERE not in text and 'A text encoder, converted by mlm_jax and written' in text
    assert f'These weights were converted from `hf:{exported}`' in text and LEARNED in text
    assert 'have not been trained to be compared' not in text and 'named above' not in text


def test_the_card_of_an_average_of_converted_models_names_them(exported, model, tmp_path):
    text = card_of('average:hf:{0}:1,hf:{0}:3', exported, model, tmp_path)
    assert TRAINED_HERE not in text and 'converted' not in text and LEARNED in text
    assert f'the mean, with these shares, of hf:{exported} (0.25), hf:{exported} (0.75): the cards of these' in text


@pytest.mark.parametrize('name', ['random:{1}', 'random:hf:{0}', '{1}@0'])
def test_the_card_of_a_random_model_says_that_it_has_learned_nothing(name, exported, model, tmp_path):
    text = card_of(name, exported, model, tmp_path)
    assert TRAINED_HERE not in text and LEARNED not in text and 'It has learned nothing' in text
    assert 'A text encoder with random parameters, made by mlm_jax and written' in text
    if name.startswith('random:'):
        source = name.format(exported, model.source.directory).removeprefix('random:')
        assert f'with the shapes of those of `{source}`' in text and 'tokens seen' not in text


@pytest.mark.parametrize('change', [{'tokenizer_sha256': '0' * 64}, {'sequence_length': 33}])
def test_the_card_does_not_describe_rows_that_have_taken_the_place_of_those_of_the_run(change, model, tmp_path):
    """Neither those of another tokenizer, which the run holds, nor those of other fingerprints."""
    config, workdir = config_lib.from_json(config_lib.to_json(model.config)), model.source.directory
    manifest_lib.save(dataclasses.replace(manifest_lib.load(config.data.directory), **change), tmp_path)
    config.data.update(directory=str(tmp_path), corpus='demo')
    expected = [('rows', f'not described: {tmp_path} holds others now')]
    assert card._data(workdir, model.step, config) == card._data(workdir, None, config) == expected


def test_reports_on_this_checkpoint_are_told_and_those_on_others_are_not(model, tmp_path):
    source, step = str(model.source.directory), model.step
    entries = {'a': {'model': source, 'step': step, 'accuracy': 0.75}, 'b': {'model': 'x', 'step': 1, 'accuracy': 0.25}}
    (tmp_path / 'blimp.json').write_text(json.dumps({'models': entries}))
    for seed, (number, value) in enumerate([(step, 0.5), (step, 0.7), (step + 1, 0.9)]):
        path = tmp_path / 'animals' / 'glue_sst2' / 'default' / f'seed{seed}'
        path.mkdir(parents=True)
        result = {'task': 'glue/sst2', 'metric': 'accuracy', 'origin': {'source': source, 'step': number}}
        path.joinpath('result.json').write_text(json.dumps(result | {'metrics': {'validation': {'accuracy': value}}}))
    rows = card._results(model.source.directory, step, [tmp_path])
    assert [row[:2] for row in rows] == [
        ['BLiMP, accuracy', '75.00%'],
        ['fine-tuned on glue/sst2 (default), accuracy', '0.6, mean of 2 seeds (validation)'],
    ]


@pytest.mark.parametrize(
    ('overrides', 'expected'),
    [
        ({'masking.ratio': '0.2'}, 'ratio 0.2'),
        ({'masking.strategy': 'fully_explored', 'masking.fully_explored.segments': '4'}, 'ratio 0.25'),
        (
            {'masking.ratio_schedule': 'linear', 'masking.ratio': '0.3'},
            'mean ratio 0.225 over the whole run (linear: from 0.3 to 0.15)',
        ),
        (
            {'masking.ratio_schedule': 'diffusion', 'masking.ratio': '0.9', 'masking.final_ratio': '0.1'},
            'mean ratio 0.5 over the whole run (diffusion: random for each row, from 0.9 to 0.1)',
        ),
    ],
)
def test_the_card_tells_the_ratio_that_masks_have(overrides, expected, model):
    config = config_lib.from_json(config_lib.to_json(model.config))
    config_lib.apply_overrides(config, overrides)
    text = card.of_run(card.Card('a', 'B', True, 1, {}, 'mean', (), '[MASK]'), model.source.directory, 3, config, ())
    assert f'| {config.masking.strategy}, token, {expected} ' in text


def test_results_of_a_part_are_told_as_such(model, tmp_path):
    source, step = str(model.source.directory), model.step
    setting = {'percent': 1.0, 'pairs': 670, 'paradigms': 67, 'within_word': True}
    entry = {'model': source, 'step': step, 'accuracy': 0.75}
    (tmp_path / 'blimp.json').write_text(json.dumps({'setting': setting, 'models': {'a': entry}}))
    recipe = {'learning_rate': 1e-4, 'batch_size': 32, 'epochs': 3, 'pooling': 'cls', 'max_length': 0}
    result = {'task': 'glue/sst2', 'metric': 'accuracy', 'origin': {'source': source, 'step': step}}
    few = {'max_train_examples': 1000, 'max_validation_examples': 200, 'max_length': 24}
    for seed, (setting, more) in enumerate([('default', {}), ('default', few), ('epochs=3', {})]):
        path = tmp_path / 'animals' / 'glue_sst2' / setting / f'seed{seed}'
        path.mkdir(parents=True)
        record = result | {'metrics': {'validation': {'accuracy': 0.5}}, 'recipe': recipe | more}
        path.joinpath('result.json').write_text(json.dumps(record))
    whats, values, _ = zip(*card._results(model.source.directory, step, [tmp_path]), strict=True)
    part = '1 % of it: 670 pairs of 67 paradigms, each piece of a word masked together with the later ones'
    assert list(whats) == [
        f'BLiMP ({part}), accuracy',
        'fine-tuned on glue/sst2 (learning_rate=0.0001, batch_size=32, epochs=3, pooling=cls), accuracy',
        'fine-tuned on glue/sst2 (learning_rate=0.0001, batch_size=32, epochs=3, pooling=cls, '
        'at most 1,000 training examples, at most 200 validation examples, at most 24 tokens of a row), accuracy',
        'fine-tuned on glue/sst2 (epochs=3, learning_rate=0.0001, batch_size=32, pooling=cls), accuracy',
    ]
    assert values[1:] == ('0.5, mean of 1 seed (validation)',) * 3


def test_what_is_in_the_way_is_refused_and_nothing_is_left(exported, model, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match='animals is not empty: name another --output, or delete it'):
        model.export(exported)
    (tmp_path / 'empty').mkdir()

    def fail(*arguments):
        raise ConfigError('no')

    monkeypatch.setattr(fast_tokenizer, 'write_fast_tokenizer', fail)
    with pytest.raises(ConfigError, match='no'):
        model.export(tmp_path / 'empty')
    assert [path.name for path in tmp_path.iterdir()] == ['empty'] and not any((tmp_path / 'empty').iterdir())


@pytest.mark.parametrize('name', OBJECTIVES)
def test_an_objective_goes_out_with_its_head_or_says_why_not(name, model, make_tiny_config, tmp_path):
    """Of MAE-LM, the encoder alone; with the paper's buckets, it has no home, but with T5's it has."""
    config = make_tiny_config()
    config.objective, config.model.attention_backend = name, 'xla'
    if 'learned' not in OBJECTIVES[name].positions:
        config.model.update(positions='rotary_2d', norm='pre', embedding_norm=False)
    elif OBJECTIVES[name].relative_bias:
        config.model.relative_buckets = 32
    objective = build.make_objective(config, standard_vocabulary(64))
    params = jax.eval_shape(objective.init, jax.random.key(0), example_batch(32, 4))['params']
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), params)
    trained = types.SimpleNamespace(
        source=model.source, objective=objective, params=params, tokenizer=model.tokenizer, config=config, step=3,
        objective_name=name, max_length=32,
    )  # fmt: skip
    if config.model.relative_buckets:
        with pytest.raises(
            ConfigError, match=r"closest is MPNetForMaskedLM, but for relative_bucketing='mae_lm', where"
        ):
            exporting.plan(trained)
        config.model.relative_bucketing = 't5'
        trained.objective = build.make_objective(config, standard_vocabulary(64))
    plan = exporting.plan(trained)
    spec = OBJECTIVES[name]
    assert plan.checkpoint.class_name.endswith('ForMaskedLM') == spec.head_on_encoder == ('head' in plan.params)
    assert bool(plan.notes) >= bool(spec.export_note)


def test_an_encoder_alone_encodes_but_fills_no_masks(model, tmp_path):
    plan = exporting.plan(model)
    checkpoint = dataclasses.replace(plan.checkpoint, has_head=False)
    alone = dataclasses.replace(plan, checkpoint=checkpoint, params={'encoder': plan.params['encoder']})
    exporting.write(model, alone, tmp_path / 'out')
    again = mlm_jax.load(f'hf:{tmp_path / "out"}', model.mesh)
    assert 'head' not in again.params and '`BertModel`' in (tmp_path / 'out' / card.FILE).read_text()
    for call in (lambda: again.fill_mask('the crow is [MASK]'), lambda: again.log_likelihood(['the crow is black.'])):
        with pytest.raises(ConfigError, match='is an encoder alone: without a prediction head'):
            call()
    assert exporting.plan(again).checkpoint.class_name == 'BertModel'
