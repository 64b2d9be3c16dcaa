"""Checks that the keys of a configuration agree with each other; `possible_values` checks each by itself."""

import math
from collections.abc import Callable

import ml_collections

from mlm_jax.config import mixture
from mlm_jax.config.access import get
from mlm_jax.config.defaults import row_length
from mlm_jax.config.durations import DURATIONS, resolve_steps
from mlm_jax.config.model_checks import problems_of_model
from mlm_jax.config.optimizer_defaults import WEIGHT_DECAYS, weight_decay
from mlm_jax.files import paths, text_files
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.registry import STRATEGIES, UNITS, largest_ratio
from mlm_jax.objectives.registry import OBJECTIVES

# All keys that name files or directories, also those whose value has a prefix before the path.
PATH_KEYS = (
    'data.directory', 'data.corpus', 'data.validation_corpus', 'tokenizer.model', 'init_from', 'masking.token_weights',
    'evaluation.blimp', 'compilation_cache',
)  # fmt: skip
_DIRECTORY_KEYS = ('data.directory', 'evaluation.blimp')  # the ones among PATH_KEYS that must be directories


# The largest weight decay for an optimizer that does not multiply it by the learning rate, that is, the share of a
# weight that an update removes. With a larger share, weights forget everything within some thousand updates. AdamW's
# 0.01 lies far above, ModernBERT's 1e-5 far below.
LARGEST_SHARE = 1e-3

# A smaller weight decay that is multiplied by the learning rate has no effect in any run.
SMALLEST_DECAY = 1e-4


def check_together(config: ml_collections.ConfigDict) -> None:
    """Checks that the keys agree with each other; this uses no device.

    Args:
      config: a configuration that has passed `possible_values.check_values` and has no open keys (`resolve.decided`).

    Raises:
      ConfigError: with all problems found, a line each; each says what to do.
    """
    problems = _path_problems(config) + _held_out_problems(config) + _mixture_problems(config)
    c = config
    if c.batch_size % c.num_microbatches:
        problems.append(f'batch_size={c.batch_size} must be a multiple of num_microbatches={c.num_microbatches}')
    problems += problems_of_model(c) + _objective_problems(c) + _masking_problems(c)
    problems += [
        f'mesh.{axis}=0 must be -1, for all devices that the other axes leave, or at least 1'
        for axis, size in c.mesh.items()
        if not size
    ]
    problems += _sharding_problems(c) + _optimizer_problems(c)
    if c.batch_size * row_length(c) >= 2**31:
        problems.append(
            f'a batch of batch_size={c.batch_size:,} rows of {row_length(c):,} tokens is more than 2³¹ '
            'tokens, and token counts must fit 32 bits: lower batch_size'
        )
    for prefix in DURATIONS:
        try:
            total_steps = None if prefix == 'total' else 100
            steps = resolve_steps(c, prefix, total_steps=total_steps, steps_per_epoch=1.0)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if not steps and prefix == 'total':
            problems.append('the length of the run is missing or 0: set total_steps, or another of the keys total_…')
    if problems:
        raise ConfigError('\n'.join(problems))


def remarks(config: ml_collections.ConfigDict, num_rows: int) -> list[str]:
    """Remarks about settings that are possible but probably a mistake, a line each.

    Args:
      config: a checked configuration.
      num_rows: the number of rows of an epoch.
    """
    lines, o, k = [], config.optimizer, config.masking
    decay = weight_decay(o)
    if o.name != 'stable_adamw' and 0 < decay < SMALLEST_DECAY:
        lines.append(
            f'optimizer.weight_decay={decay} is a value for stable_adamw: {o.name} multiplies it by the learning rate, '
            f'and the product is too small to have an effect. The default of {o.name} is {WEIGHT_DECAYS[o.name]}; 0 '
            'turns weight decay off'
        )
    m = config.model
    if config.slice and m.dropout and not m.attention_dropout:
        lines.append(
            f'attention has no dropout, but the rest of the model has {m.dropout}: the kernel that is chosen for '
            f'slice={config.slice} has none. model.attention_backend=xla,model.attention_dropout={m.dropout} is slower '
            'and has it'
        )
    steps_per_epoch = num_rows / config.batch_size
    total_steps = resolve_steps(config, 'total', steps_per_epoch=steps_per_epoch) or 0
    if config.profile.num_steps and config.profile.start_step >= total_steps:
        lines.append(
            f'no profile is written: the last of the {total_steps:,} steps is step {total_steps - 1:,}, and '
            f'profile.start_step={config.profile.start_step} comes after it'
        )
    epochs = total_steps / steps_per_epoch
    follows_visits = STRATEGIES[k.strategy].cycle(_largest_ratio(k), k) > 1
    if follows_visits and k.ratio_schedule not in ('constant', 'diffusion') and epochs < 2:
        lines.append(
            f'masking.strategy={k.strategy} changes its ratio only from epoch to epoch, and this run has {epochs:.2g} '
            'epochs: masking.strategy=uniform changes it at every step'
        )
    return lines


def _path_problems(config: ml_collections.ConfigDict) -> list[str]:
    """The problems of the paths in a configuration, a line each."""
    found = []
    for key in PATH_KEYS:
        path = get(config, key)
        try:
            _check_of(key)(path)
            if path and key in _DIRECTORY_KEYS and not (key == 'data.directory' and mixture.is_mixture(path)):
                paths.check_kind(path, 'directory')
        except ConfigError as error:
            found.append(f'{key}={path}: {error}')
    return found


def _check_of(key: str) -> Callable[[str], None]:
    """The check of where the path under a key lies."""
    return paths.check_compilation_cache if key == 'compilation_cache' else paths.check_local_or_bucket


def _held_out_problems(c: ml_collections.ConfigDict) -> list[str]:
    """Rows to hold out are missing; tfds and hf corpora may have a split of their own, which `prepare` looks for."""
    may_have_split = c.data.corpus.partition(':')[0] not in (*text_files.KINDS, 'demo')
    if c.data.validation_percent or c.data.validation_corpus or may_have_split:
        return []
    return [
        'data.validation_percent=0 holds nothing out, and training needs held-out rows: set data.validation_percent=1, '
        'or name a data.validation_corpus'
    ]


def _mixture_problems(c: ml_collections.ConfigDict) -> list[str]:
    """What is wrong with the directories of a mixture, or does not go with one."""
    try:
        sources = mixture.parse(c.data.directory)
        for source in sources if len(sources) > 1 else ():  # a single one is checked with the other paths
            paths.check_kind(source.directory, 'directory')
    except ConfigError as error:
        return [str(error)]
    temperature, k, problems = c.data.mixture_temperature, c.masking, []
    if temperature != 1 and (len(sources) == 1 or sources[0].weight):
        problems.append(
            f'data.mixture_temperature={temperature} decides the shares of a mixture without weights, and '
            f'data.directory={c.data.directory} is none: leave it at 1, or name directories alone, as in a,b'
        )
    if len(sources) == 1:
        return problems
    if STRATEGIES[k.strategy].by_visit(k) or k.static_masks > 1:
        problems.append(
            'masks that follow the visits of a row need rows that all come equally often, and those of a mixture do '
            'not: use another masking.strategy or masking.fully_explored.schedule, masking.static_masks=0 or 1, or '
            'prepare all text in one data.directory'
        )
    if 'collocations' in UNITS[k.unit].tables:
        problems.append(
            f'masking.unit={k.unit} takes collocations, which prepare has computed for each directory of the mixture '
            'alone, not for their mixture: use masking.unit=ngram, or prepare all text in one data.directory'
        )
    return problems


def _sharding_problems(c: ml_collections.ConfigDict) -> list[str]:
    """Where devices would repeat each other's work, or hold what they need not."""
    problems, mesh = [], c.mesh
    if c.fsdp_gather == 'step' and mesh.tensor != 1:
        problems.append(
            f'fsdp_gather=step needs devices that compute with whole weights, but mesh.tensor={mesh.tensor} splits '
            'them: use fsdp_gather=layer'
        )
    if c.sharding != 'fsdp_tp' and mesh.tensor != 1:
        problems.append(
            f'sharding={c.sharding} splits nothing over mesh.tensor={mesh.tensor}, whose devices would all compute the '
            'same: set sharding=fsdp_tp, or leave it at auto; or set mesh.tensor=1'
        )
    elif c.sharding != 'dp' and mesh.fsdp == 1 and mesh.tensor == 1:
        problems.append(
            f'sharding={c.sharding} splits the state over mesh.fsdp and mesh.tensor, but both are 1: set mesh.data=1 '
            'and mesh.fsdp=-1, or sharding=dp'
        )
    return problems


def _optimizer_problems(c: ml_collections.ConfigDict) -> list[str]:
    o = c.optimizer
    share = weight_decay(o)
    if o.name != 'stable_adamw' or share <= LARGEST_SHARE:
        return []
    return [
        f'optimizer.weight_decay={share} is a value for adamw, which multiplies it by the learning rate. '
        f'stable_adamw does not: each update would remove {share:.2%} of every weight, and {math.ceil(1 / share):,} '
        'updates would remove most of what the model has learned. Leave optimizer.weight_decay unset, for the default '
        f'of {WEIGHT_DECAYS[o.name]}, or set it to at most {LARGEST_SHARE}'
    ]


def check_steps(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError where durations disagree; `config` gives all of them in steps."""
    k = config.masking
    if k.ratio_schedule == 'staged' and k.anneal_steps is not None and k.anneal_steps >= config.total_steps:
        raise ConfigError(
            f'masking.ratio_schedule=staged uses masking.final_ratio={k.final_ratio} in the part '
            'masking.anneal_percent at the end of the run, and that is all of it, so that '
            f'masking.ratio={k.ratio} is never used: set masking.anneal_percent to less, such as 50'
        )
    if (warmup := config.schedule.warmup_steps or 0) >= config.total_steps > 1:
        raise ConfigError(
            f'the learning rate would rise for {warmup:,} steps, the warm-up, in a run of {config.total_steps:,}: set '
            'schedule.warmup_percent, such as 6, which follows the length of the run'
        )


def _objective_problems(c: ml_collections.ConfigDict) -> list[str]:
    m, k, spec, problems = c.model, c.masking, OBJECTIVES[c.objective], []
    if m.zeroed_token >= 0 and not spec.reads_inputs:
        problems.append(
            f'model.zeroed_token={m.zeroed_token} makes up for the masked tokens that an encoder reads, and that of '
            f'{c.objective} reads them otherwise: use objective=mlm, or set model.zeroed_token=-1'
        )
    readers = ' or '.join(name for name, other in OBJECTIVES.items() if other.reads_inputs)
    if k.predicted_fraction < 1 and not spec.reads_inputs:
        problems.append(
            f'masking.predicted_fraction={k.predicted_fraction} corrupts tokens without predicting them, which has an '
            f'effect only with objective={readers}: set masking.predicted_fraction=1 for objective={c.objective}'
        )
    if k.repeats > 1 and (not spec.reads_inputs or k.unit != 'token'):
        problems.append(
            f'masking.repeats={k.repeats} masks the copies of a token independently, which needs objective={readers} '
            'and masking.unit=token: set both, or set masking.repeats=1'
        )
    if m.positions not in spec.positions:
        problems.append(
            f'objective={c.objective} does not support model.positions={m.positions}: set model.positions='
            f'{" or ".join(reversed(spec.positions))}'
        )
    if m.relative_buckets and not spec.relative_bias:
        problems.append(
            f'objective={c.objective} does not support a relative position bias: set model.relative_buckets=0'
        )
    has_fixed_count = k.ratio_schedule == 'constant' and STRATEGIES[k.strategy].has_fixed_count(k)
    return problems + spec.problems(c, c.get(c.objective), has_fixed_count)


def _masking_problems(c: ml_collections.ConfigDict) -> list[str]:
    k, problems = c.masking, []
    strategy = STRATEGIES[k.strategy]
    if k.mask_fraction + k.random_fraction > 1 + 1e-9:
        problems.append('masking.mask_fraction + masking.random_fraction must not exceed 1')
    if k.ratio_schedule == 'diffusion' and not 0 < k.final_ratio < k.ratio:
        problems.append(
            f'masking.ratio_schedule=diffusion draws ratios between masking.final_ratio={k.final_ratio} and '
            f'masking.ratio={k.ratio}: set masking.ratio=1.0 and a smaller masking.final_ratio above 0, such as 0.001'
        )
    elif k.ratio_schedule != 'constant' and k.final_ratio == k.ratio:
        problems.append(
            f'masking.ratio_schedule={k.ratio_schedule} changes masking.ratio={k.ratio} to masking.final_ratio, which '
            'is the same: set masking.final_ratio to the ratio at the end of the run, or '
            'masking.ratio_schedule=constant'
        )
    if _largest_ratio(k) > strategy.max_ratio:
        problems.append(
            f'with masking.strategy={k.strategy}, masks of ratio {_largest_ratio(k)} would overlap: set masking.ratio '
            f'and masking.final_ratio to at most {strategy.max_ratio}'
        )
    problems += strategy.problems(k)
    if k.static_masks and strategy.by_visit(k):
        problems.append('masks that depend on earlier visits of a row cannot be static: set masking.static_masks=0')
    return problems


def _largest_ratio(k: ml_collections.ConfigDict) -> float:
    return largest_ratio(k.ratio_schedule, k.ratio, k.final_ratio)
