"""The log of a run: every few steps, a line with the means of the metrics, on disk and in the terminal."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import ml_collections

from mlm_jax.training.checkpoints import Position
from mlm_jax.training.goodput import TRAIN, Goodput
from mlm_jax.training.metrics import MetricsWindow, MetricsWriter, ProgressLine, weighted_means

_NAMED_SOURCES = 3  # so many sources of a mixture have room in the progress line


class RunLog:
    """Collects the metrics of updates on the device, and writes their means and the speed at log steps.

    Every process has one, as every process must fetch metrics and check them; only process 0 writes.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        total_steps: int,
        learning_rate: Callable[[int], float],
        rows_of_step: Callable[[int], Sequence[str]],
        position: Position,
        epochs: Callable[[int], dict[str, float]] | None,
        step_flops: float,
        peak_flops_per_second: float | None,
        clock: Goodput,
    ):
        """Starts the log at `position`.

        Args:
          config: the configuration of the run.
          workdir: the directory of metrics.jsonl.
          total_steps: the number of updates of the run, for the time left.
          learning_rate: number of the update → learning rate, without the use of a device: each would wait for updates.
          rows_of_step: step → the rows of its batch in words, for the message about a loss that is not finite.
          position: the position in the checkpoint, or that of a new run.
          epochs: number of rows read so far → how often each source of a mixture has been read; None: no mixture.
          step_flops: the FLOPs of the matrix products of one update.
          peak_flops_per_second: the peak of one device, for MFU; None if it is unknown.
          clock: counts where the time of the run goes; earlier starts of the run are added to it.
        """
        self._config, self._learning_rate, self._rows_of_step = config, learning_rate, rows_of_step
        self._window = MetricsWindow(position.window)
        self._train_seconds, self._data, self._epochs = position.train_seconds, position.data, epochs
        self._step_flops, self._peak = step_flops, peak_flops_per_second
        self._clock = clock
        self._writer: MetricsWriter | None = None
        self._progress, self._total_steps = ProgressLine(total_steps), total_steps
        if jax.process_index() == 0:
            first_step, logging = position.examples // config.batch_size, config.logging
            saved_step = first_step if position.config else -1  # the position of a new run has no configuration
            if position.evaluation_is_due:  # the evaluation is the first of the lines of this step, which come now
                saved_step -= 1
            self._writer = MetricsWriter(
                workdir, saved_step, logging.tensorboard, logging.wandb_project, config.to_dict()
            )
            self._clock.add_earlier_starts(self._writer.earlier, first_step)
            # At once, so that a start that ends before its first step is counted, too.
            self._writer.write(first_step, self._clock.scalars())
        self._updates_since_mark, self._stall_at_mark = 0, 0.0
        self._mark = time.perf_counter()

    def start_clock(self) -> None:
        """Counts the time from now on as training time, but not the time before, such as for compilation."""
        self._clock.enter(TRAIN)
        self._mark = time.perf_counter()

    def note(self, text: str) -> None:
        """Prints a line of text that is not overwritten, on process 0."""
        if self._writer:
            self._progress.note(text)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes one line of scalars, on process 0."""
        if self._writer:
            self._writer.write(step, scalars)

    def add(
        self, step: int, metrics: Mapping[str, tuple[jax.Array, jax.Array]], stall_seconds: float, dispatched: float
    ) -> None:
        """Takes the metrics of update `step`, which may still be running; at a log step, writes the earlier ones.

        Args:
          step: the update just dispatched; the device stays busy with it while this waits for earlier ones.
          metrics: name → (sum, weight), on the device.
          stall_seconds: the total time for which the loop has waited for input.
          dispatched: when the update was dispatched, by `time.perf_counter`.
        """
        if step % self._config.logging.every_steps == 0:
            # Where updates are not dispatched ahead, as on CPU devices, this one has ended, too; the earlier ones had
            # when it began.
            has_ended = all(x.is_ready() for x in jax.tree.leaves(metrics))
            self.flush(step, stall_seconds, dispatched if has_ended else None)
        self._window.add(metrics)
        self._updates_since_mark += 1

    def flush(self, step: int, stall_seconds: float, ended: float | None = None) -> None:
        """Writes the means over all updates before `step` that are not written yet.

        Args:
          step: the number of the first update that is not written.
          stall_seconds: the total time for which the loop has waited for input.
          ended: when these updates had ended, by `time.perf_counter`; None means now, or when they will.
        """
        updates = self._window.fetch()
        if not updates:
            return
        self._window = MetricsWindow()
        self._check_finite(step - len(updates), updates)
        means = _means(updates)
        speed, epochs = self._measure(stall_seconds, ended), self._epochs_at(step)
        self.write(
            step,
            {f'train/{name}': value for name, value in means.items()}
            | {'train/learning_rate': float(self._learning_rate(step - 1))}
            | {f'data/epochs_{name}': value for name, value in epochs.items()}
            | speed
            | self._clock.scalars(),
        )
        if self._writer and speed:
            text = _describe(means, speed) + _describe_epochs(epochs)
            self._progress.show(step, text, speed['perf/step_ms'] / 1000)

    def position(self, step: int, stall_seconds: float, evaluation_is_due: bool = False) -> Position:
        """The `Position` for a checkpoint at `step`; at a log step, and at the end of the run, writes a line first.

        What a run that resumes there needs of metrics.jsonl is then stored. With `evaluation_is_due`, the next start
        evaluates and then writes the line, so that they come in the same order as in a run that was not stopped.
        """
        if not evaluation_is_due and (step % self._config.logging.every_steps == 0 or step == self._total_steps):
            self.flush(step, stall_seconds)
        updates = self._window.fetch()
        self._check_finite(step - len(updates), updates)
        seconds = self._train_seconds + time.perf_counter() - self._mark
        if self._writer:
            self._writer.sync()
        examples = step * self._config.batch_size
        return Position(examples, seconds, updates, self._config.to_dict(), self._data, evaluation_is_due)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time in the body does not count as training time; the time to wait for running updates first does."""
        self._window.fetch()
        start = time.perf_counter()
        with self._clock.phase('evaluation'):
            yield
        self._mark += time.perf_counter() - start

    def close(self) -> None:
        """Closes the files."""
        if self._writer:
            self._writer.close()

    def _measure(self, stall_seconds: float, ended: float | None) -> dict[str, float]:
        """The speed since the last measurement, as scalars; empty if there were no updates since."""
        now = time.perf_counter() if ended is None else ended
        seconds, updates = now - self._mark, self._updates_since_mark
        stalled, self._stall_at_mark = stall_seconds - self._stall_at_mark, stall_seconds
        self._mark, self._updates_since_mark = now, 0
        self._train_seconds += seconds
        if not updates:
            return {}
        flops_per_second = self._step_flops * updates / seconds
        speed = {
            'perf/step_ms': 1000 * seconds / updates,
            'perf/tokens_per_second': updates * self._config.batch_size * self._config.sequence_length / seconds,
            'perf/tflops_per_second': flops_per_second / 1e12,
            'perf/input_stall': stalled / seconds,
            'perf/train_seconds': self._train_seconds,
        }
        if self._peak:
            speed['perf/mfu'] = flops_per_second / (self._peak * jax.device_count())
        return speed

    def _epochs_at(self, step: int) -> dict[str, float]:
        return self._epochs(step * self._config.batch_size) if self._epochs else {}

    def _check_finite(self, first_step: int, updates: list[dict]) -> None:
        bad = [first_step + i for i, update in enumerate(updates) if update['nonfinite'][0] > 0]
        if not bad:
            return
        rows = ', '.join(self._rows_of_step(bad[0])[:8])
        message = f'loss, gradient or update is not finite at step {bad[0]:,} (rows {rows}, … of the training split)'
        if self._config.on_nonfinite == 'skip':
            self.note(f'{message}; skipped {len(bad)} of the last {len(updates)} updates')
            return
        raise FloatingPointError(
            f'{message}. That update was not applied, and no checkpoint has been written since then: the same command '
            'resumes from the last checkpoint. Lower optimizer.learning_rate, lengthen the warm-up or clip gradients; '
            'with on_nonfinite=skip, training continues without such updates'
        )


def _means(updates: list[dict[str, list[float]]]) -> dict[str, float]:
    """Means over the updates that were applied; `nonfinite` is the share, `skipped_updates` the number of others."""
    skipped = [update for update in updates if update['nonfinite'][0] > 0]
    if not skipped:
        return weighted_means(updates)
    applied = weighted_means([update for update in updates if not update['nonfinite'][0] > 0])
    return applied | {'nonfinite': len(skipped) / len(updates), 'skipped_updates': len(skipped)}


def _describe(means: dict[str, float], speed: dict[str, float]) -> str:
    if 'loss' not in means:
        return f'all {means["skipped_updates"]:,} updates skipped'
    use = f'MFU {speed["perf/mfu"]:.1%}' if 'perf/mfu' in speed else f'{speed["perf/tflops_per_second"]:.2f} TFLOP/s'
    return (
        f'loss {means["loss"]:.4f}  accuracy {means["accuracy"]:.3f}  {speed["perf/tokens_per_second"]:,.0f} tokens/s  '
        f'{use}  stall {speed["perf/input_stall"]:.1%}'
    )


def _describe_epochs(epochs: dict[str, float]) -> str:
    """The epochs of each source of a mixture; of more than `_NAMED_SOURCES`, of the one read least and most often."""
    shown = list(epochs.items())
    if len(shown) > _NAMED_SOURCES:
        shown = [choose(shown, key=lambda pair: pair[1]) for choose in (min, max)]
    return f'  epochs {", ".join(f"{name} {value:.2f}" for name, value in shown)}' if epochs else ''
