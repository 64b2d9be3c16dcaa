"""Prepared directories are not trusted: whatever happens to a file of theirs is refused, mended, or without effect."""

import functools
import pathlib
import shutil

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from preparations import contents

from mlm_jax import config as config_lib
from mlm_jax import prepare
from mlm_jax.config import ConfigError
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data import masking_tables, shards, verification
from mlm_jax.data.tokenizers import Tokenizer

TEXT = ['the', 'old', 'river', 'runs', 'north', 'of', 'small', 'town', 'where', 'many', 'people', 'lived']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A directory with a corpus, `rows` made of it, and `unfinished`, killed before its manifest."""
    folder = tmp_path_factory.mktemp('untrusted')
    rng = np.random.default_rng(0)
    lines = [' '.join(rng.choice(TEXT, rng.integers(3, 30))) for _ in range(150)]
    (folder / 'corpus.txt').write_text('\n'.join(lines))
    prepare.run(make_config(folder, 'rows'), num_workers=1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(manifest_lib, 'save', interrupt)
        prepare.run(make_config(folder, 'unfinished'), num_workers=1)
    return folder


def interrupt(*args):
    raise KeyboardInterrupt


def make_config(folder, name):
    config = config_lib.default_config()
    overrides = {'data.directory': str(folder / name), 'data.corpus': f'lines:{folder}/corpus.txt',
                 'tokenizer.model': 'bpe', 'tokenizer.byte_fallback': 'False', 'vocab_size': '60',
                 'sequence_length': '16', 'data.validation_percent': '10', 'masking.unit': 'word'}  # fmt: skip
    config_lib.apply_overrides(config, overrides)
    return config


@st.composite
def damages(draw):
    """A function from the bytes of a file to other bytes."""
    kind = draw(st.sampled_from(['cut', 'empty', 'flip', 'flip', 'flip', 'random', 'zeros', 'longer']))
    where, value = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 255))
    noise = draw(st.binary(min_size=1, max_size=200)) if kind in ('random', 'longer') else b''

    def damage(raw: bytes) -> bytes:
        place = int(where * len(raw))
        return {
            'cut': raw[:place],
            'empty': b'',
            'flip': raw[:place] + bytes([raw[place] ^ value]) + raw[place + 1 :] if raw else b'',
            'random': noise,
            'zeros': raw[:place] + bytes(len(raw) - place),
            'longer': raw + noise,
        }[kind]

    return damage


def read_all(config, verify):
    """All that a run takes from a prepared directory, as bytes; rows by shards."""
    directory = manifest_lib.pathlib.Path(config.data.directory)
    manifest = manifest_lib.load(directory)
    verification.check_tokenizer(directory, manifest)
    found = {name: tables_array.tobytes() for name, tables_array in loaded_tables(config, manifest).items()}
    found |= {'vocabulary': manifest.vocabulary, 'encoded': Tokenizer.from_file(directory / manifest.tokenizer).model}
    for name in ('train', 'validation'):
        rows = shards.Shards(directory, name, verify)
        found[name] = rows.read(np.arange(len(rows)))
    return found


@functools.cache
def undamaged(folder):
    return read_all(make_config(folder, 'rows'), verify=True)


def loaded_tables(config, manifest):
    loaded = masking_tables.load(config.masking, [(pathlib.Path(config.data.directory), manifest)], [1.0])
    return {'word_starts': loaded.word_starts}


@hypothesis.given(st.data())
@hypothesis.settings(deadline=None, max_examples=120)
def test_readers_refuse_damage_or_read_the_same(folder, data):
    config, directory = make_config(folder, 'rows'), folder / 'rows'
    if not (folder / 'read').exists():
        shutil.copytree(directory, folder / 'read')
    config.data.directory = str(folder / 'read')
    name = data.draw(st.sampled_from(sorted(p.name for p in directory.iterdir())))
    path, raw = folder / 'read' / name, (directory / name).read_bytes()
    damaged = data.draw(damages())(raw)
    expected = undamaged(folder)
    try:
        path.write_bytes(damaged)
        try:
            found = read_all(config, verify=False)
            assert found['train'].shape == expected['train'].shape
            assert found['train'].max() < 60, 'flipped bytes are left to the hash, but none is out of range'
        except ConfigError as error:
            assert str(folder / 'read') in str(error)
        try:
            found = read_all(config, verify=True)
            np.testing.assert_equal(found, expected)
        except ConfigError:
            assert damaged != raw
        try:
            manifest = manifest_lib.load(folder / 'read')
            wrong = verification.examine(folder / 'read', manifest, content=True).wrong
            assert list(wrong) == [name] * (damaged != raw and name != manifest_lib.FILE)
        except ConfigError:
            assert name == manifest_lib.FILE
    finally:
        path.write_bytes(raw)


@hypothesis.given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8,
), st.data())  # fmt: skip
@hypothesis.settings(deadline=None, max_examples=100)
def test_a_manifest_of_other_types_is_read_or_refused_in_words(folder, value, data):
    stored = manifest_lib.sealed.parse((folder / 'rows' / manifest_lib.FILE).read_bytes())
    del stored[manifest_lib.sealed.KEY]  # as in directories of earlier versions, where nothing else would tell
    place, key = stored, data.draw(st.sampled_from(sorted(stored)))
    while isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = value
    (folder / 'typed').mkdir(exist_ok=True)
    (folder / 'typed' / manifest_lib.FILE).write_text(manifest_lib.json.dumps(stored))
    try:
        manifest = manifest_lib.load(folder / 'typed')
        verification.examine(folder / 'typed', manifest, content=True)
        shards.Shards(folder / 'rows', 'train', manifest=manifest)
    except ConfigError:
        pass


@hypothesis.given(st.data())
@hypothesis.settings(deadline=None, max_examples=25)
@pytest.mark.parametrize('state', ['rows', 'unfinished'])
def test_prepare_mends_damage_or_refuses_it(folder, state, data):
    copy = folder / 'mended'
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / state, copy)
    name = data.draw(st.sampled_from([*contents(copy)]))
    damaged = data.draw(damages())((copy / name).read_bytes())
    if data.draw(st.integers(0, 9)):
        (copy / name).write_bytes(damaged)
    else:
        (copy / name).unlink()
    config = make_config(folder, 'mended')
    try:
        prepare.run(config, num_workers=1)
    except ConfigError as error:
        assert name.endswith(('manifest.json', 'settings.json')), error
        assert str(copy) in str(error)
        return
    # Settings and versions in a manifest that is damaged elsewhere tell nothing to anyone who reads the rows.
    skip = {manifest_lib.FILE} if name == manifest_lib.FILE else set()
    made, original = contents(copy), contents(folder / 'rows')
    assert {n: b for n, b in made.items() if n not in skip} == {n: b for n, b in original.items() if n not in skip}
