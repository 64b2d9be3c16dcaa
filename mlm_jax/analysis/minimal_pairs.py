"""Judges minimal pairs, such as those of BLiMP, by pseudo-log-likelihood: is the good sentence the likelier one?"""

import pathlib
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np

from mlm_jax.data.manifest import Manifest
from mlm_jax.data.tokenizers import Tokenizer
from mlm_jax.pretrained.pseudo_likelihood import PseudoLikelihood
from mlm_jax.tasks import blimp


class Blimp:
    """Pairs ready to be judged by the parameters of one model, at one step or at many."""

    def __init__(self, pairs: Sequence[blimp.Pair], objective, tokenizer, repeats: int = 1, within_word: bool = False):
        """Encodes the sentences; no device is touched.

        Args:
          pairs: from `tasks.blimp.read`.
          objective: of the model.
          tokenizer: of the model.
          repeats: `masking.repeats` of the model.
          within_word: masks later pieces of a word together with each piece.

        Raises:
          ConfigError: when the model cannot take the sentences.
        """
        self._pairs = pairs
        sentences = [pair.good for pair in pairs] + [pair.bad for pair in pairs]
        self._scorer = PseudoLikelihood(objective, tokenizer, sentences, repeats=repeats, within_word=within_word)

    def compile(self, params, mesh: jax.sharding.Mesh) -> None:
        """Compiles for parameters that lie as `params` do."""
        self._scorer.compile(params, mesh)

    def evaluate(self, params) -> dict:
        """`tasks.blimp.tally` of the pairs; and `unknown_sentences`, how many have pieces that the tokenizer lacks."""
        good_N, bad_N = np.split(self._scorer.scores(params, 'BLiMP'), 2)
        return {**blimp.tally(self._pairs, good_N, bad_N), 'unknown_sentences': int(self._scorer.num_unknown)}

    def metrics(self, params) -> dict[str, float]:
        """`blimp`, the accuracy as a fraction, and `blimp_<field>` for each field."""
        report = self.evaluate(params)
        fields = {f'blimp_{name}': entry['accuracy'] for name, entry in report['fields'].items()}
        return {'blimp': report['accuracy'], **fields}


def of_run(config: ml_collections.ConfigDict, manifest: Manifest, objective) -> Blimp | None:
    """What `evaluation.blimp` asks for; None where it is off.

    Raises:
      ConfigError: when the directory, or the model, does not do for it.
    """
    if not config.evaluation.blimp:
        return None
    pairs = blimp.read(config.evaluation.blimp, config.evaluation.blimp_percent)
    tokenizer = Tokenizer.from_file(pathlib.Path(config.data.directory) / manifest.tokenizer)
    return Blimp(pairs, objective, tokenizer, config.masking.repeats)
