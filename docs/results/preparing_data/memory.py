"""Measures the memory of `prepare` itself, beside its workers, for as many shards as there are of a corpus of 64 GB.

    python docs/results/preparing_data/memory.py --work=runs/preparing_memory

The shards are tiny, but their number and the vocabulary are as large as they get; nothing else that the program itself
holds grows with a corpus. Writes the table `memory` of the data in this directory. Then: python docs/results/make.py
"""

import dataclasses
import pathlib
import resource
import shutil

from absl import flags

from mlm_jax import config as config_lib
from mlm_jax import prepare
from mlm_jax.comparing import experiment
from mlm_jax.comparing.experiment import Column, Row, Table
from mlm_jax.config import command_line
from mlm_jax.data import sentencepiece_proto, slices, tokenizers
from mlm_jax.files import paths

HERE = pathlib.Path(__file__).resolve().parent
SHARDS, VOCABULARY, WORDS_OF_SHARD = 4096, 256_000, 300


def main() -> None:
    """Prepares, and writes the table."""
    work = pathlib.Path(flags.FLAGS.work)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    words = [f'word{number % 4999}' for number in range(SHARDS * WORDS_OF_SHARD)]
    text = '\n'.join(' '.join(words[i : i + 20]) for i in range(0, len(words), 20))
    (work / 'text.txt').write_text(text)
    (work / 'tokenizer.model').write_bytes(large_tokenizer(text[:100_000]))
    slices.SLICE_BYTES = -(-len(text) // SHARDS)
    config = config_lib.default_config()
    overrides = {
        'data.directory': f'{work}/rows', 'data.corpus': f'lines:{work}/text.txt', 'vocab_size': str(VOCABULARY),
        'tokenizer.model': f'{work}/tokenizer.model', 'sequence_length': '128',
    }  # fmt: skip
    config_lib.apply_overrides(config, overrides)
    manifest = prepare.run(config, num_workers=2)
    assert manifest is not None
    count = len(manifest.splits['train'].shards)
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    rows = tuple(Row(name, (peak,)) for name, peak in zip(('the program', 'the larger of its workers'), peaks))
    title = f'Peak of memory, {count:,} tiny shards, {VOCABULARY:,} pieces.'
    table = Table('memory', title, (Column('memory', 'MiB', ',.0f'),), rows)
    stored = experiment.read(HERE)
    others = [table for table in stored.tables if table.name != 'memory']
    experiment.write(dataclasses.replace(stored, tables=(*others, table)), HERE)


def large_tokenizer(text: str) -> bytes:
    """A tokenizer that is trained on a text, with pieces that occur nowhere."""
    settings = config_lib.default_config().tokenizer
    model = tokenizers.train(text.splitlines(), settings, 300).model
    proto = sentencepiece_proto.ModelProto.FromString(model)
    for number in range(VOCABULARY - len(proto.pieces)):
        proto.pieces.add(piece=f'▁nowhere{number}', score=-20.0)
    return proto.SerializeToString()


if __name__ == '__main__':
    paths.define_flag('work', None, 'A directory for what is written; it is emptied.', 'directory')
    command_line.run(main, required=('work',))
