"""Configurations: arguments, durations, checks; and every file in configs/ is sound."""

import contextlib
import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax.comparing import configurations
from mlm_jax.config import ConfigError, checks, possible_values, slice_fitting, step_flops
from mlm_jax.masking import tables
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.parallel import tpu_slices
from mlm_jax.training import build, resuming

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def load(name: str, argument: str):
    """The configuration that `--config=configs/NAME:ARGUMENT` gives."""
    return config_lib.load(f'{CONFIGS / name}:{argument}')


ALL = [('demo.py', '')] + [
    ('mlm.py', f'{size}{recipe}')
    for size in config_lib.SIZES
    for recipe in ('', ',recipe=roberta' if size in config_lib.SMALL else ',recipe=muon', ',recipe=modern')
]
ALL += [('mae_lm.py', size) for size in (*config_lib.SIZES, 'base++', 'large++')]
MASKING = (
    'words', 'spans', 'ngrams', 'pmi', 'frequency', 'least_masked', 'annealed', 'diffusion', 'complementary',
    'fully_explored', 'successive',
)  # fmt: skip
ALL += [('masking.py', f'{name},size=tiny') for name in MASKING]
ALL += [
    ('mae_lm.py', f'tiny,{argument}') for argument in ('recipe=modern', 'recipe=roberta', 'mae_lm.decoder_width=64')
]
ALL += [
    ('repeated_mlm.py', argument) for argument in ('tiny', 'tiny,repeats=4,recipe=modern', 'tiny,masking.ratio=0.4')
]
ALL += [('exlm.py', size) for size in config_lib.SIZES]
ALL += [('smiles.py', f'{objective},size=tiny') for objective in ('exlm', 'mlm', 'mae_lm')]
ALL += [('smiles.py', 'exlm,size=base')]
ALL += [
    ('exlm.py', f'tiny,{argument}')
    for argument in ('recipe=modern', 'objective=mlm', 'exlm.transition_heads=1', 'exlm.transitions=none')
]


# The others are the same programs with other numbers, which are checked, or with masks whose programs
# tests/masking/ compiles.
NOT_TRACED = {
    'mini', 'small', 'medium', 'large', 'base++', 'large++', 'exlm,size=base', 'spans', 'ngrams', 'pmi', 'frequency',
    'annealed',
}  # fmt: skip
TRACED = [(name, argument) for name, argument in ALL if NOT_TRACED.isdisjoint((argument, argument.split(',')[0]))]


@pytest.mark.parametrize(('name', 'argument'), ALL, ids=[f'{n}:{a}' for n, a in ALL])
def test_every_configuration_is_checked(name, argument):
    config = load(name, argument)
    config_lib.check(config)
    assert step_flops.step_flops(config) > 0


@pytest.mark.parametrize('name', sorted(path.name for path in CONFIGS.glob('*.py') if path.name != 'continue.py'))
def test_a_key_alone_leaves_the_size_that_the_file_has_without_an_argument(name):
    plain, changed = (config_lib.load(f'{CONFIGS / name}{argument}') for argument in ('', ':batch_size=7'))
    assert config_lib.differences(plain, changed).keys() == {'batch_size'}


@pytest.mark.smoke
@pytest.mark.parametrize(('name', 'argument'), TRACED, ids=[f'{n}:{a}' for n, a in TRACED])
def test_configurations_are_shape_evaluated(name, argument):
    config = load(name, argument)
    vocabulary = standard_vocabulary(config.vocab_size)
    run = build.make_run(config_lib.resolve(config), vocabulary, 16_000, tables.stand_in(vocabulary))
    state = jax.eval_shape(run.init)
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.sequence_length), 'int32')
    new_state, metrics = jax.eval_shape(run.train_step, state, tokens)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new_state) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {'loss', 'accuracy', 'grad_norm', 'masked_ratio'} <= metrics.keys()


def test_all_files_in_configs_are_covered():
    # continue.py follows a checkpoint: tests/interop/test_checkpoint.py.
    assert {path.name for path in CONFIGS.glob('*.py')} - {'continue.py'} == {name for name, _ in ALL}


def test_parameter_counts_are_those_of_the_papers():
    """BERT-base and RoBERTa-style encoders: 12 × 7.09 M in the layers, V·d in the table."""
    config = load('mlm.py', 'base')
    params = build.state_shapes(config_lib.resolve(config)).params
    count = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params['encoder'].items()}
    assert count['layers'] == 12 * (4 * 768**2 + 2 * 768 * 3072 + 9 * 768 + 3072)
    assert count['token_embedding'] == 32768 * 768


def unread_flops(config) -> float:
    """Of a row: what the last layer computes for tokens that nobody reads: queries, output, MLP."""
    n, d = 128, config.model.width
    return 3 * (1 - 0.15) * n * (2 * 10 * d**2 + 4 * n * d)


@pytest.mark.parametrize(
    ('file', 'size', 'expected'),
    [('mlm.py', 'base', 545e6), ('mlm.py', 'mini,recipe=roberta', 27.5e6), ('mae_lm.py', 'base', 640e6)],
)
def test_flops_are_those_of_the_paper_less_the_last_layer_where_nobody_reads(file, size, expected):
    """Per token at n = 128, V = 30,522, 15 %, as their tables have it: MAE-LM 17 % above MLM."""
    config = load(file, f'{size},sequence_length=128,vocab_size=30522')
    row = step_flops.step_flops(config) / config.batch_size
    assert (row + unread_flops(config)) / 128 == pytest.approx(expected, rel=0.01)


def test_mae_lm_has_the_parameters_of_the_paper():
    """140.0 M in pretraining, of which the encoder keeps 110.6 M."""
    config = load('mae_lm.py', 'base')
    params = build.state_shapes(config_lib.resolve(config)).params
    count = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params.items()}
    assert sum(count.values()) == pytest.approx(140.0e6, rel=5e-4)
    assert count['encoder'] == pytest.approx(110.6e6, rel=5e-4)


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('tiny,mae_lm.decoder_layers=0', 'decoder_layers=0'),
        ('tiny,mae_lm.decoder_width=65', 'multiple of model.num_heads'),
        ('tiny,mae_lm.decoder_ffn_width=-1', 'decoder_ffn_width'),
        ('tiny,mae_lm.masked_in_encoder=1.5', 'within 0 … 1'),
        ('tiny,mae_lm.kept_margin=-0.1', 'within 0 … 1'),
        ('tiny,mae_lm.reset_masked=true', 'masked_in_encoder=1.0'),
        ('tiny,model.attention_backend=splash,model.attention_dropout=0.0', 'takes no relative bias'),
        (
            'tiny,recipe=modern,model.relative_buckets=0,model.local_window=8,model.global_every=2,'
            'model.attention_backend=splash',
            'objective=mae_lm neighbors in a row may lie far apart',
        ),
    ],
)
def test_settings_of_mae_lm_that_disagree_are_refused(argument, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.check(load('mae_lm.py', argument))


def test_settings_of_the_command_line_come_last():
    settings = config_lib.parse_settings(
        ['batch_size=64', 'total_epochs=3', 'data.corpus=text:b,c.txt', 'batch_size=1e1', 'tokenizer.model=a=b']
    )
    config = config_lib.load('mlm:tiny,batch_size=8,total_steps=5', settings)
    assert (config.batch_size, config.data.corpus, config.tokenizer.model) == (10, 'text:b,c.txt', 'a=b')
    assert (config.total_epochs, config.total_steps) == (3, None)
    twice = config_lib.parse_settings(['total_steps=5', 'total_epochs=3', 'total_steps=7'])
    config = config_lib.load('mlm:tiny', twice)
    assert (config.total_epochs, config.total_steps) == (None, 7), 'the last one counts'
    with pytest.raises(ConfigError, match='batch_sise.*did you mean batch_size'):
        config_lib.load('mlm:tiny', {'batch_sise': '8'})


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('batch_size', '--set=batch_size: give KEY=VALUE'),
        ('recipe=modern', r'--config=FILE\.py:SIZE,recipe=modern'),
    ],
)
def test_settings_that_are_none_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.parse_settings([text])


def test_a_file_that_does_not_load_is_named_with_the_line(tmp_path):
    for name, text, message in (
        ('raises', 'def get_config():\n    return None + 1\n', 'line 2: TypeError: unsupported operand'),
        ('cut', 'def get_config(:\n', 'line 1: SyntaxError: '),
        ('empty', '', 'AttributeError: .*get_config'),
    ):
        path = tmp_path / f'{name}.py'
        path.write_text(text)
        with pytest.raises(ConfigError, match=f'{path}, .*{message}'):
            config_lib.load(str(path))


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('huge', 'neither one of the sizes'),
        (
            'mini,data.corpus=text:b,c.txt',
            "'c.txt' in .* a value that holds one is given by itself, as in --set=data",
        ),
        ('mini,batchsize=3', 'did you mean batch_size'),
        ('mini,model.dropout=lots', 'expected a value of type float'),
        ('mini,logging.tensorboard=maybe', 'expected a value of type bool'),
        ('mini,recipe=classic', 'unknown recipe'),
        ('mini,batch_size=1e400', 'expected a value of type int'),
        ('mini,batch_size=' + '(' * 5000, 'expected a value of type int'),
    ],
)
def test_wrong_arguments_are_refused(argument, message):
    with pytest.raises(ConfigError, match=message):
        load('mlm.py', argument)


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('base,mesh.tensor=32,slice=v5e-16', 'does not fit 16 devices'),
        ('base,mesh.tensor=None,slice=v5e-16', 'must be a whole number'),
        ('base,slice=v9-16', "unknown topology 'v9-16'"),
        ('base,slice=v5e:4by4', 'write a layout as in v5e:4x4'),
        ('base,slice=v5e:0x4', 'write a layout as in v5e:4x4'),
        ('base,batch_size=24,slice=v5e-16', 'over its 16 devices'),
        ('base,mesh.data=2,mesh.fsdp=4,slice=v5e-16', 'does not fit 16 devices'),
        ('base,mesh.data=1,slice=2xv5e-16', 'axis fsdp would cross .* set mesh.data=-1,mesh.fsdp=16'),
        ('base,mesh.tensor=32,slice=2xv5e-16', 'does not fit'),
        ('base,slice=0xv5e-16', 'the number of slices must be at least 1'),
        ('base,fsdp_gather=step,mesh.tensor=4,slice=v5e-16', 'use fsdp_gather=layer'),
        ('base,model.num_layers=0,slice=v5e-16', 'model.num_layers=0 must be at least 1'),
        ('mini,batch_size=10,num_microbatches=4', 'multiple of num_microbatches'),
        ('mini,model.num_heads=3', 'multiple of model.num_heads'),
        ('mini,recipe=roberta,model.attention_backend=cudnn', 'attention_dropout'),
        ('mini,model.positions=absolute', 'must be one of learned, rotary'),
        ('mini,masking.ratio=1.5', 'within 0 … 1'),
        ('mini,masking.mask_fraction=0.95', 'must not exceed 1'),
        ('mini,masking.unit=sentence', 'must be one of token, word, span'),
        ('mini,masking.predicted_fraction=0', 'predicts nothing'),
        ('mini,masking.static_masks=-1', 'or more'),
        ('mini,optimizer.clip_norm=-1', 'must be 0, which clips nothing'),
        ('mini,masking.ratio=0', 'must lie above 0'),
        ('mini,recipe=roberta,model.dropout=0.001', 'model.dropout=0.001 would be no dropout.*set model.dropout=0, or'),
        ('mini,recipe=roberta,model.attention_dropout=0.001', 'set model.attention_dropout=0, or at least 0.002'),
        ('mini,data.validation_percent=0', 'holds nothing out.*set data.validation_percent=1, or name'),
        ('mini,data.corpus=text:*.txt,data.validation_percent=0', 'holds nothing out'),
        ('mini,optimizer.eps=0', 'must lie within 1e-30'),
        ('mini,optimizer.eps=1e-50', 'must lie within 1e-30'),
        ('mini,optimizer.b1=1.5', 'at least 0 and below 1'),
        ('mini,optimizer.b2=1.0', 'at least 0 and below 1'),
        ('mini,optimizer.learning_rate=-1e-3', 'must be at least 0'),
        ('mini,optimizer.weight_decay=-0.1', 'within 0 … 1'),
        ('mini,recipe=modern,optimizer.weight_decay=0.01', 'a value for adamw.*remove 1.00% of every weight.*1e-05'),
        ('mini,sequence_length=1', 'at least 3'),
        ('mini,vocab_size=5', 'at least 7'),
        ('mini,schedule.warmup_percent=200', '100 at most'),
        ('mini,profile.num_steps=-3', 'at least 0'),
        ('mini,total_tokens=9e99', 'more than 2,147,483,648 steps'),
        ('mini,total_epochs=1e308', 'more than 2,147,483,648 steps'),
        ('mini,seed=-1', 'must be at least 0'),
        ('mini,seed=4294967296', 'within 0 … 4,294,967,295'),
        ('mini,model.relative_buckets=-4', 'at least 0'),
        ('mini,model.scan_unroll=-1', 'at least 0'),
        ('mini,batch_size=None', 'must be a whole number'),
        ('mini,exlm.num_states=True', 'must be a whole number'),
        ('mini,data.directory=None', 'must be text'),
        ('mini,optimizer.learning_rate=1e400', 'must be a finite number'),
        ('mini,evaluation.every_percent=1e400', 'must be a finite number'),
        ('mini,mesh.data=0', 'must be -1'),
        ('mini,batch_size=10000000,sequence_length=512', 'more than 2³¹ tokens'),
        ('mini,masking.ratio_schedule=diffusion,masking.ratio=0.1', 'set masking.ratio=1.0'),
        ('mini,masking.ratio_schedule=diffusion', 'set masking.ratio=1.0'),
        ('mini,masking.ratio_schedule=linear', 'masking.final_ratio, which is the same: set masking.final_ratio'),
        ('mini,masking.ratio_schedule=staged,masking.ratio=0.3', 'masking.ratio=0.3 is never used: set masking.anneal'),
        ('mini,masking.strategy=least_masked,masking.ratio=0.8,masking.static_masks=3', 'cannot be static'),
        (
            'mini,schedule.warmup_steps=500,total_steps=500',
            'for 500 steps, the warm-up, in a run of 500: set schedule.w',
        ),
        ('mini,masking.strategy=complementary,masking.ratio=0.6', 'would overlap'),
        ('mini,masking.strategy=fully_explored,masking.fully_explored.segments=1', 'at least 2'),
        (
            'mini,masking.strategy=fully_explored,masking.fully_explored.schedule=subset,masking.fully_explored.views=8',
            'between 1 and segments',
        ),
        ('mini,masking.strategy=fully_explored,masking.ratio_schedule=linear', 'ratio_schedule=constant'),
        ('mini,masking.strategy=least_masked,masking.static_masks=1', 'cannot be static'),
        ('mini,masking.anneal_steps=-1', 'negative'),
        ('mini,total_steps=0', 'length of the run'),
        ('mini,total_percent=50', 'total_percent cannot be used here'),
        ('mini,total_percent=3', 'set total_|give total_steps'),
        ('mini,model.scan_unroll=3', 'must divide'),
        ('mini,model.scan_unroll=4,model.remat=full', 'set model.scan_unroll=0, or model.remat=none'),
        ('mini,model.relative_buckets=30', 'multiple of 4'),
        ('mini,model.num_kv_heads=3', 'must divide model.num_heads=4'),
        ('mini,model.num_kv_heads=-1', 'must be 0, for as many as model.num_heads'),
        ('mini,recipe=roberta,model.rotary_base=160000', 'set model.positions=rotary'),
        ('mini,model.rotary_base=1', 'must lie above 1'),
        ('mini,recipe=modern,model.rotary_base_local=1000', 'model.local_window=0 has none'),
        ('mini,recipe=modern,model.local_window=64,model.global_every=1', 'has no layer to restrict.*these are all 4'),
        ('mini,recipe=modern,model.local_window=64,model.num_layers=1', 'has no layer to restrict'),
        ('mini,model.local_window=-1', 'or the width of a window'),
        ('mini,model.relative_bucketing=t5', 'set model.relative_buckets=32'),
        ('mini,model.norm_type=rms_norm,model.norm_bias=true', 'rms_norm has no bias'),
        ('mini,recipe=roberta,model.first_norm=false', 'set model.norm=pre, or model.first_norm=true'),
        ('mini,recipe=modern,model.embedding_norm=false', 'without normalized inputs'),
        ('mini,model.head=linear', 'must be one of dense, plain'),
        ('mini,schedule.warmup_steps=-3', 'negative'),
        ('mini,sharding=fsdp', 'mesh.fsdp'),
        ('mini,sharding=fsdp_tp,mesh.tensor=1', 'but both are 1: set mesh.data=1 and mesh.fsdp=-1'),
        ('mini,sharding=dp,mesh.tensor=2', 'sharding=dp splits nothing over mesh.tensor=2.*set sharding=fsdp_tp'),
        ('mini,sharding=fsdp,mesh.fsdp=4,mesh.tensor=2', 'sharding=fsdp splits nothing over mesh.tensor=2'),
    ],
)
def test_keys_that_disagree_are_refused_with_the_cure(argument, message):
    if argument == 'mini,total_percent=3':
        config = load('mlm.py', 'mini')
        config.total_steps, config.total_percent = None, 3.0
        with pytest.raises(ConfigError, match=message):
            config_lib.resolve_steps(config, 'total')
        return
    with pytest.raises(ConfigError, match=message):
        config_lib.check(load('mlm.py', argument))


def test_a_key_that_a_file_adds_is_refused():
    config = load('mlm.py', 'mini')
    config.update(total_step=50)
    config.model.depth = 2
    with pytest.raises(
        ConfigError, match=r"unknown configuration key 'model.depth'(.|\n)*'total_step'; did you mean total_steps"
    ):
        config_lib.resolve(config)


@pytest.mark.parametrize(
    'masking', ['unit=word', 'ratio_schedule=cosine,masking.final_ratio=0.1', 'strategy=bernoulli']
)
def test_mae_lm_needs_slots_for_every_token_where_the_masked_count_varies(masking):
    with pytest.raises(ConfigError, match='set mae_lm.kept_margin=1'):
        config_lib.check(load('mae_lm.py', f'tiny,masking.{masking}'))
    config_lib.check(load('mae_lm.py', f'tiny,masking.{masking},mae_lm.kept_margin=1'))


def test_other_objectives_predict_all_that_is_corrupted():
    with pytest.raises(ConfigError, match='predicted_fraction=1'):
        config_lib.check(load('mae_lm.py', 'tiny,masking.predicted_fraction=0.5'))


def test_flops_count_every_mask_of_a_text_and_the_mean_ratio():
    def ratio(argument):
        return step_flops.masked_ratio(load('mlm.py', f'tiny,masking.ratio=0.3,{argument}'))

    assert ratio('masking.ratio_schedule=linear') == pytest.approx(0.225)
    assert ratio('masking.ratio_schedule=staged,masking.anneal_percent=20') == pytest.approx(0.27)
    assert ratio('masking.ratio_schedule=cosine,masking.anneal_percent=20') == pytest.approx(0.285)
    assert ratio('masking.ratio_schedule=constant') == 0.3
    assert ratio('masking.ratio=1.0,masking.ratio_schedule=diffusion') == pytest.approx(0.575)
    one, seven = (
        load('mlm.py', f'tiny,masking.ratio={1 / 7},masking.strategy={s}') for s in ('uniform', 'fully_explored')
    )
    assert step_flops.step_flops(seven) == pytest.approx(7 * step_flops.step_flops(one))


def test_durations_become_steps():
    config = load('mlm.py', 'mini,batch_size=50,sequence_length=100')
    for key, value, expected in (
        ('steps', 7, 7),
        ('examples', 1000, 20),
        ('tokens', 100_000, 20),
        ('epochs', 1.5, 60),
        ('percent', 10.0, 100),
        ('percent', 1e-9, 1),
        ('percent', 0.0, 0),
    ):
        config_lib.apply_overrides(config, {f'schedule.warmup_{key}': str(value)})
        steps = config_lib.resolve_steps(config, 'schedule.warmup', total_steps=1000, steps_per_epoch=40.0)
        assert steps == expected, key


def test_an_argument_replaces_a_duration_in_another_unit_but_two_set_are_refused():
    config = load('mlm.py', 'mini,total_epochs=3')
    assert config_lib.resolve_steps(config, 'total', steps_per_epoch=10.0) == 30
    config.total_steps = 5
    with pytest.raises(ConfigError, match='both set'):
        config_lib.resolve_steps(config, 'total', steps_per_epoch=10.0)


def test_a_percentage_that_is_no_duration_stays_alone():
    config = load('mlm.py', 'mini,data.validation_percent=5')
    assert config.data.validation_percent == 5.0
    assert 'validation_steps' not in config.data


def test_every_key_has_choices_a_range_or_free_text():
    """A key that nobody bounds is a key that nobody has thought of."""
    assert possible_values.CHOICES.keys() | possible_values.RANGES.keys() <= config_lib.kinds().keys()
    checked = {key for key in config_lib.kinds() if any(possible_values.bounds_of(key))}
    for key, kind in config_lib.kinds().items():
        is_free = kind.type in (str, bool) or config_lib.is_duration(key)
        assert key in checked or is_free, key
    names = {key for key, kind in config_lib.kinds().items() if kind.type is str} - checked
    assert names == {
        'init_from', 'compilation_cache', 'data.directory', 'data.corpus', 'data.text_key', 'data.validation_corpus',
        'tokenizer.model', 'masking.token_weights', 'evaluation.blimp', 'logging.wandb_project', 'slice',
    }  # fmt: skip


NUMBERS = (
    'None', 'True', '0', '1', '-1', '2', '3', '7', '64', '0.5', '1.0', '1e-300', '1e37', '1e400', '-1e400', 'nan',
    '9e99', '1' + '0' * 400, '4294967295', '2147483648',
)  # fmt: skip
WORDS = (
    '', 'a', '"a"', '[1]', '{}', '1j', 'linear', 'diffusion', 'least_masked', 'muon', 'stable_adamw', 'mae_lm', 'exlm',
    'rotary_2d', 'fsdp', 'fully_explored', 'subset', 'geglu', 'rms_norm', 't5', 'plain', 'splash', 'rotary',
)  # fmt: skip
VALUES = st.sampled_from(NUMBERS + WORDS)


@hypothesis.given(
    st.sampled_from(['mlm.py', 'mae_lm.py', 'exlm.py']),
    st.dictionaries(st.sampled_from(sorted(config_lib.kinds())), VALUES, min_size=1, max_size=4),
    st.sampled_from(['', 'recipe=modern,', 'slice=v5e-16,']),
)
@hypothesis.settings(deadline=None, max_examples=120)
def test_any_configuration_is_refused_in_words_or_can_run(file, values, more):
    """What is accepted has durations, masks and a cost; nothing but a ConfigError is ever raised."""
    try:
        config = load(file, f'tiny,{more}' + ','.join(f'{key}={value}' for key, value in values.items()))
        config_lib.check(config)
    except ConfigError:
        return
    config = config_lib.resolve(config)
    assert 1 <= config.total_steps < 2**31
    masking = build.make_masking(config, standard_vocabulary(config.vocab_size), num_rows=config.batch_size)
    assert 1 <= masking.max_masked(config.sequence_length) <= config_lib.row_length(config)
    assert 0 < step_flops.step_flops(config) < np.inf
    optimizer, rate = build.make_optimizer_of_run(config)
    assert np.isfinite(float(rate(0)))
    optimizer.init({'final_norm': {'scale': np.ones(2, np.float32)}})
    assert config_lib.differences(config, config_lib.from_json(config_lib.to_json(config))) == {}


@pytest.mark.parametrize(('ffn_width', 'expected'), [(2, 1), (64, 42), (95, 63), (96, 64), (2048, 1344), (3072, 2048)])
def test_the_modern_recipe_leaves_a_feed_forward_layer_of_any_width(ffn_width, expected):
    config = config_lib.default_config()
    config.model.ffn_width = ffn_width
    config_lib.apply_recipe(config, 'modern')
    assert config.model.ffn_width == expected
    config_lib.check(config)


@pytest.mark.parametrize(
    'text', ['', '[]', '5', '{"model": 5}', '{"a.b": 1}', '{"seed": ', '[' * 100_000, '{"new": 1}']
)
def test_a_stored_configuration_that_is_none_is_refused_in_words(text):
    with pytest.raises(ConfigError, match='stored configuration'):
        config_lib.from_json(text)


def test_a_configuration_of_an_earlier_version_keeps_its_weight_decay():
    """It was a number then, and there was no momentum; the same command goes on with the optimizer's own."""
    stored = load('mlm.py', 'mini,recipe=modern').to_dict()
    stored['optimizer']['weight_decay'] = 0.01
    del stored['optimizer']['momentum']
    old = config_lib.from_json(json.dumps(stored))
    assert config_lib.decided(old).optimizer.weight_decay == 0.01 and old.optimizer.momentum == 0.95
    notes = []
    resuming.check_resume(stored, load('mlm.py', 'mini,recipe=modern'), note=notes.append)
    assert len(notes) == 1 and notes[0].endswith('\n  optimizer.weight_decay: 0.01 in the checkpoint, 1e-05 now')
    stored = load('mlm.py', 'mini').to_dict()
    stored['optimizer']['weight_decay'] = 0.01
    resuming.check_resume(stored, load('mlm.py', 'mini'), note=pytest.fail)


def test_a_run_of_the_modern_recipe_from_before_it_lost_its_first_norm_keeps_it():
    stored = load('mlm.py', 'mini,recipe=modern,model.first_norm=true').to_dict()
    for key in ('first_norm', 'norm_type', 'norm_bias', 'num_kv_heads', 'rotary_base', 'rotary_base_local', 'head'):
        del stored['model'][key]
    assert build.encoder_config(config_lib.completed(config_lib.from_json(json.dumps(stored)))).first_norm
    with pytest.raises(ConfigError, match='model.first_norm: True in the checkpoint, False now'):
        resuming.check_resume(stored, load('mlm.py', 'mini,recipe=modern'), note=pytest.fail)
    resuming.check_resume(stored, load('mlm.py', 'mini,recipe=modern,model.first_norm=true'), note=pytest.fail)


@pytest.mark.parametrize(
    ('name', 'argument', 'optimizer', 'rate', 'positions'),
    [
        ('mlm.py', 'mini', 'muon', 5e-3, 'rotary'),
        ('mlm.py', 'tiny,recipe=roberta', 'adamw', 5e-4, 'learned'),
        ('mlm.py', 'tiny,recipe=modern', 'stable_adamw', 2e-3, 'rotary'),
        ('mlm.py', 'mini,recipe=modern', 'stable_adamw', 1e-3, 'rotary'),
        ('mlm.py', 'small,recipe=modern', 'stable_adamw', 5e-4, 'rotary'),
        ('mlm.py', 'large,recipe=modern', 'stable_adamw', 3.3e-4, 'rotary'),
        ('exlm.py', 'mini,recipe=modern', 'stable_adamw', 1e-3, 'rotary_2d'),
        ('mlm.py', 'base', 'adamw', 5e-4, 'learned'),
        ('mlm.py', 'large', 'adamw', 3.3e-4, 'learned'),
        ('mlm.py', 'small,recipe=muon', 'muon', 2.5e-3, 'rotary'),
        ('mlm.py', 'base,recipe=muon', 'muon', 1.7e-3, 'rotary'),
        ('mlm.py', 'large,optimizer.learning_rate=1e-3', 'adamw', 1e-3, 'learned'),
        ('masking.py', 'spans', 'muon', 5e-3, 'rotary'),
        ('repeated_mlm.py', 'tiny', 'muon', 5e-3, 'rotary'),
        ('mae_lm.py', 'tiny', 'muon', 5e-3, 'rotary'),
        ('mae_lm.py', 'base', 'adamw', 5e-4, 'learned'),
        ('mae_lm.py', 'large++', 'adamw', 2e-4, 'learned'),
        ('exlm.py', 'tiny', 'muon', 5e-3, 'rotary_2d'),
        ('exlm.py', 'tiny,recipe=roberta', 'adamw', 5e-4, 'rotary_2d'),
        ('exlm.py', 'large', 'adamw', 1.3e-3, 'rotary_2d'),
        ('smiles.py', 'mlm', 'muon', 5e-3, 'rotary_2d'),
        ('smiles.py', 'mlm,size=base', 'adamw', 5e-4, 'rotary_2d'),
    ],
)
def test_recipes_of_the_sizes(name, argument, optimizer, rate, positions):
    config = load(name, argument)
    assert (config.optimizer.name, config.optimizer.learning_rate) == (optimizer, rate)
    assert config.model.positions == positions


def test_open_keys_of_the_model_follow_others():
    m = config_lib.resolve(load('mlm.py', 'mini,recipe=modern,model.rotary_base=500')).model
    assert (m.norm_bias, m.rotary_base_local, m.first_norm) == (False, 500.0, False)
    assert config_lib.resolve(load('mlm.py', 'mini,recipe=roberta')).model.norm_bias
    assert not config_lib.resolve(load('mlm.py', 'mini,model.norm_type=rms_norm')).model.norm_bias
    # ExLM's encoder does not normalize its embeddings, so its first layer has to.
    assert load('exlm.py', 'tiny,recipe=modern').model.first_norm


@pytest.mark.parametrize(
    ('old', 'new', 'refused'),
    [
        ('clip_norm=1', 'clip_norm=2', False), ('clip_norm=0', 'clip_norm=1', True),
        ('clip_norm=1', 'clip_norm=0', True), ('decay_mask=all', 'decay_mask=matrices', True),
        ('name=adamw', 'name=lamb', True),
    ],
)  # fmt: skip
def test_a_resumed_run_may_change_what_its_optimizer_state_does_not_hold(old, new, refused):
    stored, config = (load('mlm.py', f'mini,optimizer.{argument}') for argument in (old, new))
    notes = []
    if refused:
        with pytest.raises(ConfigError, match=new.partition('=')[0]):
            resuming.check_resume(stored.to_dict(), config, notes.append)
    else:
        resuming.check_resume(stored.to_dict(), config, notes.append)
        assert len(notes) == 1


@pytest.mark.parametrize(('new', 'refused'), [('dense', False), ('none', True)])
def test_a_run_may_go_on_with_other_transitions_but_not_without(new, refused):
    stored, config = (load('exlm.py', f'tiny,exlm.transitions={transitions}') for transitions in ('sparse', new))
    assert resuming.reshaping(config_lib.differences(stored, config)) == ['exlm.transitions'] * refused
    notes = []
    if refused:
        with pytest.raises(ConfigError, match="exlm.transitions: 'sparse' in the checkpoint, 'none' now"):
            resuming.check_resume(stored.to_dict(), config, notes.append)
    else:
        resuming.check_resume(stored.to_dict(), config, notes.append)
        assert "exlm.transitions: 'sparse' in the checkpoint, 'dense' now" in notes[0]


@hypothesis.given(
    st.dictionaries(
        st.sampled_from(['seed', 'batch_size', 'optimizer', 'model', 'objective', 'a.b', 'masking']),
        st.recursive(
            st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2)),
            lambda inner: st.dictionaries(st.sampled_from(['name', 'width', 'ratio', 'weight_decay']), inner),
            max_leaves=4,
        ),
    )
)
@hypothesis.example({'optimizer': {'name': []}})
@hypothesis.settings(deadline=None, max_examples=100)
def test_a_checkpoint_of_any_configuration_goes_on_or_is_refused_in_words(stored):
    with contextlib.suppress(ConfigError):
        resuming.check_resume(stored, load('mlm.py', 'mini'), note=str)


def test_a_slice_says_that_attention_has_no_dropout_and_is_another_configuration():
    plain, on_slice = load('mlm.py', 'base'), load('mlm.py', 'base,slice=v5e-16')
    assert not checks.remarks(config_lib.resolve(plain), 10**9)
    (remark,) = checks.remarks(config_lib.resolve(on_slice), 10**9)
    assert 'attention has no dropout, but the rest of the model has 0.1' in remark
    assert configurations.digest(plain) != configurations.digest(on_slice)
    alike = load('mlm.py', 'base,slice=v5e-16,model.attention_backend=xla,model.attention_dropout=0.1')
    assert configurations.digest(plain) == configurations.digest(alike)


@pytest.mark.parametrize(
    ('argument', 'num_rows', 'remark'),
    [
        ('', 1000, None),
        ('optimizer.weight_decay=1e-5', 1000, 'a value for stable_adamw'),
        ('optimizer.weight_decay=0', 1000, None),
        ('masking.strategy=least_masked,masking.ratio_schedule=linear', 10**6, 'this run has 0.64'),
        ('masking.strategy=least_masked,masking.ratio_schedule=linear', 1000, None),
        # At 80 %, each visit is on its own.
        ('masking.strategy=least_masked,masking.ratio_schedule=linear,masking.ratio=0.8', 10**6, None),
        ('total_steps=9,profile.num_steps=1,profile.start_step=9', 1000, 'the last of the 9 steps is step 8'),
        ('total_steps=9,profile.num_steps=5,profile.start_step=8', 1000, None),
    ],
)
def test_what_can_hardly_be_meant_is_remarked(argument, num_rows, remark):
    remarks = checks.remarks(load('mlm.py', f'mini,{argument}'), num_rows)
    assert remark in remarks[0] if remark else remarks == []


@pytest.mark.parametrize('argument', ['repeats=0', 'repeats=two', 'corruption=0', 'corruption=x'])
def test_repeats_and_corruption_that_are_no_numbers_are_refused(argument):
    with pytest.raises(ConfigError, match='repeats must be'):
        load('repeated_mlm.py', f'tiny,{argument}')


def test_every_duration_of_the_default_is_known():
    config = config_lib.default_config()
    found = {key.removesuffix('_epochs') for key, _ in config_lib.values(config).items() if key.endswith('_epochs')}
    assert found == set(config_lib.DURATIONS)


def test_json_round_trip_and_differences():
    config = load('mlm.py', 'base,recipe=modern,total_epochs=2')
    again = config_lib.from_json(config_lib.to_json(config))
    assert config_lib.differences(config, again) == {}
    again.model.width = 1
    assert config_lib.differences(config, again) == {'model.width': (768, 1)}


def fitted(file: str, argument: str, name: str = 'v5e-16'):
    """A configuration that has been fitted to a slice."""
    return config_lib.resolve(load(file, f'{argument},slice={name}'))


@pytest.mark.parametrize('file', ['mlm.py', 'mae_lm.py', 'exlm.py', 'repeated_mlm.py', 'masking.py'])
@pytest.mark.parametrize('name', ['v5e-16', 'v6e-256'])
def test_a_slice_fits_a_configuration_to_its_devices_and_their_memory(file, name):
    num_devices, memory_bytes = tpu_slices.size_of(name)
    first = 'fully_explored,size=large' if file == 'masking.py' else 'large'
    config = fitted(file, first, name)
    assert config.accelerator == 'tpu' and config.batch_size % (num_devices * config.num_microbatches) == 0
    rows = config.batch_size // num_devices // config.num_microbatches
    needed = sum(x * n for x, n in zip(slice_fitting.step_bytes(config, num_devices), (1, rows), strict=True))
    assert needed <= slice_fitting.USABLE_BY_WHOLE * memory_bytes
    config.fsdp_gather = 'layer'  # for which microbatches are chosen
    fixed_bytes, row_bytes = slice_fitting.step_bytes(config, num_devices)
    usable = slice_fitting.USABLE * memory_bytes
    assert fixed_bytes + rows * row_bytes <= usable
    assert config.num_microbatches == 1 or fixed_bytes + 2 * rows * row_bytes > usable


# Rows at a time, and MiB of a device, that compiled for a v5e-16.
COMPILED = {
    ('mlm.py', 'base'): (32, 7401),
    ('mae_lm.py', 'base,model.relative_buckets=0'): (32, 10155),
    ('exlm.py', 'base'): (64, 8430),
    ('repeated_mlm.py', 'base'): (16, 9149),
    ('mlm.py', 'large'): (16, 9340),
    ('mae_lm.py', 'large,model.relative_buckets=0'): (16, 11718),
    ('exlm.py', 'large'): (32, 9606),
    ('repeated_mlm.py', 'large'): (8, 10315),
}


@pytest.mark.parametrize(('file', 'argument'), COMPILED)
def test_the_memory_of_a_step_is_estimated_near_what_compiled(file, argument):
    rows, mebibytes = COMPILED[file, argument]
    config = fitted(file, f'{argument},fsdp_gather=layer')
    assert config.batch_size == 16 * rows * config.num_microbatches
    fixed_bytes, row_bytes = slice_fitting.step_bytes(config, num_devices=16)
    assert 0.9 < (fixed_bytes + rows * row_bytes) / 2**20 / mebibytes < 1.4


def test_weights_are_gathered_once_in_a_step_where_microbatches_would_repeat_it_and_memory_allows():
    found = {
        (argument, name): fitted('mlm.py', argument, name).fsdp_gather
        for argument, name in (('base', 'v5e-16'), ('base', 'v5e-256'), ('base,mesh.tensor=4', 'v5e-16'))
    }
    assert list(found.values()) == ['step', 'layer', 'layer'], 'v5e-256 has one microbatch'
    assert fitted('mae_lm.py', 'large,model.relative_buckets=0').fsdp_gather == 'layer', 'it would not fit'
    # MiB that compiled for a v5e-16.
    for argument, mebibytes in (('base', 8660), ('large', 13376)):
        config = fitted('mlm.py', argument)
        fixed_bytes, row_bytes = slice_fitting.step_bytes(config, num_devices=16)
        rows = config.batch_size // config.num_microbatches // 16
        assert config.fsdp_gather == 'step'
        assert 1.0 < (fixed_bytes + rows * row_bytes) / 2**20 / mebibytes < 1.3


def test_less_fits_where_fewer_devices_share_the_state():
    fixed = {
        mesh: slice_fitting.step_bytes(fitted('mlm.py', f'large,fsdp_gather=layer,{mesh}'), num_devices=16)[0]
        for mesh in ('mesh.fsdp=16', 'mesh.fsdp=4', 'mesh.data=4', 'mesh.fsdp=4,mesh.tensor=4')
    }
    assert fixed['mesh.fsdp=16'] == fixed['mesh.fsdp=4,mesh.tensor=4']
    assert fixed['mesh.fsdp=4'] == fixed['mesh.data=4'] > fixed['mesh.fsdp=16'] + 9e8


def test_what_is_given_beside_a_slice_stays_and_the_rest_is_fitted_to_it():
    config = fitted('mlm.py', 'base,model.attention_dropout=0.1')
    assert config.model.attention_backend == 'xla' and config.model.attention_dropout == 0.1
    config = fitted('mlm.py', 'base,model.attention_backend=xla,num_microbatches=32')
    assert config.model.attention_dropout == 0.1 and config.num_microbatches == 32
    # Splash takes no relative bias, and windows only of rows in the order of the text.
    assert fitted('mae_lm.py', 'base').model.attention_backend == 'xla'
    windows = 'base,recipe=modern,model.relative_buckets=0,model.local_window=128'
    assert [fitted(f'{name}.py', windows).model.attention_backend for name in ('mae_lm', 'mlm')] == ['xla', 'splash']
    bfloat16, float32 = (fitted('mlm.py', f'base,model.dtype={d}') for d in ('bfloat16', 'float32'))
    assert float32.num_microbatches == 2 * bfloat16.num_microbatches


@pytest.mark.parametrize(
    ('given', 'data', 'fsdp', 'sharding'),
    [
        ('', -1, 16, 'fsdp'), ('mesh.tensor=4', -1, 4, 'fsdp_tp'), ('mesh.data=4', 4, -1, 'fsdp'),
        ('mesh.fsdp=-1', 1, -1, 'fsdp'), ('mesh.fsdp=1', -1, 1, 'dp'), ('mesh.fsdp=4', -1, 4, 'fsdp'),
    ],
)  # fmt: skip
def test_the_mesh_of_a_slice_has_its_devices(given, data, fsdp, sharding):
    config = fitted('mlm.py', f'large,{given}')
    assert (config.mesh.data, config.mesh.fsdp, config.sharding) == (data, fsdp, sharding)
    assert config.batch_size // config.num_microbatches % (16 // config.mesh.tensor) == 0


@pytest.mark.parametrize(
    ('mesh', 'sharding'),
    [
        ('mesh.data=-1', 'dp'), ('mesh.fsdp=8', 'fsdp'), ('mesh.fsdp=-1,mesh.data=1', 'fsdp'),
        ('mesh.tensor=2', 'fsdp_tp'), ('mesh.fsdp=4,mesh.tensor=2', 'fsdp_tp'), ('mesh.fsdp=8,sharding=dp', 'dp'),
    ],
)  # fmt: skip
def test_the_mesh_decides_the_sharding_without_a_slice_too(mesh, sharding):
    assert config_lib.resolve(load('mlm.py', f'mini,{mesh}')).sharding == sharding


@pytest.mark.parametrize(
    ('given', 'data', 'fsdp'), [('', -1, 16), ('mesh.fsdp=-1', 2, -1), ('mesh.data=4', 4, -1), ('mesh.tensor=4', -1, 4)]
)
def test_several_slices_are_joined_by_data(given, data, fsdp):
    config = fitted('mlm.py', f'large,{given}', '2xv5e-16')
    assert (config.mesh.data, config.mesh.fsdp) == (data, fsdp)
    assert config.batch_size % (32 * config.num_microbatches) == 0
