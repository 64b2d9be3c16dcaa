"""What the program must know about an objective, without JAX, so that configurations can be checked quickly."""

import dataclasses
import pkgutil
from typing import Any

from mlm_jax.objectives import layer_flops
from mlm_jax.objectives.layer_flops import EncoderSizes, Sizes
from mlm_jax.parallel.parameters import Parameter

_OPTION = 'option'
PREDICTION = 'prediction'


@dataclasses.dataclass(frozen=True)
class Option:
    """A key of the configuration that belongs to one objective.

    Attributes:
      comment: what the key means.
      choices: the possible values of a key with text; empty if any text is possible.
      low: the smallest value of a number; None if there is no range.
      high: the largest value of a number; None if there is no upper bound.
      shapes_state: whether the shapes of the state depend on the key, so that a run cannot continue from a checkpoint
        with another value.
      same_shapes: values of such a key under which the shapes are the same, so that it can: one of them may follow
        another.
    """

    comment: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    shapes_state: bool = False
    same_shapes: tuple[Any, ...] = ()


def option(default: Any, comment: str, **about: Any) -> Any:
    """A field of a dataclass of options that is a key of the configuration; `about` are attributes of `Option`."""
    return dataclasses.field(default=default, metadata={_OPTION: Option(comment, **about)})


class Spec:
    """What must be known about an objective before its module is imported. Subclasses override what differs for them.

    Attributes:
      module: where the Linen module, a subclass of `objective.Objective`, is defined, as 'package.file:Class'; or the
        class itself.
      options: a frozen dataclass with a field for each key of the configuration, created by `option`, and possibly
        other fields that are not keys; None if the objective has no options.
      reads_inputs: whether the encoder reads the whole corrupted row, `MaskedBatch.inputs`. Only then do corrupted
        tokens that are not predicted, and repeated tokens, have the effect that masking intends, and only then are
        distances between tokens those of their indices in the row, by which splash measures windows.
      positions: the values of `model.positions` that the objective supports.
      relative_bias: whether the objective supports a relative position bias.
      parameters: the rules for parameters that the objective has besides those of the encoder and the prediction head.
      distributions: the names of the predictions that `Objective.distributions` returns.
      head_on_encoder: whether the encoder and the prediction head alone, the parameters `encoder` and `head`, predict
        tokens, as in BERT; elsewhere, only the encoder is of use to other programs.
      export_note: what a user of the encoder and this head should know who does not have the rest, in a sentence.
    """

    module: str | type = ''
    options: type[Any] | None = None
    reads_inputs: bool = False
    positions: tuple[str, ...] = ('learned', 'rotary', 'rotary_2d')
    relative_bias: bool = True
    parameters: tuple[Parameter, ...] = ()
    distributions: tuple[str, ...] = (PREDICTION,)
    head_on_encoder: bool = False
    export_note: str = ''

    def problems(self, config: Any, options: Any, has_fixed_count: bool) -> list[str]:
        """The conflicts between the options and other keys; each message says what to do.

        Args:
          config: the whole configuration, with keys as attributes.
          options: the part of the configuration that belongs to this objective.
          has_fixed_count: whether all rows have about the same share of masked tokens.
        """
        del config, options, has_fixed_count
        return []

    def settings(self, config: Any) -> dict[str, Any]:
        """The fields of `options` that are not keys but follow from other keys of the configuration."""
        del config
        return {}

    # ---- What a row costs --------------------------------------------------------------------------------------------

    def sizes(self, options: Any, length: float, masked: float) -> Sizes:
        """The average numbers of tokens for a row of `length` tokens, `masked` of which are predicted on average."""
        del options
        return Sizes(length, masked, encoded=length)

    def slots(self, options: Any, length: int, max_masked: int) -> Sizes:
        """The static shapes for a row of `length` tokens with `max_masked` slots for predictions."""
        return self.sizes(options, length, max_masked)

    def row_flops(
        self, model: EncoderSizes, options: Any, vocab_size: int, sizes: Sizes, document_share: float
    ) -> float:
        """The FLOPs of the matrix products in a forward pass of one row.

        Args:
          model: the sizes of the encoder.
          options: the part of the configuration that belongs to this objective.
          vocab_size: V.
          sizes: the numbers of tokens of the row.
          document_share: Σ n² over documents divided by Σ T² over rows: the share of the pairs of tokens of a row that
            attend to each other.
        """
        del options
        return layer_flops.encoder_and_head(model, vocab_size, sizes, document_share)

    def stacks(self, model: EncoderSizes, options: Any, sizes: Sizes) -> tuple[layer_flops.Stack, ...]:
        """The stacks of layers that a row passes through, from which the memory of a step is estimated."""
        del options
        return (layer_flops.stack_of(model, model.num_layers, sizes.encoded),)

    def num_logits(self, options: Any, sizes: Sizes) -> float:
        """The number of positions of a row for which logits are computed."""
        del options
        return sizes.masked


def option_fields(spec: Spec) -> dict[str, dataclasses.Field]:
    """The options that are keys of the configuration, as a dict of name → field."""
    fields = dataclasses.fields(spec.options) if spec.options else ()
    return {field.name: field for field in fields if _OPTION in field.metadata}


def about(field: dataclasses.Field) -> Option:
    """The description of an option, from its field."""
    return field.metadata[_OPTION]


def module_class(spec: Spec) -> type:
    """The class of the Linen module, which this imports."""
    return pkgutil.resolve_name(spec.module) if isinstance(spec.module, str) else spec.module
