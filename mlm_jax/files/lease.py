"""A lock for a directory in a bucket, which knows no locks: an object that its holder renews as long as it lives.

Only a bucket's promise to create an object once is used, and no clock but one's own. Who finds an object watches it:
if it changes, its holder lives; if it does not for `PATIENCE_SECONDS`, its holder was killed, and the lease is taken
over. A holder that was stopped for so long, and goes on, finds the lease in other hands and ends itself, within
`BEAT_SECONDS`. In that time two programs may write; each object is whole nevertheless, and checkpoints have checksums.
"""

import contextlib
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from mlm_jax.files.buckets import BucketPath
from mlm_jax.files.errors import ConfigError

BEAT_SECONDS = 5.0  # between two renewals: a read and a write
# Without a change for so long, a lease counts as left behind. The other processes of a run wait meanwhile, on CPUs for
# 30 s at most.
PATIENCE_SECONDS = 20.0
_SETTLE_SECONDS = 2.0  # after which of several programs that took over at once only the last one still has it
_LOOK_SECONDS = 1.0


@contextlib.contextmanager
def held(path: BucketPath, holder: dict, describe: Callable[[dict], str]) -> Iterator[None]:
    """Holds a lease during the block, and deletes its object at the end.

    Args:
      path: the object.
      holder: who holds it; any JSON.
      describe: the words for what another program has put there as `holder`.

    Raises:
      ConfigError: if another process holds it, and lives.
      OSError: if nothing can be written there.
    """
    lease = _Lease(path, holder)
    lease.acquire(describe)
    thread = threading.Thread(target=lease.renew_until_stopped, daemon=True, name='lease')
    thread.start()
    try:
        yield
    finally:
        lease.stopped.set()
        thread.join()
        with contextlib.suppress(OSError):  # a lease that stays behind expires
            if lease.is_ours():
                path.unlink(missing_ok=True)


class _Lease:
    def __init__(self, path: BucketPath, holder: dict):
        self._path, self._holder = path, holder
        self._token, self._beats = uuid.uuid4().hex, 0
        self.stopped = threading.Event()

    def acquire(self, describe: Callable[[dict], str]) -> None:
        while True:
            if (found := _read(self._path)) is None and (found := self._created()) is None:
                return
            if not self._is_left_behind(found, describe):
                continue  # it has been given back
            self._path.write_bytes(self._content())
            time.sleep(_SETTLE_SECONDS)
            if self.is_ours():
                return
            raise self._in_use(_read(self._path) or found, describe)

    def _created(self) -> bytes | None:
        """None if the lease is this one's now; or what another program has put there at the same time."""
        try:
            self._path.create(self._content())
        except OSError:
            if (found := _read(self._path)) is None:
                raise
            return None if self.is_ours() else found  # a request that was repeated finds its own first try
        return None

    def _is_left_behind(self, found: bytes, describe: Callable[[dict], str]) -> bool:
        """Whether nobody renews the lease; False if it has gone."""
        print(
            f'{self._path.parent} was in use by {describe(_parsed(found))}: waiting {PATIENCE_SECONDS:.0f} s for a '
            'sign of life',
            file=sys.stderr,
        )
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            if (now := _read(self._path)) is None:
                return False
            if now != found:
                raise self._in_use(now, describe)
        return True

    def _in_use(self, found: bytes, describe: Callable[[dict], str]) -> ConfigError:
        return ConfigError(
            f'{self._path.parent} is in use by {describe(_parsed(found))}: wait until that process ends, or stop it. '
            "Two programs would overwrite each other's files"
        )

    def is_ours(self) -> bool:
        return _parsed(_read(self._path) or b'').get('token') == self._token

    def renew_until_stopped(self) -> None:
        while not self.stopped.wait(BEAT_SECONDS):
            try:
                if not self.is_ours():
                    _end(self._path)
                    return
                self._beats += 1
                self._path.write_bytes(self._content())
            except OSError:  # the network may come back; whoever takes over meanwhile is noticed then
                continue

    def _content(self) -> bytes:
        return json.dumps({**self._holder, 'token': self._token, 'beats': self._beats}).encode()


def _read(path: BucketPath) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parsed(content: bytes) -> dict:
    with contextlib.suppress(ValueError):
        found = json.loads(content)
        return found if isinstance(found, dict) else {}
    return {}


def _end(path: BucketPath) -> None:
    """Ends this process at once, as a kill would: two writers are worse."""
    print(
        f'error: {path} was taken over by another program while this one was stopped or without a network for more '
        f'than {PATIENCE_SECONDS:.0f} s; this one ends, and nothing that it has completed is lost',
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
