"""The keys of a configuration, with their defaults and their meaning."""

import dataclasses
import functools
from typing import Any

import ml_collections
from ml_collections import config_dict

from mlm_jax.config.access import parent_of, values
from mlm_jax.config.durations import duration_keys, is_duration
from mlm_jax.files.errors import ConfigError
from mlm_jax.objectives.registry import OBJECTIVES
from mlm_jax.objectives.spec import option_fields

SIZES = {
    'tiny': dict(num_layers=2, width=128, num_heads=2, ffn_width=512),
    'mini': dict(num_layers=4, width=256, num_heads=4, ffn_width=1024),
    'small': dict(num_layers=4, width=512, num_heads=8, ffn_width=2048),
    'medium': dict(num_layers=8, width=512, num_heads=8, ffn_width=2048),
    'base': dict(num_layers=12, width=768, num_heads=12, ffn_width=3072),
    'large': dict(num_layers=24, width=1024, num_heads=16, ffn_width=4096),
}


# Sizes for a computer at hand, and for first runs on little text.
SMALL = ('tiny', 'mini')


def default_config() -> ml_collections.ConfigDict:
    """Every key of a pretraining run with its default: the RoBERTa recipe at size `mini` on the demo corpus."""
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.objective = 'mlm'
    # Start from the parameters of another run, WORKDIR[@STEP] or ema:WORKDIR, of a Hugging Face model, hf:DIRECTORY or
    # hf:NAME[@REVISION] on the hub, or from an average of several, average:SOURCE,SOURCE,…, which --set gives.
    c.init_from = ''
    # The number of ids of the tokenizer, with special ids; also the number of rows of the token embedding. If a
    # tokenizer is given, it may exceed the number of pieces by up to 1024: the remaining ids are special and unused,
    # as in a padded embedding.
    c.vocab_size = 8192
    c.sequence_length = 128  # T: the number of tokens of a packed row
    c.batch_size = 64  # rows of text in one optimizer step, over all devices; some strategies mask each several times
    c.num_microbatches = config_dict.placeholder(int)  # parts in which a batch is processed; None: 1
    # With sharding=fsdp: weights are gathered and gradients scattered once in a step, for which devices must hold all
    # of them, or by layer, in every microbatch. auto: step if there are several, mesh.tensor = 1, and a slice has room.
    # Gradients are summed over devices in float32; by layer, those of kernels are summed over mesh.fsdp in model.dtype.
    c.fsdp_gather = 'auto'
    duration_keys(c, 'total', steps=10_000)
    # The name of a TPU slice, such as v5e-16, or of several, as 2xv5e-16: open keys (None or 'auto') are then chosen
    # for their devices (config/slice_fitting.py). Without a slice, open keys get the values in their comments.
    c.slice = ''
    # How the state is sharded over the mesh (parallel/sharding.py): dp | fsdp | fsdp_tp. auto: by the mesh; fsdp_tp if
    # mesh.tensor is not 1, else fsdp if mesh.fsdp is not 1, else dp.
    c.sharding = 'auto'
    c.accelerator = 'auto'  # auto: any; with another value, a run does not start on other devices
    c.on_nonfinite = 'stop'  # or 'skip': skip the update and count it
    c.compilation_cache = '~/.cache/mlm_jax/xla'  # '': no cache

    c.data = d = ml_collections.ConfigDict()
    d.directory = 'data/demo'  # prepare writes it, train reads it; a mixture: DIRECTORY:WEIGHT,DIRECTORY:WEIGHT
    # τ of a mixture without weights: the share of a directory of n rows is proportional to n^(1/τ). 1: by size; 5 is
    # usual for many languages (arXiv 1907.05019); the larger τ, the more even the shares.
    d.mixture_temperature = 1.0
    # How rows are read, for disks on which each read takes long, and for buckets, which need it (data/orders.py): 0
    # reads row by row, in a permutation of all rows; n reads blocks of n KiB or somewhat more, such as 256, and mixes
    # the rows of `window_blocks` blocks.
    d.block_kib = 0
    d.window_blocks = 256
    d.corpus = 'demo'  # demo | tfds:NAME | hf:NAME | KIND:GLOB: text, lines, files, jsonl, csv, parquet, arrow or smi
    d.text_key = 'text'  # field of a JSON line (a.b: b in its object a), column of a table, or feature of TFDS
    d.validation_corpus = ''  # a separate corpus to hold out; '' holds out a part of data.corpus
    d.validation_percent = 1.0  # held out by a hash of each document, if the corpus has no validation split
    d.smiles_copies = 0  # additional copies of each training molecule, with its atoms in random order
    d.packing = 'documents'  # attention within documents | full_sentences: across them | one_per_row: one document

    c.tokenizer = t = ml_collections.ConfigDict()
    t.model = 'unigram'  # or bpe, smiles: trained on the corpus; PATH of SentencePiece or tokenizer.json; extend:PATH
    t.normalization = 'nmt_nfkc'
    t.byte_fallback = True  # characters outside the vocabulary become bytes, not [UNK]
    t.character_coverage = 0.9995
    t.training_megabytes = 50  # how much text, a random sample, the tokenizer is trained on

    c.model = m = ml_collections.ConfigDict()
    m.update(SIZES['mini'])
    m.num_kv_heads = 0  # heads of keys and values, each shared by a group of heads of queries; 0: num_heads
    m.positions = 'learned'  # or rotary; rotary_2d: of the position and of the copy of a token (ExLM)
    m.rotary_base = 10_000.0  # of the wavelengths of rotary positions
    m.rotary_base_local = config_dict.placeholder(float)  # the same in local layers; None: rotary_base
    m.local_window = 0  # W > 0: local layers attend to keys at most W // 2 away, as in ModernBERT
    m.global_every = 3  # with a window: layers 0, 3, 6, … see the whole document, the others are local
    m.zeroed_token = -1  # or the id of [MASK], whose embedding is then zero, as in ESM-2 (models/token_dropout.py)
    m.relative_buckets = 0  # > 0 adds a relative position bias
    m.relative_max_distance = 128
    m.relative_bucketing = 'mae_lm'  # or t5: the buckets of T5 and MPNet
    m.norm = 'post'
    m.norm_type = 'layer_norm'  # or rms_norm, which has no bias
    m.norm_bias = config_dict.placeholder(bool)  # of LayerNorms; None: as bias
    m.norm_epsilon = 1e-5  # ε of the norms; 1e-12 in BERT
    m.embedding_norm = True
    m.first_norm = True  # false: pre-LN without a norm before the first attention, as in ModernBERT
    m.bias = True  # of linear layers
    m.mlp = 'gelu'  # or geglu, swiglu
    m.tied_head = True  # the output matrix is the token embedding; false: a matrix of its own
    m.head = 'dense'  # dense layer, GELU, norm, output matrix, bias | plain: the output matrix only
    m.dropout = 0.1  # rounded to a multiple of 1/256, and to at most 255/256
    m.attention_dropout = config_dict.placeholder(float)  # None: 0.1; rounded as model.dropout
    m.dtype = 'float32'  # of activations and matmuls; parameters are always float32
    m.attention_backend = 'auto'  # auto: xla
    # Layers in one iteration of the scan over layers; 0: all if they are at most four and model.remat=none, else 1.
    m.scan_unroll = 0
    m.remat = 'none'  # recomputed in the backward pass: none | full | matmuls: everything but matmul outputs

    c.masking = k = ml_collections.ConfigDict()
    k.strategy = 'uniform'  # which units are chosen (masking/selection.py)
    k.unit = 'token'  # what is chosen together (masking/units.py): token | word | span | ngram | pmi
    k.ratio = 0.15  # share of the tokens of a row; if it changes, the share at the start of the run
    k.ratio_schedule = 'constant'  # linear, cosine, staged: change to final_ratio; diffusion: random for each row
    k.final_ratio = 0.15  # at the end of the run; for diffusion, the smallest
    duration_keys(k, 'anneal', percent=100.0)  # the part at the end of the run in which the ratio changes
    k.predicted_fraction = 1.0  # share of the chosen positions; the others are corrupted, but not predicted
    k.mask_fraction = 0.8  # share of the chosen positions that become [MASK]
    k.random_fraction = 0.1  # share that become a random ordinary token; the others stay unchanged
    k.corruption_unit = 'token'  # or unit: all tokens of a unit become [MASK], random, or stay unchanged (SpanBERT)
    k.repeats = 1  # k: rows hold k copies of each token, masked independently (repeated MLM)
    k.static_masks = 0  # 0: a new mask at every visit of a row; n: each row has n masks, used in turn
    k.token_weights = 'frequency'  # for strategy weighted: 1/√count of each token; or PATH.npy, float [vocab_size]
    k.fully_explored = f = ml_collections.ConfigDict()  # only for strategy fully_explored
    f.segments = 7  # K: each mask covers 1/K of the tokens, whatever masking.ratio
    f.partition = 'random'  # or contiguous, stratified
    f.schedule = 'one_step'  # all K masks of a row | successive: one at each visit of the row | subset: some
    f.views = 2  # for subset: how many masks

    for name, spec in OBJECTIVES.items():  # options: objectives/<name>_spec.py
        if options := option_fields(spec):
            c[name] = ml_collections.ConfigDict({key: field.default for key, field in options.items()})

    c.optimizer = o = ml_collections.ConfigDict()
    o.name = 'adamw'
    o.learning_rate = 5e-4  # the peak
    o.b1 = 0.9
    o.b2 = 0.98
    o.eps = 1e-6
    o.momentum = 0.95  # only for the matrices of muon; its other parameters use b1, b2 and eps
    o.weight_decay = config_dict.placeholder(float)  # None: the optimizer's default, in WEIGHT_DECAYS
    o.decay_mask = 'matrices'  # or all: biases and norms, too
    o.clip_norm = 1.0  # of the gradient of all parameters; 0: no clipping

    c.ema = a = ml_collections.ConfigDict()
    a.decay = 0.0  # of an exponential moving average of the parameters, such as 0.999; 0: none is kept

    c.schedule = s = ml_collections.ConfigDict()
    s.name = 'linear'
    duration_keys(s, 'warmup', percent=6.0)
    duration_keys(s, 'decay', percent=20.0)  # only for wsd; other schedules decay from the end of the warm-up

    c.mesh = h = ml_collections.ConfigDict()
    h.data = config_dict.placeholder(int)  # None: −1, all devices that the other axes leave
    h.fsdp = config_dict.placeholder(int)  # None: 1
    h.tensor = 1

    c.evaluation = e = ml_collections.ConfigDict()
    duration_keys(e, 'every', percent=10.0)
    e.rows = 1024  # the largest number of held-out rows
    e.ratio = 0.15  # share of the tokens that become [MASK], the same in every evaluation of every run
    e.blimp = ''  # directory of BLiMP; the metric eval/blimp is then the accuracy on its minimal pairs
    e.blimp_percent = 10.0  # share of the pairs of each paradigm, always the same pairs

    c.checkpoint = p = ml_collections.ConfigDict()
    duration_keys(p, 'every', percent=10.0)
    p.keep_last = 3
    duration_keys(p, 'keep')  # checkpoints at multiples of this are kept in addition

    c.logging = g = ml_collections.ConfigDict()
    g.every_steps = 20
    g.tensorboard = False  # needs the extra `tensorboard`
    g.wandb_project = ''  # needs the extra `wandb`

    c.profile = f = ml_collections.ConfigDict()
    f.start_step = 20
    f.num_steps = 0  # > 0: write a profiler trace of this many steps to <workdir>/profile
    return c


def apply_recipe(config: ml_collections.ConfigDict, recipe: str) -> None:
    """Changes a default `config` to a recipe.

    Args:
      config: a configuration in which the sizes of the model are set; it is changed in place.
      recipe: 'roberta' (post-LN, learned positions, GELU, dropout 0.1, AdamW: the defaults), 'modern' (as ModernBERT:
        pre-LN, without a norm between the embedding norm and the first attention, RoPE, GeGLU, no biases, no dropout,
        StableAdamW without weight decay of norms, 1 − √ decay of the learning rate), or 'muon' (as modern, but with
        Muon). ModernBERT itself has dropout of 0.1 behind attention, layers that write into the residual stream with
        smaller weights at the start, and no clipping of gradients. Under 'modern', models narrower than 512 have a
        higher peak learning rate than `config`: 512 / width times as high, up to four times. By muP, too, Adam's rate
        of matrices falls as the width grows (arXiv 2203.03466); at 128, this rate was the best that was tried, and
        twice as much was too much; at 256 both hold for AdamW, and no other rate was tried (docs/results.md).

    Raises:
      ConfigError: for another recipe.
    """
    if recipe == 'roberta':
        return
    if recipe not in ('modern', 'muon'):
        raise ConfigError(f'unknown recipe {recipe!r}: it must be roberta, modern or muon')
    m = config.model
    m.update(positions='rotary', norm='pre', mlp='geglu', bias=False, dropout=0.0, attention_dropout=0.0)
    m.first_norm = not m.embedding_norm  # embeddings that have just been normalized need no other norm
    two_thirds = 2 * m.ffn_width // 3  # as many parameters in three matrices as in two
    m.ffn_width = two_thirds // 64 * 64 or two_thirds
    config.optimizer.update(name='stable_adamw', decay_mask='matrices')
    config.schedule.name = 'wsd'
    if recipe == 'muon':
        apply_muon(config)
    else:
        config.optimizer.learning_rate *= min(4.0, max(1.0, 512 / m.width))


def apply_muon(config: ml_collections.ConfigDict) -> None:
    """Sets Muon as the optimizer, with a peak learning rate for the width of the model, which must be set.

    Up to a width of 256 it is 5e-3, within a factor of two of the best (docs/results.md); twice as much was too much at
    128 and 256. Beyond, where nothing has been tried, it falls as the width grows, as AdamW's best rate did from 128 to
    256, and so stays about three times that rate: 1.7e-3 for base, where AdamW has 5e-4. By arXiv 2502.16982, whose
    updates are as large as AdamW's, as they are here, Muon takes AdamW's rate as it is.
    """
    rate = 5e-3 * min(1.0, 256 / config.model.width)
    config.optimizer.update(name='muon', learning_rate=float(f'{rate:.2g}'))


def apply_rate_of_size(config: ml_collections.ConfigDict, size: str) -> None:
    """Lowers the peak learning rate of a recipe for `base` to that for `large`.

    The ratio is that of RoBERTa's rates (arXiv 1907.11692, table 9), 6e-4 for base and 4e-4 for large, and nearly that
    of ModernBERT's, 8e-4 and 5e-4 (arXiv 2412.13663). Muon's rate follows the width instead.
    """
    if size == 'large':
        config.optimizer.learning_rate = float(f'{config.optimizer.learning_rate * 4 / 6:.2g}')


def default_recipe(size: str) -> str:
    """The recipe that a size has if none is given: on little text, other recipes know only frequencies for long."""
    return 'muon' if size in SMALL else 'roberta'


@dataclasses.dataclass(frozen=True)
class Kind:
    """The values that a key can have: those of a type, and None if `optional`."""

    type: type
    optional: bool

    def takes(self, value: Any) -> bool:
        """Whether a value has the type. None always passes: the caller checks `optional`."""
        allowed = (int, float) if self.type is float else self.type
        return value is None or (isinstance(value, allowed) and (self.type is bool or not isinstance(value, bool)))


def kinds() -> dict[str, Kind]:
    """A dict of dotted key → Kind with every key of a configuration."""
    return _kinds(tuple(OBJECTIVES))


@functools.cache
def _kinds(objectives: tuple[str, ...]) -> dict[str, Kind]:
    del objectives  # the cache needs them, as the keys depend on them
    config = default_config()

    def kind(key, value):
        node, name = parent_of(config, key)
        return Kind(node.get_type(name), optional=value is None or is_duration(key))

    return {key: kind(key, value) for key, value in values(config).items()}


def row_length(config: ml_collections.ConfigDict) -> int:
    """The number of tokens in a row of the model: `sequence_length`, times `masking.repeats`."""
    return config.masking.repeats * config.sequence_length
