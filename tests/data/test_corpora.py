"""Documents come out of files as they went in; damage is mended and counted, or named with its cure."""

import bz2
import collections
import csv
import gzip
import hashlib
import json
import lzma
import os
import pathlib
import re
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError
from mlm_jax.data import corpora, demo_corpus, reading, sampling, slices, sources, tfds_sets, workers
from mlm_jax.files import text_files

TEXTS = [f'Document {i} tells the story of number {i}.\nIt has two lines.' for i in range(60)]


def settings(**keys):
    data = config_lib.default_config().data
    data.update(validation_percent=20.0, **keys)
    return data


def read(spec, working, **keys):
    """split → texts, after the checks of a corpus that is read whole."""
    working.mkdir(exist_ok=True)
    corpus = corpora.open_corpus(settings(corpus=spec, **keys), working)
    sampling.take(corpus, working, 10**9, workers.Processes(1))
    splits = {'train': [], 'validation': []}
    for some, threshold in ((corpus.train, corpus.threshold), (corpus.held_out, corpora.ALL_HASHES)):
        for part in some:
            for split, _, texts in reading.Reading(part, threshold).texts():
                splits[split] += [text.decode() for text in texts]
    return splits


def write_jsonl(path, texts, key='text'):
    path.write_text(''.join(json.dumps({key: t}) + '\n' for t in texts), encoding='utf-8')
    return path


def test_every_kind_of_file_gives_the_same_documents(tmp_path):
    write_jsonl(tmp_path / 'a.jsonl', TEXTS)
    (tmp_path / 'a.txt').write_text('\n\n \n'.join(TEXTS))
    with open(tmp_path / 'a.csv', 'w', newline='') as file:
        csv.writer(file).writerows([('id', 'text'), *enumerate(TEXTS)])
    (tmp_path / 'parts').mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / 'parts' / f'{i}.txt').write_text(text)
    found = {
        kind: read(f'{kind}:{tmp_path}/{pattern}', tmp_path / kind)
        for kind, pattern in [
            ('jsonl', '*.jsonl'),
            ('text', 'a.txt'),
            ('csv', '*.csv'),
            ('files', 'parts/*.txt'),
        ]
    }
    for splits in found.values():
        assert sorted(splits['train'] + splits['validation']) == sorted(TEXTS)
        # A hash of the text decides: the same documents are held out, whatever the file they came from.
        assert set(splits['validation']) == set(found['jsonl']['validation'])
        assert splits['validation'] and splits['train']


def test_lines_are_documents(tmp_path):
    (tmp_path / 'a.txt').write_text('CCO\n\nc1ccccc1\r\n' + ''.join(f'C{i}\n' for i in range(50)))
    splits = read(f'lines:{tmp_path}/a.txt', tmp_path / 'cache')
    assert {'CCO', 'c1ccccc1', 'C7'} <= {*splits['train'], *splits['validation']}


@pytest.mark.parametrize('suffix', ['gz', 'xz', 'zst'])
def test_compressed_files(tmp_path, suffix):
    content = write_jsonl(tmp_path / 'plain', TEXTS).read_bytes()
    compress = {'gz': gzip.compress, 'xz': lzma.compress}.get(suffix)
    compress = compress or pytest.importorskip('zstandard').compress
    path = tmp_path / f'a.jsonl.{suffix}'
    path.write_bytes(compress(content))
    assert [d.decode() for d in text_files.read(path, 'jsonl', 'text')] == TEXTS
    path.write_bytes(bz2.compress(content))
    with pytest.raises(ConfigError, match=f'a.jsonl.{suffix} is damaged, truncated or misnamed'):
        list(text_files.read(path, 'jsonl', 'text'))


@pytest.mark.parametrize('suffix', ['gz', 'xz'])
def test_a_file_cut_off_is_an_error(tmp_path, suffix):
    path = tmp_path / f'a.txt.{suffix}'
    content = ''.join(TEXTS).encode()
    path.write_bytes((gzip.compress(content) if suffix == 'gz' else lzma.compress(content))[:-20])
    with pytest.raises(ConfigError, match=r'is damaged or truncated'):
        list(text_files.read(path, 'text', ''))


def test_several_globs_and_a_byte_order_mark(tmp_path):
    (tmp_path / 'a.csv').write_bytes(b'\xef\xbb\xbftext,n\nfirst,1\n')
    (tmp_path / 'b.tsv').write_bytes(b'n\ttext\n1\tsecond\n')
    files = text_files.names(f'{tmp_path}/*.csv; {tmp_path}/*.tsv')
    assert [d for f in files for d in text_files.read(f, 'csv', 'text')] == [b'first', b'second']


def test_damaged_text_is_mended_and_counted():
    repairs = collections.Counter()
    assert corpora.clean(b'caf\xe9 au lait', repairs) == ['caf� au lait'.encode()]
    assert corpora.clean(b'a\0b', repairs) == [b'a b']
    assert corpora.clean(b' \n', repairs) == [] == corpora.clean(b'', repairs)
    long = ('word ' * 500_000).encode()
    parts = corpora.clean(long, repairs)
    assert b''.join(parts) == long and len(parts) == 3 and all(p.endswith(b'word ') for p in parts)
    assert b''.join(corpora.clean(b'x' * 2_500_000, repairs)) == b'x' * 2_500_000
    assert {name.split(',')[0]: n for name, n in repairs.items()} == {
        'documents with invalid UTF-8': 1,
        'documents with NUL characters': 1,
        'empty documents': 2,
        'documents over 1': 2,
    }


def test_invalid_utf8_reaches_the_repair_from_every_format(tmp_path):
    (tmp_path / 'a.jsonl').write_bytes(b'{"text": "caf\xe9"}\n{"text": "half \\ud83d"}\n{"text": null}\n')
    (tmp_path / 'a.csv').write_bytes(b'text\ncaf\xe9\n')
    documents = list(text_files.read(tmp_path / 'a.jsonl', 'jsonl', 'text'))
    assert documents[0] == b'caf\xe9' and documents[2] == b''
    assert corpora.clean(documents[1], repairs := collections.Counter())[0].startswith('half �'.encode())
    assert sum(repairs.values()) == 1
    assert list(text_files.read(tmp_path / 'a.csv', 'csv', 'text')) == [b'caf\xe9']


def test_a_repair_that_most_documents_need_is_an_error(tmp_path):
    german = [f'Das ist für Satz {i} von allen.' for i in range(30)]
    (tmp_path / 'a.txt').write_text('\n'.join(german), encoding='latin-1')
    (tmp_path / 'b.txt').write_text('\n'.join(german * 3), encoding='utf-8')
    for name in ('a.txt', '*.txt'):
        with pytest.raises(ConfigError, match=r'a.txt: 30 of 30 documents with invalid UTF-8, .*`iconv -f LATIN1'):
            read(f'lines:{tmp_path}/{name}', tmp_path / 'cache')
    russian = '\n'.join(f'это предложение {i}' for i in range(30)).encode('utf-16')[2:]
    (tmp_path / 'c.txt').write_bytes(russian)
    with pytest.raises(ConfigError, match=r'c.txt looks like UTF-16LE without a byte order mark'):
        read(f'lines:{tmp_path}/c.txt', tmp_path / 'cache')
    (tmp_path / 'c.txt').write_text('\n'.join(f'{text}\0' for text in german))
    with pytest.raises(ConfigError, match=r'30 of 30 documents with NUL characters, .* probably in UTF-16'):
        read(f'lines:{tmp_path}/c.txt', tmp_path / 'cache')
    mostly_right = '\n\n'.join(german).encode() + '\n'.join(german[:29]).encode('latin-1')
    (tmp_path / 'd.txt').write_bytes(mostly_right)
    found = read(f'lines:{tmp_path}/d.txt', tmp_path / 'd')
    assert sum('�' in text for texts in found.values() for text in texts) == 29, 'blank lines are no documents'
    (tmp_path / 'parts').mkdir()
    for i, text in enumerate(german):
        (tmp_path / 'parts' / f'{i}.txt').write_text(text, encoding='latin-1')
    with pytest.raises(ConfigError, match='the corpus: 30 of 30 documents with invalid'):
        read(f'files:{tmp_path}/parts/*', tmp_path / 'parts_cache')


def test_json_lines_hold_what_people_have_in_them(tmp_path):
    lines = [
        '{"text": "a", "id": ' + '9' * 5000 + '}',
        '{"meta": {"text": "b"}, "text": "x\u2028y"}',
        '  ',
        '{"text": "c", "meta.text": "plain"}',
    ]
    path = tmp_path / 'a.jsonl'
    path.write_text('\n'.join(lines), encoding='utf-8-sig')
    assert list(text_files.read(path, 'jsonl', 'text')) == [b'a', 'x\u2028y'.encode(), b'c']
    path.write_text('\n'.join(lines[1:]))
    assert list(text_files.read(path, 'jsonl', 'meta.text')) == [b'b', b'plain']
    path.write_text('{"text": "a"}\n{"text": "b", "x": ' + '[' * 100_000 + ']' * 100_000 + '}\n')
    with pytest.raises(ConfigError, match='line 2 of .*a.jsonl is nested too deeply'):
        list(text_files.read(path, 'jsonl', 'text'))


@pytest.mark.parametrize(
    'line', ['{"text": "a", "id": 1, "text": "b"}', '{"text": "a", "meta": {"n": [{"k": 1, "k": 1}]}}']
)
def test_a_key_that_an_object_has_twice_is_refused(tmp_path, line):
    path = tmp_path / 'a.jsonl'
    path.write_text(f'{line}\n')
    with pytest.raises(ConfigError, match="line 1 of .*a.jsonl has the key '(text|k)' more than once in an object"):
        list(text_files.read(path, 'jsonl', 'text'))


@pytest.mark.parametrize(
    ('name', 'encoding', 'indent'),
    [
        ('a.json', 'utf-8', None),
        ("it's a.json", 'utf-8', 1),
        ('a.jsonl', 'utf-8', 1),
        ('a.json.gz', 'utf-8', None),
        ('a.json', 'utf-8-sig', 1),
        ('a.json', 'utf-16', None),
    ],
)
def test_a_json_array_is_refused_with_the_way_to_convert_it(tmp_path, name, encoding, indent):
    path, texts = tmp_path / name, [*TEXTS, 'caf\xe9 \u2028 \U0001f600']
    content = json.dumps([{'text': text} for text in texts], indent=indent, ensure_ascii=False).encode(encoding)
    content = gzip.compress(content) if name.endswith('.gz') else content
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r'is one JSON array, not JSON lines(.|\n)*python -c') as e:
        list(text_files.read(path, 'jsonl', 'text'))
    command = str(e.value).splitlines()[1].replace('python', sys.executable, 1)
    subprocess.run(command, shell=True, check=True, cwd='/')
    converted = tmp_path / f'{name.partition(".")[0]}.lines.jsonl'
    assert path.read_bytes() == content and sorted(tmp_path.iterdir()) == sorted([path, converted])
    assert [d.decode() for d in text_files.read(converted, 'jsonl', 'text')] == texts
    assert subprocess.run(command, shell=True, cwd='/', capture_output=True).returncode, 'the file is there already'


def test_what_is_no_json_lines_is_refused_by_its_name(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('{\n "data": []\n}')
    with pytest.raises(ConfigError, match='line 1 of .* is not JSON.*this file spreads an object over several lines'):
        list(text_files.read(path, 'jsonl', 'text'))
    path.write_text('<!DOCTYPE html>')
    with pytest.raises(ConfigError, match='a.json is a web page or XML, not JSON lines'):
        list(text_files.read(path, 'jsonl', 'text'))


def test_lines_may_all_end_by_a_carriage_return(tmp_path):
    (tmp_path / 'a.txt').write_bytes(b'one\rtwo\r\rthree')
    assert list(text_files.read(tmp_path / 'a.txt', 'lines', '')) == [b'one', b'two', b'', b'three']
    assert list(text_files.read(tmp_path / 'a.txt', 'text', '')) == [b'one\ntwo', b'three']
    (tmp_path / 'a.txt').write_bytes(b'one\rtwo\n')
    assert list(text_files.read(tmp_path / 'a.txt', 'lines', '')) == [b'one\rtwo']


NAMES = (
    'a [1].txt',
    'b,c.txt',
    'e;f.txt',
    'g=h.txt',
    ' i.txt',
    'j*.txt',
    b'k\xe9.txt'.decode(errors='surrogateescape'),
)


def test_a_file_of_any_name_can_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'a [folder]'
    folder.mkdir()
    for directory in (tmp_path, folder):
        for name in (*NAMES, 'a 1.txt', 'jk.txt'):
            (directory / name).write_text('text')
    for name in NAMES:
        assert text_files.names(name) == [pathlib.Path(name)]
        assert text_files.names(str(folder / name)) == [folder / name]
    assert text_files.names('e;f.txt;b,c.txt; a [1].txt') == [
        *map(pathlib.Path, sorted(['e;f.txt', 'b,c.txt', NAMES[0]]))
    ]
    assert len(text_files.names(f'{folder}/*.txt')) == len(NAMES) + 2
    assert text_files.names('a [0-9].txt') == [pathlib.Path('a 1.txt')], 'a glob where there is no such file'
    with pytest.raises(ConfigError, match=r"no file matches 'a \[2\].txt'"):
        text_files.names('b,c.txt;a [2].txt')


def test_a_file_of_several_names_is_read_once(tmp_path, monkeypatch):
    """Through links to a file and to a directory, even a cyclic one, and by its relative path; hard links are files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'x.txt').write_text('x')
    (tmp_path / 'a' / 'y.txt').write_text('y')
    (tmp_path / 'a' / 'again').symlink_to('.')
    (tmp_path / 'a' / 'z.txt').symlink_to('y.txt')
    os.link(tmp_path / 'a' / 'x.txt', tmp_path / 'a' / 'hard.txt')
    patterns, notes = f'a/**/*.txt; {tmp_path}/a/x.txt;./a/../a/y.txt', []
    assert len(text_files.names(patterns)) > 40
    assert sorted(file.name for file in text_files.distinct(text_files.names(patterns))) == [
        'hard.txt',
        'x.txt',
        'y.txt',
    ]
    corpora.files_of(settings(corpus=f'text:{patterns}'), notes.append)
    assert len(notes) == 1 and re.fullmatch(r'once +\d+ of \d+ names that match data.corpus are of .*', notes[0])


def test_files_that_cannot_be_reached_are_not_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'deep' / 'er').mkdir(parents=True)
    (tmp_path / 'deep' / 'd.txt').write_text('d')
    (tmp_path / 'deep' / 'er' / 'e.txt').write_text('e')
    (tmp_path / 'a.txt').write_text('a')
    (tmp_path / 'b.txt').symlink_to('.git/annex/objects/b')
    for pattern in ('*.txt', 'b.txt', '**', f'{tmp_path}/[ab].txt', '**/b.txt'):
        with pytest.raises(ConfigError, match='b.txt is a link to .git/annex/objects/b, which does not exist: fetch'):
            text_files.names(pattern)
    (tmp_path / 'b.txt').unlink()
    assert len(text_files.names('**')) == 3

    def scandir(path='.'):
        if os.path.realpath(path).endswith('er'):
            raise PermissionError(13, 'Permission denied', path)
        return plain(path)

    plain = os.scandir
    monkeypatch.setattr(os, 'scandir', scandir)  # the tests may run as root, who may read everything
    for pattern in ('**', '**/*.txt', 'deep/*/*.txt', 'deep/er/*', f'{tmp_path}/d*/**/e.txt', 'deep/er/[e].txt'):
        with pytest.raises(ConfigError, match='because the directory .*deep/er may not be read .Permission denied'):
            text_files.names(pattern)
    assert text_files.names('*.txt;deep/*.txt;deep/er/e.txt') == [
        pathlib.Path(name) for name in ('a.txt', 'deep/d.txt', 'deep/er/e.txt')
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
@pytest.mark.parametrize('mode', [0, 0o444])
def test_a_directory_without_permission_is_named(tmp_path, mode):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    (tmp_path / 'a' / 'a.txt').write_text('a')
    (tmp_path / 'a' / 'b' / 'b.txt').write_text('b')
    (tmp_path / 'a').chmod(mode)
    try:
        for pattern in ('a/a.txt', 'a/*', 'a/*/*', '*/*/*', '**'):
            with pytest.raises(ConfigError, match='Permission denied'):
                text_files.names(f'{tmp_path}/{pattern}')
    finally:
        (tmp_path / 'a').chmod(0o700)


def test_what_a_name_without_a_file_is_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'corpus').mkdir()
    cases = {
        'corpus': "'corpus' is a directory: name files, not directories, for example by 'corpus/[*]'",
        'c*': "'c[*]' matches no file, but directories, such as corpus: name files, not directories, for example by",
        'corpus/*.txt': "no file matches 'corpus/[*].txt' in the working directory",
        '~no_such_user/a': 'no_such_user/a: .* home directory',
    }
    for pattern, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            text_files.names(pattern)


def test_many_names_are_told_apart_in_one_pass(tmp_path, monkeypatch):
    asked, is_file = [], text_files._is_file
    monkeypatch.setattr(text_files, '_is_file', lambda name: asked.append(name) or is_file(name))
    names = [f'{tmp_path}/{i}.txt' for i in range(300)]
    for name in names:
        pathlib.Path(name).touch()
    assert text_files.names(';'.join(names)) == sorted(map(pathlib.Path, names))
    assert len(asked) < 700
    asked.clear()
    with pytest.raises(ConfigError, match='no file matches .*none.txt'):
        text_files.names(';'.join([f'{tmp_path}/none.txt', *names]))
    assert max(map(len, asked[:-1])) <= 4096 + len(';'.join(names)) and len(asked) < 1000


def test_files_that_are_held_out_are_not_trained_on(tmp_path, capsys):
    for name in ('a', 'b', 'c'):
        write_jsonl(tmp_path / f'{name}.jsonl', [f'{name} {i}' for i in range(20)])
    (tmp_path / 'link.jsonl').symlink_to('c.jsonl')
    spec, notes = f'jsonl:{tmp_path}/?.jsonl', []
    splits = read(spec, tmp_path / 'cache', validation_corpus=f'jsonl:{tmp_path}/link.jsonl')
    assert {text[0] for text in splits['train']} == {'a', 'b'} and {text[0] for text in splits['validation']} == {'c'}
    corpora.files_of(settings(corpus=spec, validation_corpus=f'jsonl:{tmp_path}/link.jsonl'), notes.append)
    assert notes == ['held-out   1 of the 3 files of data.corpus, by data.validation_corpus']
    with pytest.raises(ConfigError, match='are held out by .* nothing is left to train on: name other files, or leave'):
        read(spec, tmp_path / 'cache', validation_corpus=f'lines:{tmp_path}/*')


def test_a_corpus_is_known_by_its_bytes(tmp_path):
    path, spec = tmp_path / 'a.txt', f'text:{tmp_path}/a.txt'
    path.write_text('some text')
    assert sources.describe(spec, [path]) == {str(path): {'bytes': 9}}
    whole = {'bytes': 9, 'sha256': hashlib.sha256(b'some text').hexdigest()}
    divided = {'bytes': 9, 'parts': [hashlib.sha256(part).hexdigest() for part in (b'some', b' text')]}
    os.utime(path, (1, 1))
    assert sources.content_changes({str(path): whole}) == [], 'whenever it was written'
    assert sources.content_changes({str(path): divided}) == []
    path.write_text('same size')
    changed = [f'{path}: the same size as then, 9 bytes, but different content']
    assert sources.content_changes({str(path): whole}) == changed
    assert sources.content_changes({str(path): divided}) == changed
    assert sources.content_changes({str(path): 9}) == [], 'an earlier version knew the size alone'
    now = sources.describe(spec, [path])
    assert sources.changes({str(path): 9}, now) == sources.changes({str(path): whole}, now) == []
    assert sources.changes({str(path): 8}, now) == [f'{path}: 8 bytes then, 9 now']
    assert sources.changes({}, now) == [f'{path}: no bytes then, 9 now']
    assert sources.describe('demo', []) == {}


def test_a_part_is_read_again_only_if_its_file_may_have_changed(tmp_path, monkeypatch):
    path = tmp_path / 'a.txt'
    path.write_text('some text')
    part = slices.Part(str(path), 1, 2, 9)
    state = sources.observe(part)
    assert state['sha256'] == hashlib.sha256(b' text').hexdigest()
    sources.check_unchanged(part, state)
    with monkeypatch.context() as patch:
        patch.setattr(sources, '_sha256', None)
        assert sources.observe(part, state) == state, 'it is not read'
    path.write_text('more text')  # the other part
    assert sources.observe(part, state)['sha256'] == state['sha256']
    with pytest.raises(ConfigError, match=r'a.txt has changed'):
        sources.check_unchanged(part, state)
    for content in ('same size', 'longer text'):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r'a.txt has changed since this preparation first read it'):
            sources.observe(part, state)


def test_a_line_of_50_megabytes(tmp_path):
    write_jsonl(tmp_path / 'a.jsonl', ['word ' * 10_000_000, *TEXTS])
    corpus = corpora.open_corpus(settings(corpus=f'jsonl:{tmp_path}/a.jsonl'), tmp_path)
    assert len(corpus.train) == 3, 'the line belongs to the first part'
    repairs, sizes, documents = collections.Counter(), [], []
    for part in corpus.train:
        read = reading.Reading(part, 0)
        documents.append(sum(1 for _, _, texts in read.texts() if not sizes.extend(map(len, texts))))
        repairs += read.repairs['train']
    assert sum(sizes) == 50_000_000 + sum(map(len, TEXTS)) and max(sizes) <= corpora.MAX_DOCUMENT_CHARACTERS
    assert sum(repairs.values()) == 1 and sorted(documents) == [0, 1, len(TEXTS)]


@pytest.mark.parametrize(
    ('spec', 'content', 'message'),
    [
        ('jsonl:{}/nothing*', '', 'no file matches .*nothing'),
        ('jsonl:{}/a', '', 'the corpus is empty'),
        ('jsonl:{}/a', '{"txt": "x"}', r"line 1 of .* has no 'text'; its fields are txt. Set data.text_key"),
        ('jsonl:{}/a', '[1]', "has no 'text': it is a list, not an object"),
        ('jsonl:{}/a', '{"text": 3}', "'text' is a int, not text"),
        ('jsonl:{}/a', '{"text": "x"}\n{"te', 'line 2 of .* is not JSON'),
        ('csv:{}/a', 'id,body\n1,x\n', "has no 'text'; its fields are id, body"),
        ('text:{}/a', 'one document', 'no document fell into the 20.0 % to hold out'),
        ('text:', '', 'does not specify a corpus'),
        ('hdf5:{}/a', '', 'does not specify a corpus. Write demo, tfds:NAME'),
        ('parquet:{}/a', 'text', "a is not a Parquet file: it begins with b'text'. If it holds text"),
        ('demo:x', '', 'does not specify a corpus'),
        ('tfds:no_such_data_set', '', 'TFDS can neither find no_such_data_set'),
        ('tfds:imdb_reviews/no_such_config', '', 'TFDS rejects imdb_reviews/no_such_config'),
    ],
)
def test_what_is_wrong_is_named_with_its_cure(tmp_path, spec, content, message):
    (tmp_path / 'a').write_text(content)
    with pytest.raises(ConfigError, match=message):
        read(spec.format(tmp_path), tmp_path / 'cache')


def test_validation_corpus(tmp_path):
    write_jsonl(tmp_path / 'a.jsonl', TEXTS)
    write_jsonl(tmp_path / 'held_out.jsonl', ['Held out.'])
    splits = read(f'jsonl:{tmp_path}/a.jsonl', tmp_path / 'cache', validation_corpus=f'jsonl:{tmp_path}/held_out.jsonl')
    assert sorted(splits['train']) == sorted(TEXTS)
    assert splits['validation'] == ['Held out.']


# ---- TFDS data sets by name: one of our own, prepared where TFDS looks for it ---------------------------------------


class MyTexts(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set whose only split is train."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({'text': tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        yield from ((number, {'text': text}) for number, text in enumerate(TEXTS))


@pytest.fixture
def tfds_directory(tmp_path, monkeypatch):
    builder = MyTexts(data_dir=tmp_path / 'tfds')
    tfds.disable_progress_bar()
    builder.download_and_prepare(file_format='array_record')
    tfds.enable_progress_bar()
    monkeypatch.setattr(tfds_sets, '_builder', lambda name: MyTexts(data_dir=tmp_path / 'tfds'))
    return next((tmp_path / 'tfds').rglob('dataset_info.json'))


def test_a_tfds_data_set_is_divided_where_it_has_no_validation_split(tfds_directory, tmp_path, monkeypatch):
    splits = read('tfds:my_texts', tmp_path / 'whole')
    assert sorted(splits['train'] + splits['validation']) == sorted(TEXTS)
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in TEXTS))
    held_out = read(f'jsonl:{tmp_path}/a.jsonl', tmp_path / 'jsonl')['validation']
    assert sorted(splits['validation']) == sorted(held_out), 'the same documents as of local text'
    monkeypatch.setattr(slices, 'SLICE_BYTES', 1000)
    parts = corpora.open_corpus(settings(corpus='tfds:my_texts'), tmp_path).train
    assert len(parts) > 3
    assert {split: sorted(texts) for split, texts in read('tfds:my_texts', tmp_path / 'again').items()} == {
        split: sorted(texts) for split, texts in splits.items()
    }
    with pytest.raises(ConfigError, match=r"no text feature 'body'; its features are text. Set data.text_key"):
        read('tfds:my_texts', tmp_path / 'unused', text_key='body')


def test_a_train_split_is_held_out_aloud_and_not_if_it_is_trained_on(tfds_directory, tmp_path, capsys):
    write_jsonl(tmp_path / 'a.jsonl', ['Other text.'])
    splits = read(f'jsonl:{tmp_path}/a.jsonl', tmp_path / 'cache', validation_corpus='tfds:my_texts')
    assert sorted(splits['validation']) == sorted(TEXTS)
    assert 'held-out   the split train of tfds:my_texts, which has no split validation' in capsys.readouterr().out
    with pytest.raises(ConfigError, match='corpus=tfds:my_texts is the very text that is trained on: leave it out'):
        read('tfds:my_texts', tmp_path / 'cache', validation_corpus='tfds:my_texts')


def test_a_tfrecord_data_set_is_refused_with_the_cure(tfds_directory, tmp_path):
    tfds_directory.write_text(tfds_directory.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(ConfigError, match=r'stored as tfrecord, which only TensorFlow can read(.|\n)*convert_format'):
        read('tfds:my_texts', tmp_path / 'unused')


def test_an_unreachable_download_fails_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_sets, '_builder', lambda name: tfds.builder(name, data_dir=tmp_path))
    monkeypatch.setattr(tfds_sets, '_TFDS_HOST', 'http://127.0.0.1:9')
    with pytest.raises(ConfigError, match=r'lm1b is not in .* cannot be reached to download it'):
        read('tfds:lm1b', tmp_path / 'unused')


# ---- The demo corpus ------------------------------------------------------------------------------------------------


def test_prose_is_kept_and_the_rest_dropped():
    text = """Return the list of words that were found in the text of the page.

    Parameters
    ----------
    limit : int
        The largest number of words that is returned to the caller, `None` for *all* of them.

    >>> words('a b')
    ['a', 'b']

    This must be called with the :class:`~page.Lock` held, as it is not safe
    with more than one thread: the others may change what is read.

    x = foo(bar)[0] if y else z
    Copyright 2001 by the authors of this file, who reserve all of the rights.
    """
    assert demo_corpus.paragraphs_of(text) == [
        'Return the list of words that were found in the text of the page.',
        'The largest number of words that is returned to the caller, None for all of them.',
        'This must be called with the page.Lock held, as it is not safe with more than one thread: the '
        'others may change '
        'what is read.',
    ]


def test_repetitions_are_dropped():
    seen = set()
    paragraph = 'This is what the function returns when it is called with no arguments at all.'
    assert not demo_corpus._is_repetition(paragraph, seen)
    assert demo_corpus._is_repetition(paragraph.replace('arguments', 'parameters').upper(), seen)
    assert not demo_corpus._is_repetition('Something else that nobody has said before in any of the files.', seen)


def test_the_demo_corpus_needs_only_what_this_package_depends_on():
    names = {d.name.lower().replace('_', '-') for d in demo_corpus._distributions()}
    assert {'jax', 'jaxlib', 'numpy', 'flax', 'scipy'} <= names
    assert not names & {'pytest', 'hypothesis', 'torch', 'ruff', 'setuptools'}


def test_the_standard_library_speaks_english():
    library = demo_corpus.pathlib.Path(demo_corpus.sysconfig.get_path('stdlib'))
    topics = [p for t in demo_corpus._topics(library).values() for p in demo_corpus.paragraphs_of(t)]
    assert sum(len(p.split()) for p in topics) > 10_000
    blocks = demo_corpus._blocks(library / 'argparse.py')
    assert any(
        p.startswith('Command-line parsing library') or 'argument' in p
        for b in blocks
        for p in demo_corpus.paragraphs_of(b)
    )
