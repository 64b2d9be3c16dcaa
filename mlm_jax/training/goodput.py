"""Where the time of a run went, over all of its starts: the goodput is the share that trained the model.

At any moment since the first start of a run, exactly one of these is counted, so the seconds add up to the time that
has passed. The lines of metrics.jsonl hold the sums, from which the next start goes on.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

# What is counted → what it means, as the summary says it. The first is what a run is for; the others are lost.
MEANINGS = {
    'train': 'training',
    'input_stall': 'waiting for input',
    'evaluation': 'evaluation',
    'checkpoint': 'checkpoints',
    'start': 'starting',
    'compile': 'compiling',
    'restore': 'restoring',
    'repeated': 'steps computed again',
    'interrupted': 'interrupted',
}
TRAIN = 'train'
# When the line was written, in Unix time. The last line of a complete run has none: if the run is lengthened later, the
# time between is no interruption.
_WRITTEN = 'goodput/unix_seconds'


class Goodput:
    """A clock that counts each moment to one of `MEANINGS`: to 'start' at first, then to what `phase` says."""

    def __init__(self, age_seconds: float = 0.0):
        """Starts the clock, as if it had started `age_seconds` ago."""
        self._seconds = dict.fromkeys(MEANINGS, 0.0)
        self._phase, self._mark = 'start', time.monotonic() - age_seconds
        self._began = time.time() - age_seconds

    def enter(self, phase: str) -> None:
        """Counts the time from now on to `phase`."""
        now = time.monotonic()
        self._seconds[self._phase] += now - self._mark
        self._phase, self._mark = phase, now

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time in the body to the phase `name`."""
        before = self._phase
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def add_earlier_starts(self, lines: Sequence[Mapping[str, float]], first_step: int) -> None:
        """Adds what earlier starts of the run have counted, once.

        The training after the checkpoint from which this start resumes is lost: its steps are computed again.

        Args:
          lines: those of metrics.jsonl, also those after the checkpoint, oldest first.
          first_step: the step of the checkpoint; 0 if there was none.
        """
        lines = [line for line in lines if len(seconds_of(line)) == len(MEANINGS)]
        if not lines:
            return
        before, kept = (seconds_of(line) for line in (lines[-1], _newest(lines, first_step)))
        for name in MEANINGS:
            self._seconds[name] += before[name]
        repeated = before[TRAIN] - kept.get(TRAIN, 0.0)
        self._seconds[TRAIN] -= repeated
        self._seconds['repeated'] += repeated
        self._seconds['interrupted'] += max(0.0, self._began - lines[-1].get(_WRITTEN, self._began))

    def seconds(self) -> dict[str, float]:
        """What is counted → seconds since the first start of the run."""
        self.enter(self._phase)
        return dict(self._seconds)

    def scalars(self, is_complete: bool = False) -> dict[str, float]:
        """The seconds, and the share of training, under their names in metrics.jsonl."""
        seconds = self.seconds()
        scalars = {_name(name): value for name, value in seconds.items()}
        scalars['goodput/share'] = seconds[TRAIN] / max(sum(seconds.values()), 1e-9)
        return scalars if is_complete else scalars | {_WRITTEN: time.time()}


def _name(what: str) -> str:
    return f'goodput/{what}_seconds'


def _newest(lines: Sequence[Mapping[str, float]], step: int) -> Mapping[str, float]:
    """The newest line that is not of a later step; empty if there is none."""
    return next((line for line in reversed(lines) if line['step'] <= step), {})


def seconds_of(line: Mapping[str, float]) -> dict[str, float]:
    """What is counted → seconds, of a line of metrics.jsonl; empty if the line has none."""
    return {name: line[_name(name)] for name in MEANINGS if isinstance(line.get(_name(name)), int | float)}


def describe(seconds: Mapping[str, float]) -> str:
    """The seconds in a sentence, with the largest loss first; what is less than 0.1 % is left out."""
    total = max(sum(seconds.values()), 1e-9)
    lost = sorted((name for name in seconds if name != TRAIN), key=lambda name: -seconds[name])
    parts = [f'{MEANINGS[name]} {duration(seconds[name])}' for name in lost if seconds[name] >= total / 1000]
    text = f'goodput {seconds[TRAIN] / total:.1%}: {duration(seconds[TRAIN])} of training in {duration(total)}'
    return f'{text}; {", ".join(parts)}' if parts else text


def duration(seconds: float) -> str:
    """A time as '1.3 s', '2 min 5 s' or '3 h 20 min'."""
    if seconds < 59.95:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f'{minutes} min {rest} s'
    return f'{minutes // 60:,} h {minutes % 60} min'


def process_age() -> float:
    """Seconds since this process was started, to 0.01 s; 0 outside of Linux, which alone tells them."""
    try:
        began = int(pathlib.Path('/proc/self/stat').read_text().rpartition(')')[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf('SC_CLK_TCK'))
    except (OSError, AttributeError, IndexError, ValueError):
        return 0.0
