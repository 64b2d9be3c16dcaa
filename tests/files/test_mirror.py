"""Files that grow reach a bucket whole, when they are due and when they must; on a disk, nothing is copied."""

import pytest

from mlm_jax.files import mirror
from mlm_jax.files.mirror import Mirror


def test_on_a_disk_it_is_the_directory(tmp_path):
    mirrored = Mirror(tmp_path)
    assert mirrored.here == tmp_path
    for act in (lambda: mirrored.fetch('a'), mirrored.sync, mirrored.close):
        act()
    assert tmp_path.exists() and not list(tmp_path.iterdir())


def test_what_has_changed_is_copied_and_nothing_else(bucket, cloud, monkeypatch):
    run = bucket[0] / 'run'
    (run / 'metrics.jsonl').write_bytes(b'1\n')
    (run / 'other').write_bytes(b'')
    mirrored = Mirror(run)
    mirrored.fetch('metrics.jsonl')
    mirrored.fetch('missing')
    before = len(cloud.changes)
    mirrored.sync()
    assert len(cloud.changes) == before and [path.name for path in mirrored.here.iterdir()] == ['metrics.jsonl']
    with (mirrored.here / 'metrics.jsonl').open('a') as file:
        file.write('2\n')
    (mirrored.here / 'tensorboard').mkdir()
    (mirrored.here / 'tensorboard' / 'events').write_bytes(b'e')
    (mirrored.here / 'latest').symlink_to('tensorboard')
    assert not mirrored.is_due
    monkeypatch.setattr(mirror, 'SECONDS', 0.0)
    assert mirrored.is_due
    mirrored.sync()
    mirrored.sync()
    assert [name for name, _ in cloud.changes[before:]] == ['bucket/run/metrics.jsonl', 'bucket/run/tensorboard/events']
    assert (run / 'metrics.jsonl').read_bytes() == b'1\n2\n'
    here = mirrored.here
    (here / 'last').write_bytes(b'')
    mirrored.close()
    mirrored.close()
    assert (run / 'last').exists() and not here.exists()


def test_a_failed_copy_is_an_error_of_the_disk(bucket, cloud, monkeypatch):
    mirrored = Mirror(bucket[0] / 'run')
    (mirrored.here / 'a').write_bytes(b'a')

    def refuse(*args):
        raise RuntimeError('403')

    monkeypatch.setattr(cloud, 'write', refuse)
    with pytest.raises(OSError, match='403'):
        mirrored.sync()
    monkeypatch.undo()
