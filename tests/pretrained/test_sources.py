"""The names of trained models: one grammar for programs, keys and notebooks."""

import pathlib

import pytest

from mlm_jax.config import ConfigError
from mlm_jax.files import buckets
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
        ('ema:runs/mlm', {'directory': 'runs/mlm', 'is_ema': True}),
        ('ema:runs/mlm@7', {'directory': 'runs/mlm', 'step': 7, 'is_ema': True}),
        ('gs://bucket/mlm', {}),
        ('s3://bucket/me@work@7', {'directory': 's3://bucket/me@work', 'step': 7}),
        ('random:hf:gs://bucket/bert', {'directory': 'gs://bucket/bert', 'is_random': True, 'is_hugging_face': True}),
    ],
)
def test_a_name_has_parts(text, parts):
    directory = buckets.path(parts.pop('directory', text))
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
        ('', 'names no model: give WORKDIR, WORKDIR@STEP, ema:WORKDIR.@STEP., hf:DIRECTORY, hf:NAME, random:SOURCE or'),
        ('hf:', 'names no model'),
        ('random:', 'names no model'),
        ('random:random:runs/mlm', 'names no model'),
        ('random:runs/mlm@7', 'has no steps; write random:runs/mlm$'),
        ('ema:', 'names no model'),
        ('ema:hf:bert', 'only a run keeps a moving average'),
        ('ema:random:a', 'names no model'),
        ('random:ema:a', 'names no model'),
        ('random:average:a,b', 'names no model'),
        ('continue:runs/mlm', 'is a configuration, for --config: here, give runs/mlm$'),
        ('average:', "'' is not the name of a model; an average is average:SOURCE,SOURCE,…"),
        ('average:a,,b', "'' is not the name of a model"),
        ('average:average:a,b', "'average:a' is not the name of a model"),
        ('average:a:0.5,b', 'some sources have a weight, and others none'),
        ('average:a:0,b:1', 'weights must lie above 0'),
        ('average:a:-1e3,b:1', 'weights must lie above 0'),
        ('average:a:1e999,b:1', 'weights must lie above 0'),
        ('average:a,random:a', 'random:a has learned nothing that could be averaged'),
        ('average:a,hf:b', 'an average is one of runs, or one of checkpoints of Hugging Face'),
        ('average:a,abfs://bucket/run', 'is a URL'),
        ('hf://someone/bert', 'is a URL.*download it and write hf:DIRECTORY'),
        ('gs:/bucket/run', 'is a URL'),
    ],
)
def test_what_names_no_model_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_an_average_has_parts_with_weights(tmp_path):
    source = parse('average:runs/mlm@1,ema:runs/mlm@2')
    assert source.parts == ((parse('runs/mlm@1'), 1.0), (parse('ema:runs/mlm@2'), 1.0)) == source.members
    assert (source.directory, source.step, source.is_hugging_face) == (pathlib.Path('runs/mlm'), None, False)
    assert [weight for _, weight in parse('average:a@1:0.2,a@2:3,hf:b:.5'.replace('hf:', '')).parts] == [0.2, 3, 0.5]
    assert parse('average:hf:b:2e-1').parts == ((parse('hf:b'), 0.2),) and parse('average:hf:b').is_hugging_face
    assert parse('runs/mlm').members == ((parse('runs/mlm'), 1.0),)
    (tmp_path / 'run:2').mkdir()
    assert parse(f'average:{tmp_path}/run:2').parts == ((parse(f'{tmp_path}/run:2'), 1.0),)
    assert parse(f'average:{tmp_path}/run:2:3').parts == ((parse(f'{tmp_path}/run:2'), 3.0),)


def test_a_name_is_pinned_to_what_it_means_now_and_stays_with_it(tmp_path):
    def pin(text):
        return sources.pin(text, lambda run: {'a': 7, 'b': 9}.get(run.directory.name))

    for text, pinned in [
        ('runs/a', 'runs/a@7'),
        ('runs/a@3', 'runs/a@3'),
        ('ema:runs/b', 'ema:runs/b@9'),
        ('runs/new', 'runs/new'),
        ('average:runs/a:0.5,runs/b@2:2', 'average:runs/a@7:0.5,runs/b@2:2'),
        (f'hf:{tmp_path}', f'hf:{tmp_path}'),
        ('random:runs/a', 'random:runs/a'),
    ]:
        assert pin(text) == pinned and sources.can_mean(text, pinned) and sources.can_mean(pinned, pinned)
    commit, other = 'a' * 40, 'b' * 40
    for text in ('hf:x/y', 'hf:x/y@main', f'hf:x/y@{commit}'):
        assert sources.can_mean(text, f'hf:x/y@{commit}')
    for text, pinned in [
        ('', 'runs/a@7'),
        ('runs/a', ''),
        ('runs/a@3', 'runs/a@7'),
        ('runs/b', 'runs/a@7'),
        ('ema:runs/a', 'runs/a@7'),
        ('average:runs/a:0.5,runs/b@2:1', 'average:runs/a@7:0.5,runs/b@2:2'),
        ('average:runs/a', 'average:runs/a@7,runs/b@9'),
        (f'hf:x/y@{other}', f'hf:x/y@{commit}'),
        ('hf:x/z', f'hf:x/y@{commit}'),
    ]:
        assert not sources.can_mean(text, pinned)


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
        (['runs/mlm', 'ema:runs/mlm', 'ema:runs/mlm@3'], ['mlm', 'ema-mlm', 'ema-mlm@3']),
        (['average:r/a@1,r/a@2', 'average:r/a@1:1,r/a@2:2'], ['average-a@1+a@2', 'average-a@1:1+a@2:2']),
        (['average:a/x,b/x', 'average:ema:a/x'], ['average-a/x+b/x', 'average-ema-a/x']),
    ],
)
def test_labels_tell_models_apart(texts, labels):
    assert sources.labels([parse(text) for text in texts]) == labels
    with pytest.raises(ConfigError, match='a --model is given twice'):
        sources.labels([parse(text) for text in (*texts, texts[0])])


def test_the_label_of_a_long_average_is_short_enough_for_a_file_and_still_its_own():
    long = [f'average:{",".join(f"runs/mlm@{step}" for step in range(first, 100))}' for first in (0, 1)]
    labels = sources.labels([parse(text) for text in long])
    assert [label[:15] for label in labels] == ['average-of-100-', 'average-of-99-' + labels[1][14]]
    assert len(set(labels)) == 2 and max(map(len, labels)) < 30
