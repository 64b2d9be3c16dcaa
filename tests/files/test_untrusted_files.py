"""Files as strangers have them, and damaged ones: all documents come out as they went in, or an error in words does."""

import bz2
import csv
import gzip
import io
import json
import lzma
import pathlib
import tempfile

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax.config import ConfigError
from mlm_jax.files import text_files
from mlm_jax.tasks import blimp, custom, glue, squad

CASES = settings(max_examples=60, deadline=None, database=None)


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def in_two(compress):
    """A file of two members, as parallel compressors and `cat` make it."""
    return lambda content: compress(content[: len(content) // 2]) + compress(content[len(content) // 2 :])


COMPRESSIONS = {'.gz': gzip.compress, '.bz2': bz2.compress, '.xz': lzma.compress, '.zst': zstd}
WRAPPINGS = {
    '': lambda content: content,
    **COMPRESSIONS,
    '.GZ': gzip.compress,
    '.part': bz2.compress,
    '.zstd': in_two(zstd),
    '.gzip': in_two(gzip.compress),
    '.bzip2': in_two(bz2.compress),
    '.lzma': lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
}
ENCODINGS = ('utf-8', 'utf-8-sig', 'utf-16', 'utf-32', 'utf-16-be')  # the last with a mark that the test writes
TEXTS = st.lists(st.text(max_size=30) | st.sampled_from(['say "yes", or no', 'a\\', '"', '\\"', 'x\u2028y', ' "a"']))


def encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding) if encoding != 'utf-16-be' else ('\ufeff' + text).encode(encoding)


def write_lines(texts) -> str:
    return ''.join(text + '\n' for text in texts)


def write_json_lines(texts) -> str:
    return ''.join(json.dumps({'n': i, 'text': text}, ensure_ascii=i % 2 == 0) + '\n' for i, text in enumerate(texts))


def write_csv(texts, **options) -> str:
    file = io.StringIO(newline='')
    csv.writer(file, **options).writerows([('n', 'text', 'm'), *((i, text, 'z') for i, text in enumerate(texts))])
    return file.getvalue()


def write_escaped_csv(texts) -> str:
    quoted = [text.replace('"', '\\"') for text in ['say "yes" now', *texts]]
    return 'n,text\n' + ''.join(f'{i},"{text}"\n' for i, text in enumerate(quoted))


def write_padded_csv(texts) -> str:
    quoted = [text.replace('"', '""') for text in ['plain', *texts]]
    return 'n, text\n'.replace(', ', ',') + ''.join(f'{i}, "{text}"\n' for i, text in enumerate(quoted))


def write_tsv(texts) -> str:
    return 'n\ttext\n' + ''.join(f'{i}\t{text}\n' for i, text in enumerate(texts))


def without(*parts: str):
    """Texts in which these characters are spaces."""
    return lambda texts: [''.join(' ' if c in parts else c for c in text) for text in texts]


def one_line(texts) -> list[str]:
    return [text.rstrip('\r') for text in without('\n')(texts)]


def open_quotes(texts) -> list[str]:
    """Texts of one line, of which those that begin with a quotation mark do not end with one."""
    return [text + '.' if text.startswith('"') else text for text in map(str.rstrip, without('\n', '\t')(texts))]


# Kind of file: (its kind in data.corpus, its suffix, how it is written, what texts it can hold).
KINDS = {
    'lines': ('lines', '.txt', write_lines, one_line),
    'JSON lines': ('jsonl', '.jsonl', write_json_lines, list),
    'CSV': ('csv', '.csv', write_csv, list),
    'CSV, all quoted': ('csv', '.csv', lambda texts: write_csv(texts, quoting=csv.QUOTE_ALL), list),
    'CSV, lines ended by CR': ('csv', '.csv', lambda t: write_csv(t, lineterminator='\r'), without('\n')),
    'CSV, lines ended by LF': ('csv', '.csv', lambda t: write_csv(t, lineterminator='\n'), list),
    'CSV, backslashes': ('csv', '.csv', write_escaped_csv, without('\\')),
    'CSV, blanks': ('csv', '.csv', write_padded_csv, list),
    'TSV of pandas': ('csv', '.tsv', lambda texts: write_csv(texts, delimiter='\t'), without('\t')),
    'TSV of GLUE': ('csv', '.tsv', write_tsv, open_quotes),
}
ADDED = {'CSV, backslashes': ['say "yes" now'], 'CSV, blanks': ['plain']}


def read(name: str, content: bytes, kind: str) -> list[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, name)
        path.write_bytes(content)
        return list(text_files.read(path, kind, 'text'))


@pytest.mark.parametrize('name', KINDS)
@CASES
@given(texts=TEXTS, wrapping=st.sampled_from(list(WRAPPINGS)), encoding=st.sampled_from(ENCODINGS))
def test_all_documents_come_out_as_they_went_in(name, texts, wrapping, encoding):
    kind, suffix, write, fit = KINDS[name]
    texts = ['the first', *fit(texts)]
    content = WRAPPINGS[wrapping](encode(write(texts), encoding))
    found = read(f'a{suffix}{wrapping}', content, kind)
    assert [document.decode() for document in found] == ADDED.get(name, []) + texts


@CASES
@given(suffix=st.sampled_from(list(COMPRESSIONS)), size=st.integers(1, 300), data=st.data())
def test_a_compressed_file_cut_anywhere_is_an_error(suffix, size, data):
    content = COMPRESSIONS[suffix](write_lines(f'This is line {i * i}.' for i in range(size)).encode())
    content = content[: data.draw(st.integers(0, len(content) - 1))]
    with pytest.raises(ConfigError, match=r'damaged(,| or) truncated'):
        read(f'a.txt{suffix}', content, 'lines')


@CASES
@given(suffix=st.sampled_from(list(COMPRESSIONS)), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error_or_harmless(suffix, where, bit):
    texts = [f'This is line {i * i}.' for i in range(300)]
    content = bytearray(COMPRESSIONS[suffix](write_lines(texts).encode()))
    content[int(where * len(content))] ^= 1 << bit
    try:
        found = read(f'a.txt{suffix}', bytes(content), 'lines')
    except ConfigError:
        return
    assert [document.decode() for document in found] == texts


@CASES
@given(
    content=st.binary(max_size=300),
    begin=st.sampled_from([b'', b'id,text\n', b'{"text": "', b'\xff\xfe', b'\x28\xb5\x2f\xfd', b'\x1f\x8b\x08', b'"']),
    suffix=st.sampled_from(['', '.txt', '.csv', '.tsv', '.jsonl', '.gz', '.zst']),
    kind=st.sampled_from(list(text_files.READERS)),
)
def test_any_bytes_are_documents_or_an_error_in_words(content, begin, suffix, kind):
    try:
        found = read(f'a{suffix}', begin + content, kind)
    except ConfigError as error:
        assert f'a{suffix}' in str(error)
    else:
        assert all(isinstance(document, bytes) for document in found)


GLUE_TSV = 'sentence\tlabel\na fine film\t1\n"dull\t0\n'
RECORDS = write_json_lines(['a', 'b \ud83d', 'c']).replace('"n"', '"label"')
PAIR = {'sentence_good': 'A dog.', 'sentence_bad': 'A dogs.', 'field': 'x', 'linguistics_term': 't', 'UID': 'u'}
ANSWER = {'id': '1', 'question': 'Who?', 'answers': [{'text': 'He', 'answer_start': 0}], 'is_impossible': False}
SQUAD = json.dumps({'data': [{'paragraphs': [{'context': 'He did.', 'qas': [ANSWER]}]}]})
TASKS = {
    'custom.jsonl': (RECORDS, lambda path: custom.read(mine(path))),
    'custom.csv': (write_csv(['a, b', 'c', 'd']).replace('n,', 'label,'), lambda path: custom.read(mine(path))),
    'custom.tsv': (write_tsv(['a', '"b', 'c']).replace('n\t', 'label\t'), lambda path: custom.read(mine(path))),
    'train.tsv': (GLUE_TSV, lambda path: glue.read('sst2', str(path.parent))),
    'train.jsonl': ('{"text": "fine", "label": 1}\n' * 30, lambda path: glue.read('sst2', str(path.parent))),
    'blimp.jsonl': (json.dumps(PAIR) + '\n', lambda path: blimp.read(path.parent)),
    'squad.json': (SQUAD, squad.read),
}
PIECES = st.sampled_from([
    b'', b'\0', b'\xff', b'"', b'\n', b'\r', b'\t', b',', b'{', b'[', b'1e999', b'9' * 5000, b'[' * 100_000, b'null',
    b'"\\ud83d"', b'\xef\xbb\xbf', '\u2028'.encode(), b'NaN', b'true', b'-1',
])  # fmt: skip


def mine(path: pathlib.Path) -> custom.Files:
    return custom.Files('mine', 'classification', str(path), str(path), '', ('text',), ('label',))


@pytest.mark.parametrize('name', TASKS)
@CASES
@given(piece=PIECES, place=st.floats(0, 1), cut=st.integers(0, 12))
def test_a_changed_task_is_read_or_an_error_in_words(name, piece, place, cut):
    content, reader = TASKS[name]
    content = content.encode(errors='surrogatepass')
    at = int(place * len(content))
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, name)
        path.write_bytes(content[:at] + piece + content[at + cut :])
        try:
            reader(path)
        except ConfigError as error:
            assert str(error)
