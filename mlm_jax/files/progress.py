"""Progress of long work: a bar that moves on a terminal; in a log, a line every half a minute."""

import sys
import time
from collections.abc import Iterable, Iterator

import tqdm

LOG_SECONDS = 30.0  # between two lines where nobody watches


class _Lines(tqdm.tqdm):
    """A bar as whole lines: one every `LOG_SECONDS` at most, and a last one."""

    def __init__(self, *args, **kwargs):
        self._shown_at, self._shown_n = time.monotonic(), None
        self._first = self._shown_at + kwargs.get('delay', 0)  # work that ends before that needs no line
        super().__init__(*args, **{**kwargs, 'delay': float('inf')})  # tqdm itself shows nothing

    def __iter__(self) -> Iterator:
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()

    def update(self, n: float = 1) -> None:
        """Counts; shows a line when one is due."""
        super().update(n)
        if self.disable:
            self.n += n
        elif time.monotonic() - self._shown_at >= LOG_SECONDS:
            self._show()

    def close(self) -> None:
        """Shows how it ended."""
        if not self.disable and self.leave and self.n != self._shown_n and time.monotonic() >= self._first:
            self._show()
        super().close()

    def refresh(self, *args, **kwargs) -> None:
        """Does nothing: a line that is out stays."""

    clear = display = refresh

    def _show(self) -> None:
        self._shown_at, self._shown_n = time.monotonic(), self.n
        self.fp.write(f'{self}\n')
        self.fp.flush()


def bar(iterable: Iterable | None = None, **options) -> tqdm.tqdm:
    """A progress bar with the options of `tqdm.tqdm`; of whole lines where its file is no terminal."""
    file = options.get('file') or sys.stderr
    return (tqdm.tqdm if file.isatty() else _Lines)(iterable, **options)
