"""Expanded rows, by their definition."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.masking.batch import MaskedBatch, positions_of
from mlm_jax.objectives.expansion import alignments, ends, expand

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


@hypothesis.given(
    st.sampled_from(list(SEGMENTS)),
    st.sets(st.integers(0, LENGTH - 1), max_size=5),
    st.integers(1, 4),
    st.integers(1, 4),
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_rows_are_expanded_by_the_definition(name, masked, num_states, num_alignments):
    segments = np.array(SEGMENTS[name])
    masked = {t for t in masked if segments[t]}
    inputs = np.arange(10, 10 + LENGTH) * (segments > 0)
    selected = np.isin(np.arange(LENGTH), list(masked))[None]
    positions = positions_of(jnp.asarray(selected), 5)
    batch = MaskedBatch(*(jnp.asarray(x)[None] for x in (inputs, inputs)), positions, None, jnp.asarray(segments)[None])
    alignment_1xT = alignments(batch.segments, num_alignments)
    max_anchors = 2 * num_alignments
    expanded_rows = jax.jit(expand, static_argnums=(3, 4))(
        batch, alignment_1xT, ends(alignment_1xT), max_anchors, num_states
    )
    rows = jax.tree.map(lambda x: np.asarray(x)[0], expanded_rows)
    parts = [np.flatnonzero(np.minimum(segments, num_alignments) == a) for a in range(1, num_alignments + 1)]
    parts = [part for part in parts if len(part)]
    expanded = sorted(masked | {int(t) for part in parts for t in (part[0], part[-1])})
    slots, first_slot, states = by_definition(inputs, segments, expanded, num_states)

    num_slots, max_expanded = len(rows.tokens), min(LENGTH, 5 + max_anchors)
    assert num_slots % 8 == 0 and num_slots >= LENGTH + (num_states - 1) * max_expanded
    columns = [np.array(column) for column in zip(*slots, strict=True)]
    for array, column in zip(
        (rows.tokens, rows.segments, rows.positions, rows.copies, rows.index), columns, strict=True
    ):
        assert np.array_equal(array[: len(slots)], column)
    assert not rows.segments[len(slots) :].any() and np.all(rows.index[len(slots) :] == LENGTH)
    assert np.array_equal(rows.first_slot, first_slot)
    unused = max_expanded - len(expanded)
    assert rows.expanded.tolist() == expanded + [LENGTH] * unused
    assert rows.alignment.tolist() == [min(segments[t], num_alignments) for t in expanded] + [0] * unused
    starts = [next(first_slot[part[0]] for part in parts if t in part) for t in expanded]
    assert rows.state_slot.tolist() == states + [num_slots] * (unused * num_states)
    places = np.array(states).reshape(-1, num_states) - np.array(starts).reshape(-1, 1)
    assert rows.state_place[: len(states)].tolist() == places.flatten().tolist()
    assert int(expanded_rows.num_targets[0]) == len(expanded)


@pytest.mark.parametrize(
    ('name', 'num_alignments', 'expected'),
    [
        ('full', 1, [0, 11]),
        ('packed', 1, [0, 9]),
        ('packed', 2, [0, 3, 4, 9]),
        ('packed', 3, [0, 3, 4, 6, 7, 9]),
        ('packed', 9, [0, 3, 4, 6, 7, 9]),
        ('single token', 1, [0]),
        ('single token', 2, [0]),
        ('empty', 3, []),
    ],
)
def test_the_ends_of_alignments(name, num_alignments, expected):
    found = ends(alignments(jnp.array(SEGMENTS[name])[None], num_alignments))
    assert np.flatnonzero(found[0]).tolist() == expected
