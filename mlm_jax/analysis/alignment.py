"""Which states of ExLM emit the targets of one row, and along which transitions between states."""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from mlm_jax.data.packing import segment_ids
from mlm_jax.files.errors import ConfigError
from mlm_jax.losses.dag import dag_posterior, dag_viterbi
from mlm_jax.masking.batch import MaskedBatch, gather_positions, selected_of
from mlm_jax.objectives.objective import Objective
from mlm_jax.pretrained.model import Model
from mlm_jax.training import build
from mlm_jax.training.step import frozen_masks

LEAST = 0.02  # transitions with a smaller expected number of steps are not shown


def check_model(model: Model) -> None:
    """Raises ConfigError if the objective of the model has no transitions between states."""
    if reason := model.objective.refuses_alignment():
        raise ConfigError(f'objective={model.objective_name}: {reason}')


def align_row(model: Model, row: int, ratio: float) -> dict:
    """The alignment of a held-out row, masked as `analysis/entropy_report.py` masks it.

    Args:
      model: ExLM with transitions.
      row: the number of the row among the held-out rows, counted from 0.
      ratio: the share of the tokens that are masked.

    Returns:
      A dictionary that JSON can hold:
        `pieces`: the tokens of the row, without padding.
        `targets`: the E expanded tokens in reading order, each with its `position` in the row; its `piece`; `anchor`,
          whether it is expanded without being masked; its `probability`, given the context alone; `viterbi`, the state
          that emits it in the most likely alignment; and `emitted_by`, pairs [state, posterior] with a posterior above
          0.001.
        `states`: k states for each target, each with `target`, the index of the expanded token that the state is a copy
          of; `copy`, 1 … k; `occupancy`, the posterior probability that the state emits any target; and `top`, the most
          likely pieces as [piece, probability].
        `transitions`: [from state, to state, expected number of steps], where that number is above `LEAST`.
        `step`, `row` and `ratio`.

    Raises:
      ConfigError: for a model without transitions, a row number that is too large, and a row in which no token is
        masked or for which there is no alignment.
    """
    check_model(model)
    rows, tokenizer = model.held_out_rows(), model.tokenizer
    if row >= len(rows):
        raise ConfigError(f'--row={row}: there are {len(rows):,} held-out rows, numbered from 0')
    tokens_1xT = jnp.asarray(rows.read(np.array([row])))
    segments_1xT = segment_ids(tokens_1xT, tokenizer.vocabulary)
    masking = build.evaluation_masking(model.config, tokenizer.vocabulary, ratio)
    batch = frozen_masks(masking, tokens_1xT, segments_1xT, jnp.array([row]))
    if not (batch.positions < tokens_1xT.shape[1]).any():
        raise ConfigError(f'--row={row}: at a mask ratio of {ratio:g}, no token of this row is masked')
    found = jax.device_get(jax.jit(_align, static_argnums=0)(model.objective, model.params, batch))

    num_states = model.objective.options.num_states
    expanded_E = found['expanded'][found['expanded'] < tokens_1xT.shape[1]]
    count = len(expanded_E)
    viterbi_E = found['viterbi'][:count]
    if viterbi_E[0] < 0:
        raise ConfigError(f'--row={row}: this row has no alignment, because too few of its tokens are expanded')
    tokens_T, posterior_ExS = np.asarray(tokens_1xT[0]), found['posterior'][:count, : num_states * count]
    transitions_SxS = found['transitions'][: num_states * count, : num_states * count]
    return {
        'step': model.step,
        'row': row,
        'ratio': ratio,
        'pieces': tokenizer.pieces(tokens_T[np.asarray(segments_1xT[0]) > 0]),
        'targets': [
            {
                'position': int(position),
                'piece': tokenizer.id_to_piece(tokens_T[position]),
                'anchor': not bool(found['masked'][i]),
                'probability': float(found['probability'][i]),
                'viterbi': int(viterbi_E[i]),
                'emitted_by': _above(posterior_ExS[i], 0.001),
            }
            for i, position in enumerate(expanded_E)
        ],
        'states': [
            {
                'target': u // num_states,
                'copy': u % num_states + 1,
                'occupancy': float(posterior_ExS[:, u].sum()),
                'top': [
                    [tokenizer.id_to_piece(token), float(p)]
                    for token, p in zip(found['top'][u], found['top_probability'][u], strict=True)
                ],
            }
            for u in range(num_states * count)
        ],
        'transitions': [
            [int(v), int(u), float(transitions_SxS[v, u])] for v, u in np.argwhere(transitions_SxS > LEAST)
        ],
    }


def _align(objective: Objective, params: Mapping, batch: MaskedBatch) -> dict[str, jax.Array]:
    """The arrays of a batch of one row from which `align_row` makes its report, without the batch axis."""
    # The type that `apply` declares is that of `__call__`, whatever the method.
    alignment = cast(tuple[Any, jax.Array, jax.Array], objective.apply({'params': params}, batch, method='alignment'))
    states, match_1xExS, _ = alignment
    prior_1xExS = cast(jax.Array, objective.apply({'params': params}, states, method='prior'))
    rows = states.rows
    sizes = rows.num_targets, objective.options.num_states * rows.num_targets
    posterior_1xExS, transitions_1xSxS = dag_posterior(match_1xExS, states.links, *sizes)
    top_probability_1xSx3, top_1xSx3 = jax.lax.top_k(jax.nn.softmax(states.logits), 3)
    arrays = {
        'expanded': rows.expanded,
        'masked': gather_positions(selected_of(batch.positions, batch.tokens.shape[1]), rows.expanded),
        'probability': (prior_1xExS * jnp.exp(match_1xExS)).sum(2),
        'posterior': posterior_1xExS,
        'transitions': transitions_1xSxS,
        'viterbi': dag_viterbi(match_1xExS, states.links, *sizes),
        'top': top_1xSx3,
        'top_probability': top_probability_1xSx3,
    }
    return {name: x[0] for name, x in arrays.items()}


def _above(value_S: np.ndarray, least: float) -> list[list]:
    """Pairs [index, value] of the values above `least`."""
    return [[int(u), float(value_S[u])] for u in np.flatnonzero(value_S > least)]
