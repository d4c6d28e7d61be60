"""Names of both row interfaces, kept for code that imports them from here."""

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
