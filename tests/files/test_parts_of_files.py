"""The parts of a file together give the documents of the whole file, in order, however it is divided."""

import gzip
import io
import json
import pathlib
import tempfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlm_jax.config import ConfigError
from mlm_jax.files import streams, text_files

CASES = settings(max_examples=150, deadline=None, database=None)
LINES = st.lists(
    st.sampled_from(['', ' ', '\t', '\r', 'a', 'bb ccc', ' d', 'é ü', '\x0b', 'x' * 30, '\ufeff', 'y\rz']), max_size=12
)


def read(path: pathlib.Path, kind: str, part_bytes: int) -> list[bytes]:
    count = text_files.num_parts(path, kind, part_bytes)
    return [text for index in range(count) for text in text_files.read(path, kind, 'text', index, count)]


def check_parts(content: bytes, kind: str, part_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, 'a')
        path.write_bytes(content)
        whole = list(text_files.read(path, kind, 'text'))
        assert read(path, kind, part_bytes) == whole
        count = text_files.num_parts(path, kind, 1)
        if count > 1:  # parts of any size, also less than a byte
            parts = (text_files.read(path, kind, 'text', index, 3 * count) for index in range(3 * count))
            assert [text for part in parts for text in part] == whole


@pytest.mark.parametrize('kind', ['text', 'lines', 'smi'])
@CASES
@given(lines=LINES, end=st.sampled_from(['', '\n']), mark=st.booleans(), part_bytes=st.integers(1, 40))
@example(lines=['', 'a', 'b'], end='\n', mark=True, part_bytes=1)
def test_lines_and_blocks(kind, lines, end, mark, part_bytes):
    content = ('\ufeff' * mark + '\n'.join(lines) + end).encode()
    check_parts(content, kind, part_bytes)


@settings(CASES, max_examples=50)
@given(
    texts=st.lists(st.text(max_size=8), max_size=6),
    blanks=st.lists(st.sampled_from(['', ' ', '\r']), max_size=4),
    part_bytes=st.integers(1, 40),
)
def test_json_lines(texts, blanks, part_bytes):
    lines = [json.dumps({'text': text}, ensure_ascii=len(text) % 2 == 0) for text in texts]
    check_parts('\n'.join(['', *blanks, *lines, *blanks]).encode(errors='surrogatepass'), 'jsonl', part_bytes)


def test_a_part_within_a_long_line_reads_little_of_it(monkeypatch):
    class Counted(io.BytesIO):
        """Counts the bytes that are skipped."""

        skipped = 0

        def readline(self, size=-1):
            line = super().readline(size)
            Counted.skipped += len(line)
            return line

    def opened(path, start):
        file = Counted(b'x' * 10_000 + b'\n\nlast')
        file.seek(start)
        return file

    monkeypatch.setattr(streams, 'BUFFER_BYTES', 10)
    monkeypatch.setattr(streams, 'open_text', opened)
    for kind in ('lines', 'text'):
        read_part = text_files.READERS[kind]
        assert list(read_part(pathlib.Path('a'), '', 50, 90)) == [] and Counted.skipped <= 60
        assert list(read_part(pathlib.Path('a'), '', 0, 40)) == [b'x' * 10_000]
        Counted.skipped = 0
    assert list(text_files.READERS['lines'](pathlib.Path('a'), '', 9990, 10_005)) == [b'', b'last']


def test_long_blocks_are_split_at_the_same_places(monkeypatch, tmp_path):
    monkeypatch.setattr(text_files, 'MAX_BLOCK_BYTES', 10)
    path = tmp_path / 'a'
    path.write_text('\n\n'.join(f'{i}: a\nb\ncccc\ndd\n eee\nf' for i in range(9)))
    whole = list(text_files.read(path, 'text', ''))
    assert len(whole) == 18
    for part_bytes in (3, 10, 25, 64):
        assert read(path, 'text', part_bytes) == whole


def test_a_blank_line_before_a_part_is_found_however_long_it_is(tmp_path):
    path = tmp_path / 'a'
    for blank in (' ' * 9000, ' ' * 9000 + 'x', ''):
        path.write_text(f'one\n{blank}\ntwo\nthree')
        assert read(path, 'text', 9) == list(text_files.read(path, 'text', ''))


@pytest.mark.parametrize(
    'content, is_divided',
    [
        (b'one\rtwo\r' * 100, False),
        (b'one\r\ntwo\r\n' * 100, True),
        ('one\ntwo\n'.encode('utf-16') * 100, False),
        (gzip.compress(b'one\ntwo\n'), False),
    ],
    ids=['CR', 'CRLF', 'UTF-16', 'gzip'],
)
def test_what_can_be_divided(tmp_path, content, is_divided):
    (tmp_path / 'a').write_bytes(content)
    assert (text_files.num_parts(tmp_path / 'a', 'lines', 10) > 1) == is_divided
    assert text_files.num_parts(tmp_path / 'a', 'lines', 1000) == 1
    assert text_files.num_parts(tmp_path / 'a', 'files', 10) == text_files.num_parts(tmp_path / 'a', 'csv', 10) == 1


def error_of(path: pathlib.Path, index: int, count: int) -> str:
    with pytest.raises(ConfigError) as error:
        list(text_files.read(path, 'jsonl', 'text', index, count))
    return str(error.value)


def test_errors_of_parts_name_the_line_of_the_file(tmp_path):
    path = tmp_path / 'a.jsonl'
    lines = [json.dumps({'text': 'x' * (i % 7)}) for i in range(100)]
    for number, broken in ((1, '{'), (50, '{"text"'), (77, '{"txt": "x"}'), (100, '[1]')):
        path.write_text('\n'.join([*lines[: number - 1], broken, *lines[number:]]))
        expected = error_of(path, 0, 1)
        assert f'line {number} of ' in expected
        for count in (2, 5, 40):
            errors = []
            for index in range(count):
                try:
                    list(text_files.read(path, 'jsonl', 'text', index, count))
                except ConfigError as error:
                    errors.append(str(error))
            assert errors == [expected]
    path.write_text(json.dumps([{'text': 'x'}] * 50, indent=1))
    assert 'is one JSON array, not JSON lines' in error_of(path, 3, 5), 'the first line tells more'
