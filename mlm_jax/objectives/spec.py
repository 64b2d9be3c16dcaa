"""What the rest of the program must know of an objective, free of JAX: configurations are checked by it."""

import dataclasses
import pkgutil
from typing import Any

from mlm_jax.objectives import costs
from mlm_jax.objectives.costs import Sizes
from mlm_jax.parallel.parameters import Parameter

_OPTION = 'option'
PREDICTION = 'prediction'


@dataclasses.dataclass(frozen=True)
class Option:
    """A key of the configuration that belongs to one objective.

    Attributes:
      comment: what it means.
      choices: the values that it can have, of text.
      low, high: the bounds of a number; None for none.
      shapes_state: whether the state has other parameters under another value: a checkpoint cannot go on with it.
    """

    comment: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    shapes_state: bool = False


def option(default, comment: str, **about) -> Any:
    """A field of a dataclass of options that is a key of the configuration, with its default; see `Option`."""
    return dataclasses.field(default=default, metadata={_OPTION: Option(comment, **about)})


class Spec:
    """What must be known of an objective before its module is imported. A subclass overrides what is different of it.

    Attributes:
      module: the place of the Linen module, an `objective.Objective`, as 'package.file:Class'.
      options: a frozen dataclass with a field for each key of the configuration, made by `option`, and perhaps others
        that are no keys; None where there are no options.
      reads_inputs: whether the model reads the corrupted rows as they are, `MaskedBatch.inputs`: replaced tokens that
        are not predicted, and copies of tokens, then mean what masking says they do.
      positions: values of `model.positions` that it works with.
      relative_bias: whether it works with a relative position bias.
      parameters: rules for the parameters of its own, beside those of the encoder and of the head.
      distributions: the names under which its `distributions` gives predictions.
    """

    module: str = ''
    options: type | None = None
    reads_inputs: bool = False
    positions: tuple[str, ...] = ('learned', 'rotary', 'rotary_2d')
    relative_bias: bool = True
    parameters: tuple[Parameter, ...] = ()
    distributions: tuple[str, ...] = (PREDICTION,)

    def problems(self, config, options, has_fixed_count: bool) -> list[str]:
        """What is wrong with the options beside other keys, a line each with its cure.

        Args:
          config: the whole configuration, by attributes.
          options: the part that belongs to this objective.
          has_fixed_count: whether every row has about as many masked tokens as another.
        """
        del config, options, has_fixed_count
        return []

    def settings(self, config) -> dict[str, Any]:
        """Fields of `options` that follow from other keys of the configuration."""
        del config
        return {}

    # ---- What a row costs --------------------------------------------------------------------------------------------

    def sizes(self, options, length: float, masked: float) -> Sizes:
        """What a row of `length` tokens needs, of which `masked` are predicted on average."""
        del options
        return Sizes(length, masked, encoded=length)

    def slots(self, options, length: int, max_masked: int) -> Sizes:
        """What the static shapes of a row hold, of which `max_masked` slots are for predictions."""
        return self.sizes(options, length, max_masked)

    def row_flops(self, model, options, vocab_size: int, sizes: Sizes, document_share: float) -> float:
        """FLOPs of the products of a forward pass of one row.

        Args:
          model: the encoder: `num_layers`, `width`, `ffn_width`, `num_heads`, `mlp`.
          options: the part of the configuration that belongs to this objective.
          vocab_size: V.
          sizes: of the row.
          document_share: Σ n² over documents by Σ T² over rows, by which attention counts.
        """
        del options
        return costs.encoder_and_head(model, vocab_size, sizes, document_share)

    def stacks(self, model, options, sizes: Sizes) -> tuple[costs.Stack, ...]:
        """The stacks of layers that a row passes, to estimate the memory of a step."""
        del options
        return (costs.Stack(model.num_layers, sizes.encoded, model.width, model.ffn_width, model.mlp),)

    def num_logits(self, options, sizes: Sizes) -> float:
        """For how many positions of a row there are logits."""
        del options
        return sizes.masked


def option_fields(spec: Spec) -> dict[str, dataclasses.Field]:
    """Name → field of each option that is a key of the configuration."""
    fields = dataclasses.fields(spec.options) if spec.options else ()
    return {field.name: field for field in fields if _OPTION in field.metadata}


def about(field: dataclasses.Field) -> Option:
    """What is known of an option."""
    return field.metadata[_OPTION]


def module_class(spec: Spec) -> type:
    """The class of the Linen module, imported now."""
    return pkgutil.resolve_name(spec.module) if isinstance(spec.module, str) else spec.module
