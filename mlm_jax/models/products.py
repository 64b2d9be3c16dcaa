"""Matrix products that sum in float32, forwards and backwards, in whatever dtype their operands are."""

import functools
import string
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

PRODUCT = 'product'  # the name of outputs of linear layers, for policies of rematerialisation


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(spec: str, left: jax.Array, right: jax.Array, dtype=None) -> jax.Array:
    """`einsum` of two operands of one dtype, summed in float32.

    The backward pass multiplies in that dtype too, where JAX's own would multiply a float32 cotangent by a bfloat16
    operand, which no matrix unit does; and the gradient of the right operand, the weights, comes in their own layout.

    Args:
      spec: explicit, as in 'btd,df->btf'; each index is in at least two of the three arrays.
      left: one operand.
      right: the other.
      dtype: of the result; None means that of `left`.
    """
    return _einsum(spec, left, right, dtype or left.dtype)


def _forward(spec, left, right, dtype):
    return product(spec, left, right, dtype), (left, right)


def _backward(spec, dtype, operands, cotangent):
    left, right = operands
    inputs, output = spec.split('->')
    of_left, of_right = inputs.split(',')
    cotangent = cotangent.astype(left.dtype)
    return (
        _einsum(f'{output},{of_right}->{of_left}', cotangent, right, left.dtype),
        _einsum(f'{of_left},{output}->{of_right}', left, cotangent, right.dtype),
    )


product.defvjp(_forward, _backward)


def _einsum(spec: str, left, right, dtype):
    def default(left, right):
        return jnp.einsum(spec, left, right, preferred_element_type=dtype)

    return jax.lax.platform_dependent(left, right, cpu=functools.partial(_einsum_on_cpu, spec, dtype), default=default)


def _einsum_on_cpu(spec, dtype, left, right):
    """What XLA:CPU does fastest: products are asked for in float32, and the operand that it transposes is the smaller.

    GPUs and TPUs sum in float32 whatever dtype they return. CPUs do so, at more than twice the speed, when the result
    is float32 too.
    """
    inputs, output = spec.split('->')
    of_left, of_right = inputs.split(',')
    order = output
    if not set(of_left) & set(of_right) & set(output) and of_left[-1] in output:
        # A sum over the rows of both, as in gradients of weights: the first operand is transposed.
        if left.size > right.size:
            of_left, of_right, left, right = of_right, of_left, right, left
        order = ''.join(c for c in of_left + of_right if c in output)
    y = jnp.einsum(f'{of_left},{of_right}->{order}', left, right, preferred_element_type=jnp.float32)
    if order != output:  # the barrier keeps XLA from swapping the operands back
        y = jnp.einsum(f'{order}->{output}', jax.lax.optimization_barrier(y))
    return y.astype(dtype)


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: str, num_contracted: int = 1) -> jax.Array:
    """[…, *contracted] · [*contracted, *features] + [*features] → […, *features], in `dtype`.

    Args:
      x: its last axes are summed over.
      kernel: weights, in any dtype.
      bias: or None.
      dtype: of the product, whose sums are in float32, and of the result.
      num_contracted: axes that are summed over.
    """
    letters = iter(string.ascii_letters)
    rows, summed, new = (
        ''.join(next(letters) for _ in range(n))
        for n in (x.ndim - num_contracted, num_contracted, kernel.ndim - num_contracted)
    )
    y = product(f'{rows}{summed},{summed}{new}->{rows}{new}', x.astype(dtype), kernel.astype(dtype))
    y = checkpoint_name(y, PRODUCT)
    # In float32, so that the gradient of the bias, too, is a sum in float32.
    return y if bias is None else (y.astype(jnp.float32) + bias).astype(dtype)


class Linear(nn.Module):
    """A linear layer from the last `num_contracted` axes of its input to `features`, behind an activation or not.

    Attributes:
      features: sizes of the new axes.
      num_contracted: axes of the input that are summed over.
      use_bias: adds a bias.
      dtype: of products and output.
      stddev: of the kernel's initial values.
      activation: of the inputs. The backward pass computes its result again, and needs the inputs alone.
    """

    features: tuple[int, ...]
    num_contracted: int = 1
    use_bias: bool = True
    dtype: str = 'float32'
    stddev: float = 0.02
    activation: Callable[..., jax.Array] | None = None

    @nn.compact
    def __call__(self, *inputs):
        """[…, *contracted] → […, *features]; as many inputs as the activation takes, one without any."""
        contracted = inputs[0].shape[-self.num_contracted :]
        kernel = self.param('kernel', nn.initializers.normal(self.stddev), (*contracted, *self.features))
        bias = self.param('bias', nn.initializers.zeros, self.features) if self.use_bias else None
        if self.activation is None:
            return linear(*inputs, kernel, bias, self.dtype, self.num_contracted)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def activated(kernel, bias, *inputs):
            return linear(self.activation(*inputs), kernel, bias, self.dtype, self.num_contracted)

        return activated(kernel, bias, *inputs)
