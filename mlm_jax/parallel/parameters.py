"""What the dimensions of each parameter mean: by this it is split over the mesh, and seen by Muon as a matrix."""

import dataclasses
import re
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A rule for the parameters whose path ends in some way.

    Attributes:
      pattern: a regular expression for the end of the path, such as 'mlp/(up|down)/kernel'.
      dimensions: what each dimension is: 'vocabulary', 'width', 'heads', 'hidden' (`sharding.PRESETS` splits these), or
        None for one that is never split. A stack of layers has one more in front.
      inputs, outputs: of a matrix, the dimensions that make up each of its axes, as Muon sees it; what remains counts
        matrices. Empty for tables, biases and norms.
    """

    pattern: str
    dimensions: tuple[str | None, ...]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def matches(self, name: str) -> bool:
        """Whether this is the rule for the parameter with that path, such as 'encoder/layers/mlp/up/kernel'."""
        return re.search(f'(^|/){self.pattern}$', name) is not None


# Of the encoder and of the prediction head; each objective adds those of its own modules.
ENCODER = (
    Parameter(r'token_embedding/embedding', ('vocabulary', 'width')),
    Parameter(r'position_embedding/embedding', (None, None)),
    Parameter(r'relative_bias/embedding', (None, None)),
    Parameter(r'attention/qkv/kernel', ('width', None, 'heads', None), inputs=(0,), outputs=(2, 3)),
    Parameter(r'attention/qkv/bias', (None, 'heads', None)),
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
    Parameter(r'ns_coeffs', (None,)),  # constants that Muon keeps in its state
)


def find(name: str, parameters: Sequence[Parameter]) -> Parameter | None:
    """The first rule for the parameter with that path; None where there is none."""
    return next((parameter for parameter in parameters if parameter.matches(name)), None)
