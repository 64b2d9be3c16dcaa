"""MLM that goes on from a model of transformers: every key that follows from the checkpoint is set by itself.

    python -m mlm_jax.prepare --config=continue:hf:bert,data.directory=data/law,data.corpus='text:law/*.txt'
    python -m mlm_jax.train --config=continue:hf:bert,data.directory=data/law,total_steps=2000 --workdir=runs/law

The first argument is hf:DIRECTORY, with config.json, model.safetensors and tokenizer.json, of any architecture that
docs/interop.md lists; or hf:NAME[@REVISION], such a model on the Hugging Face Hub. It gives `init_from`,
`tokenizer.model`, `vocab_size` (with the rows of the embedding that no piece uses), all widths and the recipe of the
encoder. What is left to say is the text and the budget: `data.corpus`, `data.directory`, `total_steps` and so on, and
`sequence_length`, which is 512 or, if that is less, the longest row of the checkpoint. The learning rate is 1e-4, below
that of pretraining.

Not yet run on published weights.
"""

import ml_collections

from mlm_jax import config as config_lib
from mlm_jax.files import buckets, hub
from mlm_jax.interop import checkpoint as checkpoint_lib

PREFIX = hub.PREFIX
LENGTH = 512


def get_config(argument: str = '') -> ml_collections.ConfigDict:
    """The configuration for 'hf:DIRECTORY[,key=value…]' or 'hf:NAME[@REVISION][,key=value…]'."""
    source, _, rest = argument.partition(',')
    if not source.startswith(PREFIX) or source == PREFIX:
        raise config_lib.ConfigError(
            f'configs/continue.py needs the model to go on from, as in --config=continue:{PREFIX}DIRECTORY, and not '
            f'{source or "nothing"!r}. A run of mlm_jax goes on with init_from=WORKDIR'
        )
    given = source.removeprefix(PREFIX)
    path = buckets.path(given).expanduser()
    directory = hub.model(path)
    config = config_lib.default_config()
    try:
        checkpoint = checkpoint_lib.describe(directory)
    except (ValueError, FileNotFoundError) as error:
        raise config_lib.ConfigError(f'{source}: {error}') from error
    encoder = dict(vars(checkpoint.encoder))
    config.vocab_size = encoder.pop('vocab_size')
    config.sequence_length = min(encoder.pop('max_length'), LENGTH)
    del encoder['init_stddev']  # which is no key: nothing is drawn at random
    config.model.update(encoder)
    config.init_from = source
    tokenizer = checkpoint_lib.tokenizer_file(directory)
    place = given if directory == path else source
    config.tokenizer.model = f'{place}/{tokenizer.name if tokenizer else checkpoint_lib.TOKENIZERS[0]}'
    config.optimizer.learning_rate = 1e-4
    _, overrides = config_lib.parse_argument(rest, (), '')
    config_lib.apply_overrides(config, overrides)
    return config
