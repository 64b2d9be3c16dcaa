"""The card of an exported model: what it is, how it was trained and what was measured, as its run has recorded it.

Every number comes from a file of the run or of a report on it; what no file holds is left out.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.config import mixture, step_flops
from mlm_jax.data import prepared_data
from mlm_jax.data.mixtures import Reading
from mlm_jax.data.prepared_data import PreparedData
from mlm_jax.files import buckets, markdown
from mlm_jax.files.errors import ConfigError
from mlm_jax.tasks import blimp
from mlm_jax.training import checkpoints
from mlm_jax.training.metrics import read_metrics

FILE = 'README.md'
# Of the recipe of fine-tuning: what is always told, and what leaves out a part of the examples or of their texts.
_MAIN_KEYS = ('learning_rate', 'batch_size', 'epochs', 'pooling')
_PARTS = {
    'max_train_examples': 'training examples',
    'max_validation_examples': 'validation examples',
    'max_length': 'tokens of a row',
}


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Where parameters come from, and so what can be said of a model.

    Attributes:
      opening: what the model is, as the beginning of a sentence.
      limits: what it is not good for, in sentences.
    """

    opening: str
    limits: tuple[str, ...]


_READS = 'It reads text; it does not write any, and it is no assistant.'
_REPEATS = (
    'It has learned from text and repeats the errors and prejudices of this text, which nobody has measured here. '
    'Do not let it decide about people.'
)
_PRETRAINED = _Kind(
    'A text encoder, pretrained with masked-language modeling by mlm_jax',
    (
        _READS,
        _REPEATS,
        'Its vectors have not been trained to be compared: for semantic search or similarity, fine-tune it first.',
        'For languages, subjects and tasks that are not named above, nothing is known about it.',
    ),
)
_CONVERTED = _Kind('A text encoder, converted by mlm_jax', (_READS, _REPEATS))
_AVERAGED = _Kind(
    'A text encoder, the mean of several others, computed by mlm_jax',
    (_READS, _REPEATS, 'Nothing was measured of the mean here: it may be worse than each of its parts.'),
)
_RANDOM = _Kind(
    'A text encoder with random parameters, made by mlm_jax',
    (
        _READS,
        'It has learned nothing: its vectors and predictions mean nothing. It is good as the beginning of a training, '
        'and as what a trained model is compared with.',
    ),
)


@dataclasses.dataclass(frozen=True)
class Card:
    """What the card tells besides what the files of a run hold.

    Attributes:
      name: of the model, its title.
      class_name: of transformers.
      has_head: whether it fills masks.
      num_parameters: of what is exported.
      encoder: name of a size → its value, for a table.
      pooling: of sentence-transformers.
      notes: what a user should know, in sentences.
      mask: how the tokenizer writes a masked token.
    """

    name: str
    class_name: str
    has_head: bool
    num_parameters: int
    encoder: Mapping[str, Any]
    pooling: str
    notes: Sequence[str]
    mask: str


@dataclasses.dataclass(frozen=True)
class Average:
    """Of a model whose parameters are an average of those of a run, or of several.

    Attributes:
      source: its name, by which reports know it.
      text: what it is an average of, for a table.
      metrics: how the names of its metrics begin in metrics.jsonl; '' where the run has none of it.
    """

    source: str
    text: str
    metrics: str = ''


def of_run(
    card: Card,
    workdir: pathlib.Path,
    step: int | None,
    config: ml_collections.ConfigDict,
    reports: Iterable[pathlib.Path],
    average: Average | None = None,
) -> str:
    """The card of a model that a run here has trained, in Markdown.

    Args:
      card: about the export.
      workdir: of the run.
      step: of the checkpoint; None of an average of several.
      config: of the run.
      reports: directories in which there may be results of `evaluate --blimp` and of `finetune` on this model.
      average: what the parameters are, where they are not those of the checkpoint.
    """
    trained = [
        *([('parameters', average.text)] if average else []),
        ('objective', _objective(config)),
        ('masking', f'{config.masking.strategy}, {config.masking.unit}, {_ratio(config)}'),
        *_data(workdir, step, config),
        *([] if step is None else _budget(config, step)),
        ('optimizer', f'{config.optimizer.name}, learning rate {config.optimizer.learning_rate:g}'),
        *_environment(workdir),
    ]
    held_out = average.metrics if average else 'eval/'
    measured = [
        *_metrics(workdir, step, held_out),
        *_results(workdir, step, reports, average.source if average else ''),
    ]
    text = _measured(measured) if measured else 'Its run has recorded no results.'
    return _join(
        card,
        _RANDOM if step == 0 and not config.init_from else _PRETRAINED,
        '## How it was trained',
        markdown.table(['', ''], [[key, str(value)] for key, value in trained], 2),
        '## What was measured',
        text,
        *_configuration(config),
    )


def of_source(card: Card, source: str) -> str:
    """The card of a model whose training no file here tells of."""
    told = (
        f'These weights were converted from `{source}`: its own card tells how they were trained and what they can do.'
    )
    return _join(card, _CONVERTED, '## How it was trained', told)


def of_sources(card: Card, shares: str) -> str:
    """The card of a mean of such models; `shares` names these and how much each counts."""
    told = f'These weights are the mean, with these shares, of {shares}: the cards of these tell how they were trained.'
    return _join(card, _AVERAGED, '## How it was trained', told)


def of_random(card: Card, source: str, config: ml_collections.ConfigDict | None = None) -> str:
    """The card of a model without what `source` has learned; `config` is of the run, where that is one."""
    told = f'It was not trained: its parameters were drawn at random, with the shapes of those of `{source}`.'
    return _join(card, _RANDOM, '## How it was trained', told, *(_configuration(config) if config else []))


def _configuration(config: ml_collections.ConfigDict) -> tuple[str, str]:
    settings = config_lib.to_json(config).strip()
    keys = f'<details><summary>All keys of the run</summary>\n\n```json\n{settings}\n```\n\n</details>'
    return '## Configuration', keys


def _join(card: Card, kind: _Kind, *parts: str) -> str:
    task = 'fill-mask' if card.has_head else 'feature-extraction'
    front = f'---\nlibrary_name: transformers\npipeline_tag: {task}\ntags:\n- mlm_jax\n- sentence-transformers\n---'
    notes = [f'{note[:1].upper()}{note[1:]}.' for note in card.notes]
    limits = '\n'.join(f'* {line}' for line in (*notes, *kind.limits))
    sizes = [['class', f'`{card.class_name}`'], ['parameters', f'{card.num_parameters:,}']]
    sizes += [[key, f'{value:,}' if isinstance(value, int) else str(value)] for key, value in card.encoder.items()]
    blocks = (
        front,
        f'# {card.name}',
        f'{kind.opening} and written as a model of `transformers`.',
        markdown.table(['', ''], sizes, 2),
        '## How to use it',
        f'```python\n{_usage(card)}\n```',
        *parts,
        '## What it is not good for',
        limits,
    )
    return '\n\n'.join(blocks) + '\n'


def _usage(card: Card) -> str:
    if card.has_head:
        first = f"transformers.pipeline('fill-mask', 'DIRECTORY')('A sentence with one {card.mask} in it.')"
    else:
        first = "transformers.pipeline('feature-extraction', 'DIRECTORY')('A text.')"
    return (
        f'import sentence_transformers\nimport transformers\n\n{first}\n'
        f"sentence_transformers.SentenceTransformer('DIRECTORY').encode(['A text.'])  # pooling: {card.pooling}"
    )


def _objective(config: ml_collections.ConfigDict) -> str:
    start = f', starting from {config.init_from}' if config.init_from else ', from random parameters'
    return f'{config.objective}{start}'


def _ratio(config: ml_collections.ConfigDict) -> str:
    """The share of tokens that a mask covers: its mean over the whole run, and how it changes, if it does."""
    k, mean = config.masking, step_flops.masked_ratio(config)
    if k.ratio_schedule == 'constant':
        return f'ratio {mean:.4g}'
    how = 'random for each row, ' if k.ratio_schedule == 'diffusion' else ''
    return f'mean ratio {mean:.4g} over the whole run ({k.ratio_schedule}: {how}from {k.ratio:g} to {k.final_ratio:g})'


def _data(workdir: pathlib.Path, step: int | None, config: ml_collections.ConfigDict) -> list[tuple[str, str]]:
    """From the manifests of the prepared rows, where those that the run has read are still there."""
    try:
        data = prepared_data.load(config.data)
    except ConfigError:
        return [*_corpus_of(config), ('rows', f'gone: {config.data.directory} holds none that can be read')]
    if not _were_read(data, workdir, step):
        shares = ', or the same in other shares' * data.is_mixture
        return [*_corpus_of(config), ('rows', f'not described: {config.data.directory} holds others now{shares}')]
    splits = [source.manifest.split('train') for source in data.sources]
    counts = [
        f'{sum(getattr(split, field) for split in splits):,} {word}'
        for field, word in {'documents': 'documents', 'words': 'words', 'text_tokens': 'tokens'}.items()
    ]
    return [
        *(_corpora(data) or _corpus_of(config)),
        ('training text', ', '.join(counts)),
        ('rows', f'{data.split("train").rows:,} of {data.sequence_length} tokens'),
        ('tokenizer', f'{data.vocabulary.size:,} pieces, SHA-256 {data.manifest.tokenizer_sha256}'),
    ]


def _were_read(data: PreparedData, workdir: pathlib.Path, step: int | None) -> bool:
    """Whether the run has read these rows, as far as its tokenizer and its checkpoint tell."""
    if not data.are_of(workdir / 'tokenizer.model'):
        return False
    position = _position(workdir / 'checkpoints', step)
    if position is None or not position.data:
        return True
    return data.have_fingerprints(Reading.from_json(position.data).present)


def _position(directory: pathlib.Path, step: int | None) -> checkpoints.Position | None:
    """In the checkpoint of a step, or in the newest one of an average; None where there is none."""
    if step is not None:
        return checkpoints.position_at(directory, step)
    newest = checkpoints.newest_position(directory)
    return newest[1] if newest else None


def _corpora(data: PreparedData) -> list[tuple[str, str]]:
    """What `prepare` has read, of each source of a mixture; nothing of a single directory that does not tell."""
    names = [source.manifest.settings.get('data.corpus') for source in data.sources]
    if not data.is_mixture:
        return [('corpus', name) for name in names if name]
    return [
        (f'corpus {name}', f'{corpus or "?"}, {weight:.2%} of the rows')
        for corpus, (name, weight) in zip(names, data.weights.items(), strict=True)
    ]


def _corpus_of(config: ml_collections.ConfigDict) -> list[tuple[str, str]]:
    """As the run names it, which need not: its default says nothing, nor does one name of a mixture."""
    is_told = config.data.corpus != config_lib.default_config().data.corpus
    return [('corpus', config.data.corpus)] if is_told and not mixture.is_mixture(config.data.directory) else []


def _budget(config: ml_collections.ConfigDict, step: int) -> list[tuple[str, str]]:
    rows, length = config.batch_size, config.sequence_length
    return [
        ('updates', f'{step:,} of {rows:,} rows of {length:,} tokens'),
        ('tokens seen', f'{step * rows * length:,}, padding included'),
    ]


def _environment(workdir: pathlib.Path) -> list[tuple[str, str]]:
    """From environment.json, of the last start of the run."""
    stored = _json(workdir / 'environment.json')
    devices, found = stored.get('devices') or {}, []
    if devices:
        found.append(
            ('hardware', f'{devices.get("count")} × {devices.get("kind")}, {devices.get("processes")} processes')
        )
    if stored.get('commit'):
        found.append(('commit of mlm_jax', str(stored['commit'])))
    if versions := stored.get('versions'):
        found.append(('versions', ', '.join(f'{name} {version}' for name, version in versions.items())))
    return found


# ---- Results -----------------------------------------------------------------------------------------------------


def _metrics(workdir: pathlib.Path, step: int | None, held_out: str) -> list[list[str]]:
    """[what, value, where] of the newest metrics up to a step; those of evaluations have names that begin so."""
    path = workdir / 'metrics.jsonl'
    if step is None or not path.exists():
        return []
    lines = [line for line in read_metrics(path) if line['step'] <= step]
    newest: dict[str, tuple[float, float]] = {}
    for line in lines:
        newest |= {name: (value, line['step']) for name, value in line.items() if not math.isnan(value)}
    names = sorted(name for name in newest if name.startswith(held_out))
    names += [name for name in ('train/loss', 'perf/train_seconds', 'perf/tokens_per_second') if name in newest]
    return [[f'`{name}`', f'{newest[name][0]:,.6g}', f'metrics.jsonl, step {newest[name][1]:,.0f}'] for name in names]


def _results(
    workdir: pathlib.Path, step: int | None, reports: Iterable[pathlib.Path], average: str = ''
) -> list[list[str]]:
    """[what, value, where] of BLiMP and of tasks that this checkpoint, or an average by its name, was fine-tuned on."""
    rows = []
    for directory in reports:
        report = _json(directory / 'blimp.json')
        for entry in (report.get('models') or {}).values():
            if _is_of(entry.get('model'), entry.get('step'), workdir, step, average):
                what = f'BLiMP{_blimp_setting(report.get("setting"))}, accuracy'
                rows.append([what, f'{entry["accuracy"]:.2%}', f'{directory.name}/blimp.json'])
        rows += _fine_tuned(directory, lambda model: _is_of(*model, workdir, step, average))
    return rows


def _fine_tuned(directory: pathlib.Path, is_it: Callable[[tuple[Any, Any]], bool]) -> list[list[str]]:
    """[what, value, where] of a report of `finetune`, on the model that `is_it` knows by its name and step."""
    seeds: dict[str, list[float]] = {}
    for path in sorted(directory.glob('*/*/*/seed*/result.json')):
        result = _json(path)
        origin = result.get('origin') or {}
        value = ((result.get('metrics') or {}).get('validation') or {}).get(result.get('metric'))
        if value is not None and is_it((origin.get('source'), origin.get('step'))):
            setting = _fine_tuning_setting(path.parts[-3], result.get('recipe') or {})
            what = f'fine-tuned on {result["task"]} ({setting}), {result["metric"]}'
            seeds.setdefault(what, []).append(value)
    return [
        [what, f'{sum(values) / len(values):.4g}, mean of {len(values)} seed{"s" * (len(values) > 1)} (validation)',
         f'{directory.name}/results.json']
        for what, values in seeds.items()
    ]  # fmt: skip


def _blimp_setting(setting: Mapping[str, Any] | None) -> str:
    """Which pairs were judged, and how where that is not the usual way; '' where the report does not tell."""
    if not setting:
        return ''
    together = ', each piece of a word masked together with the later ones' if setting['within_word'] else ''
    return f' ({blimp.extent(setting)}{together})'


def _fine_tuning_setting(setting: str, recipe: Mapping[str, Any]) -> str:
    """The point of a grid, the keys of the recipe that change most, and which part of the examples was taken."""
    grid = [] if setting == 'default' and recipe else [setting]
    keys = [f'{key}={recipe[key]}' for key in _MAIN_KEYS if key in recipe and f'{key}=' not in setting]
    few = [f'at most {recipe[key]:,} {name}' for key, name in _PARTS.items() if recipe.get(key)]
    return ', '.join([*grid, *keys, *few])


def _measured(rows: Sequence[Sequence[str]]) -> str:
    return markdown.table(['what', 'value', 'from'], rows, 3)


def reports_beside(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The workdir, the directories in it, and those beside it: where reports on a run usually are."""
    around = [path for parent in (workdir, workdir.parent) for path in sorted(parent.iterdir()) if path.is_dir()]
    return [workdir, *(path for path in around if path != workdir)]


def _is_of(source: Any, step: Any, workdir: pathlib.Path, wanted: int | None, average: str) -> bool:
    """Whether a report's name of a model means this checkpoint, or the average of this name."""
    if not isinstance(source, str) or step != wanted:
        return False
    name = source.removesuffix(f'@{step}')
    if average:
        return name == average.removesuffix(f'@{step}')
    try:
        return buckets.path(name).expanduser().resolve() == workdir.resolve()
    except OSError:
        return False


def _json(path: pathlib.Path) -> dict:
    """The object in a file; empty where there is none: a report that is damaged is no reason not to export."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
