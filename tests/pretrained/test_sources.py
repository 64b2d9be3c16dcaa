"""The names of trained models: one grammar for programs, keys and notebooks."""

import pathlib

import pytest

from mlm_jax.config import ConfigError
from mlm_jax.pretrained import sources
from mlm_jax.pretrained.sources import Source, parse


@pytest.mark.parametrize(
    ('text', 'parts'),
    [
        ('runs/mlm', {}),
        ('runs/mlm@100', {'directory': 'runs/mlm', 'step': 100}),
        ('runs/mlm@0', {'directory': 'runs/mlm', 'step': 0}),
        ('runs/me@work', {'directory': 'runs/me@work'}),
        ('hf:models/bert', {'directory': 'models/bert', 'is_hugging_face': True}),
        ('hf:models/bert@2', {'directory': 'models/bert@2', 'is_hugging_face': True}),
        ('random:runs/mlm', {'directory': 'runs/mlm', 'is_random': True}),
        ('random:hf:bert', {'directory': 'bert', 'is_random': True, 'is_hugging_face': True}),
    ],
)
def test_a_name_has_parts(text, parts):
    directory = pathlib.Path(parts.pop('directory', text))
    assert parse(text) == Source(text, directory, **parts) and str(parse(text)) == text


def test_a_directory_may_have_a_number_behind_an_at(tmp_path):
    (tmp_path / 'run@7').mkdir()
    assert parse(f'{tmp_path}/run@7') == Source(f'{tmp_path}/run@7', tmp_path / 'run@7')
    assert parse(f'{tmp_path}/run@7@3').step == 3
    assert parse('~/run').directory == pathlib.Path.home() / 'run'
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match='file is a file; give a directory'):
        parse(f'random:{tmp_path}/file')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'names no model: give WORKDIR, WORKDIR@STEP, hf:DIRECTORY or random:SOURCE'),
        ('hf:', 'names no model'),
        ('random:', 'names no model'),
        ('random:random:runs/mlm', 'names no model'),
        ('random:runs/mlm@7', 'has no steps; write random:runs/mlm$'),
        ('hf://someone/bert', 'is a URL.*download it and write hf:DIRECTORY'),
        ('gs://bucket/run', 'is a URL'),
    ],
)
def test_what_names_no_model_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_programs_that_read_rows_take_runs_only():
    assert [s.step for s in sources.parse_runs(['a', 'a@3', 'random:a'], 'probe dag')] == [None, 3, None]
    with pytest.raises(
        ConfigError, match=r'^probe dag reads the held-out rows .* hf:bert has none: .*--model=runs/mlm$'
    ):
        sources.parse_runs(['a', 'hf:bert'], 'probe dag')


@pytest.mark.parametrize(
    ('texts', 'labels'),
    [
        (['runs/mlm', 'runs/exlm'], ['mlm', 'exlm']),
        (['c/mlm/seed1', 'c/exlm/seed1'], ['mlm/seed1', 'exlm/seed1']),
        (['runs/mlm@0', 'runs/mlm@10', 'random:runs/mlm'], ['mlm@0', 'mlm@10', 'random-mlm']),
        (['hf:models/bert', 'random:hf:models/bert'], ['bert', 'random-bert']),
    ],
)
def test_labels_tell_models_apart(texts, labels):
    assert sources.labels([parse(text) for text in texts]) == labels
    with pytest.raises(ConfigError, match='a --model is given twice'):
        sources.labels([parse(text) for text in (*texts, texts[0])])
