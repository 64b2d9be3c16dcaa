"""The configurations of a comparison: how they are named, and which are refused."""

import pytest

from mlm_jax.comparing import configurations
from mlm_jax.config import ConfigError

TINY = 'tiny,vocab_size=64,sequence_length=32,data.directory={prepared}'


@pytest.mark.parametrize(
    ('names', 'labels'),
    [
        (['c/mlm.py:tiny', 'c/mae_lm.py:tiny'], ['mlm', 'mae_lm']),
        (['c/mlm.py:tiny,k=1', 'c/mlm.py:tiny,k=1,masking.ratio=0.4'], ['tiny', 'ratio=0.4']),
        (['c/mlm.py', 'c/mlm.py:mini'], ['mlm', 'mini']),
        (['a.py:x.ratio=1,y.ratio=2', 'a.py:x.ratio=2,y.ratio=1'], ['ratio=1-ratio=2', 'ratio=2-ratio=1']),
        (['a.py:x.ratio=1', 'a.py:y.ratio=1'], ['x.ratio=1', 'y.ratio=1']),
        (['a.py:k=s:1/2', 'b.py'], ['a-k=s-1-2', 'b']),
    ],
)
def test_labels_say_what_differs_and_name_directories(names, labels):
    assert configurations.make_labels(names) == labels


def test_shared_settings_reach_every_configuration(prepared):
    names = [f'configs/{file}.py:{TINY}'.format(prepared=prepared) for file in ('mlm', 'mae_lm')]
    loaded = configurations.load_candidates(names, ['A', 'B'], ['batch_size=8', 'optimizer.learning_rate=0.5'])
    assert [c.label for c in loaded] == ['A', 'B']
    assert {c.config.batch_size for c in loaded} == {8}
    assert {c.config.optimizer.learning_rate for c in loaded} == {0.5}
    assert loaded[0].of_seed(3).seed == 3 and loaded[0].config.seed == 0


@pytest.mark.parametrize(
    ('names', 'labels', 'settings', 'message'),
    [
        (['mlm.py:{TINY}'], [], [], 'two configurations or more'),
        (['mlm.py:{TINY}', 'mlm.py:{TINY},total_steps=7'], ['a', 'b'], [], 'are the same configuration'),
        (['mlm.py:{TINY}', 'mlm.py:{TINY},model.remat=full'], ['a', 'b'], [], 'are the same configuration'),
        (['mlm.py:{TINY}', 'mae_lm.py:{TINY}'], ['a', 'a'], [], 'give 2 different labels'),
        (['mlm.py:{TINY}', 'mae_lm.py:{TINY}'], ['a', '../b'], [], 'a label is the name of a directory'),
        (['mlm.py:{TINY}', 'mae_lm.py:{TINY},seed=2'], [], [], 'give the seeds of a comparison with --seeds'),
        (['mlm.py:{TINY}', 'mae_lm.py:{TINY}'], [], ['seed=2'], 'give the seeds of a comparison with --seeds'),
        (['mlm.py:{TINY}', 'mae_lm.py:{TINY}'], [], ['batch_size'], 'give KEY=VALUE'),
        (['mlm.py:{TINY}', 'mae_lm.py:{TINY}'], [], ['batch_sise=3'], 'did you mean batch_size'),
        (['mlm.py:{TINY}', 'mae_lm.py:tiny'], [], [], 'can only be compared on the same rows'),
        (['mlm.py:{TINY}', 'mae_lm.py:{TINY},evaluation.ratio=0.3'], [], [], 'evaluation.ratio: 0.15 in mlm, 0.3 in'),
        (['mlm.py:{TINY}', 'mae_lm.py:{TINY},evaluation.every_steps=0'], [], [], 'is never evaluated'),
        (
            ['mlm.py:{TINY}', 'mlm.py:{TINY},masking.unit=pmi'],
            [],
            [],
            'unit=pmi: .* lacks the masking tables word_starts',
        ),
        (['mlm.py:{TINY}', 'mae_lm.py:{TINY}'], [], ['data.directory=nowhere'], 'python -m mlm_jax.prepare'),
        (['mlm.py:{TINY}', 'none.py:{TINY}'], [], [], 'no configuration file'),
    ],
)
def test_what_cannot_be_compared_is_refused(prepared, names, labels, settings, message):
    names = ['configs/' + name.format(TINY=TINY).format(prepared=prepared) for name in names]
    with pytest.raises(ConfigError, match=message):
        configurations.load_candidates(names, labels, settings)
