"""A ratio that masks do not reach is said before the run, by every program that knows it."""

import dataclasses

import jax
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax import inspect_masks, prepare, train
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data import masking_tables, prepared_data
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.ratio_schedules import RatioSchedule
from mlm_jax.masking.registry import FullyExplored
from mlm_jax.masking.tables import Tables
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.training import mask_ratio

pytestmark = pytest.mark.usefixtures('one_device')

VOCABULARY = standard_vocabulary(50)


def rows(count: int = 400, length: int = 64):
    tokens = np.random.default_rng(0).integers(5, 50, (count, length)).astype(np.int32)
    tokens[:, 0], tokens[:, -1] = VOCABULARY.cls_id, VOCABULARY.sep_id
    return type('Rows', (), {'__len__': lambda self: count, 'read': lambda self, index: tokens[index]})()


def words(every: int) -> Tables:
    """One id of `every` starts a word."""
    return Tables(word_starts=np.arange(50) % every == 0, token_weights=np.ones(50, np.float32))


@pytest.mark.parametrize(
    ('strategy', 'unit'),
    [('uniform', 'token'), ('bernoulli', 'token'), ('weighted', 'word'), ('bernoulli', 'word'), ('uniform', 'span')],
)
def test_what_is_reached_is_not_complained_of(strategy, unit):
    masking = Masking(VOCABULARY, strategy, 0.2, unit=unit, tables=words(2))
    assert mask_ratio.warning(masking, rows(), 0) == ''


@pytest.mark.parametrize('strategy', ['uniform', 'least_masked'])
def test_words_that_are_too_long_are_named_with_the_cure(strategy):
    masking = Masking(VOCABULARY, strategy, 0.15, unit='word', tables=words(49))
    text = mask_ratio.warning(masking, rows(), 0)
    assert (
        'instead of the requested 15.0%' in text
        and 'masking.unit=word' in text
        and 'masking.unit=token or ngram' in text
    )


def test_weights_of_nothing_are_named():
    weights = (np.arange(50) > 47).astype(np.float32)
    masking = Masking(VOCABULARY, 'weighted', 0.4, tables=Tables(token_weights=weights))
    assert 'masking.token_weights are 0' in mask_ratio.warning(masking, rows(), 0)


@pytest.mark.parametrize(
    ('keys', 'expected'),
    [
        (dict(ratio=0.3), 0.3),
        (dict(ratio=0.3, predicted_fraction=0.5), 0.15),
        (dict(strategy='fully_explored', fully_explored=FullyExplored(5)), 0.2),
        (dict(schedule=RatioSchedule('linear', 0.4, 0.2, 0, 100)), 0.3),
        (dict(schedule=RatioSchedule('diffusion', 0.8, 0.2)), 0.5),
        # Its ratio is the mean of the epoch: the first of two, of 100 batches each.
        (dict(strategy='least_masked', num_rows=25_600, schedule=RatioSchedule('linear', 0.4, 0.2, 0, 200)), 0.35),
    ],
)
def test_the_ratio_asked_for_is_that_of_the_settings(keys, expected):
    masking = Masking(VOCABULARY, **keys)
    asked = masking.predicted_fraction * masking.asked_ratio(50, 256)
    assert asked == pytest.approx(expected, abs=2e-3)
    tokens = rows().read(np.arange(256))
    batch = jax.jit(lambda tokens: masking(jax.random.key(0), tokens, (tokens > 0).astype(np.int32), 50))(tokens)
    ratio = mask_ratio.of_batches(masking, [jax.device_get(batch)], 50)
    assert ratio.predicted == pytest.approx(expected, rel=0.03) and not ratio.is_missed


@pytest.fixture
def without_spaces(make_tiny_config, tmp_path):
    """A corpus in Chinese, prepared for masks of words; and what `prepare` printed."""
    rng = np.random.default_rng(0)
    lines = [''.join(map(chr, 0x4E00 + rng.zipf(1.3, 60) % 80)) for _ in range(300)]
    (tmp_path / 'text.txt').write_text('\n\n'.join(lines), encoding='utf-8')
    config = make_tiny_config()
    config.update(vocab_size=200, total_steps=1)
    config.data.update(directory=str(tmp_path / 'data'), corpus=f'text:{tmp_path}/text.txt', validation_percent=10)
    config.tokenizer.update(model='bpe', byte_fallback=False)
    config.masking.unit = 'word'
    return config


def test_text_without_spaces_is_masked_as_much_as_is_asked_for(without_spaces, capsys):
    manifest = prepare.run(without_spaces, num_workers=1)
    printed = capsys.readouterr().out
    assert 'words      1.' in printed and 'WARNING' not in printed
    data = prepared_data.load(without_spaces.data)
    ((batch, _),) = inspect_masks.masked_batches(without_spaces, data, 0, 16)
    masking = Masking(manifest.vocabulary, ratio=without_spaces.masking.ratio)
    ratio = mask_ratio.of_batches(masking, [batch], 0)
    assert not ratio.is_missed and ratio.predicted > 0.9 * without_spaces.masking.ratio


class FirstWarning(Exception):
    """Ends a run."""


class Notes:
    """In the place of `RunLog`."""

    def __init__(self, *_):
        pass

    def note(self, text):
        if text.startswith('WARNING'):
            raise FirstWarning(text)


def test_prepare_and_train_say_that_words_are_too_long(without_spaces, capsys, tmp_path, monkeypatch):
    prepare.run(without_spaces, num_workers=1)
    path = tmp_path / 'data' / masking_tables.FILE
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **arrays | {'word_marks': np.zeros_like(arrays['word_marks'])})  # as if no piece held a letter
    manifest_lib.save(dataclasses.replace(manifest_lib.load(path.parent), tables_sha256=''), path.parent)
    capsys.readouterr()
    prepare.run(without_spaces, num_workers=1)
    assert 'WARNING: ' in capsys.readouterr().out
    monkeypatch.setattr(train, 'RunLog', Notes)
    with pytest.raises(FirstWarning, match='instead of the requested 15.0%'):
        train.train(without_spaces, tmp_path / 'run')


def test_short_words_are_counted_as_they_are(animals_config, capsys):
    config = config_lib.from_json(config_lib.to_json(animals_config))
    config.masking.unit = 'word'
    prepare.run(config, num_workers=1)
    assert 'tokens on average' in capsys.readouterr().out
