"""Checkpoints in buckets: whole or not there, whenever a process dies; with checksums, and readable from anywhere."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.config import ConfigError
from mlm_jax.files import buckets
from mlm_jax.training import checkpoints, integrity, transfers
from mlm_jax.training.checkpoints import Checkpoints, Position
from mlm_jax.training.state import TrainState

pytestmark = pytest.mark.usefixtures('one_device')
PARTS = (checkpoints.PARAMS, checkpoints.OPTIMIZER, checkpoints.POSITION)
SCHEMES = pytest.mark.parametrize('scheme', ['gs', 's3'])


def state_of(step: int) -> TrainState:
    values = jnp.arange(2000, dtype=jnp.float32) * (step + 0.5)
    return TrainState(jnp.int32(step), {'w': values, 'b': values[:3]}, {'mu': -values})


def position_of(step: int) -> Position:
    return Position(16 * step, 0.0, [], {'step': step})


def save(saver: Checkpoints, step: int) -> None:
    saver.save(step, state_of(step), position_of(step))
    saver.wait()


def assert_restores(saver: Checkpoints, step: int) -> None:
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0))
    found = saver.restore(like, step)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(state_of(step)), strict=True):
        assert np.array_equal(x, y)
    assert saver.restore_position(step) == position_of(step)


def fail(text: str) -> None:
    raise AssertionError(text)


@SCHEMES
def test_a_process_may_die_after_any_request(scheme, cloud):
    """And the next one begins at the newest checkpoint that was complete then, with the same bits."""
    directory, complete = buckets.path(f'{scheme}://bucket/run/checkpoints'), {0: 0}
    saver = Checkpoints(directory, keep_last=1, keep_every_steps=3)
    for step in (1, 2, 3, 4):
        save(saver, step)
        complete[len(cloud.changes)] = step
    assert saver.all_steps() == [3, 4]
    saver.close()
    history, restored = list(cloud.changes), set()
    for count in range(len(history) + 1):
        cloud.rewind(history[:count])
        latest = max(step for changes, step in complete.items() if changes <= count)
        try:
            reader = Checkpoints(directory, read_only=True, note=fail)
            read = reader.checked(items=PARTS)
        except FileNotFoundError:
            read = 0
        assert read in (latest, latest + 1)
        content = frozenset(item for item in cloud.objects.items() if f'checkpoints/{read}/' in item[0])
        if content in restored:
            continue
        restored.add(content)
        if read:
            assert_restores(reader, read)
        writer = Checkpoints(directory, keep_last=1, note=fail)
        assert (writer.latest_step() or 0) == read
        if read:
            assert_restores(writer, read)
        save(writer, read + 1)
        assert writer.latest_step() == read + 1 and len(writer.all_steps()) <= 2
        assert_restores(writer, read + 1)
        writer.close()
    assert len(restored) < 30, 'only the markers and what is newest make a difference'
