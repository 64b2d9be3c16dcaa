"""The tables of masking in a prepared directory: made with it, added to an older one, and missed where they lack."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax import prepare
from mlm_jax.config import ConfigError
from mlm_jax.data import collocations, masking_tables, shards
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.masking import registry
from mlm_jax.masking.tables import span_hashes
from mlm_jax.masking.vocabulary import standard_vocabulary


@pytest.fixture
def copied(animals_config, tmp_path):
    """A configuration of its own for a copy of the prepared animals."""
    config = config_lib.from_json(config_lib.to_json(animals_config))
    config.data.directory = str(tmp_path / 'copy')
    (tmp_path / 'copy').mkdir()
    for file in manifest_lib.pathlib.Path(animals_config.data.directory).iterdir():
        (tmp_path / 'copy' / file.name).write_bytes(file.read_bytes())
    return config, tmp_path / 'copy'


def test_prepare_writes_word_starts_and_counts(copied):
    config, directory = copied
    manifest = manifest_lib.load(directory)
    assert manifest.tables == masking_tables.FILE
    with np.load(directory / masking_tables.FILE) as stored:
        assert set(stored) == {'word_starts', 'word_marks', 'counts'}
        rows = shards.Shards(directory, 'train')
        assert stored['counts'].sum() == len(rows) * 32
        starts = stored['word_starts']
    assert starts.shape == (config.vocab_size,) and 1 < starts.sum() < config.vocab_size
    assert not starts[list(manifest.vocabulary.special_ids)].any()


def test_an_older_directory_is_refused_with_the_cure_and_completed_by_it(copied, capsys):
    config, directory = copied
    (directory / masking_tables.FILE).unlink()
    stored = json.loads((directory / manifest_lib.FILE).read_text())
    del stored['tables']
    (directory / manifest_lib.FILE).write_text(json.dumps(stored))
    assert manifest_lib.load(directory).tables == ''

    def load():
        return masking_tables.load(config.masking, [(directory, manifest_lib.load(directory))], [1.0])

    assert load().word_starts is None, 'the default masking needs none'
    for key, value in (('unit', 'word'), ('unit', 'pmi'), ('strategy', 'weighted')):
        changed = config_lib.from_json(config_lib.to_json(config))
        changed.masking[key] = value
        corpus = f'--set=data.corpus={config.data.corpus}$'  # which configurations of runs seldom name
        with pytest.raises(ConfigError, match=rf'(?s)lacks the masking tables.*mlm_jax.prepare.*{corpus}'):
            masking_tables.load(changed.masking, [(directory, manifest_lib.load(directory))], [1.0])
    rows = (directory / 'train-00000-of-00001.npy').stat().st_mtime_ns
    prepare.run(config, num_workers=1)
    assert 'added      tables.npz' in capsys.readouterr().out
    config.masking.unit = 'span'
    assert load().word_starts.any() and load().collocations is None
    config.masking.unit = 'pmi'
    with pytest.raises(ConfigError, match='lacks the masking tables collocations'):
        load()
    prepare.run(config, num_workers=1)
    assert load().collocations.dtype == np.uint32
    assert (directory / 'train-00000-of-00001.npy').stat().st_mtime_ns == rows, 'rows stay'
    prepare.run(config, num_workers=1)
    assert 'added' not in capsys.readouterr().out.split('up to date')[-1]


def test_tables_of_an_earlier_version_are_read_and_completed(copied):
    """They lack the marks of words, which the tokenizer knows; what they hold stays."""
    config, directory = copied
    config.masking.unit = 'pmi'
    prepare.run(config, num_workers=1)
    with np.load(directory / masking_tables.FILE) as stored:
        whole = dict(stored)
    np.savez(directory / masking_tables.FILE, **{name: array for name, array in whole.items() if name != 'word_marks'})
    manifest_lib.save(dataclasses.replace(manifest_lib.load(directory), tables_sha256=''), directory)
    loaded = masking_tables.load(config.masking, [(directory, manifest_lib.load(directory))], [1.0])
    assert np.array_equal(loaded.word_marks, whole['word_marks'])
    assert np.array_equal(loaded.word_starts, whole['word_starts'])
    prepare.run(config, num_workers=1)
    with np.load(directory / masking_tables.FILE) as stored:
        assert stored.keys() == whole.keys() and all(np.array_equal(stored[name], whole[name]) for name in whole)


def test_weights_come_from_counts_or_a_file(copied, tmp_path):
    config, directory = copied
    config.masking.strategy = 'weighted'
    manifest = manifest_lib.load(directory)
    with np.load(directory / masking_tables.FILE) as stored:
        counts = stored['counts']
    weights = masking_tables.load(
        config.masking, [(pathlib.Path(config.data.directory), manifest)], [1.0]
    ).token_weights
    assert weights.dtype == np.float32 and weights[counts.argmax()] == weights.min()
    config.masking.token_weights = str(tmp_path / 'weights.npy')
    with pytest.raises(ConfigError, match='path of a .npy file'):
        masking_tables.load(config.masking, [(pathlib.Path(config.data.directory), manifest)], [1.0])
    np.save(tmp_path / 'weights.npy', np.arange(config.vocab_size))
    assert np.array_equal(
        masking_tables.load(config.masking, [(pathlib.Path(config.data.directory), manifest)], [1.0]).token_weights,
        np.arange(config.vocab_size),
    )
    np.save(tmp_path / 'weights.npy', -np.ones(config.vocab_size))
    with pytest.raises(ConfigError, match='finite numbers, one for each id'):
        masking_tables.load(config.masking, [(pathlib.Path(config.data.directory), manifest)], [1.0])


def test_a_strategy_gets_the_tables_that_it_names(copied, monkeypatch):
    config, directory = copied
    config.masking.strategy = 'by_words'
    monkeypatch.setitem(registry.STRATEGIES, 'by_words', registry.Strategy(print, tables=('word_starts', 'word_marks')))
    assert masking_tables.required(config.masking) == ('word_starts', 'word_marks')
    tables = masking_tables.load(config.masking, [(directory, manifest_lib.load(directory))], [1.0])
    assert tables.word_starts.any() and tables.word_marks is not None


def test_a_table_that_nothing_makes_is_refused_where_it_would_be_made(copied, monkeypatch):
    """Otherwise `train` asks for `prepare`, and `prepare` makes everything but this."""
    config, directory = copied
    config.masking.unit = 'clause'
    monkeypatch.setitem(registry.UNITS, 'clause', registry.Unit(print, 8, tables=('clauses',)))
    before = (directory / masking_tables.FILE).read_bytes()
    with pytest.raises(ConfigError, match='nothing makes the table clauses, which masking.unit=clause'):
        masking_tables.write_missing(config.masking, directory, manifest_lib.load(directory))
    assert (directory / masking_tables.FILE).read_bytes() == before


def test_words_are_refused_where_no_piece_starts_one(copied):
    config, directory = copied
    config.masking.unit = 'word'
    np.savez(directory / masking_tables.FILE, word_starts=np.zeros(config.vocab_size, bool))
    with pytest.raises(ConfigError, match='masking.unit=ngram or masking.unit=token'):
        masking_tables.load(config.masking, [(directory, manifest_lib.load(directory))], [1.0])


def test_collocations_are_what_occurs_together_more_often_than_its_parts():
    """Words 10–29 at random, one piece each; '40 41' always together; '50 51 52' too; '60 61' always, but rarely."""
    vocabulary, rng = standard_vocabulary(100), np.random.default_rng(0)
    rows = []
    for index in range(600):
        row = rng.integers(10, 30, 32)
        row[[0, 31]] = vocabulary.cls_id, vocabulary.sep_id
        if index % 10 == 0:
            row[4:6], row[12:15] = (40, 41), (50, 51, 52)
        if index < 5:
            row[20:22] = 60, 61
        rows.append(row)
    starts = np.ones(100, bool)
    starts[52] = False  # goes on with the word of 51: '50 51·52' has two words
    found = collocations.collocations([np.array(rows[:300]), np.array(rows[300:])], starts, vocabulary)
    expected = [(40, 41), (50, 51, 52)]
    hashes = [span_hashes(np.array([n]))(np.array([0]), np.array([len(n)]))[0, 0] for n in expected]
    assert found.tolist() == sorted(map(int, hashes))


def corrupted(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGES = {
    'cut': lambda path: path.write_bytes(path.read_bytes()[:-30]),
    'empty': lambda path: path.write_bytes(b''),
    'flipped': corrupted,
    'no archive': lambda path: path.write_bytes(b'\x93NUMPY' + bytes(200)),
    'of another vocabulary': lambda path: np.savez(path, word_starts=np.ones(7, bool), counts=np.ones(7, np.int64)),
    'of another dtype': lambda path: np.savez(path, word_starts=np.ones(50), counts=np.ones(50)),
    'of objects': lambda path: np.savez(path, word_starts=np.array([None])),
    'changed': lambda path: np.savez(path, **{k: v ^ True for k, v in np.load(path).items() if k == 'word_starts'}),
}


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('newer', [True, False])
def test_a_damaged_file_is_refused_and_made_again(copied, damage, newer):
    config, directory = copied
    config.masking.unit = 'word'
    before = (directory / masking_tables.FILE).read_bytes()
    if not newer:  # as in directories of earlier versions, whose manifests have no hash of it
        stored = json.loads((directory / manifest_lib.FILE).read_text())
        del stored['tables_sha256']
        (directory / manifest_lib.FILE).write_text(json.dumps(stored))
    DAMAGES[damage](directory / masking_tables.FILE)
    if newer or damage != 'changed':
        with pytest.raises(ConfigError, match=r'cannot read .*tables.npz .*; delete that file and run prepare again'):
            masking_tables.load(config.masking, [(directory, manifest_lib.load(directory))], [1.0])
        prepare.run(config, num_workers=1)
        assert (directory / masking_tables.FILE).read_bytes() == before
    masking_tables.load(config.masking, [(directory, manifest_lib.load(directory))], [1.0])


@pytest.mark.parametrize('weights', [np.array(['a', 'b']), np.array([None]), np.zeros(3, 'i4,i4'), np.ones(3, complex)])
def test_weights_that_are_no_numbers_are_refused(copied, tmp_path, weights):
    config, directory = copied
    config.masking.strategy, config.masking.token_weights = 'weighted', str(tmp_path / 'weights.npy')
    np.save(tmp_path / 'weights.npy', weights, allow_pickle=True)
    for damage in (lambda path: None, DAMAGES['of another vocabulary'], DAMAGES['empty'], lambda path: path.unlink()):
        damage(tmp_path / 'weights.npy')
        if (tmp_path / 'weights.npy.npz').exists():
            (tmp_path / 'weights.npy.npz').rename(tmp_path / 'weights.npy')
        with pytest.raises(ConfigError, match=r'cannot read masking.token_weights=.* path of a .npy file'):
            masking_tables.load(config.masking, [(directory, manifest_lib.load(directory))], [1.0])
