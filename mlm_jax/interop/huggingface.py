"""Weights of `transformers`' BERT and RoBERTa as parameters of the objective `mlm`.

Plain arrays in, a pytree out: neither PyTorch nor transformers is imported. Both models are the RoBERTa recipe of
`EncoderConfig` with other numbers: norm_epsilon is the `layer_norm_eps` of their configuration, and RoBERTa's rows hold
pad_id + 1 positions fewer than its table has.
"""

from collections.abc import Iterator, Mapping

import numpy as np


class StateDict:
    """A mapping of names to arrays that knows which were read, so that nothing is dropped unnoticed."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays, self._unread = arrays, set(arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        """The array as float32; ValueError where there is none."""
        if name not in self._arrays:
            raise ValueError(f'the state dict has no {name!r}; its names look like {", ".join(list(self._arrays)[:3])}')
        self._unread.discard(name)
        return np.asarray(self._arrays[name], np.float32)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def linear(self, name: str) -> dict[str, np.ndarray]:
        """A torch.nn.Linear: the kernel is [inputs, outputs] here."""
        return {'kernel': self[f'{name}.weight'].T, 'bias': self[f'{name}.bias']}

    def norm(self, name: str) -> dict[str, np.ndarray]:
        """A torch.nn.LayerNorm."""
        return {'scale': self[f'{name}.weight'], 'bias': self[f'{name}.bias']}

    def skip_equal(self, name: str, array: np.ndarray) -> None:
        """Marks a copy of `array` as read, if it is there; ValueError where it differs."""
        if name in self and not np.array_equal(self[name], array):
            raise ValueError(f'{name} differs from the weight that it is tied to; untied weights have no place here')

    def skip(self, *names: str) -> None:
        """Marks names as read that hold nothing to keep."""
        self._unread.difference_update(names)

    def check_all_read(self) -> None:
        """Raises ValueError with the names that nothing has read."""
        if self._unread:
            raise ValueError(f'the state dict holds weights without a place here: {", ".join(sorted(self._unread))}')


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
        'layers': _stack(layers),
    }


def _layer_names(source: StateDict, prefix: str) -> Iterator[str]:
    number = 0
    while f'{prefix}.encoder.layer.{number}.output.dense.weight' in source:
        yield f'{prefix}.encoder.layer.{number}'
        number += 1
    if not number:
        raise ValueError(f'the state dict has no layers named {prefix}.encoder.layer.0, …')


def _layer(source: StateDict, name: str, num_heads: int) -> dict:
    query, key, value = (source.linear(f'{name}.attention.self.{part}') for part in ('query', 'key', 'value'))
    width = query['kernel'].shape[0]
    if width % num_heads:
        raise ValueError(f'num_heads={num_heads} does not divide the width {width} of the weights')
    heads = (num_heads, width // num_heads)
    out = source.linear(f'{name}.attention.output.dense')
    return {
        'attention': {
            'qkv': {
                'kernel': np.stack([p['kernel'].reshape(width, *heads) for p in (query, key, value)], axis=1),
                'bias': np.stack([p['bias'].reshape(heads) for p in (query, key, value)]),
            },
            'out': {'kernel': out['kernel'].reshape(*heads, width), 'bias': out['bias']},
        },
        'attention_norm': source.norm(f'{name}.attention.output.LayerNorm'),
        'mlp': {'up': source.linear(f'{name}.intermediate.dense'), 'down': source.linear(f'{name}.output.dense')},
        'mlp_norm': source.norm(f'{name}.output.LayerNorm'),
    }


def _stack(trees: list):
    """One tree whose leaves have the layers in front."""
    if isinstance(trees[0], dict):
        return {key: _stack([tree[key] for tree in trees]) for key in trees[0]}
    return np.stack(trees)
