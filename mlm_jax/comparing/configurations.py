"""The configurations of a comparison: their names and labels, and whether they can be compared."""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence

import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.data import prepared_data
from mlm_jax.files.errors import ConfigError

# Keys that decide where and how fast a run computes, or which files it writes, and not what it learns.
WITHOUT_INFLUENCE = (
    'accelerator', 'checkpoint', 'compilation_cache', 'fsdp_gather', 'logging', 'mesh', 'num_microbatches', 'profile',
    'sharding', 'slice',
    'model.attention_backend', 'model.remat', 'model.scan_unroll',
)  # fmt: skip
# Keys that the comparison itself decides.
LENGTH_AND_SEED = ('seed', *(f'total_{unit}' for unit in config_lib.DURATION_UNITS))


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One configuration of a comparison.

    Attributes:
      label: a short and unique name, which is also the name of the directory of its runs.
      name: as on the command line.
      config: the configuration, whose seed is replaced for each run; the budget decides its `total_steps`.
      step_cost: the cost of one step in the unit of the budget: its FLOPs, 1, or its seconds.
      step_flops: the FLOPs of one step, a mean over the run where the mask ratio changes; `share_budget` counts them.
    """

    label: str
    name: str
    config: ml_collections.ConfigDict
    step_cost: float = 1.0
    step_flops: float = 1.0

    @property
    def cost(self) -> float:
        """The expected cost of a run, its FLOPs, from which the remaining time is estimated."""
        return self.config.total_steps * self.step_flops

    def of_seed(self, seed: int) -> ml_collections.ConfigDict:
        """The configuration of the run with this seed."""
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        return config


def make_labels(names: Sequence[str]) -> list[str]:
    """Short labels that distinguish configurations: their files, and the arguments that not all of them have.

    The labels of `configs/mlm.py:tiny` and `configs/mlm.py:tiny,masking.ratio=0.4` are 'tiny' and 'ratio=0.4'. The
    labels of `configs/mlm.py:tiny` and `configs/mae_lm.py:tiny` are 'mlm' and 'mae_lm'.

    Raises:
      ConfigError: when two labels would be equal.
    """
    stems = [pathlib.Path(name.partition(':')[0]).stem for name in names]
    arguments = [[part for part in name.partition(':')[2].split(',') if part] for name in names]
    shared = set(arguments[0]).intersection(*arguments)
    own = [[part for part in parts if part not in shared] for parts in arguments]
    for shorten in (_last_of_key, str):  # the last part of a key is enough, unless two labels would be equal
        labels = []
        for stem, parts, all_parts in zip(stems, own, arguments, strict=True):
            words = [stem] if len(set(stems)) > 1 else []
            words += [shorten(part) for part in parts]
            words = words or [stem if not all_parts else all_parts[0]]
            labels.append(re.sub(r'[^\w.=+-]', '-', ','.join(words).replace(',', '-'), flags=re.ASCII))
        if len(set(labels)) == len(labels):
            return labels
    raise ConfigError(
        f'no different short names can be made for the configurations {"; ".join(names)}: name each with --label=NAME'
    )


def _last_of_key(argument: str) -> str:
    key, equals, value = argument.partition('=')
    return key.rpartition('.')[2] + equals + value


def load_candidates(names: Sequence[str], labels: Sequence[str], settings: Sequence[str]) -> list[Candidate]:
    """Loads configurations, applies the settings that all of them share, and checks that they can be compared.

    Args:
      names: FILE.py[:ARGUMENT] each.
      labels: one for each name; if there are none, `make_labels` makes them.
      settings: 'KEY=VALUE' each.

    Raises:
      ConfigError: for anything that makes the comparison impossible or meaningless.
    """
    if len(names) < 2:
        raise ConfigError(
            f'a comparison needs two configurations or more, not {len(names)}: --config=configs/mlm.py:mini '
            '--config=configs/mae_lm.py:mini'
        )
    if labels and (len(labels) != len(names) or len(set(labels)) < len(labels)):
        raise ConfigError(f'--label={", ".join(labels)}: give {len(names)} different labels, or none')
    for label in labels:
        if not re.fullmatch(r'\w[\w.=+-]*', label):
            raise ConfigError(
                f'--label={label}: a label is the name of a directory, so use only letters, digits and . _ = + -'
            )
    overrides = config_lib.parse_settings(settings)
    for text in (*names, *(f':{key}=' for key in overrides)):
        if re.search(r'[:,]seed=', text):
            raise ConfigError(f'{text.strip(":")}: give the seeds of a comparison with --seeds')
    candidates = []
    for label, name in zip(labels or make_labels(names), names, strict=True):
        candidates.append(Candidate(label, name, config_lib.load(name, overrides)))
    _check_comparable(candidates)
    return candidates


def _check_comparable(candidates: Sequence[Candidate]) -> None:
    first = candidates[0]
    for i, candidate in enumerate(candidates):
        for other in candidates[:i]:
            if not differences(other.config, candidate.config, (*WITHOUT_INFLUENCE, *LENGTH_AND_SEED)):
                raise ConfigError(f'{other.name} and {candidate.name} are the same configuration')
        different = config_lib.differences(first.config, candidate.config)
        unequal = [
            f'  {key}: {a!r} in {first.label}, {b!r} in {candidate.label}'
            for key, (a, b) in different.items()
            if key in ('data.directory', 'data.mixture_temperature')
            or (key.startswith('evaluation.') and '.every_' not in key)
        ]
        if unequal:
            raise ConfigError(
                'held-out losses can only be compared on the same rows and masks, but these keys differ:\n'
                + '\n'.join(unequal)
                + '\nGive all configurations the same values, for example with --set=data.directory=…'
            )
    for candidate in candidates:
        resolved, data = prepared_data.resolve(candidate.config)
        try:
            data.tables(resolved.masking)  # what is missing must not stop the program after hours of other runs
        except ConfigError as error:
            raise ConfigError(f'{candidate.name}: {error}') from None
        if not resolved.evaluation.every_steps:
            raise ConfigError(f'{candidate.name} is never evaluated: set, for example, evaluation.every_percent=10')


def digest(config: ml_collections.ConfigDict) -> str:
    """A hash of what a run with this configuration learns from, but for its rows and its seed."""
    ignored = (*WITHOUT_INFLUENCE, 'seed', 'data.directory')
    decided = config_lib.decided(config)  # a slice, for instance, decides whether attention has dropout
    keys = {key: value for key, value in config_lib.values(decided).items() if not is_under(key, ignored)}
    return hashlib.sha256(json.dumps(keys, sort_keys=True, default=str).encode()).hexdigest()[:10]


def differences(
    old: ml_collections.ConfigDict, new: ml_collections.ConfigDict, ignored: Sequence[str] = WITHOUT_INFLUENCE
) -> dict[str, tuple]:
    """Key → (old value, new value) where two configurations differ.

    Args:
      old: a configuration.
      new: a configuration.
      ignored: keys that are left out, with all keys under them.
    """
    return {key: values for key, values in config_lib.differences(old, new).items() if not is_under(key, ignored)}


def is_under(key: str, parents: Sequence[str]) -> bool:
    """Whether a key, or the key of 'KEY=VALUE', is one of `parents` or lies under one."""
    return any(re.match(rf'{re.escape(parent)}(\.|=|$)', key) for parent in parents)
