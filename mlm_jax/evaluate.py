"""Evaluates trained models: held-out loss at frozen masks, the words they would fill in, or minimal pairs of grammar.

python -m mlm_jax.evaluate --workdir=runs/demo
python -m mlm_jax.evaluate --workdir=runs/demo --fill_mask='The function returns a [MASK] of integers.'
python -m mlm_jax.evaluate --workdir=runs/mlm --workdir=runs/mae_lm --blimp=blimp/data --output=runs/blimp
"""

import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from mlm_jax.analysis import blimp_report, minimal_pairs
from mlm_jax.config import ConfigError, command_line
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data.shards import Shards
from mlm_jax.data.tokenizers import Tokenizer
from mlm_jax.files import paths
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.pretrained import loading
from mlm_jax.tasks import blimp
from mlm_jax.training import evaluation
from mlm_jax.training.workdir import read_config

MASK = '[MASK]'


def held_out_metrics(model: loading.TrainedModel, mesh) -> dict[str, float]:
    """Loss in nats, and the other metrics, over the held-out rows at 15 % masks that never change.

    Adds `unigram_entropy`, the loss of a model that knows nothing but how often each token occurs.
    """
    config = model.config
    manifest = manifest_lib.load(config.data.directory)
    rows = Shards(config.data.directory, 'validation', verify=True, manifest=manifest)
    sharding = mesh_lib.batch_sharding(mesh)
    batch_size = config.batch_size // config.num_microbatches
    batch_size += -batch_size % mesh.size
    held_out = evaluation.HeldOut(rows, config.evaluation.rows, batch_size, manifest.vocabulary.pad_id, sharding)
    metrics = held_out.evaluate(jax.jit(model.run.eval_step), model.params)
    return {**metrics, 'unigram_entropy': manifest.split('validation').unigram_entropy_nats}


def encode_with_masks(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """int32[n]: [CLS] text [SEP], every '[MASK]' in the text as one masked token.

    Raises:
      ConfigError: when the text holds no '[MASK]'.
    """
    v = tokenizer.vocabulary
    if MASK not in text:
        raise ConfigError(f'the text {text!r} holds no {MASK}; write {MASK} where a word is to be filled in')
    ids = tokenizer.encode_masked(text, MASK)
    return np.concatenate([[v.cls_id], ids, [v.sep_id]]).astype(np.int32)


def fill_mask(model: loading.TrainedModel, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
    """The most likely pieces for each '[MASK]' in `text`, with their probabilities.

    Args:
      model: of any objective.
      text: with one '[MASK]' or more.
      top: how many pieces for each.

    Raises:
      ConfigError: for a text without '[MASK]' or too long, or more pieces than there are.
    """
    num_pieces = model.tokenizer.vocabulary.num_ordinary
    if top > num_pieces:
        raise ConfigError(f'--top={top}: the vocabulary has {num_pieces} pieces that can be filled in')
    ids = encode_with_masks(model.tokenizer, text)
    if len(ids) > model.config.sequence_length:
        raise ConfigError(f'the text has {len(ids)} tokens; this model takes {model.config.sequence_length} at most')
    masked = np.flatnonzero(ids == model.tokenizer.vocabulary.mask_id)
    tokens_1xT = jnp.asarray(ids)[None]
    batch = MaskedBatch(
        tokens=tokens_1xT,
        inputs=tokens_1xT,
        positions=jnp.asarray(masked, jnp.int32)[None],
        weights=jnp.ones((1, len(masked))),
        segments=jnp.ones_like(tokens_1xT),
    )
    logits_MxV = model.run.objective.apply({'params': model.params}, batch, method='logits')[0]
    vocabulary = model.tokenizer.vocabulary.padded(model.config.vocab_size)
    logits_MxV = logits_MxV.at[:, jnp.asarray(vocabulary.special_ids)].set(-jnp.inf)
    probability, token = jax.lax.top_k(jax.nn.softmax(logits_MxV), top)
    return [
        [(model.tokenizer.id_to_piece(t), float(p)) for t, p in zip(tokens, ps, strict=True)]
        for tokens, ps in zip(np.asarray(token), np.asarray(probability), strict=True)
    ]


def judge_minimal_pairs(
    workdirs: Sequence[str], mesh, directory: str, percent: float, within_word: bool, step: int | None
) -> dict:
    """Accuracies of trained models on the minimal pairs of BLiMP.

    Args:
      workdirs: of any objectives and tokenizers.
      mesh: the pairs are split over it.
      directory: of the published data.
      percent: of the pairs.
      within_word: masks the later pieces of a word together with each piece.
      step: of the checkpoints; None takes the newest.

    Returns:
      `setting`; `models`: label → `minimal_pairs.Blimp.evaluate` with the checkpoint; `five_gram`, for orientation.

    Raises:
      ConfigError: when the directory or a workdir is none, or a model cannot take the sentences.
    """
    pairs, models = blimp.read(directory, percent), {}
    labels = command_line.short_names(workdirs)
    for workdir in workdirs:  # a wrong one is found before the first is judged
        read_config(pathlib.Path(workdir).expanduser())
    for workdir, label in zip(workdirs, labels, strict=True):
        model = loading.load(pathlib.Path(workdir).expanduser(), mesh, step)
        judged = minimal_pairs.Blimp(
            pairs, model.run.objective, model.tokenizer, model.config.masking.repeats, within_word=within_word
        )
        judged.compile(model.params, mesh)
        checkpoint = {'workdir': workdir, 'step': model.step, 'objective': model.config.objective}
        models[label] = checkpoint | judged.evaluate(model.params)
        print(f'{label}: {models[label]["accuracy"]:.1%} of {len(pairs):,} pairs', flush=True)
    setting = {
        'directory': str(directory),
        'percent': percent,
        'pairs': len(pairs),
        'paradigms': len({pair.paradigm for pair in pairs}),
        'within_word': within_word,
    }
    return {'setting': setting, 'models': models, 'five_gram': blimp_report.five_gram(pairs)}


def main_blimp(mesh) -> None:
    """Prints a table; writes blimp.json, blimp.md and blimp.png where there is an --output."""
    values = flags.FLAGS
    output = pathlib.Path(values.output).expanduser()
    if values.output:
        output.mkdir(parents=True, exist_ok=True)
    report = judge_minimal_pairs(
        values.workdir, mesh, values.blimp, values.blimp_percent, values.blimp_within_word, values.step
    )
    print(blimp_report.describe(report))
    if values.output:
        (output / 'blimp.json').write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
        (output / 'blimp.md').write_text(blimp_report.markdown(report), encoding='utf-8')
        blimp_report.draw(report, output / 'blimp.png')
        print('\n'.join(str(output / f'blimp.{kind}') for kind in ('json', 'md', 'png')))


def main() -> None:
    """Prints the metrics as JSON, or each text with its most likely pieces, or accuracies on minimal pairs."""
    values, mesh = flags.FLAGS, mesh_lib.make_mesh()
    if values.output and not values.blimp:
        raise ConfigError('--output is for the report of --blimp=DIRECTORY; the other results are printed')
    loading.use_compilation_cache_of(values.workdir)
    with jax.set_mesh(mesh):
        if values.blimp:
            main_blimp(mesh)
            return
        for workdir, label in zip(values.workdir, command_line.short_names(values.workdir), strict=True):
            model = loading.load(pathlib.Path(workdir).expanduser(), mesh, values.step)
            name = {'workdir': label} if len(values.workdir) > 1 else {}
            if not values.fill_mask:
                print(json.dumps({**name, 'step': model.step, **held_out_metrics(model, mesh)}))
            for text in values.fill_mask:
                print(f'{label}: {text}' if name else text)
                for candidates in fill_mask(model, text, values.top):
                    print('    ' + '   '.join(f'{piece.replace("▁", "")} {p:.1%}' for piece, p in candidates))


if __name__ == '__main__':
    paths.define_flag(
        'workdir', None, 'Workdir of a trained model; several are evaluated one after the other.', 'directory', True
    )
    flags.DEFINE_integer('step', None, 'Checkpoint to evaluate; the newest unless given.', lower_bound=0)
    flags.DEFINE_multi_string('fill_mask', [], f'Text with {MASK}, to fill in; may be given several times.')
    flags.DEFINE_integer('top', 5, 'Pieces to show for each mask.', lower_bound=1)
    paths.define_flag('blimp', '', "Directory of BLiMP's *.jsonl files: judges its minimal pairs instead.", 'directory')
    flags.DEFINE_float('blimp_percent', 100.0, 'Share of the pairs of each paradigm; always the same ones.')
    flags.DEFINE_bool('blimp_within_word', False, 'Mask the later pieces of a word together with each piece.')
    paths.define_flag('output', '', 'Directory for blimp.json, blimp.md and blimp.png.', 'directory')
    command_line.run(main, required=('workdir',))
