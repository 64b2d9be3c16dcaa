"""What an architecture of `transformers` is: its classes, what it fixes of an encoder, and the names of its weights."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mlm_jax.interop import names
from mlm_jax.interop.description import Description
from mlm_jax.interop.names import Rule

_OF_THE_MACHINE = ('dtype', 'attention_backend', 'scan_unroll', 'remat')  # attributes that change no number
# The encoder of BERT, as attributes of EncoderConfig. What other architectures fix differs in a few of them.
BERT_RECIPE: dict[str, Any] = {
    'positions': 'learned', 'relative_buckets': 0, 'norm': 'post', 'embedding_norm': True, 'bias': True, 'mlp': 'gelu',
    'norm_bias': True, 'norm_type': 'layer_norm', 'first_norm': True, 'local_window': 0, 'num_kv_heads': 0,
    'tied_head': True, 'head': 'dense', 'zeroed_token': -1,
}  # fmt: skip

_POSITION_IDS = 'embeddings.position_ids'  # 0, 1, 2 … in checkpoints that transformers before 4.31 wrote
HEAD_KEYS = ('tied_head', 'head')
Encoder = types.SimpleNamespace  # with the attributes of EncoderConfig, which needs JAX


def recipe(*free: str, **values: Any) -> dict[str, Any]:
    """BERT's recipe with other values, and without the attributes that `read` tells."""
    return {key: value for key, value in BERT_RECIPE.items() if key not in free} | values


@dataclasses.dataclass(frozen=True)
class Constant:
    """A weight that holds numbers that follow from the configuration.

    Attributes:
      array: float.
      what: it is, as the end of a sentence.
      rows: how many of its rows must be these; None means all.
      is_written: whether an export has it; it may be missing in what is read.
    """

    array: np.ndarray
    what: str
    rows: int | None = None
    is_written: bool = True

    def holds(self, stored: np.ndarray) -> bool:
        """Whether a stored weight is this, as far as float32 tells, or the dtype of the weight if that is coarser."""
        stored, array = stored[: self.rows], self.array[: self.rows]
        rounded = array.astype(stored.dtype).astype(np.float64)
        return stored.shape == array.shape and np.allclose(stored.astype(np.float64), rounded, rtol=1e-5, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Head:
    """BERT's prediction head, by the names of its parts; the output matrix is that of the token embedding.

    Attributes:
      dense: the layer before the output matrix.
      norm: the LayerNorm behind it.
      bias: of the outputs.
      decoder: the output layer, which checkpoints may hold as a copy of the token embedding and of the bias.
    """

    dense: str
    norm: str
    bias: str
    decoder: str

    def rules(self, e: Encoder) -> list[Rule]:
        """Its weights."""
        return [
            *names.linear('head/dense', self.dense, e.width, e.width),
            *names.norm('head/norm', self.norm, e.width),
            names.plain('head/bias', self.bias, (e.vocab_size,), 'vocab_size'),
        ]

    def tied(self) -> dict[str, str]:
        """Its copies, as `Architecture.tied` returns them."""
        copies = {f'{self.decoder}.weight': names.TOKEN_TABLE, f'{self.decoder}.bias': 'head/bias'}
        return {name: path for name, path in copies.items() if name != self.bias}


BERT_HEAD = Head(
    'cls.predictions.transform.dense', 'cls.predictions.transform.LayerNorm', 'cls.predictions.bias',
    'cls.predictions.decoder',
)  # fmt: skip
LM_HEAD = Head('lm_head.dense', 'lm_head.layer_norm', 'lm_head.bias', 'lm_head.decoder')


class Architecture:
    """The base class of all architectures; subclasses override what differs from a BERT.

    Attributes:
      title: its name in messages.
      model_type: as in config.json.
      masked_lm: the class of its masked language model.
      base: the class of its encoder alone.
      also_read: other classes with the same weights, and of the same `model_type`.
      prefix: of the weights of the encoder in `masked_lm`.
      fixed: key of config.json → the only value that there is a place for here, which is also what a missing key means.
      recipe: attribute of EncoderConfig → the only value that there is a place for there; a tuple of values where
        `read` tells which.
      head: its prediction head; subclasses with a head of another kind override `head_rules` and `tied` instead.
      left_out: prefixes of weights that are in checkpoints, but belong to neither the encoder nor the prediction head.
    """

    title: str
    model_type: str
    masked_lm: str
    base: str
    also_read: tuple[str, ...] = ()
    prefix: str
    fixed: ClassVar[Mapping[str, Any]]
    recipe: ClassVar[Mapping[str, Any]] = BERT_RECIPE
    head: Head = BERT_HEAD
    left_out: tuple[str, ...] = ()

    # ---- Configurations ----------------------------------------------------------------------------------------------

    def read(self, d: Description, pad_id: int) -> dict[str, Any]:
        """The attributes of EncoderConfig that `recipe` does not fix; ValueError for what has no place here."""
        raise NotImplementedError

    def describe(self, e: Encoder, pad_id: int) -> dict[str, Any]:
        """The keys of config.json that `read` reads, without those in `fixed` and the special ids."""
        raise NotImplementedError

    def pad_id(self, d: Description) -> int:
        """The id of the padding that a config.json tells."""
        return d.pad_id(0)

    def encoder(self, d: Description) -> tuple[Encoder, int]:
        """The encoder that a config.json describes, with all attributes that decide what it computes, and its padding.

        Raises:
          ValueError: for what has no place here, and for values that cannot be.
        """
        d.check_fixed(self.fixed)
        pad_id = self.pad_id(d)
        single = {key: value for key, value in self.recipe.items() if not isinstance(value, tuple)}
        e = Encoder(**(single | self.read(d, pad_id)))
        if getattr(e, 'norm_bias', None) == e.bias:
            e.norm_bias = None  # as a configuration has it
        if pad_id >= e.vocab_size:
            raise ValueError(f'{d.path} has pad_token_id={pad_id}, which is no id below vocab_size={e.vocab_size}')
        if e.width % e.num_heads:
            raise ValueError(f'{d.path}: num_heads={e.num_heads} does not divide hidden_size={e.width}')
        return e, pad_id

    def differences(self, e: Encoder, has_head: bool = True) -> dict[str, Any]:
        """Key → the value (or values) that it has there, of those attributes whose own value has no place there.

        Args:
          e: of the encoder.
          has_head: whether the prediction head is to go there, too.
        """
        actual = effective(e)
        found = {
            key: value
            for key, value in self.recipe.items()
            if actual[key] not in (value if isinstance(value, tuple) else (value,))
            and (has_head or key not in HEAD_KEYS)
        }
        if e.norm_bias in (None, e.bias) and found.keys() & {'bias', 'norm_type'}:
            found.pop('norm_bias', None)  # it follows from these
        if self.recipe['norm'] == 'post':
            found.pop('first_norm', None)  # which only pre-LN can lack
        return found

    def own_keys(self, e: Encoder) -> dict[str, Any]:
        """What `read` needs of an encoder, and config.json has no key for."""
        del e
        return {}

    def notes(self, e: Encoder, pad_id: int) -> list[str]:
        """What a user of an export should know, in sentences."""
        del e, pad_id
        return []

    # ---- Weights -----------------------------------------------------------------------------------------------------

    def encoder_rules(self, e: Encoder, prefix: str, pad_id: int) -> list[Rule]:
        """The weights of the encoder; `prefix` ends with a dot, or is ''."""
        raise NotImplementedError

    def head_rules(self, e: Encoder) -> list[Rule]:
        """The weights of the prediction head."""
        return self.head.rules(e)

    def tied(self, e: Encoder, prefix: str) -> dict[str, str]:
        """Weight → the path of the parameter that it is a copy of, where a checkpoint has it."""
        del e, prefix
        return self.head.tied()

    def constants(self, e: Encoder, prefix: str) -> dict[str, Constant]:
        """Weights that follow from the configuration."""
        del e, prefix
        return {}

    def unused(self, e: Encoder, prefix: str) -> dict[str, np.ndarray]:
        """Weights that the class has and nothing here uses, with what an export writes; they are in `left_out`."""
        del e, prefix
        return {}

    def ignored(self, name: str) -> bool:
        """Whether a weight holds nothing of the encoder and its prediction head."""
        return name.startswith(self.left_out) or name.endswith(_POSITION_IDS)

    def modern_name(self, name: str) -> str:
        """The name here of a weight that some checkpoints call otherwise: gamma and beta of a LayerNorm in old ones."""
        return name.replace('LayerNorm.gamma', 'LayerNorm.weight').replace('LayerNorm.beta', 'LayerNorm.bias')


def deciding(e: Any) -> dict[str, Any]:
    """The attributes that decide what an encoder computes and what its parameters are, but for its tables' lengths."""
    found = effective(e)
    for key in ('vocab_size', 'max_length', 'dropout', 'attention_dropout', 'init_stddev', *_OF_THE_MACHINE):
        found.pop(key, None)
    if e.positions == 'learned':
        del found['rotary_base']
    if not e.local_window:
        del found['global_every'], found['rotary_base_local']
    if not e.relative_buckets:
        del found['relative_max_distance'], found['relative_bucketing']
    return found


def effective(e: Any) -> dict[str, Any]:
    """The attributes of an encoder, with what stands for another value replaced by that."""
    found = dict(vars(e))
    found['norm_bias'] = e.bias if found.get('norm_bias') is None else found['norm_bias']
    if found['norm_type'] == 'rms_norm':
        found['norm_bias'] = False
    found['rotary_base_local'] = None if e.rotary_base_local == e.rotary_base else e.rotary_base_local
    found['num_kv_heads'] = 0 if found['num_kv_heads'] in (0, e.num_heads) else found['num_kv_heads']
    found['first_norm'] = found['first_norm'] or found['norm'] == 'post'
    return found


def bert_layers(e: Encoder, layer: str, order: Any = None, **parts: str) -> list[Rule]:
    """The layers of BERT and its relatives.

    Args:
      e: of the encoder.
      layer: the name of a layer, with {} for its number.
      order: of the features of queries and keys in their heads (`names.queries_keys_values`).
      parts: our name of a part → theirs, behind that of the layer, where it differs from BERT's.
    """
    p = {
        'query': 'attention.self.query', 'key': 'attention.self.key', 'value': 'attention.self.value',
        'out': 'attention.output.dense', 'attention_norm': 'attention.output.LayerNorm', 'up': 'intermediate.dense',
        'down': 'output.dense', 'mlp_norm': 'output.LayerNorm',
    } | parts  # fmt: skip
    p = {ours: f'{layer}.{theirs}' for ours, theirs in p.items()}
    ours = 'encoder/layers'
    return [
        *names.queries_keys_values(
            f'{ours}/attention/qkv', (p['query'], p['key'], p['value']), e.width, e.num_heads, True, order
        ),
        *names.attention_output(f'{ours}/attention/out', p['out'], e.width, e.num_heads, True),
        *names.norm(f'{ours}/attention_norm', p['attention_norm'], e.width),
        *names.linear(f'{ours}/mlp/up', p['up'], e.width, e.ffn_width),
        *names.linear(f'{ours}/mlp/down', p['down'], e.ffn_width, e.width),
        *names.norm(f'{ours}/mlp_norm', p['mlp_norm'], e.width),
    ]


def bert_embeddings(e: Encoder, there: str, first: int, num_types: int = 0) -> list[Rule]:
    """The embeddings of tokens, positions and types, and their LayerNorm, by BERT's names below `there`.

    Args:
      e: of the encoder.
      there: the module, without a dot at its end.
      first: the row of the position table at which positions begin.
      num_types: the number of token types; 0 where there is no table of them.
    """
    types_table = f'{there}.token_type_embeddings.weight' if num_types else ''
    return [
        names.token_table(f'{there}.word_embeddings.weight', e.vocab_size, e.width),
        names.position_table(
            'encoder/position_embedding/embedding', f'{there}.position_embeddings.weight', types_table, e.max_length,
            e.width, first=first, num_types=num_types,
        ),
        *names.norm('encoder/embedding_norm', f'{there}.LayerNorm', e.width),
    ]  # fmt: skip


def bert_sizes(d: Description, num_positions: int, epsilon: float = 1e-12) -> dict[str, Any]:
    """The attributes that most config.json name alike."""
    return {
        'vocab_size': d.whole('vocab_size'),
        'max_length': num_positions,
        'num_layers': d.whole('num_hidden_layers'),
        'width': d.whole('hidden_size'),
        'num_heads': d.whole('num_attention_heads'),
        'ffn_width': d.whole('intermediate_size'),
        'dropout': d.number('hidden_dropout_prob', 0.1),
        'attention_dropout': d.number('attention_probs_dropout_prob', 0.1),
        'norm_epsilon': d.number('layer_norm_eps', epsilon),
        'init_stddev': d.number('initializer_range', 0.02),
    }


def describe_sizes(e: Encoder, num_positions: int) -> dict[str, Any]:
    """The keys that `bert_sizes` reads."""
    return {
        'vocab_size': e.vocab_size,
        'hidden_size': e.width,
        'num_hidden_layers': e.num_layers,
        'num_attention_heads': e.num_heads,
        'intermediate_size': e.ffn_width,
        'max_position_embeddings': num_positions,
        'layer_norm_eps': e.norm_epsilon,
        'hidden_dropout_prob': e.dropout,
        'attention_probs_dropout_prob': e.attention_dropout,
        'initializer_range': e.init_stddev,
    }
