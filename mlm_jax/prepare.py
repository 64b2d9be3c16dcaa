"""Program: prepares data for training: reads a corpus, trains a tokenizer, and writes packed rows to disk.

    python -m mlm_jax.prepare --config=configs/mlm.py:mini,data.directory=data/mini
    python -m mlm_jax.prepare --config=configs/mlm.py:mini,data.directory=data/mine,data.corpus='jsonl:corpus/*.jsonl'

`mlm_jax/data/corpora.py` explains how to specify a corpus. A run that was killed can be started again and resumes; the
resulting directory is always the same to the byte, on any number of cores. For a finished directory, the program
compares every file with its checksum, and makes damaged and missing files again. A directory holds

    manifest.json                     describes the directory; written last
    tokenizer.model                   a SentencePiece model, a SMILES vocabulary, or the given tokenizer.json
    tables.npz                        tables for masking: word starts, counts, and collocations for masking.unit=pmi
    train-00000-of-00012.npy, …       packed rows, uint16 or uint32 [rows, T]
    validation-00000-of-00001.npy
    .prepare/                         temporary files; exists only until the preparation is finished
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
from typing import TypeVar

import ml_collections
import numpy as np
from absl import flags

from mlm_jax import config as config_lib
from mlm_jax.config import command_line, mixture
from mlm_jax.data import claim, corpora, encoding, masking_tables, molecules, shards, tokenizers, verification, workers
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.files import atomic, sealed

TOKENIZER_FILE = 'tokenizer.model'
Result = TypeVar('Result')
_TOKENIZER_THREAD = 'tokenizer'
_INTERRUPTED = 130  # by convention, the exit status of a program that was interrupted by Ctrl-C
_VERSIONS = ('array-record', 'numpy', 'tensorflow-datasets')


def main() -> None:
    """Prepares the data, and prints the command that trains on it."""
    with ending_at_interrupts():
        config = command_line.configuration()
        run(config, flags.FLAGS.num_workers)
    given = [f'--config={name}' for name in flags.FLAGS.config] + [f'--set={setting}' for setting in flags.FLAGS.set]
    arguments = ' '.join(map(shlex.quote, given))
    workdir = f'runs/{pathlib.Path(config.data.directory).name}'
    print(f'\nNext:\n    python -m mlm_jax.train {arguments} --workdir={workdir}')


@contextlib.contextmanager
def ending_at_interrupts() -> Iterator[None]:
    """Ends the program at Ctrl-C with a short message and the usual exit status instead of a traceback."""
    try:
        yield
        return
    except KeyboardInterrupt:
        pass
    # Outside of the `except` block, because the exception keeps progress bars open.
    print('\ninterrupted; the same command resumes from here', file=sys.stderr, flush=True)
    if any(thread.name == _TOKENIZER_THREAD for thread in threading.enumerate()):
        os._exit(_INTERRUPTED)  # SentencePiece is running, which cannot be stopped in any other way
    sys.exit(_INTERRUPTED)


def run(config: ml_collections.ConfigDict, num_workers: int | None = None) -> manifest_lib.Manifest:
    """Prepares `config.data.directory`, or verifies and repairs it if it is finished.

    Args:
      config: the configuration. The keys `data.*`, `tokenizer.*`, `vocab_size` and `sequence_length` determine the
        rows, and `masking.*` determines the tables.
      num_workers: the number of processes that encode; None means one per core. The result does not depend on it.

    Returns:
      The manifest of the directory.

    Raises:
      ConfigError: if the corpus or a setting cannot be used, or the directory was prepared with other settings.
      ImportError: for `data.smiles_copies` without the extra `smiles`.
    """
    config_lib.check(config)
    if config.data.smiles_copies:
        molecules.parse('C')  # fails here if RDKit is missing, before the tokenizer is trained
    alone = mixture.single(config.data.directory, 'prepare writes one at a time: name one of them')
    directory = pathlib.Path(alone).expanduser()
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


def _prepare(
    config: ml_collections.ConfigDict, directory: pathlib.Path, working: pathlib.Path, intent: dict, num_workers: int
) -> manifest_lib.Manifest:
    """Makes corpus, tokenizer and rows, each of which reuses finished work of earlier runs, and then the manifest."""
    claim.claim(directory, working, intent)
    print(f'corpus     {config.data.corpus}')
    try:
        corpus = _open_corpus(config, working)
        tokenizer = _make_tokenizer(config, corpus, directory / TOKENIZER_FILE)
    except config_lib.ConfigError:
        if not (directory / TOKENIZER_FILE).exists():
            shutil.rmtree(working)  # no permanent file depends on the settings yet, so the user may change them
        raise
    jobs = _jobs(config, corpus, directory, working)
    counts = workers.encode(jobs, num_workers)
    splits = {name: _split(name, [(job, counts[job]) for job in jobs if job.split == name]) for name in corpus.splits}
    manifest = _manifest(config, intent, tokenizer, directory, splits)
    (directory / masking_tables.FILE).unlink(missing_ok=True)  # left by a killed run, so it may be incomplete
    masking_tables.write_missing(config.masking, directory, manifest, working)
    manifest = dataclasses.replace(manifest, tables_sha256=atomic.sha256(directory / masking_tables.FILE))
    manifest_lib.save(manifest, directory, working)
    shutil.rmtree(working)
    print(f'prepared   {directory}: {_in_words(manifest)}')
    _print_words(config, directory, manifest)
    return manifest


def _bring_up_to_date(
    config: ml_collections.ConfigDict, directory: pathlib.Path, working: pathlib.Path, intent: dict, num_workers: int
) -> manifest_lib.Manifest:
    """Compares the files of a finished directory with their checksums, makes damaged ones again, and adds tables."""
    manifest = manifest_lib.load(directory)
    claim.refuse_changes(directory, dataclasses.asdict(manifest), intent)
    findings = verification.examine(directory, manifest, content=True)
    if manifest.tokenizer not in findings.wrong:
        _refuse_other_tokenizer(config, directory / manifest.tokenizer)
    # A run that was killed after writing the manifest, or during a repair, leaves this directory.
    shutil.rmtree(working, ignore_errors=True)
    if findings.wrong:
        for name, clause in findings.wrong.items():
            print(f'damaged    {name} {clause}; it is made again')
        _repair(config, directory, working, manifest, set(findings.wrong), num_workers)
    for name in findings.surplus:
        print(f'surplus    {name} does not belong to this preparation and is not used: it may be deleted')
    if masking_tables.write_missing(config.masking, directory, manifest):
        tables_sha256 = atomic.sha256(directory / masking_tables.FILE)
        if (manifest.tables, manifest.tables_sha256) != (masking_tables.FILE, tables_sha256):
            manifest = dataclasses.replace(manifest, tables=masking_tables.FILE, tables_sha256=tables_sha256)
            manifest_lib.save(manifest, directory)
        print(f'added      {masking_tables.FILE} to {directory}')
    print(f'{directory} is up to date: {_in_words(manifest)}')
    _print_words(config, directory, manifest)
    return manifest


def _repair(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    working: pathlib.Path,
    manifest: manifest_lib.Manifest,
    wrong: set[str],
    num_workers: int,
) -> None:
    """Makes damaged files of a finished directory again, identical to the byte; deletes a damaged file of tables.

    Raises:
      ConfigError: if the corpus, the tokenizer or the libraries now give a different result.
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
                f'{", ".join(still)} cannot be made again as the manifest of {directory} describes: the corpus'
                f'{", or the versions of libraries," if not changes else ""} must have changed since then\n'
                + ''.join(f'{line}\n' for line in changes)
                + f'Delete {directory} and run this again'
            )
        shutil.rmtree(working)
    if manifest.tables in wrong:
        (directory / manifest.tables).unlink(missing_ok=True)


def _print_words(config: ml_collections.ConfigDict, directory: pathlib.Path, manifest: manifest_lib.Manifest) -> None:
    if line := masking_tables.describe_words(config.masking, directory, manifest):
        print(line)


@contextlib.contextmanager
def _explained_errors(directory: pathlib.Path, sources: dict) -> Iterator[None]:
    """Converts system errors about a full or write-protected disk to messages that say what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, 'errno', None)
        # Errors of the writers of corpora, which are implemented in C++, can only be recognized by their text.
        if number in (errno.ENOSPC, errno.EDQUOT) or re.search('No space left|quota exceeded', str(error)):
            text = sum(state['bytes'] for files in sources.values() for state in files.values())
            need = f' ({text / 1e6:,.0f} MB in its files, and more if they are compressed)' if text else ''
            raise config_lib.ConfigError(
                f'the disk of {directory} is full. The preparation temporarily needs as much space as the text of the '
                f'corpus{need}, and about as much again for the rows, which are kept. Free some space and run the same '
                'command, which resumes from here; or set data.directory to another disk'
            ) from error
        if not isinstance(error, OSError) or error.errno is None or isinstance(error, FileNotFoundError):
            raise
        raise config_lib.ConfigError(f'cannot use {directory}: {error.strerror} ({error.filename})') from error


def _open_corpus(config: ml_collections.ConfigDict, working: pathlib.Path) -> corpora.Corpus:
    """Opens the corpus; an earlier conversion of it is reused, unless that is damaged."""
    cache, record = working / 'corpus', working / 'corpus.json'
    if record.exists():  # it is written when the conversion is complete
        if _tree(cache) == record.read_bytes():
            return corpora.open_corpus(config.data, cache)
        print('damaged    the converted corpus; it is converted again')
        shutil.rmtree(cache, ignore_errors=True)
    corpus = corpora.open_corpus(config.data, cache)
    if cache.exists():  # data sets from TFDS are not stored in this cache
        atomic.write_bytes(record, _tree(cache))
    return corpus


def _tree(directory: pathlib.Path) -> bytes:
    """The files below a directory with their checksums, as JSON."""
    files = {str(path.relative_to(directory)): path for path in sorted(directory.rglob('*')) if path.is_file()}
    found = {}
    with verification.progress_bar('verifying', sum(path.stat().st_size for path in files.values())) as bar:
        for name, path in files.items():
            found[name] = atomic.sha256(path)
            bar.update(path.stat().st_size)
    return sealed.dumps(found)


# ---- The tokenizer -------------------------------------------------------------------------------------------


def _make_tokenizer(
    config: ml_collections.ConfigDict, corpus: corpora.Corpus, path: pathlib.Path
) -> tokenizers.AnyTokenizer:
    """The tokenizer of the directory, which is made unless an undamaged one exists."""
    working = path.parent / claim.WORKING_DIRECTORY
    record = working / f'{path.name}.sha256'
    if path.exists() and not (record.exists() and record.read_bytes() == atomic.sha256(path).encode()):
        print(f'damaged    {path.name} is not the tokenizer that was made here; it is made again')
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


def _new_tokenizer(config: ml_collections.ConfigDict, corpus: corpora.Corpus) -> tokenizers.AnyTokenizer:
    model = config.tokenizer.model
    if model in tokenizers.TRAINED:
        size = config.tokenizer.training_megabytes
        print(f'tokenizer  training {model}, {config.vocab_size} pieces, on at most {size} MB')
        return tokenizers.train(corpus.splits['train'].texts(), config.tokenizer, config.vocab_size)
    if model.startswith(tokenizers.EXTEND):
        print(f'tokenizer  extending {model.removeprefix(tokenizers.EXTEND)} to {config.vocab_size} pieces')
        old = tokenizers.Tokenizer.from_file(model.removeprefix(tokenizers.EXTEND))
        return tokenizers.extend(old, corpus.splits['train'].texts(), config.tokenizer, config.vocab_size)
    tokenizer = tokenizers.Tokenizer.from_file(model)
    tokenizers.check_size(tokenizer, config.vocab_size, model, tokenizers.LARGEST_PADDING)
    if unused := config.vocab_size - tokenizer.vocabulary.size:
        print(f'tokenizer  has {tokenizer.vocabulary.size:,} pieces: the last {unused:,} ids have no piece')
    return tokenizer


def _refuse_other_tokenizer(config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
    """Raises ConfigError if `tokenizer.model` now names another tokenizer than that of this directory."""
    model = config.tokenizer.model
    given = pathlib.Path(model.removeprefix(tokenizers.EXTEND)).expanduser()
    if model in tokenizers.TRAINED or not given.exists():  # the copy in the directory is sufficient
        return
    ours, theirs = tokenizers.Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(given)
    is_same = tokenizers.extends(ours, theirs) if model.startswith(tokenizers.EXTEND) else ours.model == theirs.model
    if not is_same:
        raise config_lib.ConfigError(
            f'{path.parent} was prepared with another tokenizer than the one that is now in {given}: restore the '
            f'former tokenizer, give data.directory another value, or delete {path.parent}'
        )


def _interruptible(work: Callable[[], Result]) -> Result:
    """Runs `work` in another thread, so that this thread can react to Ctrl-C while SentencePiece is running."""
    results: list[Result] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # raised below, in the calling thread
            errors.append(error)

    thread = threading.Thread(target=run, name=_TOKENIZER_THREAD, daemon=True)
    thread.start()
    while thread.is_alive():  # a signal that reaches another thread does not end a wait without a timeout
        thread.join(0.1)
    if errors:
        raise errors[0]
    return results[0]


# ---- Rows ----------------------------------------------------------------------------------------------------


def _jobs(
    config: ml_collections.ConfigDict, corpus: corpora.Corpus, directory: pathlib.Path, working: pathlib.Path
) -> list[encoding.Job]:
    jobs: list[encoding.Job] = []
    tokenizer_sha256 = atomic.sha256(directory / TOKENIZER_FILE)
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
        raise config_lib.ConfigError(f'the {name} split has no text: all its documents are empty or were dropped')
    share = np.sum([c.histogram for c in counts], axis=0) / total['text_tokens']
    return manifest_lib.Split(
        **total,
        unigram_entropy_nats=float(-np.sum(share * np.log(share, where=share > 0, out=np.zeros_like(share)))),
        repairs=dict(sorted(repairs.items())),
        shards=tuple(manifest_lib.Shard(job.name, c.rows, c.sha256) for job, c in shards_made),
    )


def _manifest(
    config: ml_collections.ConfigDict,
    intent: dict,
    tokenizer: tokenizers.AnyTokenizer,
    directory: pathlib.Path,
    splits: dict[str, manifest_lib.Split],
) -> manifest_lib.Manifest:
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
        tables=masking_tables.FILE,
    )


def _version(name: str) -> str:
    """The version of Python or of a package; 'none' if the package is not installed."""
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
    note = 'entropy: of single tokens, in nats; the loss of a model that knows only their frequencies'
    return '\n'.join(['', *lines, note])


if __name__ == '__main__':
    command_line.define_config_flags()
    flags.adopt_module_key_flags(command_line)
    flags.DEFINE_integer(
        'num_workers', None, 'The number of processes that encode; by default, one per core.', lower_bound=1
    )
    command_line.run(main, required=('config',))
