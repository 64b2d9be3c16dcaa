"""Small preparations: texts, configurations, and what a prepared directory holds."""

from mlm_jax import config as config_lib
from mlm_jax.data import manifest as manifest_lib


def made_up_texts(rng, count):
    """Texts of 40 words, each of which begins with one of 26 letters."""
    return [' '.join(f'{chr(97 + n % 26)}{n}' for n in rng.integers(0, 60, 40)) for _ in range(count)]


def make_config(directory, corpus, **overrides):
    """Rows of 32 of 100 pieces, made of such texts; a tenth of them is held out."""
    config = config_lib.default_config()
    keys = {
        'data.directory': str(directory), 'data.corpus': str(corpus), 'vocab_size': '100', 'sequence_length': '32',
        'data.validation_percent': '10.0',
    }  # fmt: skip
    if 'tokenizer.model' not in overrides:  # it is trained
        keys['tokenizer.byte_fallback'] = 'False'
    config_lib.apply_overrides(config, keys | {key: str(value) for key, value in overrides.items()})
    return config


def contents(directory):
    """The path below a directory → the bytes of each file in it; the directory may lie in a bucket."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob('*') if path.is_file()}


def contents_of_any_corpus(directory):
    """As `contents`, without the manifest, which names the files of the corpus."""
    found = contents(directory)
    del found[manifest_lib.FILE]
    return found
