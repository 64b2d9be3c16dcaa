"""Weights of `transformers`' BERT and RoBERTa as parameters of the objective `mlm`.

Plain arrays in, a pytree out: neither PyTorch nor transformers is imported. Both models are the RoBERTa recipe of
`EncoderConfig` with other numbers: norm_epsilon is the `layer_norm_eps` of their configuration, and RoBERTa's rows hold
pad_id + 1 positions fewer than its table has.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from mlm_jax.interop.state_dict import StateDict, block_params, stack_layers


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
