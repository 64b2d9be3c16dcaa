"""Matrix products that accumulate in float32, forward and backward, whatever the dtype of their operands."""

import functools
import string
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

PRODUCT = 'product'  # the name of the outputs of linear layers, for rematerialization policies


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(spec: str, left: jax.Array, right: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """`einsum` of two operands of the same dtype, accumulated in float32.

    The backward pass multiplies in the dtype of the operands, too. The gradient of `jnp.einsum` would multiply a
    float32 cotangent by a bfloat16 operand, which no matrix unit supports. The gradient of the right operand, usually
    the weights, has the memory layout of that operand.

    Args:
      spec: in explicit form, as 'btd,df->btf'; each index occurs in at least two of the three arrays.
      left: the left operand.
      right: the right operand.
      dtype: the dtype of the result; None means the dtype of `left`.
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

    on_cpu, is_swapped = _form_on_cpu(spec, left, right)
    if on_cpu == spec and dtype == jnp.float32:
        return default(left, right)  # the two forms are the same, and each of them takes time to trace and to compile

    def cpu(left, right):
        operands = (right, left) if is_swapped else (left, right)
        y = jnp.einsum(on_cpu, *operands, preferred_element_type=jnp.float32)
        order, output = on_cpu.split('->')[1], spec.split('->')[1]
        if order != output:  # the barrier keeps XLA from swapping the operands back
            y = jnp.einsum(f'{order}->{output}', jax.lax.optimization_barrier(y))
        return y.astype(dtype)

    return jax.lax.platform_dependent(left, right, cpu=cpu, default=default)


def _form_on_cpu(spec: str, left: jax.Array, right: jax.Array) -> tuple[str, bool]:
    """The specification that XLA:CPU computes fastest, and whether it takes the operands in the other order.

    It transposes the smaller operand, and its result is float32: GPUs and TPUs accumulate in float32 whatever the dtype
    of the result; CPUs do so only if the result is float32, and are then more than twice as fast.
    """
    inputs, output = spec.split('->')
    of_left, of_right = inputs.split(',')
    # Where the rows of both operands are summed over, as in gradients of weights, XLA transposes the first operand.
    if set(of_left) & set(of_right) & set(output) or of_left[-1] not in output:
        return spec, False
    is_swapped = left.size > right.size
    if is_swapped:
        of_left, of_right = of_right, of_left
    order = ''.join(c for c in of_left + of_right if c in output)
    return f'{of_left},{of_right}->{order}', is_swapped


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: str, num_contracted: int = 1) -> jax.Array:
    """[…, *contracted] · [*contracted, *features] + [*features] → […, *features], in `dtype`.

    Args:
      x: the input, whose last axes are summed over.
      kernel: the weights, in any dtype.
      bias: the bias, or None.
      dtype: the dtype of the operands and of the result; products are accumulated in float32.
      num_contracted: the number of axes that are summed over.
    """
    letters = iter(string.ascii_letters)
    rows, summed, new = (
        ''.join(next(letters) for _ in range(n))
        for n in (x.ndim - num_contracted, num_contracted, kernel.ndim - num_contracted)
    )
    y = product(f'{rows}{summed},{summed}{new}->{rows}{new}', x.astype(dtype), kernel.astype(dtype))
    y = checkpoint_name(y, PRODUCT)
    # The addition is in float32, so that the gradient of the bias is accumulated in float32, too.
    return y if bias is None else (y.astype(jnp.float32) + bias).astype(dtype)


class Linear(nn.Module):
    """A linear layer from the last `num_contracted` axes of its input to `features`; an activation may precede it.

    Attributes:
      features: the sizes of the new axes.
      num_contracted: the number of axes of the input that are summed over.
      use_bias: whether a bias is added.
      dtype: the dtype of operands and output.
      stddev: the standard deviation of the kernel's initial values.
      activation: a function of the inputs, applied first. The backward pass keeps only its inputs and recomputes it.
    """

    features: tuple[int, ...]
    num_contracted: int = 1
    use_bias: bool = True
    dtype: str = 'float32'
    stddev: float = 0.02
    activation: Callable[..., jax.Array] | None = None

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """[…, *contracted] → […, *features]; `inputs` are the arguments of the activation, or one array without it."""
        contracted = inputs[0].shape[-self.num_contracted :]
        kernel = self.param('kernel', nn.initializers.normal(self.stddev), (*contracted, *self.features))
        bias = self.param('bias', nn.initializers.zeros, self.features) if self.use_bias else None
        activation = self.activation
        if activation is None:
            (x,) = inputs
            return linear(x, kernel, bias, self.dtype, self.num_contracted)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def activated(kernel, bias, *inputs):
            return linear(activation(*inputs), kernel, bias, self.dtype, self.num_contracted)

        return activated(kernel, bias, *inputs)
