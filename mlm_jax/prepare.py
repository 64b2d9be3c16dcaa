"""Program: corpus → tokenizer → packed rows on disk, once, before any training.

    python -m mlm_jax.prepare --config=configs/mlm.py:mini,data.directory=data/mini
    python -m mlm_jax.prepare --config=configs/mlm.py:mini,data.directory=data/mine,data.corpus='jsonl:corpus/*.jsonl'

`mlm_jax/data/corpora.py` says how to write a corpus. Killed at any point and started again, it goes on, and
the directory ends up the same to the byte, on any number of cores. A directory holds

    manifest.json                     what is here; written last
    tokenizer.model                   SentencePiece, SMILES tokens, or the tokenizer.json that was given
    tables.npz                        what masking must know: word starts, counts, with masking.unit=pmi collocations
    train-00000-of-00012.npy, …       packed rows, uint16 or uint32 [rows, T]
    validation-00000-of-00001.npy
    .prepare/                         while the work is under way
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import platform
import shlex
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from importlib import metadata

import ml_collections
import numpy as np
from absl import flags

from mlm_jax import command_line, config_check, progress
from mlm_jax import config as config_lib
from mlm_jax.data import atomic, corpora, encoding, molecules, shards, tables, tokenizers
from mlm_jax.data import manifest as manifest_lib

TOKENIZER_FILE = 'tokenizer.model'
_WORKING_DIRECTORY = '.prepare'
_VERSIONS = ('array-record', 'numpy', 'tensorflow-datasets')


def main() -> None:
    """Prepares, and says what to do next."""
    try:
        run(flags.FLAGS.config, flags.FLAGS.num_workers)
    except KeyboardInterrupt:
        sys.exit('interrupted; the same command goes on from here')
    arguments = ' '.join(shlex.quote(argument) for argument in sys.argv[1:] if argument.startswith('--config'))
    workdir = f'runs/{pathlib.Path(flags.FLAGS.config.data.directory).name}'
    print(f'\nNext:\n    python -m mlm_jax.train {arguments} --workdir={workdir}')


def run(config: ml_collections.ConfigDict, num_workers: int | None = None) -> manifest_lib.Manifest:
    """Prepares `config.data.directory`, or finds it finished.

    Args:
      config: the keys `data.*`, `tokenizer.*`, `vocab_size` and `sequence_length` matter; `masking.*` for the tables.
      num_workers: processes that encode; None means all cores. The result does not depend on it.

    Raises:
      ConfigError: for a corpus or a setting that does not work, or a directory made with other settings.
      ImportError: for `data.smiles_copies` without the extra `smiles`.
    """
    config_check.check(config)
    if config.data.smiles_copies:
        molecules.parse('C')  # without RDKit this ends here, not after the tokenizer
    directory = pathlib.Path(config.data.directory).expanduser()
    working = directory / _WORKING_DIRECTORY
    specs = list(filter(None, (config.data.corpus, config.data.validation_corpus)))
    intent = {'settings': settings(config), 'sources': {spec: corpora.describe(spec) for spec in specs}}
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        if (directory / manifest_lib.FILE).exists():
            manifest = manifest_lib.load(directory)
            _refuse_changes(directory, dataclasses.asdict(manifest), intent)
            shutil.rmtree(working, ignore_errors=True)  # killed between the manifest and this
            if tables.write_missing(config, directory, manifest):
                manifest = dataclasses.replace(manifest, tables=tables.FILE)
                manifest_lib.save(manifest, directory)
                print(f'added      {tables.FILE} to {directory}')
            print(f'{directory} is up to date: {_in_words(manifest)}')
            return manifest
        _claim(directory, working, intent)

        # ---- Corpus, tokenizer, rows: each finds what an earlier run has finished -------------------------
        print(f'corpus     {config.data.corpus}')
        try:
            corpus = corpora.open_corpus(config.data, working / 'corpus')
            tokenizer = _make_tokenizer(config, corpus, directory / TOKENIZER_FILE)
        except config_lib.ConfigError:
            shutil.rmtree(working)  # a setting is to be mended, and none is yet built into anything that stays
            raise
        jobs = _jobs(config, corpus, directory, working)
        counts = _encode(jobs, num_workers or _num_cores())

        # ---- The manifest, last -------------------------------------------------------------------------
        splits = {
            name: _split(name, [(job, counts[job]) for job in jobs if job.split == name]) for name in corpus.splits
        }
        manifest = _manifest(config, intent, tokenizer, directory, splits)
        tables.write_missing(config, directory, manifest, working)
        manifest_lib.save(manifest, directory, working)
        shutil.rmtree(working)
        print(f'prepared   {directory}: {_in_words(manifest)}')
    return manifest


def settings(config: ml_collections.ConfigDict) -> dict:
    """The keys that shape the rows, dotted, with their values."""
    keys = {'vocab_size': config.vocab_size, 'sequence_length': config.sequence_length}
    keys |= {f'data.{key}': value for key, value in config.data.items() if key != 'directory'}
    keys |= {f'tokenizer.{key}': value for key, value in config.tokenizer.items()}
    return keys


def _claim(directory: pathlib.Path, working: pathlib.Path, intent: dict) -> None:
    """Marks a directory as being prepared with these settings, or refuses it."""
    mark = working / 'settings.json'
    if mark.exists():
        _refuse_changes(directory, json.loads(mark.read_text()), intent)
        print(f'going on with what lies in {directory}')
        return
    strangers = sorted(f.name for f in directory.iterdir() if f.name != _WORKING_DIRECTORY)
    if strangers:
        raise config_lib.ConfigError(
            f'{directory} holds {", ".join(strangers[:3])}{" …" * (len(strangers) > 3)} and no prepared data: let '
            'data.directory name a new or empty directory'
        )
    working.mkdir(exist_ok=True)
    atomic.write_bytes(mark, json.dumps(intent, ensure_ascii=False).encode())


def _refuse_changes(directory: pathlib.Path, old: dict, new: dict) -> None:
    """Raises ConfigError, with every difference, unless old and new settings and sources are equal."""
    changes, defaults = [], settings(config_lib.default_config())  # of keys that came later
    for key in sorted(old['settings'].keys() | new['settings'].keys()):
        then, now = old['settings'].get(key, defaults.get(key)), new['settings'].get(key)
        if then != now:
            changes.append(f'    {key}: {then!r} there, {now!r} now')
    if not changes and old['sources'] != new['sources']:
        then, now = ({f: s for files in x['sources'].values() for f, s in files.items()} for x in (old, new))
        changed = sorted(f for f in then.keys() | now.keys() if then.get(f) != now.get(f))
        changes = [f'    {f}: {then.get(f, "no")} bytes then, {now.get(f, "no")} now' for f in changed]
    if changes:
        raise config_lib.ConfigError(
            f'{directory} was prepared with other settings:\n' + '\n'.join(changes) + '\n'
            f'Give data.directory another value, or delete {directory}'
        )


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[None]:
    """Keeps a second `prepare` out of the directory; free again when this process ends, however it does."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise config_lib.ConfigError(f'another prepare is at work in {directory}; wait for it, or stop it') from None
    try:
        yield
    finally:
        os.close(descriptor)


def _make_tokenizer(config, corpus: corpora.Corpus, path: pathlib.Path) -> tokenizers.Tokenizer:
    model = config.tokenizer.model
    if not path.exists():
        start = time.monotonic()
        if model in tokenizers.TRAINED:
            size = config.tokenizer.training_megabytes
            print(f'tokenizer  training {model}, {config.vocab_size} pieces, on at most {size} MB')
            tokenizer = tokenizers.train(corpus.splits['train'].texts(), config)
        elif model.startswith(tokenizers.EXTEND):
            print(f'tokenizer  extending {model.removeprefix(tokenizers.EXTEND)} to {config.vocab_size} pieces')
            old = tokenizers.Tokenizer.from_file(model.removeprefix(tokenizers.EXTEND))
            tokenizer = tokenizers.extend(old, corpus.splits['train'].texts(), config)
        else:
            tokenizer = tokenizers.Tokenizer.from_file(model)
            tokenizers.check_size(tokenizer, config, model)
        atomic.write_bytes(path, tokenizer.model, path.parent / _WORKING_DIRECTORY)
        seconds, ordinary = time.monotonic() - start, tokenizer.vocabulary.num_ordinary
        print(f'tokenizer  ready after {seconds:.1f} s: {ordinary:,} ordinary pieces among {config.vocab_size:,} ids')
    return tokenizers.Tokenizer.from_file(path)


# ---- Rows ----------------------------------------------------------------------------------------------------


def _jobs(config, corpus: corpora.Corpus, directory: pathlib.Path, working: pathlib.Path) -> list[encoding.Job]:
    jobs = []
    for split, source in corpus.splits.items():
        count = encoding.num_shards(source)
        copies = config.data.smiles_copies if split == 'train' else 0
        jobs += [
            encoding.Job(
                source, split, index, count, str(directory), str(working), str(directory / TOKENIZER_FILE),
                config.sequence_length, config.data.packing, copies,
            )
            for index in range(count)
        ]  # fmt: skip
    return jobs


def _encode(jobs: list[encoding.Job], num_workers: int) -> dict[encoding.Job, encoding.Counts]:
    """Makes the shards that are missing; all counts."""
    done = {job: counts for job in jobs if (counts := encoding.finished(job))}
    missing = [job for job in jobs if job not in done]
    start = time.monotonic()
    with progress.bar(
        total=sum(job.num_bytes for job in jobs), initial=sum(job.num_bytes for job in done),
        desc='rows', unit='B', unit_scale=True, disable=not missing,
    ) as bar:  # fmt: skip
        for job, counts in _each(missing, min(num_workers, len(missing))):
            done[job] = counts
            bar.update(job.num_bytes)
    seconds, megabytes = time.monotonic() - start, sum(done[job].bytes for job in missing) / 1e6
    if missing:
        print(
            f'rows       {megabytes:.1f} MB in {seconds:.1f} s: {megabytes / seconds:.1f} MB/s, {num_workers} at work'
        )
    return done


def _num_cores() -> int:
    """Those this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def _each(jobs: list[encoding.Job], num_workers: int) -> Iterator[tuple[encoding.Job, encoding.Counts]]:
    """Makes shards, in this process or in several others; yields them as they are finished."""
    if num_workers <= 1:
        yield from ((job, encoding.encode_shard(job)) for job in jobs)
        return
    with concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context('spawn'), initializer=_start_worker
    ) as pool:
        futures = {pool.submit(encoding.encode_shard, job): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise config_lib.ConfigError(
                'a worker was killed, probably for want of memory: run this again with a smaller --num_workers; '
                'finished shards are kept'
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with the parent, even where that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow():
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# ---- Manifest ------------------------------------------------------------------------------------------------


def _split(name: str, shards_made: list[tuple[encoding.Job, encoding.Counts]]) -> manifest_lib.Split:
    """Adds up the shards of a split."""
    counts = [c for _, c in shards_made]
    total = {
        key: sum(getattr(c, key) for c in counts)
        for key in ('rows', 'real_tokens', 'text_tokens', 'documents', 'words', 'bytes')
    }
    repairs = sum((Counter(c.repairs) for c in counts), Counter())
    for repair, times in sorted(repairs.items()):
        print(f'repaired   {name}: {times:,} {repair}')
    if not total['rows']:
        raise config_lib.ConfigError(f'the {name} split holds no text: all its documents are empty, or were dropped')
    share = np.sum([c.histogram for c in counts], axis=0) / total['text_tokens']
    return manifest_lib.Split(
        **total,
        unigram_entropy_nats=float(-np.sum(share * np.log(share, where=share > 0, out=np.zeros_like(share)))),
        repairs=dict(sorted(repairs.items())),
        shards=tuple(manifest_lib.Shard(job.name, c.rows, c.sha256) for job, c in shards_made),
    )


def _manifest(config, intent: dict, tokenizer, directory: pathlib.Path, splits: dict) -> manifest_lib.Manifest:
    packages = (*_VERSIONS, tokenizer.package, 'rdkit' if config.data.smiles_copies else '')
    return manifest_lib.Manifest(
        **intent,
        vocabulary=tokenizer.vocabulary,
        tokenizer=TOKENIZER_FILE,
        tokenizer_sha256=atomic.sha256(directory / TOKENIZER_FILE),
        sequence_length=config.sequence_length,
        packing=config.data.packing,
        dtype=shards.row_dtype(tokenizer.vocabulary.size).name,
        splits=splits,
        versions={
            'python': platform.python_version(),
            **{name: metadata.version(name) for name in filter(None, packages)},
        },
        tables=tables.FILE,
    )


def _in_words(manifest: manifest_lib.Manifest) -> str:
    """The splits as a table."""
    lines = [
        f'{"split":12}{"documents":>12}{"words":>14}{"tokens":>14}{"rows":>12}{"% real":>8}{"tokens/word":>13}'
        f'{"entropy":>9}'
    ]
    for name, s in manifest.splits.items():
        real = 100 * s.real_tokens / (s.rows * manifest.sequence_length)
        lines.append(
            f'{name:12}{s.documents:12,}{s.words:14,}{s.text_tokens:14,}{s.rows:12,}{real:8.1f}'
            f'{s.text_tokens / max(1, s.words):13.2f}{s.unigram_entropy_nats:9.3f}'
        )
    note = 'entropy: of single tokens, in nats; the loss of a model that knows no more than their frequencies'
    return '\n'.join(['', *lines, note])


if __name__ == '__main__':
    command_line.define_config_flag()
    flags.adopt_module_key_flags(command_line)
    flags.DEFINE_integer('num_workers', None, 'Processes that encode; all cores unless given.', lower_bound=1)
    command_line.run(main, required=('config',))
