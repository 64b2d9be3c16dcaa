"""The keys of a configuration, their defaults, and what they mean."""

import dataclasses
import functools

import ml_collections
from ml_collections import config_dict

from mlm_jax.config.access import get, values
from mlm_jax.config.durations import duration_keys, is_duration
from mlm_jax.files.errors import ConfigError

SIZES = {
    'tiny': dict(num_layers=2, width=128, num_heads=2, ffn_width=512),
    'mini': dict(num_layers=4, width=256, num_heads=4, ffn_width=1024),
    'small': dict(num_layers=4, width=512, num_heads=8, ffn_width=2048),
    'medium': dict(num_layers=8, width=512, num_heads=8, ffn_width=2048),
    'base': dict(num_layers=12, width=768, num_heads=12, ffn_width=3072),
    'large': dict(num_layers=24, width=1024, num_heads=16, ffn_width=4096),
}


def default_config() -> ml_collections.ConfigDict:
    """Every key of a pretraining run with its default: the RoBERTa recipe at size `mini` on the demo corpus."""
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.objective = 'mlm'
    c.init_from = ''  # start from the parameters of another run: WORKDIR or WORKDIR@STEP; or hf:DIRECTORY
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

    c.mae_lm = a = ml_collections.ConfigDict()  # of the objective mae_lm alone; more in objectives/mae_lm.py
    a.decoder_layers = 4
    a.decoder_width = 0  # 0: as wide as the encoder
    a.decoder_ffn_width = 0  # 0: in proportion
    a.masked_in_encoder = 0.0  # share of the masked positions that the encoder sees, as masking replaced them
    a.reset_masked = False  # the decoder finds [MASK]'s embedding there, not the encoder's output
    a.renumber_positions = False  # the encoder counts the kept tokens; else they keep their original positions
    a.kept_margin = 0.125  # share of a row that may be special tokens before its kept tokens overflow; 1 always fits

    c.exlm = e = ml_collections.ConfigDict()  # of the objective exlm alone; more in objectives/exlm.py
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


def row_length(config: ml_collections.ConfigDict) -> int:
    """Tokens in a row of the model: those of the text, and their copies where masking repeats them."""
    return config.masking.repeats * config.sequence_length
