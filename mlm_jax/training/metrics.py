"""Metrics: kept on the device between log lines, then written to metrics.jsonl, TensorBoard, W&B and the terminal."""

import importlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping

import jax

from mlm_jax.data import atomic


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
            self._tensorboard = summaries.SummaryWriter(str(workdir / 'tensorboard'), purge_step=start_step)
        if wandb_project:
            wandb, name = _import_extra('wandb', 'wandb', 'logging.wandb_project'), workdir.name
            self._wandb = wandb.init(
                project=wandb_project, name=name, id=name, resume='allow', dir=workdir, config=config
            )
        path = _truncated(workdir / 'metrics.jsonl', start_step)
        self._file = path.open('a', buffering=1, encoding='utf-8')  # by the line: a kill loses nothing

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line; null is a number that is not finite, for which JSON has no other word."""
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._file.write(json.dumps({'step': step, **finite}, allow_nan=False) + '\n')
        if self._tensorboard:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(dict(scalars), step=step)

    def close(self) -> None:
        """Flushes everything."""
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def _import_extra(module: str, extra: str, key: str):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f"{key} needs {module}: pip install 'mlm_jax[{extra}]'") from None


def _truncated(path: pathlib.Path, start_step: int) -> pathlib.Path:
    """Drops the lines that a killed run wrote after its last checkpoint, and a line that it did not finish."""
    lines = path.read_text(encoding='utf-8').splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith('\n') and json.loads(line)['step'] <= start_step and start_step > 0]
    atomic.write_bytes(path, ''.join(kept).encode())
    return path


def read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, oldest first; null becomes NaN."""
    lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in lines]


class ProgressLine:
    """The live line of a run: rewritten in place on a terminal, one line each in a file."""

    def __init__(self, total_steps: int, stream=None, unit: str = 'step'):
        """A run of `total_steps` updates, or of as many of another `unit`."""
        self._total, self._stream, self._unit = total_steps, stream or sys.stderr, unit
        self._in_place = self._stream.isatty()
        self._width = 0

    def show(self, step: int, text: str, seconds_per_step: float) -> None:
        """Shows `text` with the step and the time left."""
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
