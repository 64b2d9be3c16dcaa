"""Expanded rows, by their definition."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.masking.batch import MaskedBatch, positions_of
from mlm_jax.objectives.expansion import expand, row_ends

LENGTH = 12
SEGMENTS = {
    'full': [1] * 12,
    'packed': [1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0],
    'single token': [1] + [0] * 11,
    'empty': [0] * 12,
}


def by_definition(inputs, segments, expanded, num_states):
    """Slots of (token, segment, position in the document, copy, index), first slots and the slots of states."""
    slots, first_slot, states, start = [], [], [], 0
    for t in range(LENGTH):
        start = t if t == 0 or segments[t] != segments[t - 1] else start
        first_slot.append(len(slots))
        for copy in range(1, num_states + 1) if t in expanded else [0]:
            states += [len(slots)] if copy else []
            slots.append((inputs[t], segments[t], t - start, copy, t))
    return slots, first_slot, states


@hypothesis.given(st.sampled_from(list(SEGMENTS)), st.sets(st.integers(0, LENGTH - 1), max_size=5), st.integers(1, 4))
@hypothesis.settings(deadline=None, max_examples=60)
def test_rows_are_expanded_by_the_definition(name, masked, num_states):
    segments = np.array(SEGMENTS[name])
    masked = {t for t in masked if segments[t]}
    inputs = np.arange(10, 10 + LENGTH) * (segments > 0)
    selected = np.isin(np.arange(LENGTH), list(masked))[None]
    positions = positions_of(jnp.asarray(selected), 5)
    batch = MaskedBatch(*(jnp.asarray(x)[None] for x in (inputs, inputs)), positions, None, jnp.asarray(segments)[None])
    rows = jax.tree.map(
        lambda x: np.asarray(x)[0],
        jax.jit(expand, static_argnums=(2, 3))(batch, row_ends(batch.segments), 2, num_states),
    )
    real = np.flatnonzero(segments)
    expanded = sorted(masked | ({int(real[0]), int(real[-1])} if len(real) else set()))
    slots, first_slot, states = by_definition(inputs, segments, expanded, num_states)

    num_slots = len(rows.tokens)
    assert num_slots % 8 == 0 and num_slots >= LENGTH + (num_states - 1) * 7
    columns = [np.array(column) for column in zip(*slots, strict=True)]
    for array, column in zip(
        (rows.tokens, rows.segments, rows.positions, rows.copies, rows.index), columns, strict=True
    ):
        assert np.array_equal(array[: len(slots)], column)
    assert not rows.segments[len(slots) :].any() and np.all(rows.index[len(slots) :] == LENGTH)
    assert np.array_equal(rows.first_slot, first_slot)
    assert rows.expanded.tolist() == expanded + [LENGTH] * (7 - len(expanded))
    assert rows.state_slot.tolist() == states + [num_slots] * (7 * num_states - len(states))
    batched = jax.jit(expand, static_argnums=(2, 3))(batch, row_ends(batch.segments), 2, num_states)
    assert int(batched.num_targets[0]) == len(expanded)


@pytest.mark.parametrize(
    ('name', 'ends'), [('full', [0, 11]), ('packed', [0, 9]), ('single token', [0]), ('empty', [])]
)
def test_the_ends_of_a_row(name, ends):
    assert np.flatnonzero(row_ends(jnp.array(SEGMENTS[name])[None])[0]).tolist() == ends
