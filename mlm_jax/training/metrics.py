"""Metrics stay on the device between log lines; then metrics.jsonl, TensorBoard, W&B and the terminal receive them."""

import contextlib
import importlib
import json
import math
import os
import pathlib
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TextIO

import jax

from mlm_jax.files import atomic, progress
from mlm_jax.files.mirror import Mirror

_FILE, _WANDB_ID = 'metrics.jsonl', 'wandb_id'  # in a workdir
_NAME_PARTS = 3  # of the path of a workdir: `compare` trains in OUTPUT/LABEL/seed0


class MetricsWindow:
    """The metrics of the updates since the last log line, which stay on the device until they are needed."""

    def __init__(self, fetched: list | None = None):
        """Starts empty, or with the updates that `fetch` returned before the run was interrupted."""
        self._fetched = list(fetched or [])
        self._on_device: list[Mapping[str, tuple[jax.Array, jax.Array]]] = []

    def add(self, metrics: Mapping[str, tuple[jax.Array, jax.Array]]) -> None:
        """Adds the (sum, weight) pairs of one update, without waiting for the device."""
        self._on_device.append(metrics)

    def fetch(self) -> list[dict[str, list[float]]]:
        """Waits for the device, and returns a dict of name → [sum, weight] for each update of the window."""
        for metrics in jax.device_get(self._on_device):
            self._fetched.append({name: [float(s), float(w)] for name, (s, w) in metrics.items()})
        self._on_device = []
        return self._fetched

    def mean(self) -> dict[str, float]:
        """A dict of name → Σ sum / Σ weight over the window; 0 if all weights are 0."""
        return weighted_means(self.fetch())


def weighted_means(updates: list[dict[str, list[float]]]) -> dict[str, float]:
    """A dict of name → Σ sum / Σ weight over the updates, given their (sum, weight) pairs; 0 if all weights are 0."""
    means = {}
    for name in updates[0] if updates else ():
        weight = sum(u[name][1] for u in updates)
        means[name] = sum(u[name][0] for u in updates) / weight if weight else 0.0
    return means


class MetricsWriter:
    """Writes scalars for each step to metrics.jsonl, and if wanted to TensorBoard and W&B. Only process 0 has one.

    Attributes:
      earlier: the lines that earlier starts of the run have written, oldest first, also those that are removed.
    """

    def __init__(self, workdir: pathlib.Path, saved_step: int, tensorboard: bool, wandb_project: str, config: dict):
        """Opens the log of a run that resumes at the checkpoint of `saved_step`, or starts anew if that is −1.

        Lines of later steps are removed. A checkpoint of step 0, of a run that was stopped before its first update,
        keeps the lines of step 0: nothing at that step is evaluated again.
        """
        self._tensorboard, self._wandb = None, None
        self._mirror, name, shown = Mirror(workdir), '/'.join(workdir.parts[-_NAME_PARTS:]), workdir / _FILE
        self._mirror.fetch(_FILE)
        workdir = self._mirror.here
        if tensorboard:
            summaries = _import_extra('tensorboardX', 'tensorboard', 'logging.tensorboard')
            self._tensorboard = _TensorBoard(summaries, workdir / 'tensorboard', saved_step + 1)
        if wandb_project:
            wandb = _import_extra('wandb', 'wandb', 'logging.wandb_project')
            self._wandb = wandb.init(
                project=wandb_project, name=name, id=self._wandb_id(saved_step < 0), resume='allow', dir=workdir,
                config=config,
            )  # fmt: skip
            # Its own counter must not go back, as steps do where a run resumes at an earlier checkpoint.
            self._wandb.define_metric('*', step_metric='step')
        self._path = workdir / _FILE
        self.earlier = _truncate(self._path, saved_step, shown)
        self._file = self._path.open(
            'a', buffering=1, encoding='utf-8'
        )  # written line by line, so that a kill loses nothing

    def _wandb_id(self, is_new: bool) -> str:
        """The name by which W&B knows the run, drawn at its start: workdirs in other places may have the same names."""
        self._mirror.fetch(_WANDB_ID)
        path = self._mirror.here / _WANDB_ID
        if is_new or not path.exists():
            atomic.write_bytes(path, secrets.token_hex(8).encode())
        return path.read_text().strip()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line; a number that is not finite becomes null, as JSON has no NaN and no infinity."""
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        with _naming(self._path):
            self._file.write(json.dumps({'step': step, **finite}, allow_nan=False) + '\n')
        if self._tensorboard:
            self._tensorboard.write(step, scalars)
        if self._wandb:
            self._wandb.log({'step': step, **scalars})
        if self._mirror.is_due:
            self.sync()

    def sync(self) -> None:
        """Makes sure that the lines that were written outlast the machine, also in a bucket, mounted or not.

        A bucket that is mounted as a directory gets nothing of an open file before that is asked for (`fsync`).
        """
        with _naming(self._path):
            os.fsync(self._file.fileno())
        self._mirror.sync()

    def close(self) -> None:
        """Writes everything that is buffered, and closes the files."""
        with contextlib.suppress(OSError):  # `write` has already raised this error
            self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()
        self._mirror.close()


class _TensorBoard:
    """Writes scalars for TensorBoard; raises errors of tensorboardX's writing thread in the thread of the caller."""

    def __init__(self, summaries, directory: pathlib.Path, purge_step: int):
        self._directory = directory
        self._error: OSError | None = None
        self._hook, threading.excepthook = threading.excepthook, self._keep
        self._writer = summaries.SummaryWriter(str(directory), purge_step=purge_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            with _naming(self._directory):
                if self._error:  # its thread is dead: the queue would fill up, and the caller wait forever
                    raise self._error
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        with _naming(self._directory):
            if not self._error:
                self._writer.close()
        threading.excepthook = self._hook

    def _keep(self, thrown) -> None:
        if isinstance(thrown.exc_value, OSError) and type(thrown.thread).__module__.startswith('tensorboardX'):
            self._error = thrown.exc_value
        else:
            self._hook(thrown)


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Adds to errors of the disk the file that they are about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _import_extra(module: str, extra: str, key: str):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f"{key} needs {module}: pip install 'mlm_jax[{extra}]'") from None


def _truncate(path: pathlib.Path, saved_step: int, shown: pathlib.Path) -> list[dict[str, float]]:
    """Removes lines later than `saved_step`, which a killed run wrote after its last checkpoint, and damaged lines.

    Messages call the file `shown`.

    Returns:
      The undamaged lines that were there, also those that are removed.
    """
    lines = path.read_bytes().split(b'\n')[:-1] if path.exists() else []
    parsed = [_parsed(line) for line in lines]
    kept = []
    if saved_step >= 0:
        _say_damaged(shown, parsed.count(None), 'dropped')
        kept = [
            line + b'\n' for line, found in zip(lines, parsed, strict=True) if found and found['step'] <= saved_step
        ]
        if saved_step and not kept:
            print(
                f'{shown} has no lines for the first {saved_step:,} steps: the loss curve begins here', file=sys.stderr
            )
    atomic.write_bytes(path, b''.join(kept))
    return [scalars for scalars in parsed if scalars]


def read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, oldest first; null becomes NaN; damaged lines are left out, with a message."""
    parsed = (
        [_parsed(line) for line in path.read_bytes().removesuffix(b'\n').split(b'\n')] if path.stat().st_size else []
    )
    _say_damaged(path, parsed.count(None), 'left out')
    return [
        {name: math.nan if value is None else value for name, value in scalars.items()} for scalars in parsed if scalars
    ]


def _parsed(line: bytes) -> dict[str, float] | None:
    """The scalars of a line; None for a damaged line: truncated, blank, or full of NULs after a loss of power."""
    try:
        scalars = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return scalars if isinstance(scalars, dict) and isinstance(scalars.get('step'), int) else None


def _say_damaged(path: pathlib.Path, count: int, what: str) -> None:
    if count:
        print(f'{path}: {count} damaged line{"s" * (count > 1)} {what}', file=sys.stderr)


class ProgressLine:
    """The progress line of a run: rewritten in place on a terminal; in a file, a new line every `LOG_SECONDS`."""

    def __init__(self, total_steps: int, stream: TextIO | None = None, unit: str = 'step'):
        """The progress of `total_steps` steps, which the line calls `unit`, on `stream` (None: standard error)."""
        self._total, self._stream, self._unit = total_steps, stream or sys.stderr, unit
        self._in_place = self._stream.isatty()
        self._width, self._shown_at = 0, -math.inf

    def show(self, step: int, text: str, seconds_per_step: float) -> None:
        """Shows `text` with the step and the time left; a file gets only the first, the last, and occasional lines."""
        if not self._in_place and step < self._total and time.monotonic() - self._shown_at < progress.LOG_SECONDS:
            return
        self._shown_at = time.monotonic()
        left = time.strftime('%H:%M:%S', time.gmtime((self._total - step) * seconds_per_step))
        days = int((self._total - step) * seconds_per_step // 86400)
        eta = f'{days}d {left}' if days else left
        line = f'{self._unit} {step:,}/{self._total:,} ({100 * step / self._total:.0f} %)  {text}  ETA {eta}'
        if self._in_place:
            self._stream.write('\r' + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + '\n')
        self._stream.flush()

    def note(self, text: str) -> None:
        """Prints a line of text that is not overwritten."""
        end = '\r' + ' ' * self._width + '\r' if self._in_place and self._width else ''
        self._width = 0
        self._stream.write(f'{end}{text}\n')
        self._stream.flush()
