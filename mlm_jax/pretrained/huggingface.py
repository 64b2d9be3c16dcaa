"""BERT and RoBERTa of `transformers`: their directories, and their weights as parameters of the objective `mlm`.

Neither PyTorch nor transformers is imported: a directory is `config.json` and safetensors, read and written by the
package of that name (extra `huggingface`); weights are plain arrays, and a pytree here. Both models are the RoBERTa
recipe of `EncoderConfig` with other numbers: norm_epsilon is the `layer_norm_eps` of their configuration, and RoBERTa's
rows hold pad_id + 1 positions fewer than its table has.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mlm_jax.files import git_lfs
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.mlm import MLM
from mlm_jax.pretrained.state_dict import StateDict, block_params, stack_layers

CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = 'config.json', 'model.safetensors', 'model.safetensors.index.json'

_ARCHITECTURES = {'BertForMaskedLM': 'bert', 'BertForPreTraining': 'bert', 'RobertaForMaskedLM': 'roberta'}
# What a checkpoint holds besides an MLM: the parts that predict the next sentence, and are left out.
_LARGEST = 1 << 31
_NEXT_SENTENCE = ('bert.pooler.', 'roberta.pooler.', 'cls.seq_relationship.')
# Key of config.json → the only value that there is a place for here, which is also what a missing key means.
_FIXED = {
    'hidden_act': 'gelu',  # the exact one; gelu_new and gelu_pytorch_tanh are approximations
    'position_embedding_type': 'absolute',
    'tie_word_embeddings': True,
    'is_decoder': False,
    'add_cross_attention': False,
}
# What BERT has no place for: the values of EncoderConfig that it does have.
_BERT_RECIPE = {
    'positions': 'learned', 'relative_buckets': 0, 'norm': 'post', 'embedding_norm': True, 'bias': True, 'mlp': 'gelu',
    'local_window': 0, 'norm_type': 'layer_norm', 'tied_head': True, 'head': 'dense',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """What `config.json` of a directory says."""

    kind: str  # 'bert' or 'roberta'
    pad_id: int
    encoder: EncoderConfig


def from_hf(directory: str | pathlib.Path) -> tuple[MLM, dict]:
    """The module and the parameters of a BertForMaskedLM or RobertaForMaskedLM, as `save_pretrained` leaves it.

    Of a BertForPreTraining, and of checkpoints that hold a pooler, what predicts the next sentence is left out. Weights
    of any float type become float32.

    Args:
      directory: with config.json, and model.safetensors or its shards.

    Returns:
      The module `MLM`, with the dropout of the checkpoint, and its parameters. Rows may be as long as the position
      table has rows: `module.config.max_length`.

    Raises:
      FileNotFoundError: when a file is missing.
      ImportError: without the extra `huggingface`.
      ValueError: for another architecture, a recipe without a place here, damaged files, missing and unknown weights,
        weights whose shapes are not those of config.json, and an output embedding that is not tied.
    """
    directory = pathlib.Path(directory).expanduser()
    checkpoint = _read_config(directory)
    state_dict = {_modern_name(k): v for k, v in _read_weights(directory).items() if not k.startswith(_NEXT_SENTENCE)}
    c = checkpoint.encoder
    _check_shapes(state_dict, c, f'the weights in {directory}')
    if checkpoint.kind == 'bert':
        params = bert_params(state_dict, c.num_heads)
    else:
        params = roberta_params(state_dict, c.num_heads, checkpoint.pad_id)
    _check_sizes(c, params, f'the weights in {directory}')
    return MLM(c), params


def read_encoder_config(directory: str | pathlib.Path) -> EncoderConfig:
    """The encoder of a directory that `from_hf` reads, without its weights, whose files must be there.

    Raises:
      FileNotFoundError, ImportError, ValueError: as `from_hf`, for all that can be known from config.json.
    """
    directory = pathlib.Path(directory).expanduser()
    config = _read_config(directory).encoder
    _safetensors()
    for file in _weight_files(directory):
        with _opened(file):
            pass
    return config


def to_hf(config: EncoderConfig, params: Mapping, directory: str | pathlib.Path, *, pad_id: int = 0) -> None:
    """Writes an MLM as a BertForMaskedLM: `transformers.AutoModelForMaskedLM.from_pretrained(directory)` reads it.

    The tokenizer is not part of it. Token types have embeddings of zero.

    Args:
      config: of the encoder, as in `objective.config` of a model that `mlm_jax.load` returns.
      params: of the objective `mlm`.
      directory: made where it does not exist; files of these names are replaced.
      pad_id: the id of the padding, for config.json.

    Raises:
      ImportError: without the extra `huggingface`.
      ValueError: for parameters of another objective or of other sizes, and for a recipe that BERT cannot express.
    """
    reasons = [
        f'{key}={getattr(config, key)!r}, where BERT has {value!r}'
        for key, value in differences_from_bert(config).items()
    ]
    if reasons:
        raise ValueError(f'a BertForMaskedLM cannot express this encoder: {"; ".join(reasons)}')
    if set(params) != {'encoder', 'head'}:
        raise ValueError(
            f'a BertForMaskedLM is an encoder and a head, the parameters of the objective mlm; these have '
            f'{", ".join(sorted(params))}'
        )
    _check_sizes(config, params, 'the parameters')
    save_file = _safetensors().save_file
    directory = pathlib.Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    description = {
        'architectures': ['BertForMaskedLM'],
        'model_type': 'bert',
        'dtype': 'float32',
        **bert_description(config, pad_id),
    }
    # safetensors writes the memory of an array as it lies: transposed views must be copied first.
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in bert_arrays(params)}
    save_file(arrays, directory / WEIGHTS_FILE, metadata={'format': 'pt'})
    (directory / CONFIG_FILE).write_text(json.dumps(description, indent=2) + '\n', encoding='utf-8')


def differences_from_bert(config: EncoderConfig) -> dict[str, object]:
    """Key → the value that BERT has, of those keys of an encoder for whose own value BERT has no place."""
    found = {key: value for key, value in _BERT_RECIPE.items() if getattr(config, key) != value}
    if config.kv_heads != config.num_heads:
        found['num_kv_heads'] = 0
    if not config.norms_have_bias and 'norm_type' not in found:
        found['norm_bias'] = True
    return found


def bert_description(config: EncoderConfig, pad_id: int = 0) -> dict[str, object]:
    """The arguments of `transformers.BertConfig` for an encoder, as far as it is a BERT."""
    return {
        'vocab_size': config.vocab_size,
        'hidden_size': config.width,
        'num_hidden_layers': config.num_layers,
        'num_attention_heads': config.num_heads,
        'intermediate_size': config.ffn_width,
        'max_position_embeddings': config.max_length,
        'layer_norm_eps': config.norm_epsilon,
        'hidden_dropout_prob': config.dropout,
        'attention_probs_dropout_prob': config.attention_dropout,
        'initializer_range': config.init_stddev,
        'type_vocab_size': 2,
        'pad_token_id': pad_id,
        **_FIXED,
    }


def bert_params(state_dict: Mapping[str, np.ndarray], num_heads: int) -> dict:
    """Parameters of the objective `mlm` from a `BertForMaskedLM`.

    The embedding of token type 0, which single texts have everywhere, is added to each position.

    Args:
      state_dict: name → array, float, such as {k: v.numpy() for k, v in model.state_dict().items()}.
      num_heads: H; the weights do not show it.

    Returns:
      A pytree of float32 arrays.

    Raises:
      ValueError: for missing names, names without a place here, and an output embedding that is not tied.
    """
    source = StateDict(state_dict)
    head = {
        'dense': source.linear('cls.predictions.transform.dense'),
        'norm': source.norm('cls.predictions.transform.LayerNorm'),
        'bias': source['cls.predictions.bias'],
    }
    params = {'encoder': _encoder(source, 'bert', num_heads, first_position=0), 'head': head}
    _check_tied(source, params, 'cls.predictions.decoder')
    source.skip('bert.embeddings.position_ids')  # a range, stored by older versions
    source.check_all_read()
    return params


def roberta_params(state_dict: Mapping[str, np.ndarray], num_heads: int, pad_id: int = 1) -> dict:
    """Parameters of the objective `mlm` from a `RobertaForMaskedLM`.

    Its positions count from pad_id + 1; the rows of the table before that are dropped.

    Args:
      state_dict: name → array, float.
      num_heads: H.
      pad_id: `pad_token_id` of its configuration.

    Returns:
      A pytree of float32 arrays; the position table has pad_id + 1 rows fewer than theirs.

    Raises:
      ValueError: for missing names, names without a place here, and an output embedding that is not tied.
    """
    source = StateDict(state_dict)
    head = {
        'dense': source.linear('lm_head.dense'),
        'norm': source.norm('lm_head.layer_norm'),
        'bias': source['lm_head.bias'],
    }
    params = {'encoder': _encoder(source, 'roberta', num_heads, first_position=pad_id + 1), 'head': head}
    _check_tied(source, params, 'lm_head.decoder')
    source.skip('roberta.embeddings.position_ids')
    source.check_all_read()
    return params


def _check_tied(source: StateDict, params: dict, decoder: str) -> None:
    source.skip_equal(f'{decoder}.weight', params['encoder']['token_embedding']['embedding'])
    source.skip_equal(f'{decoder}.bias', params['head']['bias'])


def _encoder(source: StateDict, prefix: str, num_heads: int, first_position: int) -> dict:
    embeddings = f'{prefix}.embeddings'
    token_type = source[f'{embeddings}.token_type_embeddings.weight'][0]
    layers = [_layer(source, name, num_heads) for name in _layer_names(source, prefix)]
    return {
        'token_embedding': {'embedding': source[f'{embeddings}.word_embeddings.weight']},
        'position_embedding': {
            'embedding': source[f'{embeddings}.position_embeddings.weight'][first_position:] + token_type
        },
        'embedding_norm': source.norm(f'{embeddings}.LayerNorm'),
        'layers': stack_layers(layers),
    }


def _layer_names(source: StateDict, prefix: str) -> Iterator[str]:
    number = 0
    while f'{prefix}.encoder.layer.{number}.output.dense.weight' in source:
        yield f'{prefix}.encoder.layer.{number}'
        number += 1
    if not number:
        raise ValueError(f'the state dict has no layers named {prefix}.encoder.layer.0, …')


def _layer(source: StateDict, name: str, num_heads: int) -> dict:
    return block_params(
        source,
        num_heads,
        query=f'{name}.attention.self.query',
        key=f'{name}.attention.self.key',
        value=f'{name}.attention.self.value',
        out=f'{name}.attention.output.dense',
        attention_norm=f'{name}.attention.output.LayerNorm',
        up=f'{name}.intermediate.dense',
        down=f'{name}.output.dense',
        mlp_norm=f'{name}.output.LayerNorm',
    )


# ---- Directories ---------------------------------------------------------------------------------------------


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "checkpoints of Hugging Face need the package safetensors: pip install 'mlm_jax[huggingface]'"
        ) from None
    return safetensors.numpy


def _read_config(directory: pathlib.Path) -> _Checkpoint:
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f'{directory} has no {CONFIG_FILE}: it is no checkpoint as `save_pretrained` of transformers leaves it'
        )
    stored = _read_json(path)
    architectures = stored.get('architectures') or []
    if not isinstance(architectures, list):
        architectures = [architectures]
    kinds = {_ARCHITECTURES.get(str(name)) for name in architectures}
    kind = stored.get('model_type')
    if kind is None or kinds != {kind}:
        raise ValueError(
            f'{path} describes {", ".join(map(str, architectures)) or "no architecture"} (model_type {kind!r}); only '
            f'{" and ".join(_ARCHITECTURES)} can be read'
        )
    for key, value in _FIXED.items():
        if (actual := stored.get(key, value)) != value:
            raise ValueError(f'{path} has {key}={actual!r}: only {value!r} has a place here')
    get = functools.partial(_number, stored, path)

    def whole(key: str) -> int:
        return int(get(key))

    pad_id = _pad_id(stored, path, kind)
    vocab_size, width, num_heads = whole('vocab_size'), whole('hidden_size'), whole('num_attention_heads')
    num_positions = whole('max_position_embeddings')
    max_length = num_positions - (0 if kind == 'bert' else pad_id + 1)
    if max_length < 1:
        raise ValueError(
            f'{path} has max_position_embeddings={num_positions}: RoBERTa leaves the first pad_token_id + 1 = '
            f'{pad_id + 1} of them out, and none are left'
        )
    if pad_id >= vocab_size:
        raise ValueError(f'{path} has pad_token_id={pad_id}, which is no id below vocab_size={vocab_size}')
    if width % num_heads:
        raise ValueError(f'{path}: num_heads={num_heads} does not divide hidden_size={width}')
    encoder = EncoderConfig(
        vocab_size=vocab_size,
        max_length=max_length,
        num_layers=whole('num_hidden_layers'),
        width=width,
        num_heads=num_heads,
        ffn_width=whole('intermediate_size'),
        dropout=get('hidden_dropout_prob', 0.1),
        attention_dropout=get('attention_probs_dropout_prob', 0.1),
        norm_epsilon=get('layer_norm_eps', 1e-12),
        init_stddev=get('initializer_range', 0.02),
    )
    return _Checkpoint(kind, pad_id, encoder)


def _read_json(path: pathlib.Path) -> dict:
    """A JSON object; ValueError for anything else."""
    content = path.read_bytes()
    if git_lfs.is_pointer(content):
        raise ValueError(f'{path} is damaged: {git_lfs.REASON}')
    try:
        stored = json.loads(content.decode('utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is damaged: {error}') from None
    if not isinstance(stored, dict):
        raise ValueError(f'{path} holds a value of another type: a {type(stored).__name__}, not an object with keys')
    return stored


def _number(stored: dict, path: pathlib.Path, key: str, default: float | None = None) -> int | float:
    """A positive integer, or a finite float of 0 or more where `default` is one; ValueError for anything else."""
    if key not in stored and default is None:
        raise ValueError(f'{path} lacks {key!r}')
    value = stored.get(key, default)
    kinds, sort = ((int,), 'a positive integer') if default is None else ((int, float), 'a number of 0 or more')
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f'{path} holds a value of another type: {key}={value!r} should be {sort}')
    if not (1 if default is None else 0) <= value <= _LARGEST:
        raise ValueError(f'{path} has {key}={value!r}, which should be {sort}')
    return value


def _pad_id(stored: dict, path: pathlib.Path, kind: str) -> int:
    """The id of the padding; positions of RoBERTa count from it, while BERT needs none."""
    pad_id = stored.get('pad_token_id', 0 if kind == 'bert' else 1)
    if pad_id is None and kind == 'bert':
        return 0
    if isinstance(pad_id, bool) or not isinstance(pad_id, int) or pad_id < 0:
        raise ValueError(
            f'{path} has pad_token_id={json.dumps(pad_id)}: it should be the id of the padding'
            + ', from which positions count; in the RoBERTa that was published, 1' * (kind == 'roberta')
        )
    return pad_id


def _check_shapes(state_dict: Mapping[str, np.ndarray], config: EncoderConfig, name: str) -> None:
    """Raises ValueError where an array has a shape that cannot be; that of the tables is for `_check_sizes` to say."""
    width, ffn_width = config.width, config.ffn_width
    shapes = {
        r'embeddings\.(word|position|token_type)_embeddings\.weight': (None, width),
        r'LayerNorm\.(weight|bias)|layer_norm\.(weight|bias)': (width,),
        r'attention\.(self\.(query|key|value)|output\.dense)\.weight|(transform|lm_head)\.dense\.weight': (
            width,
            width,
        ),
        r'attention\.(self\.(query|key|value)|output\.dense)\.bias|(transform|lm_head)\.dense\.bias': (width,),
        r'intermediate\.dense\.weight': (ffn_width, width),
        r'intermediate\.dense\.bias': (ffn_width,),
        r'layer\.\d+\.output\.dense\.weight': (width, ffn_width),
        r'layer\.\d+\.output\.dense\.bias': (width,),
        r'(predictions|lm_head)\.bias': (None,),
    }
    for key, array in state_dict.items():
        for pattern, shape in shapes.items():
            if re.search(rf'(?:^|\.)(?:{pattern})$', key) and not _fits(array.shape, shape):
                expected = ' × '.join('any' if size is None else str(size) for size in shape)
                raise ValueError(
                    f'{name} are not what {CONFIG_FILE} says: {key} is {list(array.shape)}, not {expected}'
                )


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(b in (None, a) and a > 0 for a, b in zip(shape, expected))


def _check_sizes(config: EncoderConfig, params: Mapping, name: str) -> None:
    encoder, c = params['encoder'], config
    sizes = {
        'vocab_size × hidden_size': (encoder['token_embedding']['embedding'], (c.vocab_size, c.width)),
        'positions × hidden_size': (encoder['position_embedding']['embedding'], (c.max_length, c.width)),
        'vocab_size': (params['head']['bias'], (c.vocab_size,)),
        'num_hidden_layers × intermediate_size': (encoder['layers']['mlp']['up']['bias'], (c.num_layers, c.ffn_width)),
    }
    for key, (array, expected) in sizes.items():
        if np.shape(array) != expected:
            raise ValueError(f'{name} are {list(array.shape)}, where the configuration says {key} = {list(expected)}')


def _weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The file of the weights, or its shards."""
    files = [directory / WEIGHTS_FILE]
    if not files[0].is_file() and (directory / INDEX_FILE).is_file():
        files = [directory / name for name in _names_in_index(directory / INDEX_FILE)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f'{directory} lacks {", ".join(missing)}. Where it has pytorch_model.bin instead, save_pretrained of a '
            'current transformers writes it as safetensors'
        )
    return files


def _read_weights(directory: pathlib.Path) -> dict[str, np.ndarray]:
    load_file = _safetensors().load_file
    arrays: dict[str, np.ndarray] = {}
    for file in _weight_files(directory):
        with _opened(file):
            arrays |= load_file(file)
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating) and not name.endswith('.position_ids'):
            raise ValueError(f'{directory} has {name} as {array.dtype}: weights are floats here')
        if not np.isfinite(array.astype(np.float32)).all():
            raise ValueError(f'{directory} has {name} with NaN or infinite values: it is damaged, or has diverged')
    return arrays


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[None]:
    """A file of weights whose header fits its size; ValueError where it is damaged."""
    with file.open('rb') as stream:
        if git_lfs.is_pointer(stream.read(100)):
            raise ValueError(f'{file} is damaged: {git_lfs.REASON}')
    try:
        with _safetensors().safe_open(file, framework='np'):
            yield
    except Exception as error:  # SafetensorError, which cannot be named without the package
        raise ValueError(f'{file} is damaged: {error}') from error


def _names_in_index(path: pathlib.Path) -> list[str]:
    """The files that hold the weights, beside the index."""
    names = _read_json(path).get('weight_map')
    if not isinstance(names, dict) or not names:
        raise ValueError(f'{path} is damaged: its "weight_map" says of no weight in which file it is')
    for name in names.values():
        if not isinstance(name, str) or pathlib.PurePath(name).name != name:
            raise ValueError(f'{path} is damaged: {name!r} is no name of a file beside it')
    return sorted(set(names.values()))


def _modern_name(name: str) -> str:
    """The parameters of a LayerNorm were called gamma and beta in the first checkpoints of BERT."""
    return name.replace('LayerNorm.gamma', 'LayerNorm.weight').replace('LayerNorm.beta', 'LayerNorm.bias')


def bert_arrays(params: Mapping) -> Iterator[tuple[str, np.ndarray]]:
    """The names and arrays of a BertForMaskedLM, but for those that are tied to another."""

    def linear(name, kernel_and_bias):
        kernel, bias = (np.asarray(kernel_and_bias[key]) for key in ('kernel', 'bias'))
        yield f'{name}.weight', kernel.T
        yield f'{name}.bias', bias

    def norm(name, scale_and_bias):
        yield f'{name}.weight', np.asarray(scale_and_bias['scale'])
        yield f'{name}.bias', np.asarray(scale_and_bias['bias'])

    encoder, head = params['encoder'], params['head']
    tokens_Vxd = np.asarray(encoder['token_embedding']['embedding'])
    width = tokens_Vxd.shape[1]
    yield 'bert.embeddings.word_embeddings.weight', tokens_Vxd
    yield 'bert.embeddings.position_embeddings.weight', np.asarray(encoder['position_embedding']['embedding'])
    yield 'bert.embeddings.token_type_embeddings.weight', np.zeros((2, width))
    yield from norm('bert.embeddings.LayerNorm', encoder['embedding_norm'])
    stacked = encoder['layers']
    for number in range(len(stacked['mlp_norm']['scale'])):
        layer = jax.tree.map(lambda leaf, number=number: np.asarray(leaf[number]), stacked)
        name, attention = f'bert.encoder.layer.{number}', layer['attention']
        kernel, bias, out = attention['qkv']['kernel'], attention['qkv']['bias'], attention['out']
        for place, part in enumerate(('query', 'key', 'value')):
            one = {'kernel': kernel[:, place].reshape(width, width), 'bias': bias[place].reshape(width)}
            yield from linear(f'{name}.attention.self.{part}', one)
        one = {'kernel': out['kernel'].reshape(width, width), 'bias': out['bias']}
        yield from linear(f'{name}.attention.output.dense', one)
        yield from norm(f'{name}.attention.output.LayerNorm', layer['attention_norm'])
        yield from linear(f'{name}.intermediate.dense', layer['mlp']['up'])
        yield from linear(f'{name}.output.dense', layer['mlp']['down'])
        yield from norm(f'{name}.output.LayerNorm', layer['mlp_norm'])
    yield from linear('cls.predictions.transform.dense', head['dense'])
    yield from norm('cls.predictions.transform.LayerNorm', head['norm'])
    yield 'cls.predictions.bias', np.asarray(head['bias'])
