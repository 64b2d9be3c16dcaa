"""Checkpoints of a run: the state, and everything else that resuming needs. Only this file and `managers.py` use Orbax.

A checkpoint at step i holds the state after i updates, before batch i is consumed.
"""

import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from mlm_jax.files import buckets
from mlm_jax.files.buckets import BucketPath
from mlm_jax.files.errors import ConfigError
from mlm_jax.parallel import agreement
from mlm_jax.training import integrity, managers, transfers
from mlm_jax.training.state import TrainState

# The parts of a checkpoint; the last only of a run that keeps a moving average of its parameters.
PARAMS, OPTIMIZER, POSITION, EMA = 'params', 'opt_state', 'position', 'ema'


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass
class Position:
    """What a run needs besides its state in order to resume as if it had not been interrupted.

    Attributes:
      examples: the number of rows consumed so far.
      train_seconds: the training time so far, including the time before interruptions.
      window: the metrics of the updates since the last line of the log (`metrics.MetricsWindow.fetch`).
      config: the configuration, as a dict.
      data: from where the run reads its data (`data.mixtures.Reading.to_json`); empty in checkpoints of earlier
        versions, whose runs read a single directory.
      evaluation_is_due: whether the run was stopped before an evaluation at this step, which the next start does.
    """

    examples: int
    train_seconds: float
    window: list
    config: dict
    data: dict = dataclasses.field(default_factory=dict)
    evaluation_is_due: bool = False


class Checkpoints:
    """Saves checkpoints asynchronously, keeps the last few, and restores onto any mesh and number of processes.

    Before a checkpoint is restored, its files are compared with the checksums in it (training/integrity.py).
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

        Unless `read_only`, this looks for the newest undamaged checkpoint. Damaged ones that are newer are moved to the
        directory `<name>_damaged` beside `directory`, and the remains of interrupted writes are removed.

        Args:
          directory: a directory that holds nothing but the checkpoints.
          keep_last: how many of the newest checkpoints to keep; None keeps all.
          keep_every_steps: checkpoints at multiples of this number of steps are kept in addition.
          read_only: only reads: the directory must exist, and nothing in it is changed.
          note: a function that receives a line of text for each damaged checkpoint.

        Raises:
          ConfigError: if there are checkpoints and all are damaged (not with `read_only`).
          FileNotFoundError: if the directory does not exist (only with `read_only`).
        """
        self._directory, self._read_only, self._note = buckets.path(directory).absolute(), read_only, note
        if read_only and not self._directory.is_dir():
            raise FileNotFoundError(f'no checkpoint in {directory}: there is no such directory')
        self._saving: int | None = None
        self._damage: dict[tuple[int, str], str | None] = {}  # of each step and part examined so far
        if not read_only:
            agreement.of_leader(self._set_damaged_aside)
        self._manager = managers.open_manager(
            self._directory,
            lambda: self._saving,
            max_to_keep=keep_last,
            keep_period=keep_every_steps or None,
            enable_async_checkpointing=not read_only,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
        )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, as process 0 sees it; None if there is none.

        All processes must call this: a directory may look older to some of them.
        """
        mine = self._manager.latest_step()
        return json.loads(agreement.from_leader(lambda: json.dumps(mine)))

    def all_steps(self) -> list[int]:
        """The steps of all complete checkpoints in ascending order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, position: Position) -> None:
        """Copies the state and writes it in the background; first waits until the previous write has ended.

        Raises:
          OSError: if this write or the previous one has failed.
        """
        average = {} if state.ema is None else {EMA: ocp.args.StandardSave(state.ema)}
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave({'step': state.step, 'opt_state': state.opt_state}),
            position=ocp.args.JsonSave(dataclasses.asdict(position)),
            **average,
        )
        with managers.write_errors(self._directory):
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(step, args=args)

    def check(self) -> None:
        """Raises OSError if the write in the background has failed; does not wait for it."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            with managers.write_errors(self._directory):
                self._manager.wait_until_finished()
            self._saving = None

    def newest_written(self) -> int | None:
        """The step of the newest checkpoint on disk; None if there is none."""
        return max(_steps_in(self._directory), default=None)

    def restore(self, abstract_state: TrainState, step: int | None = None) -> TrainState:
        """Reads the state at `step` (None: the newest) into the shapes and shardings of `abstract_state`.

        Raises:
          ConfigError: if the checkpoint is damaged, or its arrays do not match `abstract_state`.
          FileNotFoundError: if there is no checkpoint, or none of that step.
        """
        rest = {'step': abstract_state.step, 'opt_state': abstract_state.opt_state}
        parts = {PARAMS: abstract_state.params, OPTIMIZER: rest}
        if abstract_state.ema is not None:
            parts[EMA] = abstract_state.ema
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(part) for name, part in parts.items()})
        restored = self._restored(self.checked(step, tuple(parts)), args)
        ema = restored[EMA] if EMA in parts else None
        state = TrainState(params=restored[PARAMS], ema=ema, **restored[OPTIMIZER])
        # Orbax puts None where the checkpoint has nothing.
        if jax.tree.structure(state) != jax.tree.structure(abstract_state):  # type: ignore[operator]  # jaxlib's stub
            raise ConfigError(
                f'the checkpoint in {self._manager.directory} holds an optimizer state with other parts than this '
                'configuration needs: it was written by a version, or with a configuration, whose optimizer differs. '
                'Start in another workdir; init_from starts it from the parameters of this checkpoint'
            )
        return state

    def restore_params(self, abstract_params: dict, step: int | None = None, item: str = PARAMS) -> dict:
        """Reads only the parameters, or as `item=EMA` their moving average; raises the same errors as `restore`."""
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract_params)})
        return self._restored(self.checked(step, (item,)), args)[item]

    def _restored(self, step: int, args: ocp.args.Composite) -> dict:
        try:
            return self._manager.restore(step, args=args)
        except ValueError as error:  # names or shapes differ
            if read_error := managers.read_error(self._directory, error):
                raise read_error from error
            raise ConfigError(
                f'the checkpoint of step {step} in {self._manager.directory} holds other tensors than this model: it '
                f'was written by a version, or with a configuration, whose model differs. Orbax says: {error}'
            ) from error

    def restore_position(self, step: int | None = None) -> Position:
        """Reads the `Position`; raises the same errors as `restore`."""
        args = ocp.args.Composite(position=ocp.args.JsonRestore())
        return Position(**self._manager.restore(self.checked(step, (POSITION,)), args=args)[POSITION])

    def wait(self) -> None:
        """Waits until all writes have ended; raises OSError if one has failed."""
        with managers.write_errors(self._directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until all writes have ended; raises OSError if one has failed."""
        with managers.write_errors(self._directory):
            self._manager.wait_until_finished()
            self._manager.close()

    def checked(self, step: int | None = None, items: Sequence[str] = ('params',)) -> int:
        """The step of a checkpoint whose `items` are undamaged: `step`, or the newest one if `step` is None.

        Damaged checkpoints that are skipped are noted.

        Raises:
          ConfigError: if the items of `step`, or of all checkpoints, are damaged.
          FileNotFoundError: if there is no checkpoint, or none of that step.
        """
        steps = self.all_steps()
        _check_step(step, steps, self._directory)
        if not self._read_only:  # process 0 examined the checkpoints in `__init__`
            return steps[-1] if step is None else step
        if step is not None and (damage := self._damage_of(step, items)):
            raise ConfigError(
                f'the checkpoint of step {step} in {self._directory} is damaged: {damage}. Copy it again from its '
                f'source, or choose another checkpoint; the steps there are {steps}'
            )
        for candidate in [step] if step is not None else reversed(steps):
            if not (damage := self._damage_of(candidate, items)):
                return candidate
            self._note(f'the checkpoint of step {candidate} in {self._directory} is damaged and skipped: {damage}')
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
            if not (damage := self._damage_of(step, self._parts_of(step))):
                break
            damaged[step] = damage
        if damaged and len(damaged) == len(steps):
            raise self._none_whole(steps)
        for newer, damage in damaged.items():
            place = _set_aside(self._directory, newer)
            self._note(
                f'the checkpoint of step {newer:,} is damaged: {damage}. It was moved to {place}; the run resumes from '
                f'the checkpoint of step {step:,} and repeats {newer - step:,} steps'
            )
        if isinstance(self._directory, BucketPath):
            transfers.mark_whole(self._directory, lambda step: not self._damage_of(step, self._parts_of(step)))

    def _parts_of(self, step: int) -> tuple[str, ...]:
        """Those that the checkpoint was written with."""
        has_average = EMA in integrity.parts(self._directory / str(step))
        return (POSITION, PARAMS, OPTIMIZER, EMA) if has_average else (POSITION, PARAMS, OPTIMIZER)

    def _none_whole(self, steps: Sequence[int], items: Sequence[str] = ()) -> ConfigError:
        """The error that `items` are damaged in all checkpoints; () means all of their parts."""
        damage = {step: self._damage_of(step, items or self._parts_of(step)) for step in sorted(steps, reverse=True)}
        each = '; '.join(f'step {step}: {words}' for step, words in damage.items())
        return ConfigError(
            f'all checkpoints in {self._directory} are damaged ({each}). Copy them again from their source, or start '
            'from the beginning, in another workdir or after deleting that directory'
        )


def newest_step(directory: pathlib.Path, item: str) -> int | None:
    """The step of the newest checkpoint with an undamaged part `item`, such as `PARAMS`; None if there is none.

    Unlike the methods of `Checkpoints`, one process of several may call this alone.
    """
    steps = sorted(_steps_in(directory), reverse=True)
    return next((step for step in steps if not _damage(directory / str(step), item)), None)


def check_step(directory: pathlib.Path, step: int | None) -> None:
    """Raises FileNotFoundError without a checkpoint, or without one of that step; as `newest_step`."""
    _check_step(step, sorted(_steps_in(directory)), directory)


def newest_position(directory: pathlib.Path) -> tuple[int, Position] | None:
    """The step and the `Position` of the newest checkpoint in which that is undamaged; as `newest_step`."""
    step = newest_step(directory, POSITION)
    return None if step is None else (step, Position(**_read_position(directory / str(step))))


def position_at(directory: pathlib.Path, step: int) -> Position | None:
    """The `Position` in the checkpoint of a step; None where there is none, or it is damaged; as `newest_step`."""
    checkpoint = directory / str(step)
    if step not in _steps_in(directory) or _damage(checkpoint, POSITION):
        return None
    return Position(**_read_position(checkpoint))


def _check_step(step: int | None, steps: Sequence[int], directory: pathlib.Path) -> None:
    if not steps:
        raise FileNotFoundError(f'no checkpoint in {directory}')
    if step is not None and step not in steps:
        raise FileNotFoundError(f'no checkpoint of step {step} in {directory}; the steps there are {steps}')


def _steps_in(directory: pathlib.Path) -> list[int]:
    """The steps of the checkpoints whose writing was completed; on a disk, they then get their final names."""
    if isinstance(directory, BucketPath):
        return transfers.steps_in(directory)
    paths = directory.iterdir() if directory.is_dir() else ()
    return [int(path.name) for path in paths if path.name.isdecimal() and path.is_dir()]


def _damage(checkpoint: pathlib.Path, item: str) -> str | None:
    """What is damaged in one part of a checkpoint, in words; None if nothing is."""
    if damage := integrity.damage(checkpoint, (item,)):
        return damage
    if item == POSITION:
        needed = {field.name for field in dataclasses.fields(Position) if _has_no_default(field)}  # earlier versions
        if missing := needed - _read_position(checkpoint).keys():
            return f'{POSITION} lacks {", ".join(sorted(missing))}'
    return None


def _has_no_default(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _read_position(checkpoint: pathlib.Path) -> dict:
    return json.loads((checkpoint / POSITION / 'metadata').read_bytes())


def _set_aside(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Moves a checkpoint to `<directory>_damaged`, under a name that is free there, and returns its new path."""
    damaged = directory.with_name(f'{directory.name}_damaged')
    damaged.mkdir(exist_ok=True)
    names = itertools.chain([str(step)], (f'{step}.{i}' for i in itertools.count(2)))
    place = next(damaged / name for name in names if not (damaged / name).exists())
    (directory / str(step)).rename(place)
    return place


class Snapshots:
    """The newest state, arrays and a JSON record, of a task shorter than a run, so that the task can be resumed."""

    def __init__(self, directory: str | pathlib.Path, note: Callable[[str], None] = _print):
        """Creates nothing before the first `save`; `note` receives a line of text for each damaged snapshot."""
        self._directory, self._note = buckets.path(directory).absolute(), note
        self._manager: Any = None
        self._saving: int | None = None

    def save(self, step: int, arrays: Any, record: dict) -> None:
        """Copies a pytree of arrays and writes it in the background; the previous snapshot is then deleted."""
        args = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
        with managers.write_errors(self._directory):
            self._open().wait_until_finished()
            self._saving = step
            self._open().save(step, args=args)

    def restore(self, like: Any) -> tuple[Any, dict] | None:
        """The newest arrays, in the shapes and shardings of `like`, and their record; None if there is no snapshot."""
        self._set_damaged_aside()
        if (step := max(_steps_in(self._directory), default=None)) is None:
            return None
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore())
        restored = self._open().restore(step, args=args)
        return restored['arrays'], restored['record']

    def close(self) -> None:
        """Waits until all writes have ended; raises OSError if one has failed."""
        manager, self._manager = self._manager, None
        if manager is not None:
            with managers.write_errors(self._directory):
                manager.wait_until_finished()
                manager.close()

    def delete(self) -> None:
        """Removes the directory, if there is one."""
        self.close()
        buckets.remove_tree(self._directory, ignore_errors=True)

    def _open(self) -> Any:
        if self._manager is None:
            self._manager = managers.open_manager(
                self._directory, lambda: self._saving, max_to_keep=1, cleanup_tmp_directories=True
            )
        return self._manager

    def _set_damaged_aside(self) -> None:
        for step in sorted(_steps_in(self._directory), reverse=True):
            if not (damage := self._damage_of(step)):  # an older one may have been half deleted when a process died
                break
            place = _set_aside(self._directory, step)
            self._note(
                f'the saved state of update {step:,} is damaged: {damage}. It was moved to {place} and is not used'
            )
        if isinstance(self._directory, BucketPath):
            transfers.mark_whole(self._directory, lambda step: not self._damage_of(step))

    def _damage_of(self, step: int) -> str | None:
        return integrity.damage(self._directory / str(step), ('arrays', 'record'))
