"""Judges pretrained models after a comparison has trained them: fine-tuning, minimal pairs and probes (`then.py`).

A judge says before anything is trained what would stop it, judges one model at a time, and keeps what it found below
the workdir of the run, in `then/`: what is there is not done again.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mlm_jax.analysis import effective_rank_report, entropy_report, gradient_variance_report, minimal_pairs
from mlm_jax.analysis.gradient_variance import make_sketched_gradients
from mlm_jax.comparing import then
from mlm_jax.comparing.configurations import Candidate
from mlm_jax.comparing.then import Measure
from mlm_jax.data import prepared_data
from mlm_jax.data.tokenizers import Tokenizer
from mlm_jax.files import atomic
from mlm_jax.finetuning import jobs as jobs_lib
from mlm_jax.finetuning import report as fine_tuning_report
from mlm_jax.pretrained.model import Model
from mlm_jax.pretrained.sources import Source
from mlm_jax.tasks import blimp, metrics, suites
from mlm_jax.training import build
from mlm_jax.training.workdir import read_json

DIRECTORY = 'then'  # below the workdir of a run
PERCENT, ERROR, BITS, DIMENSIONS, NONE = '%', 'error, lower is better', 'bits', 'dimensions', ''
# Unit → how its numbers are shown.
FORMATS = {PERCENT: '.2f', ERROR: '.4f', BITS: '.3f', DIMENSIONS: '.1f', NONE: '.3f'}

Values = dict[str, dict[str, float]]  # unit → name of a number → the number


class Judge(Protocol):
    """What all judges can do.

    Attributes:
      measure: what was asked for.
      data: identifies what models are judged by besides their own rows, wherever it lies; '' if there is nothing.
    """

    measure: Measure
    data: str

    def check(self, model: Model) -> None:
        """Raises ConfigError or ImportError for what would stop the judge, of a model without parameters."""

    def is_done(self, candidate: Candidate, seed: int, workdir: pathlib.Path) -> bool:
        """Whether the finished run in `workdir` has been judged; ConfigError if something else is there."""

    def judge(self, model: Model, candidate: Candidate, seed: int, workdir: pathlib.Path) -> None:
        """Judges the model of the run in `workdir`; FloatingPointError for fine-tuning that diverges."""

    def values(self, candidate: Candidate, seed: int, workdir: pathlib.Path) -> Values:
        """What was found; without what diverged."""

    def describe(self) -> str:
        """What the numbers are, in a sentence."""


def make(measure: Measure, data: Sequence[str]) -> Judge:
    """The judge for a measure, which has read what it needs besides models.

    Args:
      measure: from `then.parse`.
      data: where tasks lie, as `suites.directories` takes it.

    Raises:
      ConfigError: for files that are missing or damaged, and for options that cannot be.
    """
    return FineTuning(measure, data) if measure.kind == then.FINETUNE else _PROBES[measure.kind](measure)


def stand_in(candidate: Candidate, mesh: Mesh) -> Model:
    """The model of a candidate without parameters, for checks; no device is used.

    Raises:
      ConfigError: when the configuration cannot run, or the prepared data or their tokenizer are missing.
    """
    resolved, data = prepared_data.resolve(candidate.config)
    config = build.traceable(resolved)
    tokenizer = Tokenizer.from_file(data.tokenizer)
    run = build.make_run(config, tokenizer.vocabulary.padded(config.vocab_size), config.batch_size)
    source = Source(candidate.label, pathlib.Path(candidate.label))
    return Model(source, run.objective, {}, tokenizer, mesh, config, None, run)


def held_out_metrics(candidate: Candidate) -> list[str]:
    """The names of the metrics of an evaluation during training; no device is used."""
    resolved, data = prepared_data.resolve(candidate.config)
    config = build.traceable(resolved)
    run = build.make_run(config, data.vocabulary, config.batch_size, data.tables(config.masking))
    params = jax.eval_shape(run.init).params
    tokens_BxT = jax.ShapeDtypeStruct((config.batch_size, config.sequence_length), jnp.int32)
    found = jax.eval_shape(run.eval_step, params, tokens_BxT, jax.ShapeDtypeStruct((), jnp.int32))
    return sorted((*found, *(['blimp'] if config.evaluation.blimp else [])))


class FineTuning:
    """Fine-tunes on tasks with several seeds; where there are several settings, the best one by validation counts."""

    def __init__(self, measure: Measure, data: Sequence[str]):
        """Reads the tasks; ConfigError when that fails, or an option is no key of the recipe."""
        self.measure = measure
        self.seeds = list(range(1, measure.value(then.SEEDS) + 1))
        settings = jobs_lib.parse_settings(measure.recipe, 'then')
        grid = {key: values for key, values in settings.items() if len(values) > 1}
        where = suites.directories(data)
        self._data = {name: suites.read(name, where) for name in measure.arguments}
        self.data = ', '.join(f'{name} ({task.digest()[:10]})' for name, task in self._data.items())
        # Of no model yet; made here, since it hashes the data, and refuses values out of range.
        self._templates = jobs_lib.make_jobs(self._data, {'': {}}, settings, grid)

    def check(self, model: Model) -> None:
        """Also of recipes that no device or model can follow."""
        metrics.require()
        label = str(model.source)
        jobs = [dataclasses.replace(job, model=label) for job in self._templates]
        jobs_lib.check_jobs(jobs, self._data, {label: model}, model.mesh)

    def is_done(self, candidate: Candidate, seed: int, workdir: pathlib.Path) -> bool:
        """Whether all seeds of all tasks and settings are there."""
        output = self._output(workdir)
        jobs = self._jobs(candidate, seed)
        return all(len(jobs_lib.finished_seeds(job, self.seeds, output)) == len(self.seeds) for job in jobs)

    def judge(self, model: Model, candidate: Candidate, seed: int, workdir: pathlib.Path) -> None:
        """Fine-tunes what is missing, with a bar."""
        jobs = self._jobs(candidate, seed)
        _, diverged = jobs_lib.run_jobs(
            jobs, self._data, {jobs[0].model: model}, self.seeds, jobs_lib.seeds_at_once(self.seeds), model.mesh,
            self._output(workdir),
        )  # fmt: skip
        if diverged:
            raise FloatingPointError('\n'.join(diverged))

    def values(self, candidate: Candidate, seed: int, workdir: pathlib.Path) -> Values:
        """For each task, the mean over seeds of the metric that chooses, on each split with targets."""
        by_task: dict[str, dict[str, list]] = {}
        for job in self._jobs(candidate, seed):
            results = jobs_lib.finished_seeds(job, self.seeds, self._output(workdir))
            if len(results) == len(self.seeds):
                by_task.setdefault(job.task, {})[job.setting] = list(results.values())
        found: Values = {}
        for task, settings in by_task.items():
            summary = fine_tuning_report.summarize(settings)
            metric = summary['metric']
            is_error = metric in metrics.DECREASING
            for split, scores in summary['splits'].items():
                if metric in scores:
                    name = f'{task}: {metric}, {split}'
                    value = scores[metric]['mean'] * (1 if is_error else 100)
                    found.setdefault(ERROR if is_error else PERCENT, {})[name] = value
        return found

    def describe(self) -> str:
        """With the number of seeds."""
        is_grid = len({job.setting for job in self._templates}) > 1
        best = ' of the setting with the best median on the validation split' if is_grid else ''
        several = f'the mean over {len(self.seeds)} seeds' if len(self.seeds) > 1 else 'that of one seed'
        return f'each number is {several} of fine-tuning{best}'

    def _output(self, workdir: pathlib.Path) -> pathlib.Path:
        return workdir / DIRECTORY / self.measure.name

    def _jobs(self, candidate: Candidate, seed: int) -> list[jobs_lib.Job]:
        label = f'{candidate.label}-seed{seed}'
        # Where the run lies is no part of its origin: a comparison may move to another directory.
        origin = {'source': label, 'step': candidate.config.total_steps}
        return [
            dataclasses.replace(job, model=label, origin={**origin, 'data': job.origin['data']})
            for job in self._templates
        ]


class Probe:
    """Measures a model once, and keeps the numbers and the whole report in a JSON file."""

    def __init__(self, measure: Measure):
        """Reads nothing."""
        self.measure, self.data = measure, ''

    def check(self, model: Model) -> None:
        """Also for held-out rows that are missing."""
        model.held_out_rows()

    def measure_model(self, model: Model) -> tuple[Values, Any]:
        """The numbers, and a report with all that was measured."""
        raise NotImplementedError

    def describe(self) -> str:
        """What the numbers are."""
        raise NotImplementedError

    def is_done(self, candidate: Candidate, seed: int, workdir: pathlib.Path) -> bool:
        """Whether it was measured at the end of the run, with the same options."""
        return self._found(candidate, workdir) is not None

    def judge(self, model: Model, candidate: Candidate, seed: int, workdir: pathlib.Path) -> None:
        """Measures, and writes the file."""
        values, report = self.measure_model(model)
        found = {'request': self._request, 'step': model.step, 'values': values, 'report': report}
        self._path(workdir).parent.mkdir(exist_ok=True)
        atomic.write_bytes(self._path(workdir), f'{json.dumps(found, indent=1)}\n'.encode())

    def values(self, candidate: Candidate, seed: int, workdir: pathlib.Path) -> Values:
        """Those of the file; none if it is not there, or of another step or other options."""
        found = self._found(candidate, workdir)
        return found['values'] if found else {}

    def _found(self, candidate: Candidate, workdir: pathlib.Path) -> dict | None:
        if not self._path(workdir).exists():
            return None
        found = read_json(self._path(workdir), 'Delete it, and that model is measured again')
        is_this = (found.get('step'), found.get('request')) == (candidate.config.total_steps, self._request)
        return found if is_this else None

    @property
    def _request(self) -> dict[str, list]:
        return {key: list(self.measure.values(key)) for key in then.OPTIONS[self.measure.kind]}

    def _path(self, workdir: pathlib.Path) -> pathlib.Path:
        return workdir / DIRECTORY / f'{self.measure.name}.json'


class Blimp(Probe):
    """Judges the minimal pairs of BLiMP, as `evaluate --blimp` does."""

    def __init__(self, measure: Measure):
        """Reads the pairs; ConfigError when that fails."""
        super().__init__(measure)
        self._pairs = blimp.read(measure.arguments[0], measure.value('percent'))
        digest = blimp.digest(self._pairs)
        self.data = f'{len(self._pairs):,} pairs ({digest[:10]})'

    def check(self, model: Model) -> None:
        """For a model that cannot take the sentences, or that gives single tokens no probability."""
        self._judge(model)

    def measure_model(self, model: Model) -> tuple[Values, Any]:
        """The share of pairs that are right, in all and by field."""
        judged = self._judge(model)
        judged.compile(model.params, model.mesh)
        report = judged.evaluate(model.params)
        accuracies = {'all': report['accuracy'], **{name: f['accuracy'] for name, f in report['fields'].items()}}
        return {PERCENT: {name: 100 * accuracy for name, accuracy in accuracies.items()}}, report

    def describe(self) -> str:
        """With the number of pairs."""
        return f'the share of {len(self._pairs):,} minimal pairs that are judged rightly; chance is 50 %'

    @property
    def _request(self) -> dict[str, list]:
        return {**super()._request, 'pairs': [self.data]}

    def _judge(self, model: Model) -> minimal_pairs.Blimp:
        within_word = self.measure.value('within_word')
        return minimal_pairs.Blimp(self._pairs, model.objective, model.tokenizer, model.repeats, within_word)


class EffectiveRank(Probe):
    """How many dimensions the representations use, as `probe effective_rank` measures it."""

    def measure_model(self, model: Model) -> tuple[Values, Any]:
        """The uncentred rank by layer and kind of tokens."""
        threshold = self.measure.value('threshold')
        sums = effective_rank_report.rank_sums(model, model.mesh, self.measure.value('rows'))
        report = effective_rank_report.describe(sums, [threshold])
        ranks = {
            f'{curve}, layer {layer}': float(rank)
            for curve, entry in report.items()
            if entry['tokens']
            for layer, rank in enumerate(entry['uncentred'][f'{threshold:g}'], start=1)
        }
        return {DIMENSIONS: ranks}, report

    def describe(self) -> str:
        """With the threshold."""
        return f'the effective rank of representations, uncentred, τ = {self.measure.value("threshold"):g}'


class Entropy(Probe):
    """How certain a model is, and how right, as `probe entropy` measures it."""

    def measure_model(self, model: Model) -> tuple[Values, Any]:
        """Entropy, cost and their difference by mask ratio; of several definitions the one that compares, the first."""
        ratios, rows = sorted(self.measure.values('ratios')), self.measure.value('rows')
        report = entropy_report.measure(model, model.mesh, ratios, rows)
        titles = {'entropy': 'entropy', 'nll': 'cost', 'gap': 'cost − entropy'}
        bits = {
            f'{title}, {100 * float(ratio):g} % masked': next(iter(summary['bits'].values()))[key][0]
            for ratio, summary in report.items()
            for key, title in titles.items()
        }
        return {BITS: bits}, report

    def describe(self) -> str:
        """What entropy and cost are."""
        return 'the bits that the prediction of a masked token leaves open, and those that the token then costs'


class GradientVariance(Probe):
    """What masks do to gradients, as `probe gradient_variance` measures it."""

    def check(self, model: Model) -> None:
        """For held-out rows that are too short."""
        gradient_variance_report.choose_rows(model, self.measure.value('texts'), self.measure.value('segments'))

    def measure_model(self, model: Model) -> tuple[Values, Any]:
        """The ratios of variances that decide whether disjoint masks help."""
        segments, draws = (self.measure.value(name) for name in ('segments', 'draws'))
        masking, design = gradient_variance_report.draws_of(model, segments, draws)
        gradients = make_sketched_gradients(model.objective, masking, design, model.mesh)
        texts = self.measure.value('texts')
        report = gradient_variance_report.measure(model, model.mesh, texts, design, gradients)
        titles = {
            'between_over_variance': 'D / σ²',
            'disjoint_over_independent': 'variance over disjoint masks / over independent masks',
            'disjoint_over_distinct_texts': 'variance of a step on disjoint masks / on distinct texts',
            'c0_plus_between_over_variance': '(c_0 + D) / σ²',
        }
        return {NONE: {title: report[key][0] for key, title in titles.items()}}, report

    def describe(self) -> str:
        """What σ² and D are."""
        return 'σ² is the variance of gradients over the masks of a text, and D that between texts'


_PROBES: Mapping[str, Callable[[Measure], Judge]] = {
    then.BLIMP: Blimp,
    then.RANK: EffectiveRank,
    then.ENTROPY: Entropy,
    then.VARIANCE: GradientVariance,
}
