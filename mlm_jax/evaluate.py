"""Evaluates trained models: held-out loss at frozen masks, the words they would fill in, or minimal pairs of grammar.

    python -m mlm_jax.evaluate --model=runs/demo
    python -m mlm_jax.evaluate --model=runs/demo@1200 --fill_mask='The function returns a [MASK] of integers.'
    python -m mlm_jax.evaluate --model=runs/mlm --model=hf:models/bert --blimp=blimp/data --output=runs/blimp

Models: a run (WORKDIR or WORKDIR@STEP), hf:DIRECTORY or hf:NAME, random:SOURCE, ema:WORKDIR, or average:SOURCE,…, the
mean of the parameters. Held-out rows are those of a run, so hf: goes with --fill_mask and --blimp.
"""

import json
from collections.abc import Callable, Sequence

import jax
from absl import flags
from jax.sharding import Mesh

from mlm_jax.analysis import blimp_report, minimal_pairs
from mlm_jax.config import ConfigError, command_line, row_length
from mlm_jax.files import buckets, paths
from mlm_jax.masking.vocabulary import Vocabulary
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.pretrained import batches, loading, sources
from mlm_jax.pretrained.model import MASK, Model
from mlm_jax.tasks import blimp
from mlm_jax.training import build, evaluation


def held_out_metrics(model: Model, mesh) -> dict[str, float]:
    """Loss in nats, and the other metrics, over the held-out rows, `evaluation.ratio` of them masked, always the same.

    Adds `unigram_entropy`, the loss of a model that knows nothing but how often each token occurs. Of a mixture, these
    are means by its weights, and the metrics of each source come as '<name>/<metric>'.
    """
    config, run = model.require_run()
    data = model.prepared_data()
    held_out = evaluation.HeldOutSources(
        data.shards('validation', verify=True), data.weights, config.evaluation.rows,
        _batch_size(model, data.vocabulary, mesh), data.vocabulary.pad_id, mesh_lib.batch_sharding(mesh),
    )  # fmt: skip
    metrics = held_out.evaluate(jax.jit(run.eval_step), model.params)
    return {**metrics, 'unigram_entropy': data.split('validation').unigram_entropy_nats}


def _batch_size(model: Model, vocabulary: Vocabulary, mesh: Mesh) -> int:
    """How many held-out rows go through a model at a time: by this machine, not by the one that trained the model."""
    config, _ = model.require_run()
    length, masking = row_length(config), build.evaluation_masking(config, vocabulary)
    max_masked = masking.max_masked(config.sequence_length)
    most = batches.rows_at_once(model.objective, length, max_masked, vocabulary.size)
    return batches.batch_size(mesh, length, config.evaluation.rows, most=most)


def judge_minimal_pairs(
    models: Sequence[sources.Source],
    mesh,
    directory: str,
    percent: float,
    within_word: bool,
    judged: Callable[[dict], None] = lambda report: None,
) -> dict:
    """Accuracies of trained models on the minimal pairs of BLiMP.

    Args:
      models: of any objectives and tokenizers.
      mesh: the pairs are split over it.
      directory: of the published data.
      percent: of the pairs.
      within_word: masks the later pieces of a word together with each piece.
      judged: called after each model with the report so far: an error in a later one leaves that.

    Returns:
      `setting`; `models`: label → `minimal_pairs.Blimp.evaluate` with its source; `five_gram`, for orientation.

    Raises:
      ConfigError: when the directory or a model is none, or a model cannot take the sentences.
      FileNotFoundError: without a checkpoint (of that step).
    """
    pairs = blimp.read(directory, percent)
    results: dict[str, dict] = {}
    setting = {
        'directory': str(directory),
        'percent': percent,
        'pairs': len(pairs),
        'paradigms': len({pair.paradigm for pair in pairs}),
        'within_word': within_word,
    }
    report = {'setting': setting, 'models': results, 'five_gram': blimp_report.five_gram(pairs)}
    for source in models:  # a wrong one is found before the first is judged
        loading.check(source)
    for source, label in zip(models, sources.labels(models), strict=True):
        model = loading.load(source, mesh)
        model.check_has_head()
        judge = minimal_pairs.Blimp(pairs, model.objective, model.tokenizer, model.repeats, within_word=within_word)
        judge.compile(model.params, mesh)
        checkpoint = {'model': sources.pin(str(source)), 'step': model.step, 'objective': model.objective_name}
        results[label] = checkpoint | judge.evaluate(model.params)
        print(f'{label}: {results[label]["accuracy"]:.1%} of {len(pairs):,} pairs', flush=True)
        judged(report)
    return report


def main_blimp(models: Sequence[sources.Source], mesh) -> None:
    """Prints a table; writes blimp.json, blimp.md and blimp.png after each model where there is an --output."""
    values = flags.FLAGS
    output = buckets.path(values.output).expanduser()
    if values.output:
        output.mkdir(parents=True, exist_ok=True)

    def write(report: dict) -> None:
        if values.output:
            (output / 'blimp.json').write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
            (output / 'blimp.md').write_text(blimp_report.markdown(report), encoding='utf-8')
            blimp_report.draw(report, output / 'blimp.png')

    report = judge_minimal_pairs(models, mesh, values.blimp, values.blimp_percent, values.blimp_within_word, write)
    print(blimp_report.describe(report))
    if values.output:
        print('\n'.join(str(output / f'blimp.{kind}') for kind in ('json', 'md', 'png')))


def main() -> None:
    """Prints the metrics as JSON, or each text with its most likely pieces, or accuracies on minimal pairs."""
    values, mesh = flags.FLAGS, mesh_lib.make_mesh()
    if values.output and not values.blimp:
        raise ConfigError('--output is for the report of --blimp=DIRECTORY; the other results are printed')
    if values.blimp and values.fill_mask:
        raise ConfigError('--blimp and --fill_mask ask for different results: give one, and the other afterwards')
    if values.data_directory and (values.blimp or values.fill_mask):
        raise ConfigError('--data_directory names held-out rows, which --blimp and --fill_mask do not read')
    command_line.check_companions({'top': 'fill_mask', 'blimp_percent': 'blimp', 'blimp_within_word': 'blimp'})
    if values.blimp or values.fill_mask:
        models = [sources.parse(name) for name in values.model]
    else:
        models = sources.parse_runs(values.model, 'evaluate')
    labels = sources.labels(models)
    loading.use_compilation_cache_of(models[0])
    with jax.set_mesh(mesh):
        if values.blimp:
            main_blimp(models, mesh)
            return
        for source, label in zip(models, labels, strict=True):
            model = loading.load(source, mesh, values.data_directory)
            name = {'model': label} if len(models) > 1 else {}
            if not values.fill_mask:
                print(json.dumps({**name, 'step': model.step, **held_out_metrics(model, mesh)}))
            for text in values.fill_mask:
                print(f'{label}: {text}' if name else text)
                for candidates in model.fill_mask(text, values.top):
                    print('    ' + '   '.join(f'{piece.replace("▁", "")} {p:.1%}' for piece, p in candidates))


if __name__ == '__main__':
    sources.define_flag('several are evaluated one after the other.')
    sources.define_data_flag()
    flags.DEFINE_multi_string('fill_mask', [], f'Text with {MASK}, to fill in; may be given several times.')
    flags.DEFINE_integer('top', 5, 'Pieces to show for each mask.', lower_bound=1)
    paths.define_flag('blimp', '', "Directory of BLiMP's *.jsonl files: judges its minimal pairs instead.", 'directory')
    flags.DEFINE_float('blimp_percent', 100.0, 'Share of the pairs of each paradigm; always the same ones.')
    flags.DEFINE_bool('blimp_within_word', False, 'Mask the later pieces of a word together with each piece.')
    paths.define_flag('output', '', 'Directory for blimp.json, blimp.md and blimp.png.', 'directory')
    command_line.run(main, required=('model',), former=sources.FORMER_FLAGS)
