"""The keys of a configuration: their defaults, and their arguments on the command line.

A configuration is an `ml_collections.ConfigDict`. `default_config` holds every key there is; the files in `configs/`
choose values, and a user changes them in one of two ways, which both refuse unknown keys:

    --config=configs/mlm.py:mini,batch_size=64,model.dropout=0.0     arguments of the configuration file
    --config.optimizer.learning_rate=1e-3                            overrides, applied last

Two arguments are no keys: `recipe` (see `apply_recipe`), and `slice=v5e-16`, which fits the rest to a TPU slice
(`config_slice.py`); overrides come after it.
"""

import ast
import copy
import dataclasses
import difflib
import functools
import importlib.util
import json
import math
import pathlib
from collections.abc import Mapping

import ml_collections
from ml_collections import config_dict

SIZES = {
    'tiny': dict(num_layers=2, width=128, num_heads=2, ffn_width=512),
    'mini': dict(num_layers=4, width=256, num_heads=4, ffn_width=1024),
    'small': dict(num_layers=4, width=512, num_heads=8, ffn_width=2048),
    'medium': dict(num_layers=8, width=512, num_heads=8, ffn_width=2048),
    'base': dict(num_layers=12, width=768, num_heads=12, ffn_width=3072),
    'large': dict(num_layers=24, width=1024, num_heads=16, ffn_width=4096),
}

# The weight decay of each optimizer where `optimizer.weight_decay` gives none. That of StableAdamW is the share of a
# weight that an update at the peak learning rate removes; that of the others is multiplied by the learning rate first.
WEIGHT_DECAYS = {
    'adamw': 0.01,  # RoBERTa, arXiv 1907.11692; ExLM and MAE-LM alike
    'lamb': 0.01,  # arXiv 1904.00962
    'stable_adamw': 1e-5,  # ModernBERT, arXiv 2412.13663
    'muon': 0.01,  # AdamW's, as updates are as large as AdamW's; arXiv 2502.16982 has 0.1 at smaller learning rates
}

DURATIONS = (
    'total', 'schedule.warmup', 'schedule.decay', 'masking.anneal', 'evaluation.every', 'checkpoint.every',
    'checkpoint.keep',
)  # fmt: skip
SCALARS = (bool, int, float, str, type(None))  # what a key can hold
DURATION_UNITS = ('steps', 'epochs', 'examples', 'tokens', 'percent')
MAX_STEPS = 2**31  # steps are counted in int32 on the device


class ConfigError(ValueError):
    """A configuration that cannot run: what is wrong, and its cure."""


def duration_keys(node: ml_collections.ConfigDict, prefix: str, **default: float) -> None:
    """Adds the keys `<prefix>_steps`, `<prefix>_epochs`, …, of which one is set: `default`, or none.

    Args:
      node: the part of the configuration that receives the keys.
      prefix: what lasts that long: 'total', 'warmup', 'every', ….
      **default: at most one of `steps`, `epochs`, `examples`, `tokens` and `percent`, with its value.
    """
    for unit in DURATION_UNITS:
        node[f'{prefix}_{unit}'] = config_dict.placeholder(float if unit in ('epochs', 'percent') else int)
    for unit, value in default.items():
        node[f'{prefix}_{unit}'] = value


def default_config() -> ml_collections.ConfigDict:
    """Every key of a pretraining run with its default: the RoBERTa recipe at size `mini` on the demo corpus."""
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.objective = 'mlm'
    c.init_from = ''  # start from the parameters of another run, by its workdir; or hf:DIRECTORY, of Hugging Face
    # Ids of the tokenizer, specials included; also the rows of the embedding. Where a tokenizer is given, it may be up
    # to 1024 more than its pieces: the other ids are special, as embeddings have them that are padded.
    c.vocab_size = 8192
    c.sequence_length = 128  # T: tokens in a packed row
    c.batch_size = 64  # rows of text of one optimizer step, over all devices; some masking makes several of each
    c.num_microbatches = 1  # the batch passes through the model in this many parts
    duration_keys(c, 'total', steps=10_000)
    c.sharding = 'dp'  # parallel/sharding.py: how the state lies on the mesh
    c.accelerator = 'any'  # refuse to start on another kind of device
    c.on_nonfinite = 'stop'  # or 'skip': leave the state as it was and count
    c.compilation_cache = '~/.cache/mlm_jax/xla'  # '' compiles afresh every time

    c.data = d = ml_collections.ConfigDict()
    d.directory = 'data/demo'  # written by prepare, read by train
    d.corpus = 'demo'  # demo | text:GLOB | lines:GLOB | files:GLOB | jsonl:GLOB | csv:GLOB | smi:GLOB | tfds:NAME
    d.text_key = 'text'  # the field of a JSON line (a.b: of its object a), the column of a table, the feature of TFDS
    d.validation_corpus = ''  # held-out text of its own; '' holds out a part of the corpus
    d.validation_percent = 1.0  # the share held out, by a hash of each document, where the corpus has no such split
    d.smiles_copies = 0  # training molecules are written so many more times, with their atoms in random orders
    d.packing = 'documents'  # rows attend within documents | across them | hold one document each

    c.tokenizer = t = ml_collections.ConfigDict()
    t.model = 'unigram'  # 'bpe', 'smiles': trained on the corpus; PATH of SentencePiece or tokenizer.json; extend:PATH
    t.normalization = 'nmt_nfkc'
    t.byte_fallback = True  # characters outside the vocabulary become bytes, not [UNK]
    t.character_coverage = 0.9995
    t.training_megabytes = 50  # text from the start of the corpus on which a tokenizer is trained

    c.model = m = ml_collections.ConfigDict()
    m.update(SIZES['mini'])
    m.positions = 'learned'
    m.relative_buckets = 0  # > 0 adds MAE-LM's relative position bias
    m.relative_max_distance = 128
    m.norm = 'post'
    m.embedding_norm = True
    m.bias = True
    m.mlp = 'gelu'
    m.norm_epsilon = 1e-5  # of LayerNorm; BERT's is 1e-12
    m.dropout = 0.1  # in steps of 1/256
    m.attention_dropout = 0.1
    m.dtype = 'float32'  # of activations and matmuls; parameters are always float32
    m.attention_backend = 'xla'
    m.scan_unroll = 0  # layers per iteration of the scan over them; 0: all of up to four, else 1
    m.remat = 'none'  # recompute in the backward pass: nothing | everything | all but matmul outputs

    c.masking = k = ml_collections.ConfigDict()
    k.strategy = 'uniform'  # masking/selection.py: which units are chosen
    k.unit = 'token'  # masking/units.py: what is chosen together: token | word | span | ngram | pmi
    k.ratio = 0.15  # of the tokens of a row; at the start of the run, where it moves
    k.ratio_schedule = 'constant'  # linear, cosine, staged: to final_ratio; diffusion: drawn for each row
    k.final_ratio = 0.15  # at the end of the run; of diffusion, the smallest
    duration_keys(k, 'anneal', percent=100.0)  # the end of the run, in which the ratio moves; staged jumps at once
    k.predicted_fraction = 1.0  # of the chosen positions; the others are replaced and not predicted
    k.mask_fraction = 0.8  # of the chosen positions: [MASK];
    k.random_fraction = 0.1  # a random ordinary token; the others stay as they are
    k.corruption_unit = 'token'  # or 'unit': that is drawn once for all tokens of a unit (SpanBERT)
    k.repeats = 1  # k: rows hold k copies of each token, masked one by one (repeated MLM)
    k.static_masks = 0  # 0: a new mask at every visit of a row; n: each row has n masks, in turn
    k.token_weights = 'frequency'  # of the strategy weighted: 1/√count; or PATH.npy, float [vocab_size]
    k.fully_explored = f = ml_collections.ConfigDict()  # of that strategy alone, in place of the ratio
    f.segments = 7  # K: 1/K of the tokens are masked
    f.partition = 'random'  # or contiguous, stratified
    f.schedule = 'one_step'  # K rows for each row of text | successive: one, the next at its next visit | subset: some
    f.views = 2  # of subset: how many

    c.mae_lm = a = ml_collections.ConfigDict()  # of the objective mae_lm alone; more in models/mae_lm.py
    a.decoder_layers = 4
    a.decoder_width = 0  # 0: as wide as the encoder
    a.decoder_ffn_width = 0  # 0: in proportion
    a.masked_in_encoder = 0.0  # share of the masked positions that the encoder sees, as masking replaced them
    a.reset_masked = False  # the decoder finds [MASK]'s embedding there, not the encoder's output
    a.renumber_positions = False  # the encoder counts the kept tokens; else they keep their original positions
    a.kept_margin = 0.125  # share of a row that may be special tokens before its kept tokens overflow; 1 always fits

    c.exlm = e = ml_collections.ConfigDict()  # of the objective exlm alone; more in models/exlm.py
    e.num_states = 4  # k, states of each expanded token
    e.transitions = 'dense'  # to all later states | to those of later tokens only | none: states are equally likely
    e.transition_heads = 0  # 0: as many as the encoder; 1: the single softmax of the paper's formula
    e.anchors = True  # the ends of a row are expanded too: alignments start and end there

    c.optimizer = o = ml_collections.ConfigDict()
    o.name = 'adamw'
    o.learning_rate = 5e-4  # the peak
    o.b1 = 0.9
    o.b2 = 0.98
    o.eps = 1e-6
    o.momentum = 0.95  # of 'muon' alone, for matrices; its other parameters have b1, b2 and eps
    o.weight_decay = config_dict.placeholder(float)  # None: the optimizer's own, in WEIGHT_DECAYS
    o.decay_mask = 'matrices'  # or 'all': biases and norms too
    o.clip_norm = 1.0  # of the global gradient; 0 clips nothing

    c.schedule = s = ml_collections.ConfigDict()
    s.name = 'linear'
    duration_keys(s, 'warmup', percent=6.0)
    duration_keys(s, 'decay', percent=20.0)  # of 'wsd' alone; the others decay from the warm-up on

    c.mesh = h = ml_collections.ConfigDict()
    h.data = -1  # −1: all devices that the others leave
    h.fsdp = 1
    h.tensor = 1

    c.evaluation = e = ml_collections.ConfigDict()
    duration_keys(e, 'every', percent=10.0)
    e.rows = 1024  # held-out rows, at most
    e.ratio = 0.15  # masked, all by [MASK], the same at every evaluation, whatever the training masks
    e.blimp = ''  # the directory of BLiMP: its minimal pairs are judged too, eval/blimp being the share that is right
    e.blimp_percent = 10.0  # of the pairs of each paradigm, always the same ones

    c.checkpoint = p = ml_collections.ConfigDict()
    duration_keys(p, 'every', percent=10.0)
    p.keep_last = 3
    duration_keys(p, 'keep')  # besides, keep one for good at every multiple of this

    c.logging = g = ml_collections.ConfigDict()
    g.every_steps = 20
    g.tensorboard = False  # needs the extra `tensorboard`
    g.wandb_project = ''  # needs the extra `wandb`

    c.profile = f = ml_collections.ConfigDict()
    f.start_step = 20
    f.num_steps = 0  # > 0 writes a trace of so many steps to <workdir>/profile
    return c


def apply_recipe(config: ml_collections.ConfigDict, recipe: str) -> None:
    """Turns a default `config` to a recipe.

    Args:
      config: with the sizes of the model set; changed in place.
      recipe: 'roberta' (post-LN, learned positions, GELU, dropout 0.1: the defaults), or 'modern' (ModernBERT, NeoBERT
        and MosaicBERT: pre-LN, RoPE, GeGLU, no biases, no dropout, StableAdamW, which decays no norms, 1 − √ decay of
        the learning rate).
    """
    if recipe == 'roberta':
        return
    if recipe != 'modern':
        raise ConfigError(f'unknown recipe {recipe!r}: it is roberta or modern')
    m = config.model
    m.update(positions='rotary', norm='pre', mlp='geglu', bias=False, dropout=0.0, attention_dropout=0.0)
    two_thirds = 2 * m.ffn_width // 3  # three matrices instead of two: as many parameters
    m.ffn_width = two_thirds // 64 * 64 or two_thirds
    config.optimizer.update(name='stable_adamw', decay_mask='matrices')
    config.schedule.name = 'wsd'


def shipped() -> dict[str, pathlib.Path]:
    """The configuration files that come with the package, by name: those of `configs/` in the repository."""
    package = pathlib.Path(__file__).parent
    installed = package / 'configs'
    directory = installed if installed.is_dir() else package.parent / 'configs'
    return {path.stem: path for path in sorted(directory.glob('*.py')) if path.stem != '__init__'}


def with_path(name: str) -> str:
    """'FILE.py:ARGUMENT' for what names a configuration: that itself, or 'mlm:ARGUMENT' for a file that is shipped.

    Raises:
      ConfigError: when there is no such file.
    """
    from mlm_jax import paths  # it reads configurations itself

    paths.check_configuration_name(name)
    path, colon, argument = name.partition(':')
    if path in shipped():
        path = str(shipped()[path])
    if not pathlib.Path(path).is_file():
        raise ConfigError(f'there is no configuration file {path}. Those that are shipped: {", ".join(shipped())}')
    return f'{path}{colon}{argument}'


def load(name: str) -> ml_collections.ConfigDict:
    """The configuration that `--config=NAME` names: FILE.py or FILE.py:ARGUMENT; without `.py`, of a shipped file.

    Raises:
      ConfigError: when there is no such file, or its argument is wrong.
    """
    path, _, argument = with_path(name).partition(':')
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


def parse_argument(argument: str, sizes: Mapping[str, Mapping]) -> tuple[str, dict[str, str]]:
    """Splits the argument of a configuration file, such as 'base,batch_size=64', into size and overrides.

    Args:
      argument: what follows the colon; '' means the first size.
      sizes: the sizes that the file offers.

    Returns:
      The size, and a dict of dotted key → value as written.

    Raises:
      ConfigError: for an unknown size or a part without '='.
    """
    size, overrides = next(iter(sizes)), {}
    for place, part in enumerate(filter(None, argument.split(','))):
        key, equals, value = part.partition('=')
        if equals:
            overrides[key.strip()] = value.strip()
        elif place == 0 and part in sizes:
            size = part
        else:
            raise ConfigError(
                f'{part!r} in the configuration argument {argument!r} is neither a size '
                f'({", ".join(sizes)}; first if given) nor key=value. Commas separate these; '
                'a value that holds one is given by itself, as in --config.data.corpus=text:b,c.txt'
            )
    return size, overrides


def apply_overrides(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets dotted keys of `config` from text, with the types that the keys have.

    A duration replaces the one in another unit: `total_epochs=3` unsets `total_steps`. `slice`, which is no key, names
    a TPU slice, to which all that is not set here is fitted (`config_slice.py`).

    Raises:
      ConfigError: for an unknown key (naming close ones) or a value of the wrong type.
    """
    known = {key for key, _ in _leaves(config)}
    overrides = dict(overrides)
    slice_name = overrides.pop('slice', None)
    for key, text in overrides.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3)
            hint = f'; did you mean {" or ".join(close)}?' if close else ''
            raise ConfigError(f'unknown configuration key {key!r}{hint}')
        parent, _, name = key.rpartition('.')
        node = get(config, parent) if parent else config
        old = node.get_type(name)
        prefix = name.rpartition('_')[0]
        if is_duration(key):
            for other in DURATION_UNITS:
                with node.ignore_type():
                    node[f'{prefix}_{other}'] = None
        try:
            node[name] = _parse_value(text, old)
        except (TypeError, ValueError, SyntaxError, KeyError, OverflowError, RecursionError, MemoryError):
            raise ConfigError(f'{key}={text}: expected a value of type {old.__name__}') from None
    if slice_name is not None:
        from mlm_jax import config_slice  # it reads configurations itself

        config_slice.apply(config, slice_name, given=overrides)


def resolve_steps(
    config: ml_collections.ConfigDict,
    prefix: str,
    *,
    total_steps: int | None = None,
    steps_per_epoch: float | None = None,
) -> int | None:
    """A duration of the configuration in optimizer steps.

    Args:
      config: the whole configuration.
      prefix: the dotted prefix of the duration, e.g. 'total' or 'schedule.warmup'.
      total_steps: the length of the run; needed for `_percent`.
      steps_per_epoch: needed for `_epochs`.

    Returns:
      Steps, at least 1 for a positive duration and below `MAX_STEPS`; None where no unit is set.

    Raises:
      ConfigError: when more than one unit is set, the value is negative, not finite or too large, or the unit cannot be
        used here.
    """
    values = {u: get(config, f'{prefix}_{u}') for u in DURATION_UNITS}
    given = {u: v for u, v in values.items() if v is not None}
    if not given:
        return None
    if len(given) > 1:
        names = ' and '.join(f'{prefix}_{u}={v}' for u, v in given.items())
        raise ConfigError(
            f'{names} are both set. Give the duration as an argument of the configuration file, which replaces the '
            f'other: --config=FILE.py:SIZE,{prefix}_{list(given)[-1]}={list(given.values())[-1]}'
        )
    ((unit, value),) = given.items()
    if not 0 <= value < math.inf:
        raise ConfigError(f'{prefix}_{unit}={value} is {"negative" if value < 0 else "no duration"}')
    per_unit = {
        'steps': 1,
        'examples': 1 / config.batch_size,
        'tokens': 1 / (config.batch_size * config.sequence_length),
        'epochs': steps_per_epoch,
        'percent': None if total_steps is None else total_steps / 100,
    }[unit]
    if per_unit is None:
        raise ConfigError(f'{prefix}_{unit} cannot be used here; give {prefix}_steps instead')
    steps = value * per_unit if value < 1e300 else math.inf  # larger whole numbers are no floats
    if steps >= MAX_STEPS:
        raise ConfigError(f'{prefix}_{unit}={value} is more than {MAX_STEPS:,} steps, which nothing here can count')
    return max(1, round(steps)) if value else 0


def decided(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy in which a value stands wherever a key leaves the choice to another one, as a run is to record it."""
    config = copy.deepcopy(config)
    if 'optimizer' in config:
        config.optimizer.weight_decay = weight_decay(config.optimizer)
    return config


def weight_decay(optimizer: ml_collections.ConfigDict) -> float | None:
    """The weight decay of `config.optimizer`: the one given, or the optimizer's own; None for an unknown optimizer."""
    given = optimizer.weight_decay
    return WEIGHT_DECAYS.get(optimizer.name) if given is None else given


def row_length(config: ml_collections.ConfigDict) -> int:
    """Tokens in a row of the model: those of the text, and their copies where masking repeats them."""
    return config.masking.repeats * config.sequence_length


def to_json(config: ml_collections.ConfigDict) -> str:
    """The configuration as indented JSON, keys sorted, as `config.json` in a workdir holds it."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def from_json(text: str) -> ml_collections.ConfigDict:
    """The configuration that `to_json` wrote; keys that came later take their defaults.

    Raises:
      ConfigError: for text that is no such configuration, or one with keys that there are not.
    """
    config = default_config()
    try:
        stored = values(ml_collections.ConfigDict(json.loads(text)))
        if wrong := [key for key, value in stored.items() if not isinstance(value, SCALARS)]:
            raise ValueError(f'{wrong[0]} is {type(stored[wrong[0]]).__name__}, no single value')
    except (TypeError, ValueError, AttributeError, RecursionError) as error:  # no JSON, or no object with plain names
        raise ConfigError(f'the stored configuration is damaged: {error}') from None
    for key, _ in list(_leaves(config)):
        if key in stored:
            parent, _, name = key.rpartition('.')
            node = get(config, parent) if parent else config
            with node.ignore_type():
                node[name] = stored.pop(key)
    if stored:
        raise ConfigError(f'the stored configuration holds unknown keys: {", ".join(sorted(stored))}')
    return config


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> dict[str, tuple]:
    """Dotted key → (old value, new value) of the keys in which two configurations differ, as they are `decided`."""
    a, b = (values(decided(config)) for config in (old, new))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What values a key takes: those of a type, and None where `optional`."""

    type: type
    optional: bool


@functools.cache
def kinds() -> dict[str, Kind]:
    """Dotted key → Kind, of every key there is."""
    config = default_config()

    def kind(key, value):
        parent, _, name = key.rpartition('.')
        type_ = (get(config, parent) if parent else config).get_type(name)
        return Kind(type_, optional=value is None or is_duration(key))

    return {key: kind(key, value) for key, value in values(config).items()}


def is_duration(key: str) -> bool:
    """Whether a dotted key is one of the keys of a duration, of which all but one are None."""
    prefix, _, unit = key.rpartition('_')
    return prefix in DURATIONS and unit in DURATION_UNITS


def values(config: ml_collections.ConfigDict) -> dict[str, object]:
    """Dotted key → value, of every key of `config`."""
    return dict(_leaves(config))


def _leaves(node: ml_collections.ConfigDict, prefix: str = ''):
    for key in node:
        value = node[key]
        if isinstance(value, ml_collections.ConfigDict):
            yield from _leaves(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def get(config: ml_collections.ConfigDict, key: str):
    """The value of a dotted key."""
    for part in key.split('.'):
        config = config[part]
    return config


def _parse_value(text: str, kind: type):
    if text == 'None':
        return None
    if kind is str:
        return text
    if kind is bool:
        return {'true': True, 'false': False}[text.lower()]  # KeyError: neither
    value = ast.literal_eval(text)
    if kind is int and isinstance(value, float) and value == math.floor(value):
        value = int(value)  # 1e6 steps
    return kind(value) if kind is float else value
