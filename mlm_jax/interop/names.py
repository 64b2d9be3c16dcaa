"""Names of weights: which parameter here is which weight there, as rules that are read in both directions.

A rule names one parameter (`encoder/layers/mlp/up/kernel`) and the weights that hold it; `{}` in their names stands for
the number of a layer, whose parameters are stacked here. Reading and writing are inverse to the bit: they only move
numbers. Whatever is missing, left over or of another shape is an error.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlm_jax.interop.description import CONFIG_FILE
from mlm_jax.interop.state_dict import StateDict

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter here, and the weights there that hold it.

    Attributes:
      path: of the parameter, its parts separated by slashes.
      names: of the weights; with `{}`, of one layer.
      shapes: of the weights; None fits any size.
      read: weights → parameter (of one layer).
      write: parameter (of one layer) → weights.
      sizes: what the sizes of the first weight are called in words, where `shapes` alone would not tell.
      missing: the layers that have no such weight there; their parameter is not used, and is as it starts in training.
    """

    path: str
    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    read: Callable[..., np.ndarray]
    write: Callable[[np.ndarray], Sequence[np.ndarray]]
    sizes: str = ''
    missing: tuple[int, ...] = ()

    @property
    def is_layered(self) -> bool:
        """Whether the weights are those of layers."""
        return '{}' in self.names[0]


# ---- Both directions -----------------------------------------------------------------------------------------------


def read(rules: Iterable[Rule], source: StateDict, num_layers: int) -> dict[str, Any]:
    """The tree of parameters, float32, from weights; ValueError for names that are missing."""
    tree: dict[str, Any] = {}
    for rule in rules:
        if rule.is_layered:
            layers = [
                None if i in rule.missing else rule.read(*(source[name.format(i)] for name in rule.names))
                for i in range(num_layers)
            ]
            present = [layer for layer in layers if layer is not None]
            like = present[0] if present else np.zeros([size or 0 for size in rule.shapes[0]])
            unused = np.zeros_like(like) if rule.path.endswith('/bias') else np.ones_like(like)
            array = np.stack([unused if layer is None else layer for layer in layers])
        else:
            array = rule.read(*(source[name] for name in rule.names))
        _put(tree, rule.path, np.ascontiguousarray(array, np.float32))
    return tree


def write(rules: Sequence[Rule], params: Mapping) -> Iterator[tuple[str, np.ndarray]]:
    """The names and arrays of all weights; ValueError for parameters that the rules lack, and the other way round."""
    leaves = dict(leaves_of(params))
    paths = [rule.path for rule in rules]
    if different := sorted(set(paths) ^ set(leaves)):
        raise ValueError(f'parameters without a name, or names without a parameter: {", ".join(different)}')
    for rule in rules:
        array = np.asarray(leaves[rule.path])
        parts = enumerate(array) if rule.is_layered else [(0, array)]
        for number, part in parts:
            if number not in rule.missing or not rule.is_layered:
                names = [name.format(number) if rule.is_layered else name for name in rule.names]
                yield from zip(names, rule.write(part), strict=True)


def check_shapes(
    rules: Iterable[Rule], arrays: Mapping[str, np.ndarray], num_layers: int, ffn_width: int, name: str
) -> None:
    """Raises ValueError, calling the arrays `name`, where one has another shape than its rule says, or layers lack."""
    rules = list(rules)
    for rule in rules:
        for key, shape in _shapes_by_name(rule, num_layers):
            if key in arrays and not _fits(arrays[key].shape, shape):
                expected = ' × '.join('any' if size is None else str(size) for size in shape)
                raise ValueError(
                    f'{name} are not what {CONFIG_FILE} says: {key} is {list(arrays[key].shape)}, not {expected}'
                )
    if (found := count_layers(rules, arrays)) not in (0, num_layers):
        raise ValueError(
            f'{name} are {[found, ffn_width]}, where the configuration says num_hidden_layers × intermediate_size = '
            f'{[num_layers, ffn_width]}'
        )
    for rule in rules:
        key, shape = rule.names[0], rule.shapes[0]
        if rule.sizes and key in arrays and arrays[key].shape != shape:
            raise ValueError(
                f'{name} are {list(arrays[key].shape)}, where the configuration says {rule.sizes} = {list(shape)}'
            )


def count_layers(rules: Iterable[Rule], names: Iterable[str]) -> int:
    """How many layers there are in names: one more than the highest number of a layer."""
    patterns = [
        re.escape(name).replace(r'\{\}', r'(\d{1,6})') for rule in rules if rule.is_layered for name in rule.names
    ]
    pattern = re.compile('|'.join(f'(?:{pattern})' for pattern in patterns))
    matches = filter(None, map(pattern.fullmatch, names))
    return max((int(next(filter(None, match.groups()))) + 1 for match in matches), default=0)


def leaves_of(tree: Mapping, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """(path, leaf) of all leaves of a tree of dictionaries."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves_of(value, f'{prefix}{key}/')
        else:
            yield f'{prefix}{key}', value


def _put(tree: dict, path: str, leaf: np.ndarray) -> None:
    *parents, last = path.split('/')
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = leaf


def _shapes_by_name(rule: Rule, num_layers: int) -> Iterator[tuple[str, Shape]]:
    """(name, shape) of the weights of a rule; sizes that are told in words come later, and fit here."""
    for name, shape in zip(rule.names, rule.shapes, strict=True):
        loose = (None, *shape[1:]) if rule.sizes and name == rule.names[0] else shape
        for number in range(num_layers) if rule.is_layered else (0,):
            yield (name.format(number) if rule.is_layered else name), loose


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    return len(shape) == len(expected) and all(b in (None, a) and a > 0 for a, b in zip(shape, expected, strict=True))


# ---- Rules -----------------------------------------------------------------------------------------------------------


def plain(path: str, name: str, shape: Shape, sizes: str = '', missing: tuple[int, ...] = ()) -> Rule:
    """A parameter that is one weight."""
    return Rule(path, (name,), (shape,), lambda x: x, lambda x: (x,), sizes, missing)


def linear(path: str, name: str, inputs: int, outputs: int, bias: bool = True) -> list[Rule]:
    """A torch.nn.Linear; a kernel is [inputs, outputs] here, and [outputs, inputs] there."""
    kernel = Rule(f'{path}/kernel', (f'{name}.weight',), ((outputs, inputs),), np.transpose, lambda x: (x.T,))
    return [kernel, *([plain(f'{path}/bias', f'{name}.bias', (outputs,))] * bias)]


def norm(path: str, name: str, width: int, bias: bool = True, missing: tuple[int, ...] = ()) -> list[Rule]:
    """A LayerNorm, or an RMSNorm, which has no bias."""
    parts = {'scale': 'weight', **({'bias': 'bias'} if bias else {})}
    return [plain(f'{path}/{ours}', f'{name}.{theirs}', (width,), missing=missing) for ours, theirs in parts.items()]


def position_table(path: str, name: str, token_type: str, length: int, width: int, first: int, num_types: int) -> Rule:
    """Learned positions.

    Args:
      path: of the parameter.
      name: of their table.
      token_type: the table of token types, whose row 0, which single texts have everywhere, is added to each position;
        rows of zeros are written. '' where there is none.
      length: rows here.
      width: d.
      first: rows of their table before the one of the first position.
      num_types: rows of the token types that are written.
    """

    def read(table, *types):
        return table[first:] + (types[0][0] if types else 0)

    def write(table):
        rows = np.concatenate([np.zeros((first, width), table.dtype), table]) if first else table
        return rows, *([np.zeros((num_types, width), table.dtype)] * bool(token_type))

    names = (name, token_type) if token_type else (name,)
    shapes = ((length + first, width), (None, width))[: len(names)]
    return Rule(path, names, shapes, read, write, 'positions × hidden_size')


TOKEN_TABLE = 'encoder/token_embedding/embedding'


def token_table(name: str, vocab_size: int, width: int) -> Rule:
    """The token embedding."""
    return plain(TOKEN_TABLE, name, (vocab_size, width), 'vocab_size × hidden_size')


def output_table(name: str, e: Any) -> list[Rule]:
    """The matrix that predicts tokens, where it is not the token embedding."""
    shape = e.vocab_size, e.width
    return [] if e.tied_head else [plain('head/output_embedding/embedding', name, shape, 'vocab_size × hidden_size')]


def gated(path: str, names: tuple[str, ...], width: int, ffn_width: int, bias: bool) -> list[Rule]:
    """The gate, and what it gates, of a gated MLP: [d, 2, F] here; one matrix of both halves there, or two."""
    whole = (len(names) == 1) * 2 or 1  # halves in a matrix there

    def read(*matrices):
        return np.stack([half.T for m in matrices for half in np.split(m, whole)], axis=1)

    def write(kernel_dx2xF):
        halves = [kernel_dx2xF[:, 0].T, kernel_dx2xF[:, 1].T]
        return [np.concatenate(halves)] if whole == 2 else halves

    def read_bias(*biases):
        return np.concatenate(biases).reshape(2, ffn_width)

    def write_bias(bias_2xF):
        return [bias_2xF.reshape(-1)] if whole == 2 else list(bias_2xF)

    outputs = whole * ffn_width
    kernels, biases = (tuple(f'{name}.{part}' for name in names) for part in ('weight', 'bias'))
    rules = [Rule(f'{path}/kernel', kernels, ((outputs, width),) * len(names), read, write)]
    return rules + bias * [Rule(f'{path}/bias', biases, ((outputs,),) * len(names), read_bias, write_bias)]


def queries_keys_values(
    path: str, names: tuple[str, ...], width: int, num_heads: int, bias: bool, order: np.ndarray | None = None
) -> list[Rule]:
    """The projections to queries, keys and values: [d, 3, H, D] here; one matrix of all three there, or three.

    Args:
      path: of the parameters.
      names: of the linear layers.
      width: d.
      num_heads: H, each of width D = d / H.
      bias: whether they have biases.
      order: int[D]; feature i of a head of their queries and keys is feature order[i] of ours. None: the same.
    """
    heads = (num_heads, width // num_heads)

    def reordered(qkv, to_ours: bool):
        """[3, H, D, …] with the features of queries and keys in the order of the other side."""
        if order is None:
            return qkv
        return np.concatenate([qkv[:2, :, np.argsort(order) if to_ours else order], qkv[2:]])

    def read(*matrices):
        qkv_3xHxDxd = np.concatenate(matrices).reshape(3, *heads, width)
        return np.moveaxis(reordered(qkv_3xHxDxd, True), -1, 0)

    def write(kernel_dx3xHxD):
        qkv = reordered(np.moveaxis(kernel_dx3xHxD, 0, -1), False).reshape(3 * width, width)
        return np.split(qkv, len(names))

    def read_bias(*biases):
        return reordered(np.concatenate(biases).reshape(3, *heads), True)

    def write_bias(bias_3xHxD):
        return np.split(reordered(bias_3xHxD, False).reshape(-1), len(names))

    outputs = 3 * width // len(names)
    kernels, biases = (tuple(f'{name}.{part}' for name in names) for part in ('weight', 'bias'))
    rules = [Rule(f'{path}/kernel', kernels, ((outputs, width),) * len(names), read, write)]
    return rules + bias * [Rule(f'{path}/bias', biases, ((outputs,),) * len(names), read_bias, write_bias)]


def attention_output(path: str, name: str, width: int, num_heads: int, bias: bool) -> list[Rule]:
    """The linear layer behind the heads: [H, D, d] here."""
    heads = (num_heads, width // num_heads)

    def read(weight):
        return weight.T.reshape(*heads, width)

    def write(kernel_HxDxd):
        return (kernel_HxDxd.reshape(-1, width).T,)

    rules = [Rule(f'{path}/kernel', (f'{name}.weight',), ((width, width),), read, write)]
    return rules + bias * [plain(f'{path}/bias', f'{name}.bias', (width,))]


def grouped_queries_keys_values(
    path: str, names: tuple[str, ...], width: int, num_heads: int, num_kv_heads: int, bias: bool
) -> list[Rule]:
    """The same where there are fewer heads of keys and values than of queries: two parameters here."""
    head_width = width // num_heads
    groups = (('query', names[:1], num_heads), ('key_value', names[1:], num_kv_heads))
    return [
        rule
        for part, there, heads in groups
        for rule in _grouped(f'{path}/{part}', there, width, heads, head_width, bias)
    ]


def _grouped(path: str, names: tuple[str, ...], width: int, heads: int, head_width: int, bias: bool) -> list[Rule]:
    """[d, H, D] here for one matrix there, [d, 2, K, D] for two."""
    shape = (len(names), heads, head_width)[len(names) == 1 :]

    def read(*matrices):
        return np.concatenate(matrices).T.reshape(width, *shape)

    def write(kernel):
        return np.split(kernel.reshape(width, -1).T, len(names))

    def read_bias(*biases):
        return np.concatenate(biases).reshape(shape)

    def write_bias(bias):
        return np.split(bias.reshape(-1), len(names))

    outputs = heads * head_width
    kernels, biases = (tuple(f'{name}.{part}' for name in names) for part in ('weight', 'bias'))
    rules = [Rule(f'{path}/kernel', kernels, ((outputs, width),) * len(names), read, write)]
    return rules + bias * [Rule(f'{path}/bias', biases, ((outputs,),) * len(names), read_bias, write_bias)]
