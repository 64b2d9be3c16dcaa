"""Lengths of runs that spend the same: equal FLOPs, equal steps or equal time."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from mlm_jax import config as config_lib
from mlm_jax.comparing import configurations
from mlm_jax.comparing.configurations import Candidate
from mlm_jax.config import step_flops
from mlm_jax.data import prepared_data
from mlm_jax.files import atomic
from mlm_jax.performance import speed
from mlm_jax.training.workdir import read_json

# Name of a budget → what it counts.
UNITS = {'flops': 'FLOPs', 'steps': 'optimizer steps', 'time': 'seconds of training steps'}
TIMING_FILE = 'timing.json'
_ITERATIONS = 20


def share_budget(candidates: Sequence[Candidate], budget: str, output: pathlib.Path) -> list[Candidate]:
    """The candidates with lengths that spend what the first one spends.

    Args:
      candidates: the first one's length is the budget.
      budget: 'flops', 'steps' or 'time'.
      output: where times of steps are kept: measured again, they would ask for other lengths.
    """
    first = candidates[0].config
    data = prepared_data.load(first.data)  # those of all
    total = config_lib.resolve(first, data).total_steps
    if budget == 'flops':
        return _equal_flops(candidates, total, data)
    costs = step_seconds(candidates, output) if budget == 'time' else [1.0] * len(candidates)
    return [
        _with_length(candidate, max(1, round(total * costs[0] / cost)), data, cost)
        for candidate, cost in zip(candidates, costs, strict=True)
    ]


def _with_length(
    candidate: Candidate, steps: int, data: prepared_data.PreparedData, cost: float | None = None
) -> Candidate:
    """The candidate with that many steps, whose FLOPs are counted as they run; `cost` of a step, None: its FLOPs."""
    config = candidate.config.copy_and_resolve_references()
    config_lib.apply_overrides(config, {'total_steps': str(steps)})
    # Resolved, because open keys, such as the attention, and units, such as epochs, decide what a step costs.
    flops = step_flops.step_flops(config_lib.resolve(config, data))
    return dataclasses.replace(candidate, config=config, step_cost=flops if cost is None else cost, step_flops=flops)


def _equal_flops(candidates: Sequence[Candidate], total: int, data: prepared_data.PreparedData) -> list[Candidate]:
    shared = [_with_length(candidates[0], total, data)]
    for candidate in candidates[1:]:
        found = _with_length(candidate, total, data)
        for _ in range(_ITERATIONS):  # where the mask ratio changes by steps, the cost of one depends on the length
            steps = max(1, round(shared[0].cost / found.step_flops))
            if steps == found.config.total_steps:
                break
            found = _with_length(candidate, steps, data)
        shared.append(found)
    return shared


def step_seconds(candidates: Sequence[Candidate], output: pathlib.Path, rounds: int = 10) -> list[float]:
    """Seconds of a training step of each candidate, as `bench` measures them: in turn, medians over rounds.

    Those measured before are taken from `<output>/timing.json`; a new candidate is measured beside the first one, and
    its ratio applied to the first one's time.
    """
    path = output / TIMING_FILE
    known = read_json(path, 'Delete it, and times are measured again') if path.exists() else {}
    first = candidates[0]

    def seconds_of(candidate: Candidate) -> float | None:
        """Those measured before, under whatever label; None if there are none."""
        for entry in known.values():
            there = ml_collections.ConfigDict(entry['config'])
            if not configurations.differences(there, candidate.config, configurations.LENGTH_AND_SEED):
                return entry['seconds']
        return None

    if seconds_of(first) is None:
        known = {}
    new = [candidate for candidate in candidates if seconds_of(candidate) is None]
    if new:
        measured = [first, *(candidate for candidate in new if candidate is not first)]
        contestants = []
        for candidate in measured:
            if jax.process_index() == 0:
                print(f'measuring the step of {candidate.label}', file=sys.stderr, flush=True)
            contestants.append(speed.prepare(candidate.name, candidate.of_seed(0)))
        speed.measure(contestants, rounds, steps_per_round=2)
        base = seconds_of(first) or float(np.median(contestants[0].seconds))
        for candidate, contestant in zip(measured, contestants, strict=True):
            ratio = np.median(np.array(contestant.seconds) / np.array(contestants[0].seconds))
            # Several processes must agree on the lengths of their common runs.
            taken = float(multihost_utils.broadcast_one_to_all(np.float32(base * ratio)))
            if seconds_of(candidate) is None:
                entry = {'label': candidate.label, 'seconds': taken, 'config': candidate.config.to_dict()}
                known[configurations.digest(candidate.config)] = entry
        if jax.process_index() == 0:
            output.mkdir(parents=True, exist_ok=True)
            atomic.write_bytes(path, f'{json.dumps(known, indent=2)}\n'.encode())
    return [seconds for candidate in candidates if (seconds := seconds_of(candidate)) is not None]
