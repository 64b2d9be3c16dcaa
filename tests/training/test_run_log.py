"""The speed in the log of a run, with updates that are dispatched ahead and with updates that are not."""

import json
import types

import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax.training import run_log
from mlm_jax.training.checkpoints import Position
from mlm_jax.training.goodput import Goodput

SECONDS = 0.25  # of an update


class Metric:
    """A number on a device that is ready at a moment of the clock; who reads it waits until then."""

    def __init__(self, clock, ready_at: float):
        self._clock, self._ready_at = clock, ready_at

    def is_ready(self) -> bool:
        return self._clock.now >= self._ready_at

    def __array__(self, dtype=None, copy=None):
        self._clock.now = max(self._clock.now, self._ready_at)
        return np.asarray(0.0, dtype)


@pytest.mark.parametrize('ahead', [True, False])
@pytest.mark.parametrize('every', [1, 3])
def test_each_line_has_the_speed_of_its_updates(ahead, every, tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(run_log, 'time', types.SimpleNamespace(perf_counter=lambda: clock.now))
    config = config_lib.default_config()
    config.logging.every_steps = every
    position = Position(examples=0, train_seconds=0.0, window=[], config={})
    log = run_log.RunLog(config, tmp_path, 6, lambda step: 1e-3, lambda step: [], position, None, 1e9, None, Goodput())
    log.start_clock()
    ends = clock.now
    for step in range(6):
        dispatched = clock.now
        ends = max(ends, clock.now) + SECONDS
        if not ahead:
            clock.now = ends
        names = 'loss', 'accuracy', 'nonfinite'
        log.add(step, {name: (Metric(clock, ends), Metric(clock, ends)) for name in names}, 0.0, dispatched)
    log.flush(6, 0.0)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    speeds = [line['perf/step_ms'] for line in lines if 'perf/step_ms' in line]
    assert speeds == pytest.approx([1000 * SECONDS] * (6 // every))
    assert lines[-1]['perf/train_seconds'] == pytest.approx(6 * SECONDS)


def test_a_run_that_was_stopped_before_its_first_update_keeps_what_was_evaluated(tmp_path):
    config = config_lib.default_config()

    def start(saved: dict) -> run_log.RunLog:
        position = Position(examples=0, train_seconds=0.0, window=[], config=saved)
        return run_log.RunLog(config, tmp_path, 6, lambda _: 1e-3, lambda _: [], position, None, 1e9, None, Goodput())

    for saved, expected in (({}, []), ({}, []), (config.to_dict(), [2.5])):
        log = start(saved)  # the second run starts anew, since the first has saved nothing
        lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
        assert [line['eval/loss'] for line in lines if 'eval/loss' in line] == expected
        log.write(0, {'eval/loss': 2.5})
        log.close()
