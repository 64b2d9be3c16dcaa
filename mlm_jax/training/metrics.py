"""Metrics: kept on the device between log lines, then written to metrics.jsonl, TensorBoard, W&B and the terminal."""

import contextlib
import importlib
import json
import math
import pathlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import jax

from mlm_jax.files import atomic, progress


class MetricsWindow:
    """The metrics of the updates since the last log line, on the device until somebody asks."""

    def __init__(self, fetched: list | None = None):
        """`fetched`: what `fetch` returned before the run was interrupted."""
        self._fetched = list(fetched or [])
        self._on_device = []

    def add(self, metrics: Mapping[str, tuple[jax.Array, jax.Array]]) -> None:
        """Keeps the (sum, weight) pairs of one update, without waiting for them."""
        self._on_device.append(metrics)

    def fetch(self) -> list[dict[str, list[float]]]:
        """Waits for the device; one dict of name → [sum, weight] for each update of the window."""
        for metrics in jax.device_get(self._on_device):
            self._fetched.append({name: [float(s), float(w)] for name, (s, w) in metrics.items()})
        self._on_device = []
        return self._fetched

    def mean(self) -> dict[str, float]:
        """name → Σ sum / Σ weight over the window; 0 where the weights are 0."""
        return weighted_means(self.fetch())


def weighted_means(updates: list[dict[str, list[float]]]) -> dict[str, float]:
    """name → Σ sum / Σ weight over (sum, weight) pairs; 0 where the weights are 0."""
    means = {}
    for name in updates[0] if updates else ():
        weight = sum(u[name][1] for u in updates)
        means[name] = sum(u[name][0] for u in updates) / weight if weight else 0.0
    return means


class MetricsWriter:
    """Writes scalars by step: one JSON object a line, and TensorBoard and W&B where asked. One process writes."""

    def __init__(self, workdir: pathlib.Path, start_step: int, tensorboard: bool, wandb_project: str, config: dict):
        """Opens the log of a run that starts, or resumes, at `start_step`: lines of later steps are dropped."""
        self._tensorboard, self._wandb = None, None
        if tensorboard:
            summaries = _import_extra('tensorboardX', 'tensorboard', 'logging.tensorboard')
            self._tensorboard = _TensorBoard(summaries, workdir / 'tensorboard', start_step)
        if wandb_project:
            wandb, name = _import_extra('wandb', 'wandb', 'logging.wandb_project'), workdir.name
            self._wandb = wandb.init(
                project=wandb_project, name=name, id=name, resume='allow', dir=workdir, config=config
            )
        self._path = _truncated(workdir / 'metrics.jsonl', start_step)
        self._file = self._path.open('a', buffering=1, encoding='utf-8')  # by the line: a kill loses nothing

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line; null is a number that is not finite, for which JSON has no other word."""
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        with _naming(self._path):
            self._file.write(json.dumps({'step': step, **finite}, allow_nan=False) + '\n')
        if self._tensorboard:
            self._tensorboard.write(step, scalars)
        if self._wandb:
            self._wandb.log(dict(scalars), step=step)

    def close(self) -> None:
        """Flushes everything."""
        with contextlib.suppress(OSError):  # a line that could not be written, which has been said
            self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


class _TensorBoard:
    """Writes scalars for TensorBoard; raises what fails in the thread that tensorboardX writes in."""

    def __init__(self, summaries, directory: pathlib.Path, start_step: int):
        self._directory, self._error = directory, None
        self._hook, threading.excepthook = threading.excepthook, self._keep
        self._writer = summaries.SummaryWriter(str(directory), purge_step=start_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            with _naming(self._directory):
                if self._error:  # its queue would fill, and wait for ever
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
    """Says of which file an error of the disk is, where it does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _import_extra(module: str, extra: str, key: str):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f"{key} needs {module}: pip install 'mlm_jax[{extra}]'") from None


def _truncated(path: pathlib.Path, start_step: int) -> pathlib.Path:
    """Drops the lines that a killed run wrote after its last checkpoint, a line that it did not finish, and damage."""
    lines = path.read_bytes().split(b'\n')[:-1] if path.exists() and start_step else []
    parsed = [_parsed(line) for line in lines]
    _say_damaged(path, parsed.count(None), 'dropped')
    kept = [
        line + b'\n' for line, scalars in zip(lines, parsed, strict=True) if scalars and scalars['step'] <= start_step
    ]
    if start_step and not kept:
        print(f'{path} has no lines of the {start_step:,} steps before: the curve begins here', file=sys.stderr)
    atomic.write_bytes(path, b''.join(kept))
    return path


def read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, oldest first; null becomes NaN, damaged lines are left out and counted."""
    parsed = (
        [_parsed(line) for line in path.read_bytes().removesuffix(b'\n').split(b'\n')] if path.stat().st_size else []
    )
    _say_damaged(path, parsed.count(None), 'left out')
    return [
        {name: math.nan if value is None else value for name, value in scalars.items()} for scalars in parsed if scalars
    ]


def _parsed(line: bytes) -> dict[str, float] | None:
    """The scalars of a line; None for one that is none of ours: cut, or blank or of NULs after a loss of power."""
    try:
        scalars = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return scalars if isinstance(scalars, dict) and isinstance(scalars.get('step'), int) else None


def _say_damaged(path: pathlib.Path, count: int, what: str) -> None:
    if count:
        print(f'{path}: {count} damaged line{"s" * (count > 1)} {what}', file=sys.stderr)


class ProgressLine:
    """The live line of a run: rewritten in place on a terminal; in a file a line every `progress.LOG_SECONDS`."""

    def __init__(self, total_steps: int, stream=None, unit: str = 'step'):
        """A run of `total_steps` updates, or of as many of another `unit`."""
        self._total, self._stream, self._unit = total_steps, stream or sys.stderr, unit
        self._in_place = self._stream.isatty()
        self._width, self._shown_at = 0, -math.inf

    def show(self, step: int, text: str, seconds_per_step: float) -> None:
        """Shows `text` with the step and the time left; in a file, where a line is due: the first, the last, some."""
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
        """Prints a line that stays."""
        end = '\r' + ' ' * self._width + '\r' if self._in_place and self._width else ''
        self._width = 0
        self._stream.write(f'{end}{text}\n')
        self._stream.flush()
