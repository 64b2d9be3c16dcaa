"""Checkpoints of a run: the state with all that goes on from it. The only file that knows Orbax.

A checkpoint at step i holds the state after i updates; batch i is not yet consumed.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from mlm_jax.files.errors import ConfigError
from mlm_jax.parallel import agreement
from mlm_jax.training import integrity
from mlm_jax.training.state import TrainState

# The parts of a checkpoint.
PARAMS, OPTIMIZER, POSITION = 'params', 'opt_state', 'position'


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass
class Position:
    """What a run must know besides its state to go on as if nothing had happened.

    Attributes:
      examples: rows consumed so far.
      train_seconds: time spent so far, over all starts.
      window: sums of metrics of the updates since the last line of the log (metrics.MetricsWindow).
      config: the configuration, as a dict.
    """

    examples: int
    train_seconds: float
    window: list
    config: dict


class Checkpoints:
    """Saves asynchronously, keeps the last few, and restores onto any mesh and number of processes.

    What is restored has been compared with the checksums that were written with it (training/integrity.py).
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        keep_last: int | None = None,
        keep_every_steps: int | None = None,
        read_only: bool = False,
        note: Callable[[str], None] = _print,
    ):
        """Opens the checkpoints in a directory.

        To write, the newest whole one is found first: damaged ones that are newer are moved to the directory
        `<name>_damaged` beside this one, and what interrupted writes have left is removed.

        Args:
          directory: of the checkpoints alone.
          keep_last: how many of the newest to keep; None keeps all.
          keep_every_steps: besides, those at multiples of this stay.
          read_only: for reading alone: the directory must exist, and nothing in it is changed.
          note: receives a line for each damaged checkpoint.

        Raises:
          ConfigError: when there are checkpoints, and none is whole (not with `read_only`).
        """
        self._directory, self._read_only, self._note = pathlib.Path(directory).absolute(), read_only, note
        if read_only and not self._directory.is_dir():
            raise FileNotFoundError(f'no checkpoint in {directory}: there is no such directory')
        self._saving: int | None = None
        self._damage: dict[tuple[int, str], str | None] = {}  # what has been looked at
        if not read_only:
            agreement.of_leader(self._set_damaged_aside)
        self._manager = _manager(
            self._directory,
            lambda: self._saving,
            max_to_keep=keep_last,
            keep_period=keep_every_steps or None,
            enable_async_checkpointing=not read_only,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
        )

    def latest_step(self) -> int | None:
        """Updates done at the newest complete checkpoint; None without one."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, position: Position) -> None:
        """Copies the state and writes it in the background; waits first for the write before it.

        Raises:
          OSError: when a write failed, this one or that before it.
        """
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave({'step': state.step, 'opt_state': state.opt_state}),
            position=ocp.args.JsonSave(dataclasses.asdict(position)),
        )
        with _write_errors(self._directory):
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(step, args=args)

    def check(self) -> None:
        """Raises OSError when the write under way has failed; does not wait for it."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            with _write_errors(self._directory):
                self._manager.wait_until_finished()
            self._saving = None

    def newest_written(self) -> int | None:
        """Updates done at the newest checkpoint on the disk; None without one."""
        return max(_steps_in(self._directory), default=None)

    def restore(self, abstract_state: TrainState, step: int | None = None) -> TrainState:
        """Reads the state at `step` (None: the newest) into the shapes and shardings of `abstract_state`.

        Raises:
          ConfigError: when the checkpoint is damaged, or holds other tensors.
          FileNotFoundError: when there is none (of that step).
        """
        rest = {'step': abstract_state.step, 'opt_state': abstract_state.opt_state}
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract_state.params), opt_state=ocp.args.StandardRestore(rest)
        )
        restored = self._restored(self.checked(step, (PARAMS, OPTIMIZER)), args)
        state = TrainState(params=restored[PARAMS], **restored[OPTIMIZER])
        if jax.tree.structure(state) != jax.tree.structure(abstract_state):  # Orbax leaves None where it found nothing
            raise ConfigError(
                f'the checkpoint in {self._manager.directory} holds an optimizer state with other parts than this one: '
                'it was written by a version, or a configuration, whose optimizer differs. Begin in another workdir; '
                'init_from takes the parameters of this one'
            )
        return state

    def restore_params(self, abstract_params: dict, step: int | None = None) -> dict:
        """Reads the parameters alone; errors as for `restore`."""
        args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params))
        return self._restored(self.checked(step), args)[PARAMS]

    def _restored(self, step: int, args: ocp.args.Composite) -> dict:
        try:
            return self._manager.restore(step, args=args)
        except ValueError as error:  # names and shapes that do not meet
            raise ConfigError(
                f'the checkpoint of step {step} in {self._manager.directory} holds other tensors than this model: it '
                f'was written by a version, or a configuration, whose model differs. Orbax says: {error}'
            ) from error

    def restore_position(self, step: int | None = None) -> Position:
        """Reads all but the arrays."""
        args = ocp.args.Composite(position=ocp.args.JsonRestore())
        return Position(**self._manager.restore(self.checked(step, (POSITION,)), args=args)[POSITION])

    def close(self) -> None:
        """Waits for writes under way."""
        with _write_errors(self._directory):
            self._manager.wait_until_finished()
            self._manager.close()

    def checked(self, step: int | None = None, items: Sequence[str] = ('params',)) -> int:
        """`step`, or where None the newest whose `items` are whole; damaged ones passed over are said.

        Raises:
          ConfigError: when the items of `step`, or of all checkpoints, are damaged.
          FileNotFoundError: when there is no checkpoint (of that step).
        """
        steps = self.all_steps()
        if not steps:
            raise FileNotFoundError(f'no checkpoint in {self._directory}')
        if step is not None and step not in steps:
            raise FileNotFoundError(f'no checkpoint of step {step} in {self._directory}; there are {steps}')
        if not self._read_only:  # looked at when this was opened, by one process for all
            return steps[-1] if step is None else step
        if step is not None and (damage := self._damage_of(step, items)):
            raise ConfigError(
                f'the checkpoint of step {step} in {self._directory} is damaged: {damage}. Copy it anew from where it '
                f'came, or ask for another; there are {steps}'
            )
        for candidate in [step] if step is not None else reversed(steps):
            if not (damage := self._damage_of(candidate, items)):
                return candidate
            self._note(f'the checkpoint of step {candidate} in {self._directory} is damaged, and passed over: {damage}')
        raise self._none_whole(steps, items)

    def _damage_of(self, step: int, items: Sequence[str]) -> str | None:
        for item in items:
            if (step, item) not in self._damage:
                self._damage[step, item] = _damage(self._directory / str(step), item)
            if damage := self._damage[step, item]:
                return damage
        return None

    def _set_damaged_aside(self) -> None:
        steps, damaged = sorted(_steps_in(self._directory), reverse=True), {}
        for step in steps:
            if not (damage := self._damage_of(step, (POSITION, PARAMS, OPTIMIZER))):
                break
            damaged[step] = damage
        if damaged and len(damaged) == len(steps):
            raise self._none_whole(steps, (POSITION, PARAMS, OPTIMIZER))
        for newer, damage in damaged.items():
            place = _set_aside(self._directory, newer)
            self._note(
                f'the checkpoint of step {newer:,} is damaged: {damage}. It is kept as {place}; the run goes on from '
                f'the one of step {step:,}, and does {newer - step:,} steps again'
            )

    def _none_whole(self, steps: Sequence[int], items: Sequence[str]) -> ConfigError:
        each = '; '.join(f'step {step}: {self._damage_of(step, items)}' for step in sorted(steps, reverse=True))
        return ConfigError(
            f'no checkpoint in {self._directory} is whole ({each}). Copy them anew from where they came, or start from '
            'the beginning, in another workdir or after deleting that directory'
        )


def stored_config(directory: pathlib.Path) -> tuple[int, dict] | None:
    """The step and the configuration of the newest checkpoint of a run whose position is whole; None without one."""
    for step in sorted(_steps_in(directory), reverse=True):
        if not _damage(directory / str(step), POSITION):
            return step, _read_position(directory / str(step))['config']
    return None


def _steps_in(directory: pathlib.Path) -> list[int]:
    """The steps of the checkpoints that are on the disk under their names."""
    paths = directory.iterdir() if directory.is_dir() else ()
    return [int(path.name) for path in paths if path.name.isdecimal() and path.is_dir()]


def _damage(checkpoint: pathlib.Path, item: str) -> str | None:
    """What is wrong with one part of a checkpoint, in words."""
    if damage := integrity.damage(checkpoint, (item,)):
        return damage
    fields = {field.name for field in dataclasses.fields(Position)} if item == POSITION else set()
    if fields and (missing := fields - _read_position(checkpoint).keys()):
        return f'{POSITION} lacks {", ".join(sorted(missing))}'
    return None


def _read_position(checkpoint: pathlib.Path) -> dict:
    return json.loads((checkpoint / POSITION / 'metadata').read_bytes())


def _set_aside(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Moves a checkpoint out of `directory`, to a name beside it that is free; that name."""
    damaged = directory.with_name(f'{directory.name}_damaged')
    damaged.mkdir(exist_ok=True)
    names = itertools.chain([str(step)], (f'{step}.{i}' for i in itertools.count(2)))
    place = next(damaged / name for name in names if not (damaged / name).exists())
    (directory / str(step)).rename(place)
    return place


def _manager(directory: pathlib.Path, saving: Callable[[], int | None], **options) -> ocp.CheckpointManager:
    """Orbax's manager, which writes checksums into each checkpoint before that gets its name.

    Args:
      directory: of the checkpoints.
      saving: the step that is being saved.
      **options: of `ocp.CheckpointManagerOptions`.
    """

    def add_checksums() -> None:
        # Called by the thread that writes, on process 0, when all that others write is there.
        name = re.compile(rf'{saving()}(\D.*)?')
        integrity.write_checksums(max((p for p in directory.iterdir() if name.fullmatch(p.name)), key=_modified))

    _silence_what_is_raised()
    after_writing = ocp.AsyncOptions(post_finalization_callback=add_checksums)
    is_async = options.get('enable_async_checkpointing', True)
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(async_options=after_writing if is_async else None, **options),
    )


def _modified(path: pathlib.Path) -> float:
    return path.stat().st_mtime


@functools.cache
def _silence_what_is_raised() -> None:
    """Drops the tracebacks that Orbax and tensorstore print in other threads of a failed write that they then raise."""
    logging.get_absl_logger().addFilter(lambda record: not (record.exc_info and '/orbax/' in record.pathname))
    before = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != 'Event loop is closed':
            before(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def _write_errors(directory: pathlib.Path) -> Iterator[None]:
    """Raises as OSError what Orbax raises as ValueError when its C++ part cannot write."""
    try:
        yield
    except ValueError as error:
        if not (number := re.search(r"(?:OS error |os_error_code=')(\d+)", str(error))):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(directory)) from error


class Snapshots:
    """The newest state of something shorter than a run, while it is under way: arrays, and a record that is JSON."""

    def __init__(self, directory: str | pathlib.Path, note: Callable[[str], None] = _print):
        """Nothing is created before the first `save`; `note` receives a line for each that is damaged."""
        self._directory, self._note = pathlib.Path(directory).absolute(), note
        self._manager, self._saving = None, None

    def save(self, step: int, arrays: Any, record: dict) -> None:
        """Copies a pytree of arrays and writes it in the background; the snapshot before it is deleted."""
        args = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
        with _write_errors(self._directory):
            self._open().wait_until_finished()
            self._saving = step
            self._open().save(step, args=args)

    def restore(self, like: Any) -> tuple[Any, dict] | None:
        """The newest arrays, of the shapes and shardings of `like`, and their record; None without a snapshot."""
        self._set_damaged_aside()
        if (step := max(_steps_in(self._directory), default=None)) is None:
            return None
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore())
        restored = self._open().restore(step, args=args)
        return restored['arrays'], restored['record']

    def close(self) -> None:
        """Waits for a write under way."""
        manager, self._manager = self._manager, None
        if manager is not None:
            with _write_errors(self._directory):
                manager.wait_until_finished()
                manager.close()

    def delete(self) -> None:
        """Removes the directory, if there is one."""
        self.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._manager = _manager(self._directory, lambda: self._saving, max_to_keep=1, cleanup_tmp_directories=True)
        return self._manager

    def _set_damaged_aside(self) -> None:
        for step in _steps_in(self._directory):
            if damage := integrity.damage(self._directory / str(step), ('arrays', 'record')):
                place = _set_aside(self._directory, step)
                self._note(
                    f'the state of update {step:,} is damaged: {damage}. It is kept as {place}, and is not gone on from'
                )
