"""Analyses of trained encoders; each writes JSON and a picture.

    python -m mlm_jax.probe effective_rank --model=runs/mlm --model=runs/mae_lm --output=runs/ranks

effective_rank: how many dimensions the representations of each layer use (analysis/effective_rank.py), for real tokens
of masked input, [MASK] tokens, all tokens of masked input, and the same text without masks. "Masked input" is what the
encoder reads in pretraining: of MAE-LM, the kept tokens alone. Several checkpoints are laid over each other.

    python -m mlm_jax.probe gradient_variance --model=runs/mlm@0 --model=runs/mlm@8000 --output=runs/variance

gradient_variance: how far gradients of one text under different masks agree, by the Hamming distance of the masks, and
whether disjoint masks make a step less noisy (analysis/gradient_variance.py).

    python -m mlm_jax.probe entropy --model=runs/mlm --model=runs/exlm --ratios=0.15,0.3,0.5 --output=runs/entropy

entropy: how many bits the prediction of a masked token leaves open, how many the token then costs, and whether the two
agree (analysis/entropy.py), on the same rows and masks for all checkpoints, by mask ratio.

    python -m mlm_jax.probe dag --model=runs/exlm --row=3 --output=runs/dag

dag: one held-out row as ExLM sees it: text, states, transitions, and which of them have emitted the masked tokens
(analysis/alignment.py).

Models are runs, WORKDIR or WORKDIR@STEP, whose step 0 is how the run began; random:WORKDIR, without what it has
learned; ema:WORKDIR; or average:SOURCE,SOURCE,…
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence

import jax
from absl import flags

from mlm_jax.analysis import (
    alignment,
    alignment_picture,
    effective_rank_report,
    entropy_report,
    gradient_variance_report,
)
from mlm_jax.analysis.gradient_variance import make_sketched_gradients
from mlm_jax.config import ConfigError, command_line
from mlm_jax.files import buckets, paths
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.pretrained import loading, sources


def main_effective_rank(models: Sequence[sources.Source]) -> None:
    """Writes effective_rank.json and effective_rank.png, and prints a table."""
    holds, words = (lambda threshold: 0 < threshold <= 1), 'above 0 and not above 1, such as 0.9'
    thresholds = _numbers('thresholds', flags.FLAGS.thresholds or [''], holds, words)  # at least one
    output, mesh = buckets.path(flags.FLAGS.output).expanduser(), mesh_lib.make_mesh()
    report: dict[str, dict] = {}
    output.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(mesh):
        for source, label in zip(models, sources.labels(models), strict=True):
            model = loading.load(source, mesh, flags.FLAGS.data_directory)
            curves = effective_rank_report.describe(
                effective_rank_report.rank_sums(model, mesh, flags.FLAGS.rows), thresholds
            )
            report[label] = {'step': model.step, 'objective': model.objective_name, 'curves': curves}
    (output / 'effective_rank.json').write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
    shown = f'{min(thresholds, key=lambda t: abs(t - 0.9)):g}'
    effective_rank_report.draw(report, shown, output / 'effective_rank.png')
    print(f'effective rank, uncentred, τ = {shown}, by layer')
    for label, entry in report.items():
        for curve, ranks in entry['curves'].items():
            values = ''.join(f'{v:6}' for v in ranks['uncentred'][shown])
            print(f'{label:20} {curve:28}{values}   ({ranks["tokens"]:,} tokens)')
    print(f'{output / "effective_rank.json"}\n{output / "effective_rank.png"}')


def main_gradient_variance(models: Sequence[sources.Source]) -> None:
    """Writes gradient_variance.json and gradient_variance.png, and prints tables."""
    values, mesh, report = flags.FLAGS, mesh_lib.make_mesh(), {}
    output = buckets.path(values.output).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    gradients = {}  # by the run and the ratio of its masks: checkpoints share a program
    with jax.set_mesh(mesh):
        for source, label in zip(models, sources.labels(models), strict=True):
            model = loading.load(source, mesh, flags.FLAGS.data_directory)
            masking, design = gradient_variance_report.draws_of(model, values.segments, values.draws)
            place = source.directory, masking.ratio_schedule
            if place not in gradients:
                gradients[place] = make_sketched_gradients(model.objective, masking, design, mesh)
            measured = gradient_variance_report.measure(model, mesh, values.texts, design, gradients[place])
            report[label] = measured
            print(gradient_variance_report.describe(label, measured), flush=True)
    (output / 'gradient_variance.json').write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
    gradient_variance_report.draw(report, output / 'gradient_variance.png')
    print(f'{output / "gradient_variance.json"}\n{output / "gradient_variance.png"}')


def main_entropy(models: Sequence[sources.Source]) -> None:
    """Writes entropy.json and entropy.png, and prints tables."""
    values, mesh, report, first = flags.FLAGS, mesh_lib.make_mesh(), {}, None
    ratios = mask_ratios(values.ratios or ['0.15', '0.3', '0.5'])
    output = buckets.path(values.output).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(mesh):
        for source, label in zip(models, sources.labels(models), strict=True):
            model = loading.load(source, mesh, flags.FLAGS.data_directory)
            first = first or model
            if not entropy_report.same_text(first, model, values.rows):
                raise ConfigError(
                    f'{models[0]} and {source} have other tokenizers, held-out rows or copies of each token in a row '
                    '(masking.repeats): bits per token compare on the same tokens only'
                )
            report[label] = {
                'step': model.step,
                'objective': model.objective_name,
                'rows': min(len(model.held_out_rows()), values.rows),
                'ratios': entropy_report.measure(model, mesh, ratios, values.rows),
            }
            print(entropy_report.describe(label, report[label]), flush=True)
    (output / 'entropy.json').write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
    entropy_report.draw(report, output / 'entropy.png')
    print(f'{output / "entropy.json"}\n{output / "entropy.png"}')


def main_dag(models: Sequence[sources.Source]) -> None:
    """Writes dag_row<N>.json and dag_row<N>.png."""
    values, mesh = flags.FLAGS, mesh_lib.make_mesh()
    ratios = mask_ratios(values.ratios or [])
    if len(models) > 1 or len(ratios) > 1:
        raise ConfigError('dag draws one row of one checkpoint at one mask ratio: give one --model and one of --ratios')
    output = buckets.path(values.output).expanduser()
    with jax.set_mesh(mesh):
        model = loading.load(models[0], mesh, values.data_directory)
        ratio = ratios[0] if ratios else model.require_run()[0].evaluation.ratio
        row = alignment.align_row(model, values.row, ratio)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f'dag_row{values.row}.json'
    path.write_text(json.dumps(row, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
    step = '' if model.step is None else f', step {model.step:,}'
    title = f'{sources.labels(models)[0]}{step}: held-out row {values.row}, {ratio:.0%} masked (in brackets)'
    alignment_picture.draw(row, title, path.with_suffix('.png'))
    print(f'{path}\n{path.with_suffix(".png")}')


def mask_ratios(texts: Sequence[str]) -> list[float]:
    """The values of --ratios, ascending.

    Raises:
      ConfigError: for one that is no number above 0 and below 1.
    """
    return _numbers('ratios', texts, lambda ratio: 0 < ratio < 1, 'above 0 and below 1, such as 0.15,0.5')


def _numbers(flag: str, texts: Sequence[str], holds: Callable[[float], bool], words: str) -> list[float]:
    """The different values of a flag, ascending; ConfigError, with `words`, where one does not hold."""
    try:
        found = sorted({float(text) for text in texts})
    except ValueError:
        found = [math.nan]
    if not all(map(holds, found)):
        raise ConfigError(f'--{flag}={",".join(texts)} must be numbers {words}')
    return found


@dataclasses.dataclass(frozen=True)
class Probe:
    """What stands behind a name.

    Attributes:
      main: measures models, and writes what it finds.
      flags: the names of those that it reads, besides the flags of all probes.
    """

    main: Callable[[Sequence[sources.Source]], None]
    flags: tuple[str, ...]


PROBES = {
    'effective_rank': Probe(main_effective_rank, ('rows', 'thresholds')),
    'gradient_variance': Probe(main_gradient_variance, ('texts', 'segments', 'draws')),
    'entropy': Probe(main_entropy, ('rows', 'ratios')),
    'dag': Probe(main_dag, ('row', 'ratios')),
}


def readers(flag: str) -> list[str]:
    """The names of the probes that read a flag."""
    return [name for name, probe in PROBES.items() if flag in probe.flags]


def check_flags(name: str) -> None:
    """Raises ConfigError for a flag that the probe of this name would ignore, since it is of others."""
    for flag in dict.fromkeys(flag for probe in PROBES.values() for flag in probe.flags):
        if command_line.is_given(flag) and name not in readers(flag):
            own = ', '.join(f'--{own}' for own in PROBES[name].flags)
            raise ConfigError(
                f'probe {name} does not read --{flag}, a flag of {" and ".join(readers(flag))}: leave it out. '
                f'The flags of {name}, besides those of all probes, are {own}'
            )


def _main(name: str) -> None:
    check_flags(name)
    models = sources.parse_runs(flags.FLAGS.model, f'probe {name}')
    loading.use_compilation_cache_of(models[0])
    PROBES[name].main(models)


def _define_flags() -> None:
    sources.define_flag('several are laid over each other. hf: has no rows to probe.')
    sources.define_data_flag()
    _define(flags.DEFINE_integer, 'rows', 4096, 'held-out rows, at most.', lower_bound=1)
    thresholds = (
        'shares τ of the squared singular values that the dimensions must hold; the picture shows one near 0.9.'
    )
    _define(flags.DEFINE_list, 'thresholds', ['0.8', '0.9', '0.95', '0.99'], thresholds)
    _define(flags.DEFINE_integer, 'texts', 64, 'held-out rows.', lower_bound=3)
    _define(flags.DEFINE_integer, 'segments', 7, 'disjoint masks of a text, K.', lower_bound=2)
    _define(flags.DEFINE_integer, 'draws', 8, 'random orders of each text, of K masks each.', lower_bound=3)
    ratios = (
        'shares of masked tokens. Unless given, entropy takes 0.15,0.3,0.5, and dag, which takes one, that of the run.'
    )
    _define(flags.DEFINE_list, 'ratios', None, ratios)
    _define(flags.DEFINE_integer, 'row', 0, 'which held-out row, from 0.', lower_bound=0)
    paths.define_flag('output', None, 'Directory for the JSON file and the picture.', 'directory')


def _define(define: Callable, name: str, default: object, text: str, **bounds: int) -> None:
    """Defines a flag that not all probes read; its help begins with those that do."""
    define(name, default, f'For {" and ".join(readers(name))}: {text}', **bounds)


if __name__ == '__main__':
    if sys.argv[1:2] not in [[name] for name in PROBES] and not any(map(command_line.asks_for_help, sys.argv)):
        sys.exit(f'error: say what to probe: python -m mlm_jax.probe {"|".join(PROBES)} --model=… --output=…')
    name = sys.argv.pop(1) if sys.argv[1] in PROBES else ''  # without a name, it only prints the help
    _define_flags()
    command_line.run(lambda: _main(name), required=('model', 'output'), former=sources.FORMER_FLAGS)
