"""From rows of tokens to a MaskedBatch, on the device, inside jit."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mlm_jax.masking import candidates as candidates_lib
from mlm_jax.masking import corruption, ratio_schedules, registry, selection
from mlm_jax.masking.batch import MaskedBatch, positions_of
from mlm_jax.masking.candidates import Candidates
from mlm_jax.masking.registry import FullyExplored
from mlm_jax.masking.tables import Tables, row_hash
from mlm_jax.masking.vocabulary import Vocabulary

# Streams of random bits within one draw. Streams 0 and 1 are the two keys of `split(key)`; their use must not change,
# for the masks of the evaluation, which are the same in every run, come from them.
_UNIT_STREAM, _RATIO_STREAM, _PREDICTED_STREAM = 2, 3, 4
_ROW_STREAM = 0x726F77  # keeps the keys of rows apart from the keys of steps
# Streams within a row's cycle. They lie above the streams of `least_masked`, two for each visit, and those of `split`.
_ROW_UNIT_STREAM, _ROW_RATIO_STREAM = 0x756E6974, 0x72617469


@dataclasses.dataclass(frozen=True)
class Masking:
    """A masking strategy with its settings: a pure function `(key, tokens, segments) → MaskedBatch`.

    The masks depend only on the key and on the shape of the global batch: they are identical, bit for bit, on any mesh,
    with any number of processes and with any split into microbatches. Strategies that take earlier visits of a row into
    account depend on the seed, the row's tokens and the number of the visit instead; no state is kept.

    Attributes:
      vocabulary: the special ids and the number of ids.
      strategy: a name in `registry.STRATEGIES`.
      ratio: the share of the eligible tokens of a row that are corrupted; `fully_explored` has 1/segments instead.
      mask_fraction: the share of the corrupted tokens that become [MASK].
      random_fraction: the share of the corrupted tokens that become a random ordinary token.
      unit: a name in `registry.UNITS`; the tokens of a unit are chosen together.
      schedule: how the ratio changes with the step; None keeps it constant.
      predicted_fraction: the share of the corrupted tokens that are predicted (arXiv 2202.08005); the others have no
        slot. To predict more tokens than one mask corrupts, use several disjoint masks: `fully_explored` with the
        schedule `subset`.
      corruption_unit: 'unit' draws between [MASK], random and unchanged once for all tokens of a unit (SpanBERT);
        'token' draws for each token.
      repeats: k > 1 puts k copies of each token side by side before tokens are chosen (repeated MLM, ExLM's pilot
        study); each copy is masked independently, and rows are k times as long.
      static_masks: 0 draws a new mask at every visit; n > 0 gives each row n masks, which it uses in turn (1 is static
        masking).
      fully_explored: the settings of the strategy `fully_explored`.
      tables: what units and sampling weights need from the tokenizer and the corpus.
      seed: the seed of masks that depend on the row rather than on the key.
      num_rows: the number of rows of an epoch, from which visits are counted; 0 if it is unknown, and every visit then
        counts as the first.
    """

    vocabulary: Vocabulary
    strategy: str = 'uniform'
    ratio: float = 0.15
    mask_fraction: float = 1.0
    random_fraction: float = 0.0
    unit: str = 'token'
    schedule: ratio_schedules.RatioSchedule | None = None
    predicted_fraction: float = 1.0
    corruption_unit: str = 'token'
    repeats: int = 1
    static_masks: int = 0
    fully_explored: FullyExplored = dataclasses.field(default_factory=FullyExplored)
    tables: Tables | None = None
    seed: int = 0
    num_rows: int = 0

    @property
    def _strategy(self) -> registry.Strategy:
        return registry.STRATEGIES[self.strategy]

    @property
    def has_fixed_count(self) -> bool:
        """Whether, at a constant ratio, at least ⌊ratio·N⌋ of the N eligible tokens of a row are masked."""
        return self._strategy.has_fixed_count(self)

    @property
    def ratio_schedule(self) -> ratio_schedules.RatioSchedule:
        """How the ratio changes with the step; constant unless `schedule` is set."""
        return self.schedule or ratio_schedules.RatioSchedule('constant', self.ratio, self.ratio)

    @property
    def num_views(self) -> int:
        """K, the number of rows of the MaskedBatch that each row of text becomes."""
        return self._strategy.num_views(self)

    @property
    def may_overflow(self) -> bool:
        """Whether more tokens can be chosen than there are slots; tokens without a slot stay unmasked."""
        return self._strategy.may_overflow(self)

    @property
    def cycle(self) -> int:
        """The number of visits of a row that depend on each other; 1 if the masks of all visits are independent."""
        return self._strategy.cycle(self.ratio_schedule.largest, self)

    @property
    def by_visit(self) -> bool:
        """Whether the mask of a row follows from the number of its visit, and not from the random key."""
        return self.static_masks > 0 or self._strategy.by_visit(self)

    def at_step(self, step: int) -> 'Masking':
        """The masking that draws at every step the ratios of one step."""
        return dataclasses.replace(self, schedule=self.ratio_schedule.frozen(step))

    def asked_ratio(self, step: ArrayLike, batch_size: int) -> float:
        """The mean ratio of the rows of a batch, as the strategy is asked for it."""
        if self._changes_by_visit and self.ratio_schedule.name != 'diffusion':
            visit_B = ratio_schedules.visits(step, batch_size, self.num_rows)
            ratio_B = self._visit_ratios(visit_B, visit_B)(visit_B % self.cycle)  # no keys are needed
        else:
            ratio_B, _ = self.ratio_schedule(jax.random.key(0), step, batch_size)
        return self._strategy.ratio(float(jnp.mean(ratio_B)), self)

    def max_masked(self, length: int) -> int:
        """M, the static number of slots for predicted positions in a row of `length` tokens of text."""
        return self._max_predicted(self.repeats * length)

    def __call__(
        self, key: jax.Array, tokens_BxT: jax.Array, segments_BxT: jax.Array, step: ArrayLike = 0
    ) -> MaskedBatch:
        """Masks the global batch.

        Args:
          key: a random key.
          tokens_BxT: int32[B, T].
          segments_BxT: int32[B, T], 0 on padding.
          step: int32[], the number of the update, which ratio schedules and the count of visits depend on.

        Returns:
          A MaskedBatch of B·K rows with K = `num_views`, in which the K rows of one text are adjacent. Its rows have
          `repeats`·T tokens and M = `max_masked(T)` slots.
        """
        return self.draw(key, tokens_BxT, segments_BxT, step)[0]

    def draw(
        self, key: jax.Array, tokens_BxT: jax.Array, segments_BxT: jax.Array, step: ArrayLike = 0
    ) -> tuple[MaskedBatch, jax.Array]:
        """The result of `__call__`, and int32[B·K], how many chosen tokens stayed unmasked for lack of a slot."""
        tokens_BxT, segments_BxT = (jnp.repeat(x, self.repeats, axis=1) for x in (tokens_BxT, segments_BxT))
        visit_B = ratio_schedules.visits(step, tokens_BxT.shape[0], self.num_rows)
        if self.static_masks:
            # Each row is masked from its own key, as a batch of one row.
            key_B = self._row_keys(tokens_BxT, visit_B % self.static_masks)
            one = jax.vmap(lambda key, tokens, segments: self._masked(key, tokens[None], segments[None], step, None))
            batch_BxK, overflow_BxK = one(key_B, tokens_BxT, segments_BxT)
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (batch_BxK, overflow_BxK))
        return self._masked(key, tokens_BxT, segments_BxT, step, visit_B)

    def _masked(self, key, tokens_BxT, segments_BxT, step, visit_B):
        length = tokens_BxT.shape[1]
        select_key, corrupt_key = jax.random.split(key)
        candidates, weight_B = self._candidates(select_key, tokens_BxT, segments_BxT, step, visit_B)
        selected = registry.function_of(self._strategy)(select_key, candidates)
        if selected.ndim == 3:  # several masks of each row: each becomes a row of its own
            selected, (candidates, tokens_BxT, segments_BxT, weight_B) = _repeat(
                selected, (candidates, tokens_BxT, segments_BxT, weight_B)
            )
        overflow_B = jnp.zeros(selected.shape[:1], jnp.int32)
        if self.may_overflow:
            selected, overflow_B = candidates_lib.limit(selected, candidates, self._max_corrupted(length))
        inputs_BxT = corruption.corrupt(
            corrupt_key, tokens_BxT, selected, self.vocabulary, self.mask_fraction, self.random_fraction,
            candidates.spread if self.corruption_unit == 'unit' else None,
        )  # fmt: skip
        if self.predicted_fraction < 1:
            part_key = jax.random.fold_in(key, _PREDICTED_STREAM)
            selected = selection.uniform(part_key, _tokens(candidates, selected, self.predicted_fraction))
        positions_BxM = positions_of(selected, self._max_predicted(length))
        batch = MaskedBatch(
            tokens=tokens_BxT,
            inputs=inputs_BxT,
            positions=positions_BxM,
            weights=jnp.where(positions_BxM < length, weight_B[:, None], 0.0),
            segments=segments_BxT,
        )
        return batch, overflow_B

    def _candidates(self, key, tokens_BxT, segments_BxT, step, visit_B) -> tuple[Candidates, jax.Array]:
        """The units to choose from, and float32[B], the loss weights of the rows."""
        batch_size, length = tokens_BxT.shape
        unit = registry.UNITS[self.unit]
        eligible_BxT = selection.eligible_positions(tokens_BxT, segments_BxT, self.vocabulary)
        ratio_B, weight_B = self.ratio_schedule(jax.random.fold_in(key, _RATIO_STREAM), step, batch_size)
        visit_B = jnp.zeros(batch_size, jnp.int32) if visit_B is None else visit_B
        row_key_B = self._row_keys(tokens_BxT, visit_B // self.cycle)
        turn_B, ratios = visit_B % self.cycle, None
        if self.cycle > 1:  # the units of a row must not change while its masks depend on each other
            noise_BxT = candidates_lib.row_uniform(_fold_in(row_key_B, _ROW_UNIT_STREAM), length)
            if self._changes_by_visit:
                ratios = self._visit_ratios(visit_B, _fold_in(row_key_B, _ROW_RATIO_STREAM))
                ratio_B = ratios(turn_B)
                weight_B = self.ratio_schedule.weights(ratio_B)
        else:
            noise_BxT = jax.random.uniform(jax.random.fold_in(key, _UNIT_STREAM), eligible_BxT.shape)
        candidates = Candidates(
            tokens=tokens_BxT,
            eligible=eligible_BxT,
            starts=registry.function_of(unit)(noise_BxT, tokens_BxT, eligible_BxT, self.tables),
            ratio=ratio_B,
            row_key=row_key_B,
            turn=turn_B,
            ratios=ratios,
            settings=self,
            single=unit.longest == 1,
        )
        return candidates, weight_B

    @property
    def _changes_by_visit(self) -> bool:
        """Whether the ratio of a row follows from the number of its visit, and changes with it."""
        return self.cycle > 1 and self.num_rows > 0 and self.ratio_schedule.name != 'constant'

    def _visit_ratios(self, visit_B: jax.Array, key_B: jax.Array) -> ratio_schedules.VisitRatios:
        first_B = visit_B - visit_B % self.cycle
        return ratio_schedules.VisitRatios(first_B, key_B, self.ratio_schedule, len(visit_B), self.num_rows)

    def _max_predicted(self, length: int) -> int:
        return registry.max_predicted(self.predicted_fraction, self._max_corrupted(length))

    def _max_corrupted(self, length: int) -> int:
        return self._strategy.max_masked(self.ratio_schedule.largest, length, self)

    def _row_keys(self, tokens_BxT: jax.Array, data_B: jax.Array) -> jax.Array:
        """key[B]: a key for each row, derived from the seed, the tokens of the row and an integer."""
        base = jax.random.fold_in(jax.random.key(self.seed), _ROW_STREAM)
        return jax.vmap(jax.random.fold_in)(_fold_in(base, row_hash(tokens_BxT)), data_B)


def _fold_in(key, data) -> jax.Array:
    """key[B]: `fold_in` of one key and B numbers, or of B keys and one number."""
    return jax.vmap(jax.random.fold_in, (0, None) if key.ndim else (None, 0))(key, data)


def _tokens(candidates: Candidates, selected_BxT: jax.Array, ratio: float) -> Candidates:
    """The chosen tokens as candidates for a second choice, each a unit of its own."""
    return candidates.replace(
        eligible=selected_BxT, starts=selected_BxT, ratio=jnp.full(selected_BxT.shape[:1], ratio), single=True
    )


def _repeat(selected_BxKxT: jax.Array, tree):
    """The K masks of each row as K adjacent rows; `tree`, whose arrays have a value for each row, K times."""
    num_views, length = selected_BxKxT.shape[1:]
    return selected_BxKxT.reshape(-1, length), jax.tree.map(lambda x: jnp.repeat(x, num_views, axis=0), tree)
