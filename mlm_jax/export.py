"""Writes a trained model for others: a directory of `transformers`, with its tokenizer and a model card.

    python -m mlm_jax.export --model=runs/mlm --output=models/mlm
    python -m mlm_jax.export --model=runs/mlm@8000 --output=models/mlm --dtype=bfloat16 --check
    python -m mlm_jax.export --model=average:runs/mlm@8000,runs/mlm@9000 --output=models/mlm

`AutoModelForMaskedLM`, `AutoTokenizer`, `pipeline('fill-mask')` and `SentenceTransformer` then read it, without remote
code and without this package. The class follows from the encoder (docs/interop.md has the table); what no class
computes is refused, with the key that a new run needs. An objective whose prediction head needs more than the encoder
is written as its encoder alone.

The reverse: --model=hf:DIRECTORY of every program reads such a directory, and init_from=hf:DIRECTORY trains on.
Needs the extra `huggingface`.
"""

from collections.abc import Sequence

import numpy as np
from absl import flags

from mlm_jax.config import ConfigError, command_line
from mlm_jax.data.packing import segment_ids
from mlm_jax.files import buckets, paths
from mlm_jax.interop import card, registry, sentence_transformers, weights
from mlm_jax.pretrained import exporting, loading, sources
from mlm_jax.pretrained.model import Model

CHECKED_TEXTS = 16


def held_out_texts(model: Model, count: int) -> list[str]:
    """The first document of each of the first held-out rows of a run, as text."""
    rows, v = model.held_out_rows(), model.tokenizer.vocabulary
    tokens_NxT = rows.read(np.arange(min(count, len(rows)))).astype(np.int32)
    firsts = [
        row[segments == 1] for row, segments in zip(tokens_NxT, np.asarray(segment_ids(tokens_NxT, v)), strict=True)
    ]
    texts = [model.tokenizer.decode(row) for row in firsts]
    return [text for text in texts if text.strip()]


def texts_to_check(model: Model, given: Sequence[str]) -> list[str]:
    """What --check reads; ConfigError where there is nothing."""
    if given:
        return list(given)
    if model.config is None:
        raise ConfigError(f'{model.source} has no held-out rows to check with: give sentences, each with --text')
    return held_out_texts(model, CHECKED_TEXTS)


def main() -> None:
    """Writes the directory, and prints its class, what a user should know, and the difference from transformers."""
    values = flags.FLAGS
    if values.text and not values.check:
        raise ConfigError('--text gives the sentences that --check reads: add --check')
    source = sources.parse(values.model)
    exporting.check_directory(buckets.path(values.output).expanduser())
    loading.check(source)
    loading.use_compilation_cache_of(source)
    model = loading.load(source, data_directory=values.data_directory)
    export = exporting.plan(model, values.architecture, values.dtype)
    texts = texts_to_check(model, values.text) if values.check else []
    found = exporting.write(
        model,
        export,
        values.output,
        pooling=values.pooling,
        shard_bytes=values.shard_megabytes * 1_000_000,
        reports=[buckets.path(path).expanduser() for path in values.results],
        texts=texts,
    )
    print(f'{values.output}: {export.checkpoint.class_name}, {export.dtype}')
    for note in export.notes:
        print(f'note: {note}')
    if found is not None:
        print(
            f'largest difference from transformers: {found.difference:.2g}, on {found.num_texts} texts without and '
            f'with masks ({found.num_tokens:,} tokens)'
        )
    print(
        f'{values.output}/{card.FILE} is its card. Before you publish it: it names your files; add who made the model, '
        'its language and its license'
    )


if __name__ == '__main__':
    paths.define_flag('model', None, sources.GRAMMAR)
    sources.define_data_flag()
    paths.define_flag('output', None, 'Directory to write; it must be new or empty.', 'directory')
    flags.DEFINE_enum('dtype', 'float32', list(weights.DTYPES), 'Of the weights in the files.')
    flags.DEFINE_enum(
        'architecture',
        '',
        ['', *registry.BY_TYPE],
        'Model type of transformers; by default that of a model of transformers, or else the first that fits.',
    )
    flags.DEFINE_enum('pooling', 'mean', list(sentence_transformers.MODES), 'How sentence-transformers pools.')
    flags.DEFINE_integer(
        'shard_megabytes', weights.SHARD_BYTES // 1_000_000, 'Size of the largest file.', lower_bound=1
    )
    flags.DEFINE_bool('check', False, 'Compares the result with transformers (extra peer); fails above 1e-4.')
    flags.DEFINE_multi_string('text', [], 'Sentence for --check; by default held-out rows of the run are read.')
    paths.define_flag(
        'results', [], 'Directory of evaluate --blimp or finetune, for the card; those beside the run are found.',
        'directory', multiple=True,
    )  # fmt: skip
    command_line.run(main, required=('model', 'output'), former=sources.FORMER_FLAGS)
