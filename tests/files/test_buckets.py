"""Paths in buckets behave as paths on disks do, and what cannot be done there fails; nothing named `gs:` is made."""

import copy
import gzip
import io
import os
import pathlib
import pickle
import tempfile
import tracemalloc

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlm_jax.config import ConfigError
from mlm_jax.files import atomic, buckets, text_files
from mlm_jax.files.buckets import BucketPath

TEXT = b''.join(b'{"text": "document %d, %s"}\n' % (i, b'word ' * (i % 7)) for i in range(300))


def test_a_path_is_put_together_as_others_are():
    path = buckets.path('gs://bucket/a') / 'b.txt'
    assert str(path) == 'gs://bucket/a/b.txt' == f'{path}' and isinstance(path, BucketPath)
    assert (path.name, path.suffix, str(path.parent)) == ('b.txt', '.txt', 'gs://bucket/a')
    assert str(path.with_suffix('.json')) == 'gs://bucket/a/b.json' and str(path.relative_to(path.parent)) == 'b.txt'
    assert path == buckets.path(str(path)) == pickle.loads(pickle.dumps(path)) == path.expanduser().absolute().resolve()
    assert len({path, buckets.path(str(path))}) == 1 and path != pathlib.Path('bucket/a/b.txt')
    for local in ('a/b', '~/a', 'gs:/bucket/a', 'gs://', ''):
        assert type(buckets.path(local)) is type(pathlib.Path()) and not buckets.is_bucket(local)


def test_the_system_never_sees_such_a_path(tmp_path, monkeypatch, bucket):
    monkeypatch.chdir(tmp_path)
    path = bucket[0] / 'a'
    for touch in (os.mkdir, os.listdir, os.stat, open, lambda p: os.rename(p, 'b'), BucketPath.touch):
        with pytest.raises(TypeError, match='gs://bucket/a lies in a bucket'):
            touch(path)
    for mode in ('wb', 'a', 'r+b', 'x'):
        with pytest.raises(io.UnsupportedOperation, match='an object is written whole'):
            path.open(mode)
    path.mkdir(parents=True, exist_ok=True)
    assert not path.exists() and not list(tmp_path.iterdir())


def test_directories_are_where_objects_are(bucket):
    root, _ = bucket
    names = ['a/b.txt', 'a/c/d.txt', 'a/[1].txt', 'e']
    for name in names:
        (root / name).write_text(name)
    assert sorted(map(str, (root / 'a').iterdir())) == [f'gs://bucket/a/{name}' for name in ('[1].txt', 'b.txt', 'c')]
    assert list((root / 'nothing').iterdir()) == []
    assert sorted(path.name for path in (root / 'a').glob('*.txt')) == ['[1].txt', 'b.txt']
    assert sorted(path.name for path in root.rglob('*.txt')) == ['[1].txt', 'b.txt', 'd.txt']
    assert (root / 'a').is_dir() and not (root / 'a').is_file() and (root / 'e').is_file()
    assert (root / 'e').stat().st_size == 1 and (root / 'e').read_bytes() == b'e' == (root / 'e').read_text().encode()
    before = (root / 'e').identity()
    (root / 'e').write_bytes(b'f')
    assert before != (root / 'e').identity()
    (root / 'e').unlink()
    (root / 'e').unlink(missing_ok=True)
    for missing in (BucketPath.unlink, BucketPath.read_bytes, BucketPath.stat, BucketPath.open):
        with pytest.raises(FileNotFoundError) as raised:
            missing(root / 'e')
        assert (raised.value.strerror, raised.value.filename) == ('No such file or directory', 'gs://bucket/e')
    buckets.remove_tree(root / 'a')
    buckets.remove_tree(root / 'a')
    assert not (root / 'a' / 'b.txt').exists() and list(root.rglob('*')) == []


STEPS = st.tuples(st.sampled_from(['read', 'readline', 'seek', 'end', 'on']), st.integers(0, 400))


@given(st.integers(0, 1000), st.lists(STEPS, max_size=12), st.sampled_from([0, 1, 64]))
@settings(max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_object_is_read_as_a_file_is(bucket, size, steps, buffering):
    path = bucket[0] / 'a'
    path.write_bytes(TEXT[:size])
    with pytest.MonkeyPatch.context() as patch, io.BytesIO(TEXT[:size]) as expected:
        patch.setattr(buckets, '_FIRST_READ', 8)
        patch.setattr(buckets, '_LARGEST_READ', 64)
        with path.open('rb', buffering=buffering) as file:
            for kind, number in steps:
                if kind in ('read', 'readline'):
                    assert getattr(file, kind)(number) == getattr(expected, kind)(number)
                else:
                    whence = ('seek', 'on', 'end').index(kind)
                    offset = min(number, size) if whence == 0 else 0 if whence == 1 else -min(number, size)
                    assert file.seek(offset, whence) == expected.seek(offset, whence)
                assert file.tell() == expected.tell()
            assert file.read() == expected.read()


def test_requests_grow_while_a_file_is_read_and_are_small_before(bucket):
    root, requests = bucket
    path = root / 'a'
    path.write_bytes(bytes(1 << 20))
    with path.open('rb') as file:
        file.read(100)
        assert [stop - start for _, start, stop in requests] == [1 << 16]
        file.read()
    assert len(requests) == 5 and requests[-1][2] == 1 << 20
    requests.clear()
    with path.open('rb', buffering=0) as file:
        file.seek(1000)
        assert file.readinto(bytearray(300)) == 300
    assert [request[1:] for request in requests] == [(1000, 1300)]


@pytest.mark.parametrize('kind', ['text', 'lines', 'files', 'jsonl', 'csv', 'parquet'])
def test_all_kinds_of_corpora_are_read_as_from_a_disk(kind, tmp_path, bucket):
    texts = [f'line {i}' for i in range(200)]
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({'text': texts}), table, row_group_size=50)
    content = {
        'text': '\n\n'.join(texts).encode(), 'jsonl': TEXT, 'csv': '\n'.join(['text', *texts]).encode(),
        'parquet': table.getvalue(),
    }.get(kind, '\n'.join(texts).encode())  # fmt: skip
    for name, stored in (('a', content), ('a.gz', gzip.compress(content))):
        if kind == 'parquet' and name != 'a':
            continue
        ours, theirs = bucket[0] / name, tmp_path / name
        for path in (ours, theirs):
            path.write_bytes(stored)
        count = text_files.num_parts(theirs, kind, 1000)
        assert text_files.num_parts(ours, kind, 1000) == count
        for index in range(count):
            expected = list(text_files.read(theirs, kind, 'text', index, count))
            assert list(text_files.read(ours, kind, 'text', index, count)) == expected


def test_globs_find_objects(bucket, tmp_path):
    root, _ = bucket
    (tmp_path / 'local.txt').write_text('')
    for name in ('a/1.txt', 'a/2.txt', 'a/b/3.txt', 'a/[x].txt', 'c;d'):
        (root / name).write_text(name)

    def found(patterns):
        return [str(path).removeprefix('gs://bucket/') for path in text_files.names(patterns)]

    assert found('gs://bucket/a/?.txt') == ['a/1.txt', 'a/2.txt']
    assert found('gs://bucket/a/**/*.txt') == ['a/1.txt', 'a/2.txt', 'a/[x].txt', 'a/b/3.txt']
    assert found('gs://bucket/a/[x].txt') == ['a/[x].txt']
    assert found(f'gs://bucket/a/1.txt; {tmp_path}/*.txt;gs://bucket/a/b/*') == [
        str(tmp_path / 'local.txt'), 'a/1.txt', 'a/b/3.txt'
    ]  # fmt: skip
    for name in (
        'h/.hidden.txt',
        'h/shown.txt',
        'h/.git/in_it.txt',
        'h [1]/1.txt',
        'h [1]/2.txt',
        'i [1].txt',
        'i 1.txt',
    ):
        for path in (root / name, tmp_path / name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    for glob in ('h/*', 'h/**/*.txt', 'h/.*', 'h/.h*.txt', 'h/.git/*', 'h/.git/**', 'h*/.g*/*', 'h/.hidden.txt',
                 'h [1]/*.txt', 'h [1]/1*', 'i [1]*'):  # fmt: skip
        on_disk = [str(path.relative_to(tmp_path)) for path in text_files.names(f'{tmp_path}/{glob}')]
        assert found(f'gs://bucket/{glob}') == on_disk, glob
    with pytest.raises(ConfigError, match=r'no object matches gs://bucket/z\*'):
        text_files.names('gs://bucket/z*')


def test_a_path_keeps_the_size_that_its_listing_told_and_is_the_same_path(bucket):
    root, _ = bucket
    (root / 'a' / '1.txt').write_text('text')
    ((listed,),) = {tuple((root / 'a').glob('*')), tuple((root / 'a').rglob('*')), tuple((root / '*' / '*').matches())}
    (root / 'a' / '1.txt').write_text('longer text')
    for path in (listed, listed.expanduser().absolute()):
        assert (path.listed_size, buckets.size(path), path.stat().st_size, path.identity()[0]) == (4, 4, 11, 11)
    plain = buckets.path('gs://bucket/a/1.txt')
    assert (plain, hash(plain), str(plain), repr(plain)) == (listed, hash(listed), str(listed), repr(listed))
    others = [
        plain,
        pickle.loads(pickle.dumps(listed)),
        copy.copy(listed),
        listed.parent / '1.txt',
        buckets.path(listed),
    ]
    assert all(path == listed and path.listed_size is None and buckets.size(path) == 11 for path in others)
    assert {listed.parent.listed_size, listed.with_suffix('.b').listed_size, (listed / 'b').listed_size} == {None}
    assert plain.found() == plain and plain.found().listed_size == 11
    assert plain.parent.found() is None and (root / 'b').found() is None


def test_what_the_packages_raise_is_told_in_words(bucket, monkeypatch):
    root, _ = bucket

    class Refused(Exception):
        pass

    def refuse(*args, **kwargs):
        raise Refused('403,\n denied')

    monkeypatch.setattr(fsspec.get_filesystem_class('gs'), 'info', refuse)
    with pytest.raises(ConfigError, match=r'cannot read gs://bucket/\*\.txt: Refused: 403, denied'):
        text_files.names('gs://bucket/*.txt')
    with pytest.raises(ConfigError, match='cannot read gs://bucket/a: Refused: 403, denied'):
        list(text_files.read(root / 'a', 'lines', ''))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(fsspec, 'filesystem', lambda *args, **kwargs: __import__('no_such_package'))
    for url, package, extra in (('gs://a/b', 'gcsfs', 'gcs'), ('s3://a/b', 's3fs', 's3')):
        with pytest.raises(ConfigError, match=rf"{url} needs the package {package}: pip install 'mlm_jax\[{extra}\]'"):
            buckets.path(url).exists()


def test_an_object_is_written_whole_or_not_at_all(bucket):
    root, _ = bucket
    path = root / 'a' / 'b'
    with pytest.raises(RuntimeError), atomic.opened(path, root / 'scratch') as file:
        file.write(b'half')
        raise RuntimeError
    assert not path.exists()
    with atomic.opened(path) as file:
        file.write(b'....whole')
        file.seek(0)
        file.write(b'the ')
    assert path.read_bytes() == b'the whole' and [str(p) for p in root.rglob('*')] == [str(path)]
    assert atomic.sha256(path, 4, 9) == atomic.hashlib.sha256(b'whole').hexdigest()
    atomic.remove_leftovers(root)


def test_what_is_written_to_an_object_is_never_in_memory_as_a_whole(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    sizes, piece, open_files = [], bytes(1 << 20), len(os.listdir('/dev/fd'))
    storage = fsspec.get_filesystem_class('gs')
    monkeypatch.setattr(storage, 'put_file', lambda self, source, target: sizes.append(os.path.getsize(source)))
    monkeypatch.setattr(storage, 'pipe_file', None)
    tracemalloc.start()
    for _ in range(3):
        atomic.write(bucket[0] / 'a', lambda file: [file.write(piece) for _ in range(32)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == [32 << 20] * 3 and peak < 4 << 20
    assert list(tmp_path.iterdir()) == [] and len(os.listdir('/dev/fd')) == open_files


def test_an_object_of_few_bytes_is_written_without_a_disk(bucket, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', '/nowhere')
    atomic.write_bytes(bucket[0] / 'a', b'record')
    assert (bucket[0] / 'a').read_bytes() == b'record'
