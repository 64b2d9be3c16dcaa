"""The grammar of compare --then."""

import pathlib
import re

import pytest

from mlm_jax.comparing import then
from mlm_jax.config import ConfigError


def test_words_belong_to_the_measure_before_them(tmp_path):
    text = f'finetune:glue/sst2,glue/rte,epochs=3,seeds=5,learning_rate=1e-4/3e-4,blimp:{tmp_path},percent=10,entropy'
    tuned, pairs, entropy = then.parse([text])
    assert tuned.arguments == ('glue/sst2', 'glue/rte') and tuned.value(then.SEEDS) == 5
    assert tuned.recipe == ['epochs=3', 'learning_rate=1e-4,3e-4']
    assert (pairs.arguments, pairs.value('percent'), pairs.value('within_word')) == ((str(tmp_path),), 10.0, False)
    assert entropy.values('ratios') == (0.15, 0.3, 0.5) and entropy.name == 'entropy'
    assert pairs.title == 'blimp,percent=10' and tuned.title == str(tuned), 'machines name directories as they like'
    assert then.parse(text.split(',')) == [tuned, pairs, entropy], 'one flag or several'
    assert then.parse([','.join(map(str, (tuned, pairs, entropy)))]) == [tuned, pairs, entropy], (
        'printed and read again'
    )
    assert then.parse([]) == []


def test_names_are_of_files_and_tell_options_apart(tmp_path):
    tuned, other = then.parse([f'finetune:glue/rte,seeds=9,learning_rate=1e-4/3e-4,epochs=2,blimp:{tmp_path}'])
    assert (tuned.name, other.name) == ('finetune,epochs=2,learning_rate=1e-4+3e-4', 'blimp')
    assert len(then.parse(['finetune:glue/rte', 'finetune:glue/sst2'])) == 2
    assert len(then.parse(['entropy,ratios=0.1', 'entropy,ratios=0.2'])) == 2
    assert len(then.parse(['finetune:glue'])[0].arguments) == 9, 'a suite is all of its tasks'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            'fine-tune:glue/sst2',
            r"there is no measure 'fine-tune'\. The measures, with .*, are finetune:TASK,TASK,… \(seeds=3, ",
        ),
        ('entropie', "there is no measure 'entropie'"),
        ('rows=5,entropy', 'an option stands behind its measure'),
        ('dag', 'probe dag draws it'),
        ('entropy,dag', 'probe dag draws it'),
        ('finetune', 'needs a task, as in finetune:glue/sst2'),
        ('finetune:glue/sst3', 'there is no task glue/sst3; the tasks are'),
        ('finetune:glue/sst2,effective_rnk', r'(?s)there is no task effective_rnk.*The measures, with .* are'),
        ('effective_rank,ratios=0.5', "effective_rank has no option 'ratios'; it has rows, threshold"),
        ('entropy,ratios=0.5/1', 'ratios=0.5/1 of entropy must be above 0 and below 1'),
        ('entropy,rows=1/2', 'rows=1/2 of entropy must be a whole number, 1 or more'),
        ('entropy,rows=2.5', 'must be a whole number'),
        ('entropy,rows=many', 'must be a whole number'),
        ('effective_rank,rows=inf', 'must be a whole number'),
        ('finetune:glue/rte,seeds=0', 'seeds=0 of finetune must be a whole number, 1 or more'),
        ('blimp', 'needs the directory of its'),
        ('blimp:.,within_word=maybe', 'must be true or false'),
        ('blimp:hf://bucket', 'is a URL'),
        ('entropy,again', "'again' is no measure and no option"),
        ('entropy,entropy', 'entropy is asked for twice'),
        ('entropy,rows=1,rows=2', 'rows of entropy is given twice'),
    ],
)
def test_what_there_is_not_is_refused_in_words(text, message):
    with pytest.raises(ConfigError, match=message):
        for measure in then.parse([text]):
            measure.values(then.SEEDS)


def test_the_help_and_the_error_list_every_measure_with_its_options(monkeypatch):
    options = {'shares': then.Option((0.5, 1.0), lambda value: value > 0, 'above 0', takes_several=True)}
    monkeypatch.setitem(then.OPTIONS, 'calibration', options)
    with pytest.raises(ConfigError) as error:
        then.parse(['entropie'])
    for text in (then.help_text(), str(error.value)):
        assert 'blimp:DIRECTORY (percent=100, within_word=false); effective_rank (rows=4096, threshold=0.9);' in text
        assert 'calibration (shares=0.5/1)' in text, 'one that has been added, too'
        for kind, known in then.OPTIONS.items():
            assert all(re.search(rf'{kind}[^;]*\W{key}=', text) for key in known), kind


def test_defaults_that_are_shown_are_read_again():
    for kind in {*then.OPTIONS} - {then.FINETUNE}:
        for key, option in then.OPTIONS[kind].items():
            assert then.Measure(kind, (), {key: option.shown}).values(key) == option.default


def test_the_page_lists_every_measure_with_its_options():
    page = pathlib.Path(__file__).parents[2] / 'docs' / 'analyse.md'
    rows = re.findall(r'^\| `(\w+).*\|(.*)\|$', page.read_text(encoding='utf-8'), re.MULTILINE)
    listed = {kind: re.findall(r'`(\w+=\S+?)`', options) for kind, options in rows}
    expected = {kind: [f'{key}={o.shown}' for key, o in options.items()] for kind, options in then.OPTIONS.items()}
    assert listed == expected
