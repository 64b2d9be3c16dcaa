"""What the dimensions of each parameter mean: this decides its sharding, and which matrix Muon sees in it."""

import dataclasses
import re
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A rule for all parameters whose path ends with a pattern.

    Attributes:
      pattern: a regular expression for the end of the path, such as 'mlp/(up|down)/kernel'.
      dimensions: the kind of each dimension: 'vocabulary', 'width', 'heads', 'hidden' (`sharding.PRESETS` says which of
        these are split), or None for a dimension that is never split. In a stack of layers, parameters have one more
        dimension in front.
      inputs: the dimensions that together are the input axis of the matrix that Muon sees; empty for embeddings, biases
        and norms, which are not matrices for Muon.
      outputs: the dimensions that together are its output axis. Dimensions in neither count separate matrices.
    """

    pattern: str
    dimensions: tuple[str | None, ...]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def matches(self, name: str) -> bool:
        """Whether the rule applies to the parameter with the path `name`, such as 'encoder/layers/mlp/up/kernel'."""
        return re.search(f'(^|/){self.pattern}$', name) is not None


# The rules for the encoder and the prediction head; each objective adds rules for modules of its own.
ENCODER = (
    Parameter(r'(token|output)_embedding/embedding', ('vocabulary', 'width')),
    Parameter(r'position_embedding/embedding', (None, None)),
    Parameter(r'relative_bias/embedding', (None, None)),
    Parameter(r'attention/qkv/kernel', ('width', None, 'heads', None), inputs=(0,), outputs=(2, 3)),
    Parameter(r'attention/qkv/bias', (None, 'heads', None)),
    Parameter(r'attention/query/kernel', ('width', 'heads', None), inputs=(0,), outputs=(1, 2)),
    Parameter(r'attention/query/bias', ('heads', None)),
    Parameter(r'attention/key_value/kernel', ('width', None, 'heads', None), inputs=(0,), outputs=(2, 3)),
    Parameter(r'attention/key_value/bias', (None, 'heads', None)),
    Parameter(r'attention/out/kernel', ('heads', None, 'width'), inputs=(0, 1), outputs=(2,)),
    Parameter(r'mlp/up/kernel', ('width', 'hidden'), inputs=(0,), outputs=(1,)),
    Parameter(r'mlp/up/bias', ('hidden',)),
    Parameter(r'mlp/gate_and_up/kernel', ('width', None, 'hidden'), inputs=(0,), outputs=(2,)),
    Parameter(r'mlp/gate_and_up/bias', (None, 'hidden')),
    Parameter(r'mlp/down/kernel', ('hidden', 'width'), inputs=(0,), outputs=(1,)),
    Parameter(r'head/dense/kernel', (None, None), inputs=(0,), outputs=(1,)),
    Parameter(r'head/bias', ('vocabulary',)),
    Parameter(r'(attention/out|mlp/down|head/dense)/bias', (None,)),
    Parameter(r'[a-z_]*norm/(scale|bias)', (None,)),
    Parameter(r'ns_coeffs', (None,)),  # constants in the optimizer state of Muon
)


def find(name: str, parameters: Sequence[Parameter]) -> Parameter | None:
    """The first rule that applies to the parameter with the path `name`; None if no rule does."""
    return next((parameter for parameter in parameters if parameter.matches(name)), None)
