"""Makes the tokenizer of a prepared directory: trains it on a sample of the corpus, extends one, or copies one."""

import hashlib
import pathlib
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.data import claim, corpora, sampling, tokenizers, workers
from mlm_jax.files import atomic, buckets
from mlm_jax.files.errors import ConfigError

FILE = 'tokenizer.model'  # in a prepared directory, whatever its format
THREAD = 'tokenizer'  # the name of the thread in which SentencePiece runs
_OF_SENTENCEPIECE = ('normalization', 'byte_fallback', 'character_coverage')  # how it trains
Result = TypeVar('Result')


def refuse_unread(settings: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for values in the part `tokenizer` of a configuration that its `model` leaves without effect.

    It is for new directories only: earlier versions recorded such values, and those must not change any more.
    """
    defaults = config_lib.default_config().tokenizer
    keys, reason = _unread(settings.model)
    if found := [key for key in keys if settings[key] != defaults[key]]:
        given, cure = (', '.join(f'tokenizer.{key}={of[key]}' for key in found) for of in (settings, defaults))
        raise ConfigError(
            f'{given} would have no effect, because tokenizer.model={settings.model} {reason}: set {cure} (the '
            'default), or set tokenizer.model to unigram or bpe'
        )


def _unread(model: str) -> tuple[tuple[str, ...], str]:
    """The keys of the part `tokenizer` that have no effect with a value of `tokenizer.model`, and the reason."""
    if model in tokenizers.SENTENCEPIECE:
        return (), ''
    if model in tokenizers.TRAINED:
        return _OF_SENTENCEPIECE, 'collects the atoms, bonds and ring closures of the corpus as they are'
    if model.startswith(tokenizers.EXTEND):
        return ('normalization',), 'keeps the normalization of the tokenizer that is extended'
    return (*_OF_SENTENCEPIECE, 'training_megabytes'), 'is a finished tokenizer'


def make(config: ml_collections.ConfigDict, corpus: corpora.Corpus, path: pathlib.Path, engine: workers.Engine) -> None:
    """Makes the tokenizer `path` of a directory, unless an undamaged one exists.

    Raises:
      ConfigError: if there is too little text, or the given tokenizer cannot be used or has changed.
    """
    if is_made(path):
        refuse_other(config, path)
        return
    if path.exists():
        print(f'damaged    {path.name} is not the tokenizer that was made here; it is made again')
        path.unlink()
    start = time.monotonic()
    tokenizer = _new(config, corpus, path.parent / claim.WORKING_DIRECTORY, engine)
    atomic.write_bytes(_record(path), hashlib.sha256(tokenizer.model).hexdigest().encode())
    atomic.write_bytes(path, tokenizer.model, path.parent / claim.WORKING_DIRECTORY)
    seconds, ordinary = time.monotonic() - start, tokenizer.vocabulary.num_ordinary
    print(f'tokenizer  ready after {seconds:.1f} s: {ordinary:,} ordinary pieces among {config.vocab_size:,} ids')


def is_made(path: pathlib.Path) -> bool:
    """Whether the tokenizer of an unfinished directory exists and is undamaged."""
    return atomic.is_recorded(path, _record(path))


def _record(path: pathlib.Path) -> pathlib.Path:
    return path.parent / claim.WORKING_DIRECTORY / f'{path.name}.sha256'


def _new(
    config: ml_collections.ConfigDict, corpus: corpora.Corpus, working: pathlib.Path, engine: workers.Engine
) -> tokenizers.AnyTokenizer:
    model, settings = config.tokenizer.model, config.tokenizer
    is_trained = model in tokenizers.TRAINED
    if is_trained or model.startswith(tokenizers.EXTEND):
        old = None if is_trained else tokenizers.Tokenizer.from_file(model.removeprefix(tokenizers.EXTEND))
        limit = settings.training_megabytes * 1_000_000
        sample = sampling.take(corpus, working, limit, engine)
        texts = sampling.texts(sample, limit)
        if old is None:
            megabytes = settings.training_megabytes
            print(f'tokenizer  training {model}, {config.vocab_size} pieces, on at most {megabytes} MB')
            made = _interruptible(lambda: tokenizers.train(texts, settings, config.vocab_size))
        else:
            print(f'tokenizer  extending {model.removeprefix(tokenizers.EXTEND)} to {config.vocab_size} pieces')
            made = _interruptible(lambda: tokenizers.extend(old, texts, settings, config.vocab_size))
        sampling.remove(sample)
        return made
    tokenizer = tokenizers.Tokenizer.from_file(model)
    tokenizers.check_size(tokenizer, config.vocab_size, model, tokenizers.LARGEST_PADDING)
    if unused := config.vocab_size - tokenizer.vocabulary.size:
        print(f'tokenizer  has {tokenizer.vocabulary.size:,} pieces: the last {unused:,} ids have no piece')
    return tokenizer


def refuse_other(config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
    """Raises ConfigError if `tokenizer.model` now names another tokenizer than that of this directory."""
    model = config.tokenizer.model
    given = buckets.path(model.removeprefix(tokenizers.EXTEND)).expanduser()
    if model in tokenizers.TRAINED or not given.exists():  # the copy in the directory is sufficient
        return
    ours, theirs = tokenizers.Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(given)
    is_same = tokenizers.extends(ours, theirs) if model.startswith(tokenizers.EXTEND) else ours.model == theirs.model
    if not is_same:
        raise ConfigError(
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

    thread = threading.Thread(target=run, name=THREAD, daemon=True)
    thread.start()
    while thread.is_alive():  # a signal that reaches another thread does not end a wait without a timeout
        thread.join(0.1)
    if errors:
        raise errors[0]
    return results[0]
