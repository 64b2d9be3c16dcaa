"""What this package asks of gcsfs, gcsfs really does; where the extra `gcs` is installed."""

import cloud_storage
import pytest

from mlm_jax.files import atomic, buckets

pytest.importorskip('gcsfs')


@pytest.fixture
def root(monkeypatch, request):
    """gs://bucket on a server of its own, empty."""
    server = cloud_storage.Server(cloud_storage.Store())
    request.addfinalizer(server.shutdown)
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', server.url)
    monkeypatch.setitem(buckets._OPTIONS, 'gs', buckets._OPTIONS['gs'] | {'endpoint_url': server.url})
    return buckets.path('gs://bucket/runs')


def test_an_object_is_created_once(root):
    (root / 'lock').create(b'first')
    with pytest.raises(OSError):
        (root / 'lock').create(b'second')
    assert (root / 'lock').read_bytes() == b'first'
    before = (root / 'lock').identity()
    (root / 'lock').write_bytes(b'third')
    assert (root / 'lock').identity() != before
    (root / 'lock').unlink()
    (root / 'lock').create(b'\nlast\r\n')
    assert (root / 'lock').read_bytes() == b'\nlast\r\n'


@pytest.mark.filterwarnings('ignore:Sending a large body')  # of aiohttp, about each piece
def test_a_large_object_is_sent_in_pieces_and_appears_once(root):
    atomic.write(root / 'large', lambda file: [file.write(bytes(1 << 20)) for _ in range(51)])  # a piece has 50 MiB
    assert (root / 'large').identity() == (51 << 20, '1')


def test_listings_copies_and_moves(root, tmp_path):
    contents = {'a/b.txt': b'b', 'a/c/d': bytes(100_000), 'a/[1].txt': b'', 'e': b'\r\n'}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    buckets.upload(tmp_path, root / 'x', last='a/c/d')
    listing = (root / 'x').listing()
    assert {name: stored.size for name, stored in listing.items()} == {n: len(c) for n, c in contents.items()}
    assert all(len(stored.md5) == 32 for stored in listing.values())
    (root / 'x').rename(root / 'y')
    assert not (root / 'x').exists() and (root / 'x').listing() == {}
    buckets.download(root / 'y', tmp_path / 'back', (root / 'y').listing())
    assert {name: (tmp_path / 'back' / name).read_bytes() for name in contents} == contents
    assert sorted(path.name for path in (root / 'y').glob('*/*.txt')) == ['[1].txt', 'b.txt']
    assert (root / 'y' / 'a' / 'c' / 'd').stat().st_mtime > 1.7e9
    buckets.remove_tree(root / 'y')
    assert list(root.rglob('*')) == []
