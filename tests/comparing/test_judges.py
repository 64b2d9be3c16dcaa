"""Judges of pretrained models: what they find, what they keep, and what they refuse before anything is trained."""

import json
import pathlib
import shutil

import jax
import pytest

from mlm_jax import config as config_lib
from mlm_jax.comparing import judges, then
from mlm_jax.comparing.configurations import Candidate
from mlm_jax.config import ConfigError
from mlm_jax.parallel.mesh import make_mesh

pytestmark = pytest.mark.usefixtures('one_device')

# As in the corpus of the model that the tests share.
ANIMALS = {'cat': 'red', 'dog': 'green', 'bird': 'blue', 'fish': 'black', 'horse': 'white'}


@pytest.fixture
def candidate(animals_config):
    """The configuration of the model that the tests share."""
    return Candidate('animals', 'animals.py', config_lib.from_json(config_lib.to_json(animals_config)))


@pytest.fixture(scope='module')
def tasks(tmp_path_factory) -> pathlib.Path:
    """RTE in which the hypothesis has the colour that the animal had, or another one."""
    root, colours = tmp_path_factory.mktemp('glue') / 'RTE', list(ANIMALS.values())
    root.mkdir()
    for split, count in (('train', 32), ('dev', 16)):
        lines = []
        for i in range(count):
            animal, label = list(ANIMALS)[i % 5], ('entailment', 'not_entailment')[i % 2]
            other = colours[(i + i % 2) % 5]
            lines.append(f'{i}\tthe {animal} is {ANIMALS[animal]}.\tthe {animal} {i} is {other}.\t{label}')
        (root / f'{split}.tsv').write_text('\n'.join(['index\tsentence1\tsentence2\tlabel', *lines]) + '\n')
    return root.parent


def make(text, data=()) -> judges.Judge:
    (measure,) = then.parse([text])
    return judges.make(measure, data)


def judged(judge, candidate, trained, workdir) -> judges.Values:
    """What the judge finds of the shared model, as if it were the run in `workdir`."""
    workdir.mkdir(exist_ok=True)
    assert not judge.is_done(candidate, 0, workdir) and judge.values(candidate, 0, workdir) == {}
    with jax.set_mesh(trained[1]):
        judge.check(trained[2])
        judge.judge(trained[2], candidate, 0, workdir)
    assert judge.is_done(candidate, 0, workdir)
    return judge.values(candidate, 0, workdir)


def test_every_measure_has_a_judge():
    assert {*judges._PROBES, then.FINETUNE} == set(then.OPTIONS)


def test_fine_tuning_takes_the_better_setting_and_goes_on(candidate, trained, tasks, tmp_path):
    pytest.importorskip('sklearn')
    options = 'epochs=1,batch_size=16,dropout=0,learning_rate=1e-9/3e-3'
    judge = make(f'finetune:glue/rte,seeds=1,{options}', [f'glue={tasks}'])
    found = judged(judge, candidate, trained, tmp_path)
    assert list(found) == ['%'] and list(found['%']) == ['glue/rte: accuracy, validation']
    assert 0 <= found['%']['glue/rte: accuracy, validation'] <= 100
    assert 'that of one seed' in judge.describe() and 'best median' in judge.describe()
    (results,) = tmp_path.glob('then/*/results.json')
    assert set(json.loads(results.read_text())['glue/rte']['animals-seed0']['settings_tried']) == {
        'learning_rate=1e-09', 'learning_rate=0.003',
    }  # fmt: skip

    more = make(f'finetune:glue/rte,seeds=2,{options}', [f'glue={tasks}'])
    assert not more.is_done(candidate, 0, tmp_path) and len(list(tmp_path.rglob('seed1/result.json'))) == 2
    assert more.values(candidate, 0, tmp_path) == {}, 'not before all seeds are there'
    candidate.config.total_steps = 7
    with pytest.raises(ConfigError, match='step: 150 there, 7 now'):
        judge.is_done(candidate, 0, tmp_path)


def test_minimal_pairs_of_what_was_learned_are_right(candidate, trained, minimal_pairs, tmp_path):
    judge = make(f'blimp:{minimal_pairs}')
    found = judged(judge, candidate, trained, tmp_path)
    assert set(found['%']) == {'all', 'semantics', 'syntax'} and found['%']['all'] > 75
    assert json.loads((tmp_path / 'then' / 'blimp.json').read_text())['report']['pairs'] == 30
    assert not make(f'blimp:{minimal_pairs},percent=50').is_done(candidate, 0, tmp_path)
    other = shutil.copytree(minimal_pairs, tmp_path / 'pairs')
    assert make(f'blimp:{other}').is_done(candidate, 0, tmp_path), 'wherever they lie'
    path = next(iter(sorted(other.glob('*.jsonl'))))
    path.write_text(path.read_text().replace('the ', 'a ', 1))
    assert not make(f'blimp:{other}').is_done(candidate, 0, tmp_path), 'as many pairs, but others'
    candidate.config.total_steps = 7
    assert not judge.is_done(candidate, 0, tmp_path), 'of a run that was trained anew'
    assert judge.values(candidate, 0, tmp_path) == {}


def test_probes_find_numbers(candidate, trained, tmp_path):
    found = judged(make('effective_rank,rows=8,threshold=0.5'), candidate, trained, tmp_path)
    assert len(found['dimensions']) == 2 * 4 and all(1 <= rank <= 64 for rank in found['dimensions'].values())
    bits = judged(make('entropy,rows=8,ratios=0.15'), candidate, trained, tmp_path)['bits']
    assert bits['cost, 15 % masked'] - bits['entropy, 15 % masked'] == pytest.approx(
        bits['cost − entropy, 15 % masked']
    )


def test_gradient_variance_is_that_of_the_probe(candidate, trained, tmp_path, monkeypatch):
    names = 'between_over_variance', 'disjoint_over_independent', 'disjoint_over_distinct_texts'
    report = {name: [0.5, 0.1] for name in (*names, 'c0_plus_between_over_variance')}
    asked = []
    monkeypatch.setattr(judges, 'make_sketched_gradients', lambda objective, masking, design, mesh: design)
    monkeypatch.setattr(judges.gradient_variance_report, 'measure', lambda *args: asked.append(args) or report)
    found = judged(make('gradient_variance,texts=4,segments=3,draws=5'), candidate, trained, tmp_path)
    (_, _, texts, design, _), *_ = asked
    assert (texts, design.segments, design.draws, design.overlaps[-1]) == (4, 3, 5, 1.0)
    assert set(found['']) >= {'D / σ²', '(c_0 + D) / σ²'} and set(found[''].values()) == {0.5}


def test_a_candidate_stands_for_the_model_that_it_will_be(candidate, trained, minimal_pairs, tasks):
    model = judges.stand_in(candidate, trained[1])
    assert (model.max_length, model.repeats, str(model.source)) == (trained[2].max_length, 1, 'animals')
    for judge in (
        make(f'blimp:{minimal_pairs}'), make('entropy'), make('gradient_variance'),
        make('finetune:glue/rte', [str(tasks)]),
    ):  # fmt: skip
        judge.check(model)


@pytest.mark.parametrize(
    ('text', 'change', 'message'),
    [
        (
            'finetune:glue/rte,max_length=64',
            {'model.positions': 'learned'},
            'max_length=64: animals knows 32 positions',
        ),
        ('finetune:glue/rte,batch_size=9', {}, 'batch_size=9 cannot be divided over 8 devices'),
        ('gradient_variance,segments=30', {}, 'only 0 held-out rows are long enough'),
    ],
)
def test_what_would_stop_a_judge_is_said_before(candidate, tasks, text, change, message):
    config_lib.apply_overrides(candidate.config, change)
    judge = make(text, [str(tasks)])
    with pytest.raises(ConfigError, match=message):
        judge.check(judges.stand_in(candidate, make_mesh(devices=jax.local_devices())))


def test_what_cannot_be_read_is_refused(tmp_path, tasks):
    for text, message in (
        ('finetune:glue/sst2', 'SST-2'),
        ('finetune:glue/rte,epoch=3', "--then=epoch=3: there is no key 'epoch'; there are learning_rate"),
        ('finetune:glue/rte,epochs=0', 'out of range: epochs=0'),
        (f'blimp:{tmp_path}', r'holds no \*.jsonl files'),
        (f'blimp:{tmp_path / "nothing"}', 'is not a directory'),
    ):
        with pytest.raises(ConfigError, match=message):
            make(text, [str(tasks)])
    with pytest.raises(ConfigError, match='no directory is given for glue/rte: set --data=DIRECTORY'):
        make('finetune:glue/rte')
