"""The rows of both registries, under the one name they had."""

from gmpq_tf.quantizers.input_method import FunctionInput, GridInput, InputMethod
from gmpq_tf.quantizers.kernel_method import FunctionKernel, GridKernel, KernelMethod

__all__ = [
    "FunctionInput",
    "FunctionKernel",
    "GridInput",
    "GridKernel",
    "InputMethod",
    "KernelMethod",
]
