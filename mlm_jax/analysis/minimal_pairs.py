"""Judges minimal pairs, such as those of BLiMP, by pseudo-log-likelihood: is the good sentence the more likely one?"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from mlm_jax.data.tokenizers import AnyTokenizer, Tokenizer
from mlm_jax.objectives.objective import Objective
from mlm_jax.pretrained.pseudo_likelihood import PseudoLikelihood
from mlm_jax.tasks import blimp


class Blimp:
    """Encoded pairs, which the parameters of one model can judge, at one step of its training or at several."""

    def __init__(
        self,
        pairs: Sequence[blimp.Pair],
        objective: Objective,
        tokenizer: AnyTokenizer,
        repeats: int = 1,
        within_word: bool = False,
    ):
        """Encodes the sentences, without using a device.

        Args:
          pairs: from `tasks.blimp.read`.
          objective: of the model.
          tokenizer: of the model.
          repeats: `masking.repeats` of the model.
          within_word: whether the later pieces of a word are masked together with each of its pieces.

        Raises:
          ConfigError: when the model cannot process the sentences.
        """
        self._pairs = pairs
        sentences = [pair.good for pair in pairs] + [pair.bad for pair in pairs]
        self._scorer = PseudoLikelihood(objective, tokenizer, sentences, repeats=repeats, within_word=within_word)

    def compile(self, params: Mapping, mesh: jax.sharding.Mesh) -> None:
        """Compiles for parameters with the shapes and the shardings of `params`."""
        self._scorer.compile(params, mesh)

    def evaluate(self, params: Mapping) -> dict[str, Any]:
        """What `tasks.blimp.tally` returns, and `unknown_sentences`, the number of those with unknown pieces."""
        good_N, bad_N = np.split(self._scorer.scores(params, 'BLiMP'), 2)
        return {**blimp.tally(self._pairs, good_N, bad_N), 'unknown_sentences': int(self._scorer.num_unknown)}

    def metrics(self, params: Mapping) -> dict[str, float]:
        """`blimp`, the accuracy as a fraction, and `blimp_<field>`, the accuracy in each field of linguistics."""
        report = self.evaluate(params)
        fields = {f'blimp_{name}': entry['accuracy'] for name, entry in report['fields'].items()}
        return {'blimp': report['accuracy'], **fields}


def of_run(
    evaluation: ml_collections.ConfigDict, objective: Objective, tokenizer: pathlib.Path, repeats: int
) -> Blimp | None:
    """The pairs that the configuration key `evaluation.blimp` asks for; None where the key is empty.

    Args:
      evaluation: the part `evaluation` of a configuration.
      objective: the objective of the run.
      tokenizer: the file of its tokenizer.
      repeats: `masking.repeats` of the run.

    Raises:
      ConfigError: when the directory holds no minimal pairs, or the model cannot process them.
    """
    if not evaluation.blimp:
        return None
    pairs = blimp.read(evaluation.blimp, evaluation.blimp_percent)
    return Blimp(pairs, objective, Tokenizer.from_file(tokenizer), repeats)
