"""Memory maps of many files, of which each holds a file descriptor as long as it exists."""

import collections
import errno
import resource
import threading
from collections.abc import Callable, Hashable
from typing import Any

_WANTED = 16_384  # descriptors; systems begin with 256 or 1,024 for a process, and let it have more
_MOST = 8192  # maps that exist at a time, which is the number of shards of the largest corpus
TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)


class RecentMaps:
    """The maps of this process that were used last, at most as many as half of the files that it may open.

    All readers share them, and each forgets its own, since together they would have more than one may.
    """

    def __init__(self) -> None:
        """Of no file yet."""
        self._lock = threading.RLock()  # a reader may be forgotten while this thread holds it
        self._maps: collections.OrderedDict[tuple[int, Hashable], Any] = collections.OrderedDict()
        self._limit = 0

    def get(self, reader: int, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` has returned for this key of a reader, or returns now."""
        place = reader, key
        with self._lock:
            if place in self._maps:
                self._maps.move_to_end(place)
                return self._maps[place]
            self._limit = self._limit or min(_MOST, open_files_limit() // 2)
        made = make()
        with self._lock:
            self._maps[place] = made
            while len(self._maps) > self._limit:
                self._maps.popitem(last=False)
        return made

    def forget(self, reader: int) -> None:
        """Lets go of the maps of a reader."""
        with self._lock:
            for place in [place for place in self._maps if place[0] == reader]:
                del self._maps[place]


def open_files_limit() -> int:
    """How many files this process may have open; asks the system for more first, as long as it has few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(_WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _WANTED if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS has a limit of its own besides
        return soft
    return wanted
