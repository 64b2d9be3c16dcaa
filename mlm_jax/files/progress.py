"""Shows the progress of long work: a moving bar on a terminal, and a line every 30 seconds in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import tqdm

LOG_SECONDS = 30.0  # between two lines of a log


class _Bar(tqdm.tqdm):
    """A progress bar without the thread that tqdm starts for bars whose updates become rare."""

    monitor_interval = 0


class _Lines(_Bar):
    """A progress bar that writes whole lines: at most one every `LOG_SECONDS`, and a last one."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._shown_at, self._shown_n = time.monotonic(), None
        self._first = self._shown_at + kwargs.get('delay', 0)  # work that ends earlier needs no line
        super().__init__(*args, **{**kwargs, 'delay': float('inf')})  # tqdm itself shows nothing

    def __iter__(self) -> Iterator:
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()

    def update(self, n: float = 1) -> None:
        """Counts `n` more units, and writes a line when one is due."""
        super().update(n)
        if self.disable:
            self.n += n
        elif time.monotonic() - self._shown_at >= LOG_SECONDS:
            self._show()

    def close(self) -> None:
        """Writes a last line with the final state."""
        if not self.disable and self.leave and self.n != self._shown_n and time.monotonic() >= self._first:
            self._show()
        super().close()

    def refresh(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing, because a line that has been written cannot be redrawn."""

    clear = display = refresh

    def _show(self) -> None:
        self._shown_at, self._shown_n = time.monotonic(), self.n
        self.fp.write(f'{self}\n')
        self.fp.flush()


def bar(iterable: Iterable | None = None, **options: Any) -> tqdm.tqdm:
    """A progress bar with the options of `tqdm.tqdm`; it writes whole lines if its file is not a terminal."""
    file = options.get('file') or sys.stderr
    return (_Bar if file.isatty() else _Lines)(iterable, **{'miniters': 1, **options})
