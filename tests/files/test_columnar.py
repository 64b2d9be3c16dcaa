"""Texts from Parquet and Arrow files: whole and in parts, from nested columns; what is wrong is named."""

import json
import pathlib
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax.config import ConfigError
from mlm_jax.files import columnar, text_files

pa = pytest.importorskip('pyarrow')
parquet = pytest.importorskip('pyarrow.parquet')
CASES = settings(max_examples=40, deadline=None, database=None)


def write_parquet(path, table, rows):
    parquet.write_table(table, path, row_group_size=rows)


def write_file(path, table, rows):
    with pa.OSFile(str(path), 'wb') as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def write_stream(path, table, rows):
    with pa.OSFile(str(path), 'wb') as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


WRITERS = {'parquet': write_parquet, 'arrow file': write_file, 'arrow stream': write_stream}
TYPES = (pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string()), pa.string_view())


@pytest.mark.parametrize('writer', WRITERS)
@CASES
@given(
    texts=st.lists(st.none() | st.text(max_size=9), min_size=1), rows=st.integers(1, 5),
    kind=st.sampled_from(TYPES), part_bytes=st.integers(1, 3000),
)  # fmt: skip
def test_all_texts_come_out_in_order(writer, texts, rows, kind, part_bytes):
    column = pa.array(texts, pa.string())
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    if writer == 'parquet' and kind == pa.string_view():
        column = column.cast(pa.string())
    table = pa.table({'id': list(range(len(texts))), 'text': column})
    name = writer.split()[0]
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, 'a')
        WRITERS[writer](path, table, rows)
        count = text_files.num_parts(path, name, part_bytes)
        found = [text for index in range(count) for text in text_files.read(path, name, 'text', index, count)]
        if writer != 'arrow stream':
            assert columnar.num_units(path, name) == -(-len(texts) // rows)
    assert found == [(text or '').encode() for text in texts]


@pytest.mark.parametrize('writer', WRITERS)
def test_keys_with_dots_and_what_is_wrong(tmp_path, writer):
    path, name = tmp_path / 'a', writer.split()[0]
    records = [{'text': 'a', 'deep': {'er': 'b', 'n': 1}}, None, {'text': None, 'deep': None}]
    deep = pa.struct([('er', pa.string()), ('n', pa.int64())])
    meta = pa.array(records, pa.struct([('text', pa.string()), ('deep', deep)]))
    table = pa.table({'meta': meta, 'n': [1, 2, 3], 'plain.text': ['x', 'y', 'z']})
    WRITERS[writer](path, table, 2)
    assert list(text_files.read(path, name, 'meta.text')) == [b'a', b'', b'']
    assert list(text_files.read(path, name, 'meta.deep.er')) == [b'b', b'', b'']
    assert list(text_files.read(path, name, 'plain.text')) == [b'x', b'y', b'z']
    columns = (
        r'meta.text \(string\), meta.deep.er \(string\), meta.deep.n \(int64\), n \(int64\), plain.text \(string\)'
    )
    for key in ('text', 'meta.none', 'n.text'):
        with pytest.raises(
            ConfigError, match=rf'a has no column {key!r}; its columns are {columns}. Set data.text_key'
        ):
            list(text_files.read(path, name, key))
    for key, kind in (('n', 'int64'), ('meta.deep', 'struct<')):
        with pytest.raises(ConfigError, match=rf'a: the column {key!r} holds {kind}.*, not text; its columns are'):
            list(text_files.read(path, name, key))
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 9, 12):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match='a is damaged or truncated'):
            list(text_files.read(path, name, 'meta.text'))


@pytest.mark.parametrize('as_dictionary', [False, True])
def test_a_stream_that_ends_between_two_batches_is_refused(tmp_path, as_dictionary):
    """As an interrupted `save_to_disk` leaves it; files of writers before Arrow 0.15 end with four zeros."""
    path, texts = tmp_path / 'a', pa.array([f'text {i % 7}' for i in range(20)])
    table = pa.table({'text': texts.dictionary_encode() if as_dictionary else texts, 'n': [-1, 0] * 10})
    write_stream(path, table, 4)
    whole, borders = path.read_bytes(), []
    with path.open('rb') as file, pa.ipc.open_stream(file) as reader:
        borders.append(file.tell())
        borders.extend(file.tell() for _ in reader)
    assert len(borders) == 6
    for border in borders:
        path.write_bytes(whole[:border])
        with pytest.raises(ConfigError, match='a is truncated: its Arrow stream has no end'):
            list(text_files.read(path, 'arrow', 'text'))
        if not as_dictionary or border > borders[0]:  # a dictionary would stand before the first batch
            path.write_bytes(whole[:border] + bytes(4))
            assert len(list(text_files.read(path, 'arrow', 'text'))) == 4 * borders.index(border)
    for cut in range(1, 9):
        path.write_bytes(whole[:-cut])
        with pytest.raises(ConfigError, match='a is .*truncated'):
            list(text_files.read(path, 'arrow', 'text'))


def save_data_set(directory, texts):
    """As `save_to_disk` of datasets 4.0 does, and then a result of `map`."""
    directory.mkdir(parents=True)
    listed = []
    for i, text in enumerate(texts):
        listed.append({'filename': f'data-{i:05}-of-{len(texts):05}.arrow'})
        write_stream(directory / listed[-1]['filename'], pa.table({'text': [text]}), 1)
    (directory / 'state.json').write_text(
        json.dumps({'_data_files': listed, '_fingerprint': '1c2e', '_split': 'train'})
    )
    (directory / 'dataset_info.json').write_text('{"features": {}}')
    write_stream(directory / 'cache-1f3a.arrow', pa.table({'text': ['mapped']}), 1)


def test_a_saved_data_set_is_read_without_its_caches(tmp_path):
    save_data_set(tmp_path / 'saved' / 'train', ['a', 'b'])
    (tmp_path / 'saved' / 'dataset_dict.json').write_text('{"splits": ["train", "test"]}')
    train = tmp_path / 'saved' / 'train'
    found = text_files.names(str(train), 'arrow')
    assert [text for file in found for text in text_files.read(file, 'arrow', 'text')] == [b'a', b'b']
    assert text_files.names(f'{train}/data-*.arrow', 'arrow') == found
    assert text_files.names(f'{train}/cache-1f3a.arrow', 'arrow') == [train / 'cache-1f3a.arrow'], 'named by itself'
    for pattern in (f'{train}/*.arrow', f'{tmp_path}/**/*.arrow'):
        with pytest.raises(ConfigError, match=r'matches cache-1f3a.arrow, a result of `map`.*: write arrow:.*/train,'):
            text_files.names(pattern, 'arrow')
    with pytest.raises(ConfigError, match='saved holds the splits train, test: name .*, such as arrow:.*/saved/train'):
        text_files.names(str(tmp_path / 'saved'), 'arrow')
    with pytest.raises(ConfigError, match='is a directory: name files, not directories'):
        text_files.names(str(train), 'parquet')
    found[0].unlink()
    with pytest.raises(ConfigError, match='data-00000-of-00002.arrow is missing, which .*state.json lists'):
        text_files.names(str(train), 'arrow')
    for damaged in ('{', '[]', '{"_data_files": 3}', '{"_data_files": [3]}'):
        (train / 'state.json').write_text(damaged)
        with pytest.raises(ConfigError, match='state.json is damaged'):
            text_files.names(str(train), 'arrow')


def test_a_file_of_another_kind_is_refused_by_name(tmp_path):
    path, table = tmp_path / 'a', pa.table({'text': ['some text']})
    cases = {
        'parquet': ('a Parquet file', 'parquet'),
        'arrow file': ('an Arrow file', 'arrow'),
        'arrow stream': ('an Arrow stream', 'arrow'),
    }
    for writer, (what, kind) in cases.items():
        WRITERS[writer](path, table, 1)
        with pytest.raises(ConfigError, match=rf'is not a text file: it is {what}.*As a corpus, name it {kind}:GLOB'):
            list(text_files.read(path, 'jsonl', 'text'))
        other = 'arrow' if kind == 'parquet' else 'parquet'
        with pytest.raises(ConfigError, match=rf'a is not an? \w+ file but {what}: name it as {kind}:GLOB'):
            list(text_files.read(path, other, 'text'))
    path.write_text(json.dumps({'text': 'some text'}))
    with pytest.raises(ConfigError, match=r'a is not a Parquet file: it begins with .*such as jsonl:GLOB'):
        list(text_files.read(path, 'parquet', 'text'))


def test_texts_that_are_not_utf_8_are_read_as_they_are(tmp_path):
    write_parquet(tmp_path / 'a', pa.table({'text': pa.array([b'caf\xe9', b'x'], pa.binary())}), 1)
    assert list(text_files.read(tmp_path / 'a', 'parquet', 'text')) == [b'caf\xe9', b'x']


@pytest.mark.parametrize('writer', WRITERS)
@CASES
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_flipped_byte_is_an_error_or_harmless(writer, place, value):
    name = writer.split()[0]
    table = pa.table({'text': [f'text {i}' for i in range(50)]})
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, 'a')
        WRITERS[writer](path, table, 10)
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= value
        path.write_bytes(content)
        try:
            found = list(text_files.read(path, name, 'text'))
        except ConfigError as error:
            assert str(path) in str(error)
        else:
            assert all(isinstance(text, bytes) for text in found)


def test_without_the_extra_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    write_parquet(tmp_path / 'a', pa.table({'text': ['x']}), 1)
    monkeypatch.setitem(__import__('sys').modules, 'pyarrow', None)
    with pytest.raises(ConfigError, match=r"pip install 'mlm_jax\[parquet\]'"):
        list(text_files.read(tmp_path / 'a', 'parquet', 'text'))
