"""Program: corpus → tokenizer → packed rows on disk, once, before any training.

    python -m mlm_jax.prepare --config=configs/mlm.py:mini,data.directory=data/mini
    python -m mlm_jax.prepare --config=configs/mlm.py:mini,data.directory=data/mine,data.corpus='jsonl:corpus/*.jsonl'

`mlm_jax/data/corpora.py` says how to write a corpus. Killed at any point and started again, it goes on, and
the directory ends up the same to the byte, on any number of cores. Of a finished directory it compares every file
with its hash, and makes anew what is damaged or missing. A directory holds

    manifest.json                     what is here; written last
    tokenizer.model                   SentencePiece, SMILES tokens, or the tokenizer.json that was given
    tables.npz                        what masking must know: word starts, counts, with masking.unit=pmi collocations
    train-00000-of-00012.npy, …       packed rows, uint16 or uint32 [rows, T]
    validation-00000-of-00001.npy
    .prepare/                         while the work is under way
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import pathlib
import platform
import re
import shlex
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata

import ml_collections
import numpy as np
from absl import flags

from mlm_jax import config as config_lib
from mlm_jax.config import command_line
from mlm_jax.data import claim, corpora, encoding, molecules, shards, tables, tokenizers, verification, workers
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.files import atomic, sealed

TOKENIZER_FILE = 'tokenizer.model'
_TOKENIZER_THREAD = 'tokenizer'
_INTERRUPTED = 130  # the exit status of a program that Ctrl-C ends, as shells have it
_VERSIONS = ('array-record', 'numpy', 'tensorflow-datasets')


def main() -> None:
    """Prepares, and says what to do next."""
    with ending_at_interrupts():
        config = command_line.configuration()
        run(config, flags.FLAGS.num_workers)
    given = [f'--config={name}' for name in flags.FLAGS.config] + [f'--set={setting}' for setting in flags.FLAGS.set]
    arguments = ' '.join(map(shlex.quote, given))
    workdir = f'runs/{pathlib.Path(config.data.directory).name}'
    print(f'\nNext:\n    python -m mlm_jax.train {arguments} --workdir={workdir}')


@contextlib.contextmanager
def ending_at_interrupts() -> Iterator[None]:
    """Ends the program at Ctrl-C, with one line and the exit status of shells."""
    try:
        yield
        return
    except KeyboardInterrupt:
        pass
    # Here, where the progress bars that the exception held are closed.
    print('\ninterrupted; the same command goes on from here', file=sys.stderr, flush=True)
    if any(thread.name == _TOKENIZER_THREAD for thread in threading.enumerate()):
        os._exit(_INTERRUPTED)  # SentencePiece is at work, which nothing else ends
    sys.exit(_INTERRUPTED)


def run(config: ml_collections.ConfigDict, num_workers: int | None = None) -> manifest_lib.Manifest:
    """Prepares `config.data.directory`, or finds it finished.

    Args:
      config: the keys `data.*`, `tokenizer.*`, `vocab_size` and `sequence_length` matter; `masking.*` for the tables.
      num_workers: processes that encode; None means all cores. The result does not depend on it.

    Raises:
      ConfigError: for a corpus or a setting that does not work, or a directory made with other settings.
      ImportError: for `data.smiles_copies` without the extra `smiles`.
    """
    config_lib.check(config)
    if config.data.smiles_copies:
        molecules.parse('C')  # without RDKit this ends here, not after the tokenizer
    directory = pathlib.Path(config.data.directory).expanduser()
    working = directory / claim.WORKING_DIRECTORY
    specs = list(filter(None, (config.data.corpus, config.data.validation_corpus)))
    intent = {'settings': claim.settings(config), 'sources': {spec: corpora.describe(spec) for spec in specs}}
    with _explained_errors(directory, intent['sources']):
        directory.mkdir(parents=True, exist_ok=True)
        with claim.locked(directory):
            atomic.remove_leftovers(directory)
            if (directory / manifest_lib.FILE).exists():
                return _bring_up_to_date(config, directory, working, intent, num_workers or workers.num_cores())
            return _prepare(config, directory, working, intent, num_workers or workers.num_cores())


def _prepare(config, directory: pathlib.Path, working: pathlib.Path, intent: dict, num_workers: int):
    """Corpus, tokenizer, rows: each finds what an earlier run has finished. The manifest comes last."""
    claim.claim(directory, working, intent)
    print(f'corpus     {config.data.corpus}')
    try:
        corpus = _open_corpus(config, working)
        tokenizer = _make_tokenizer(config, corpus, directory / TOKENIZER_FILE)
    except config_lib.ConfigError:
        if not (directory / TOKENIZER_FILE).exists():
            shutil.rmtree(working)  # a setting is to be mended, and none is yet built into anything that stays
        raise
    jobs = _jobs(config, corpus, directory, working)
    counts = workers.encode(jobs, num_workers)
    splits = {name: _split(name, [(job, counts[job]) for job in jobs if job.split == name]) for name in corpus.splits}
    manifest = _manifest(config, intent, tokenizer, directory, splits)
    (directory / tables.FILE).unlink(missing_ok=True)  # of a killed run: nothing tells whether it is whole
    tables.write_missing(config, directory, manifest, working)
    manifest = dataclasses.replace(manifest, tables_sha256=atomic.sha256(directory / tables.FILE))
    manifest_lib.save(manifest, directory, working)
    shutil.rmtree(working)
    print(f'prepared   {directory}: {_in_words(manifest)}')
    _print_words(config, directory, manifest)
    return manifest


def _bring_up_to_date(config, directory: pathlib.Path, working: pathlib.Path, intent: dict, num_workers: int):
    """A finished directory: compares every file with its hash, makes anew what is damaged, adds tables."""
    manifest = manifest_lib.load(directory)
    claim.refuse_changes(directory, dataclasses.asdict(manifest), intent)
    findings = verification.examine(directory, manifest, content=True)
    if manifest.tokenizer not in findings.wrong:
        _refuse_other_tokenizer(config, directory / manifest.tokenizer)
    shutil.rmtree(working, ignore_errors=True)  # of a killed run, which ended behind the manifest or repaired
    if findings.wrong:
        for name, clause in findings.wrong.items():
            print(f'damaged    {name} {clause}; it is made anew')
        _repair(config, directory, working, manifest, set(findings.wrong), num_workers)
    for name in findings.surplus:
        print(f'surplus    {name} is not of this preparation, and nobody reads it: it may be deleted')
    if tables.write_missing(config, directory, manifest):
        tables_sha256 = atomic.sha256(directory / tables.FILE)
        if (manifest.tables, manifest.tables_sha256) != (tables.FILE, tables_sha256):
            manifest = dataclasses.replace(manifest, tables=tables.FILE, tables_sha256=tables_sha256)
            manifest_lib.save(manifest, directory)
        print(f'added      {tables.FILE} to {directory}')
    print(f'{directory} is up to date: {_in_words(manifest)}')
    _print_words(config, directory, manifest)
    return manifest


def _repair(config, directory, working, manifest: manifest_lib.Manifest, wrong: set[str], num_workers: int) -> None:
    """Makes damaged files of a finished directory anew, as they were to the byte; deletes a damaged file of tables.

    Raises:
      ConfigError: when corpus, tokenizer or libraries give something else than they did.
    """
    if wrong != {manifest.tables}:
        working.mkdir(exist_ok=True)
        corpus = _open_corpus(config, working)
        if manifest.tokenizer in wrong:
            (directory / manifest.tokenizer).unlink(missing_ok=True)
            _make_tokenizer(config, corpus, directory / manifest.tokenizer)
        jobs = _jobs(config, corpus, directory, working)
        workers.encode([job for job in jobs if job.name in wrong], num_workers)
        findings = verification.examine(directory, manifest, content=True)
        still = {name: clause for name, clause in findings.wrong.items() if name != manifest.tables}
        if still:
            different = {name: (then, _version(name)) for name, then in manifest.versions.items()}
            changes = [f'    {name} {then} then, {now} now' for name, (then, now) in different.items() if then != now]
            raise config_lib.ConfigError(
                f'{", ".join(still)} cannot be made again as the manifest of {directory} says: the corpus'
                f'{", or the versions of libraries," if not changes else ""} must have changed since\n'
                + ''.join(f'{line}\n' for line in changes)
                + f'Delete {directory} and run this again'
            )
        shutil.rmtree(working)
    if manifest.tables in wrong:
        (directory / manifest.tables).unlink(missing_ok=True)


def _print_words(config: ml_collections.ConfigDict, directory: pathlib.Path, manifest: manifest_lib.Manifest) -> None:
    if line := tables.describe_words(config, directory, manifest):
        print(line)


@contextlib.contextmanager
def _explained_errors(directory: pathlib.Path, sources: dict) -> Iterator[None]:
    """Turns what the system says of a full or forbidden disk into a line with the cure."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, 'errno', None)
        # Of the writers of corpora, which are C++, only the text of the error tells.
        if number in (errno.ENOSPC, errno.EDQUOT) or re.search('No space left|quota exceeded', str(error)):
            text = sum(state['bytes'] for files in sources.values() for state in files.values())
            need = f' ({text / 1e6:,.0f} MB in its files, and more where they are compressed)' if text else ''
            raise config_lib.ConfigError(
                f'the disk of {directory} is full. The work takes as much room there as the text of the corpus{need}, '
                'and about as much again for the rows, which stay. Make room, and the same command goes on from here; '
                'or set data.directory to another disk'
            ) from error
        if number is None or isinstance(error, FileNotFoundError):
            raise
        raise config_lib.ConfigError(f'cannot work in {directory}: {error.strerror} ({error.filename})') from error


def _open_corpus(config, working: pathlib.Path) -> corpora.Corpus:
    """The corpus; what was converted of it before is used again, unless it is no longer as it was written."""
    cache, record = working / 'corpus', working / 'corpus.json'
    if record.exists():  # written when all was converted
        if _tree(cache) == record.read_bytes():
            return corpora.open_corpus(config.data, cache)
        print('damaged    the converted corpus; it is converted anew')
        shutil.rmtree(cache, ignore_errors=True)
    corpus = corpora.open_corpus(config.data, cache)
    if cache.exists():  # TFDS keeps its own data sets elsewhere
        atomic.write_bytes(record, _tree(cache))
    return corpus


def _tree(directory: pathlib.Path) -> bytes:
    """The files below a directory, with their hashes, as JSON."""
    files = {str(path.relative_to(directory)): path for path in sorted(directory.rglob('*')) if path.is_file()}
    found = {}
    with verification.progress_bar('verifying', sum(path.stat().st_size for path in files.values())) as bar:
        for name, path in files.items():
            found[name] = atomic.sha256(path)
            bar.update(path.stat().st_size)
    return sealed.dumps(found)


# ---- The tokenizer -------------------------------------------------------------------------------------------


def _make_tokenizer(config, corpus: corpora.Corpus, path: pathlib.Path) -> tokenizers.Tokenizer:
    """The tokenizer of the directory: made, or found as it was made."""
    working = path.parent / claim.WORKING_DIRECTORY
    record = working / f'{path.name}.sha256'
    if path.exists() and not (record.exists() and record.read_bytes() == atomic.sha256(path).encode()):
        print(f'damaged    {path.name} is not the one that was made here; it is made anew')
        path.unlink()
    if path.exists():
        _refuse_other_tokenizer(config, path)
    else:
        start = time.monotonic()
        tokenizer = _interruptible(lambda: _new_tokenizer(config, corpus))
        atomic.write_bytes(record, hashlib.sha256(tokenizer.model).hexdigest().encode())
        atomic.write_bytes(path, tokenizer.model, working)
        seconds, ordinary = time.monotonic() - start, tokenizer.vocabulary.num_ordinary
        print(f'tokenizer  ready after {seconds:.1f} s: {ordinary:,} ordinary pieces among {config.vocab_size:,} ids')
    return tokenizers.Tokenizer.from_file(path)


def _new_tokenizer(config, corpus: corpora.Corpus) -> tokenizers.Tokenizer:
    model = config.tokenizer.model
    if model in tokenizers.TRAINED:
        size = config.tokenizer.training_megabytes
        print(f'tokenizer  training {model}, {config.vocab_size} pieces, on at most {size} MB')
        return tokenizers.train(corpus.splits['train'].texts(), config)
    if model.startswith(tokenizers.EXTEND):
        print(f'tokenizer  extending {model.removeprefix(tokenizers.EXTEND)} to {config.vocab_size} pieces')
        old = tokenizers.Tokenizer.from_file(model.removeprefix(tokenizers.EXTEND))
        return tokenizers.extend(old, corpus.splits['train'].texts(), config)
    tokenizer = tokenizers.Tokenizer.from_file(model)
    tokenizers.check_size(tokenizer, config, model, tokenizers.LARGEST_PADDING)
    if unused := config.vocab_size - tokenizer.vocabulary.size:
        print(f'tokenizer  has {tokenizer.vocabulary.size:,} pieces: the last {unused:,} ids have no text')
    return tokenizer


def _refuse_other_tokenizer(config, path: pathlib.Path) -> None:
    """Raises ConfigError where the file that `tokenizer.model` names is not what this directory was made with."""
    model = config.tokenizer.model
    given = pathlib.Path(model.removeprefix(tokenizers.EXTEND)).expanduser()
    if model in tokenizers.TRAINED or not given.exists():  # the copy in the directory is all that is needed
        return
    ours, theirs = tokenizers.Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(given)
    is_same = tokenizers.extends(ours, theirs) if model.startswith(tokenizers.EXTEND) else ours.model == theirs.model
    if not is_same:
        raise config_lib.ConfigError(
            f'{path.parent} was prepared with another tokenizer than the one that now lies in {given}: put that one '
            f'back, give data.directory another value, or delete {path.parent}'
        )


def _interruptible(work: Callable):
    """The result of `work`, done in another thread: this one hears Ctrl-C while SentencePiece is at work."""
    results, errors = [], []

    def run():
        try:
            results.append(work())
        except Exception as error:  # raised below, in the thread that asked
            errors.append(error)

    thread = threading.Thread(target=run, name=_TOKENIZER_THREAD, daemon=True)
    thread.start()
    while thread.is_alive():  # a signal that reaches another thread wakes none that waits without end
        thread.join(0.1)
    if errors:
        raise errors[0]
    return results[0]


# ---- Rows ----------------------------------------------------------------------------------------------------


def _jobs(config, corpus: corpora.Corpus, directory: pathlib.Path, working: pathlib.Path) -> list[encoding.Job]:
    jobs, tokenizer_sha256 = [], atomic.sha256(directory / TOKENIZER_FILE)
    for split, source in corpus.splits.items():
        count = encoding.num_shards(source)
        copies = config.data.smiles_copies if split == 'train' else 0
        jobs += [
            encoding.Job(
                source, split, index, count, str(directory), str(working), str(directory / TOKENIZER_FILE),
                config.sequence_length, config.data.packing, copies, tokenizer_sha256,
            )
            for index in range(count)
        ]  # fmt: skip
    return jobs


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
    corpora.check_repairs(repairs, total['documents'], f'the {name} split')
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
        vocabulary=tokenizer.vocabulary.padded(config.vocab_size),
        tokenizer=TOKENIZER_FILE,
        tokenizer_sha256=atomic.sha256(directory / TOKENIZER_FILE),
        sequence_length=config.sequence_length,
        packing=config.data.packing,
        dtype=shards.row_dtype(tokenizer.vocabulary.size).name,
        splits=splits,
        versions={
            'python': _version('python'),
            **{name: _version(name) for name in filter(None, packages)},
        },
        tables=tables.FILE,
    )


def _version(name: str) -> str:
    """Of Python, or of a package; 'none' where it is not installed."""
    try:
        return platform.python_version() if name == 'python' else metadata.version(name)
    except metadata.PackageNotFoundError:
        return 'none'


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
    command_line.define_config_flags()
    flags.adopt_module_key_flags(command_line)
    flags.DEFINE_integer('num_workers', None, 'Processes that encode; all cores unless given.', lower_bound=1)
    command_line.run(main, required=('config',))
