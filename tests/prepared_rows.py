"""Prepared rows to train on, made in milliseconds."""

import pathlib

import numpy as np

from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data import packing, shards
from mlm_jax.masking.vocabulary import standard_vocabulary


def arithmetic_documents(vocab_size: int, length: int, count: int, seed: int) -> list[np.ndarray]:
    """Documents that count upwards in steps of 1 or 2 from a random token: easy to learn, and tiny."""
    rng = np.random.default_rng(seed)
    ordinary = vocab_size - 5
    return [
        ((rng.integers(ordinary) + np.arange(rng.integers(4, 2 * length)) * rng.integers(1, 3)) % ordinary + 5).astype(
            np.int32
        )
        for _ in range(count)
    ]


def write_prepared(
    directory: pathlib.Path, vocab_size: int = 64, length: int = 32, documents: int = 300
) -> pathlib.Path:
    """A directory as `prepare` leaves it, with arithmetic documents and no usable tokenizer."""
    directory.mkdir(parents=True)
    vocabulary = standard_vocabulary(vocab_size)
    splits = {}
    for seed, (name, count) in enumerate({'train': documents, 'validation': documents // 5}.items()):
        texts = arithmetic_documents(vocab_size, length, count, seed)
        rows = packing.pack(texts, length, vocabulary, 'documents', np.uint16)
        file = shards.shard_name(name, 0, 1)
        shards.write_rows(directory / file, rows)
        splits[name] = manifest_lib.Split(
            rows=len(rows),
            real_tokens=int((rows != vocabulary.pad_id).sum()),
            text_tokens=sum(map(len, texts)),
            documents=count,
            words=0,
            bytes=0,
            unigram_entropy_nats=float(np.log(vocab_size - 5)),
            repairs={},
            shards=(manifest_lib.Shard(file, len(rows), ''),),
        )
    (directory / 'tokenizer.model').write_bytes(b'')
    manifest = manifest_lib.Manifest(
        {}, {}, vocabulary, 'tokenizer.model', '', length, 'documents', 'uint16', splits, versions={}
    )
    manifest_lib.save(manifest, directory)
    return directory
