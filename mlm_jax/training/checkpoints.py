"""Checkpoints of a run: the state with all that goes on from it. The only file that knows Orbax.

A checkpoint at step i holds the state after i updates; batch i is not yet consumed.
"""

import dataclasses
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

from mlm_jax.config import ConfigError
from mlm_jax.training.state import TrainState


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
    """Saves asynchronously, keeps the last few, and restores onto any mesh and number of processes."""

    def __init__(
        self,
        directory: str | pathlib.Path,
        keep_last: int | None = None,
        keep_every_steps: int | None = None,
        read_only: bool = False,
    ):
        """Opens the checkpoints in a directory.

        Args:
          directory: of the checkpoints alone.
          keep_last: how many of the newest to keep; None keeps all.
          keep_every_steps: besides, those at multiples of this stay.
          read_only: for reading alone: the directory must exist.
        """
        if read_only and not pathlib.Path(directory).is_dir():
            raise FileNotFoundError(f'no checkpoint in {directory}: there is no such directory')
        self._manager = ocp.CheckpointManager(
            pathlib.Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep_last,
                keep_period=keep_every_steps or None,
                enable_async_checkpointing=not read_only,
                create=not read_only,
            ),
        )

    def latest_step(self) -> int | None:
        """Updates done at the newest complete checkpoint; None without one."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, position: Position) -> None:
        """Copies the state and writes it in the background; waits first for the write before it."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                opt_state=ocp.args.StandardSave({'step': state.step, 'opt_state': state.opt_state}),
                position=ocp.args.JsonSave(dataclasses.asdict(position)),
            ),
        )

    def restore(self, abstract_state: TrainState, step: int | None = None) -> TrainState:
        """Reads the state at `step` (None: the newest) into the shapes and shardings of `abstract_state`.

        Raises:
          ConfigError: when the checkpoint holds other tensors.
          FileNotFoundError: when there is none (of that step).
        """
        rest = {'step': abstract_state.step, 'opt_state': abstract_state.opt_state}
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract_state.params), opt_state=ocp.args.StandardRestore(rest)
        )
        restored = self._restored(self.checked(step), args)
        state = TrainState(params=restored['params'], **restored['opt_state'])
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
        return self._restored(self.checked(step), args)['params']

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
        return Position(**self._manager.restore(self.checked(step), args=args)['position'])

    def close(self) -> None:
        """Waits for writes under way."""
        self._manager.wait_until_finished()
        self._manager.close()

    def checked(self, step: int | None = None) -> int:
        """`step`, or the newest where None; FileNotFoundError when there is no such checkpoint."""
        steps = self.all_steps()
        if not steps:
            raise FileNotFoundError(f'no checkpoint in {self._manager.directory}')
        if step is not None and step not in steps:
            raise FileNotFoundError(f'no checkpoint of step {step} in {self._manager.directory}; there are {steps}')
        return steps[-1] if step is None else step


class Snapshots:
    """The newest state of something shorter than a run, while it is under way: arrays, and a record that is JSON."""

    def __init__(self, directory: str | pathlib.Path):
        """Nothing is created before the first `save`."""
        self._directory = pathlib.Path(directory).absolute()
        self._manager = None

    def save(self, step: int, arrays: Any, record: dict) -> None:
        """Copies a pytree of arrays and writes it in the background; the snapshot before it is deleted."""
        args = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
        self._open().save(step, args=args)

    def restore(self, like: Any) -> tuple[Any, dict] | None:
        """The newest arrays, of the shapes and shardings of `like`, and their record; None without a snapshot."""
        if not self._directory.is_dir() or (step := self._open().latest_step()) is None:
            return None
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore())
        restored = self._open().restore(step, args=args)
        return restored['arrays'], restored['record']

    def close(self) -> None:
        """Waits for a write under way."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()
            self._manager = None

    def delete(self) -> None:
        """Removes the directory, if there is one."""
        self.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._manager = ocp.CheckpointManager(self._directory, options=ocp.CheckpointManagerOptions(max_to_keep=1))
        return self._manager
