"""Evaluates a trained model: held-out loss at frozen masks, or the words it would fill in.

python -m mlm_jax.evaluate --workdir=runs/demo
python -m mlm_jax.evaluate --workdir=runs/demo --fill_mask='The function returns a [MASK] of integers.'
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from mlm_jax import command_line
from mlm_jax.config import ConfigError
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data.shards import Shards
from mlm_jax.data.tokenizers import Tokenizer
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.training import evaluation, loading

MASK = '[MASK]'


def held_out_metrics(model: loading.TrainedModel, mesh) -> dict[str, float]:
    """Loss in nats, and the other metrics, over the held-out rows at 15 % masks that never change.

    Adds `unigram_entropy`, the loss of a model that knows nothing but how often each token occurs.
    """
    config = model.config
    manifest = manifest_lib.load(config.data.directory)
    rows = Shards(config.data.directory, 'validation')
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
    """
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
    logits_MxV = logits_MxV.at[:, jnp.asarray(model.tokenizer.vocabulary.special_ids)].set(-jnp.inf)
    probability, token = jax.lax.top_k(jax.nn.softmax(logits_MxV), top)
    return [
        [(model.tokenizer.id_to_piece(t), float(p)) for t, p in zip(tokens, ps, strict=True)]
        for tokens, ps in zip(np.asarray(token), np.asarray(probability), strict=True)
    ]


def main() -> None:
    """Prints the metrics as JSON, or each text with its most likely pieces."""
    mesh = mesh_lib.make_mesh()
    with jax.set_mesh(mesh):
        model = loading.load(pathlib.Path(flags.FLAGS.workdir).expanduser(), mesh, flags.FLAGS.step)
        if not flags.FLAGS.fill_mask:
            print(json.dumps({'step': model.step, **held_out_metrics(model, mesh)}))
        for text in flags.FLAGS.fill_mask:
            print(text)
            for candidates in fill_mask(model, text, flags.FLAGS.top):
                print('    ' + '   '.join(f'{piece.replace("▁", "")} {p:.1%}' for piece, p in candidates))


if __name__ == '__main__':
    flags.DEFINE_string('workdir', None, 'Workdir of the trained model.')
    flags.DEFINE_integer('step', None, 'Checkpoint to evaluate; the newest unless given.', lower_bound=0)
    flags.DEFINE_multi_string('fill_mask', [], f'Text with {MASK}, to fill in; may be given several times.')
    flags.DEFINE_integer('top', 5, 'Pieces to show for each mask.', lower_bound=1)
    command_line.run(main, required=('workdir',))
