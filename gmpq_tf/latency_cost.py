"""The cost table `latency_ms`, from the measurements of `gmpq-latency`."""

from __future__ import annotations

from typing import Any

from gmpq_tf.budget import BudgetError
from gmpq_tf.cost_tables import ALL_BITS, CostTable, TableOptions
from gmpq_tf.graph import layer_macs, outline
from gmpq_tf.latency import LatencyError, LatencyTable
from gmpq_tf.policy import PolicyError
from gmpq_tf.quantizers import KERNEL_QUANTIZERS
from gmpq_tf.quantizers.grid import symmetric_limit
from gmpq_tf.quantizers.kernel_method import KernelMethod
from gmpq_tf.quantizers.kernel_quantizer import (
    DEFAULT_KERNEL_QUANTIZER,
    kernel_method,
)


def latency_ms(model: Any, options: TableOptions) -> CostTable:
    """Returns the table of milliseconds of one example.

    Args:
        model: the float model.
        options: path of the measured table, and the storage of the file.

    Raises:
        BudgetError: no measured table is given, or it lacks the model.
    """
    if options.latency_table is None:
        raise BudgetError(
            "Milliseconds need a table of what this model takes on a device. "
            "Received: latency_table=None. Measure one with gmpq-latency, and give "
            "its path as latency_table."
        )
    method = kernel_method(options.kernel_quantizer or DEFAULT_KERNEL_QUANTIZER)
    if not is_uniform(method):
        uniform = [n for n in sorted(KERNEL_QUANTIZERS) if is_uniform(kernel_method(n))]
        raise BudgetError(
            "A budget of milliseconds needs uniform kernels, which gmpq-latency times. "
            f"Received: kernel_quantizer={options.kernel_quantizer!r}. "
            f"Use one of {', '.join(uniform)}, or a budget of bit operations or bytes."
        )
    storage = options.storage or "fast"
    batch = model.inputs[0].shape[0] or 1  # of a run that was timed
    try:
        measured = LatencyTable.load(options.latency_table)
        rows = measured.model(layer_macs(model), outline(model))
        layers = {
            name: [
                [measured.layer_ms(rows, name, w, a, storage) / batch for a in ALL_BITS]
                for w in ALL_BITS
            ]
            for name in rows.macs
        }
        constant = measured.rest_ms(rows) / batch
    except LatencyError as error:
        raise BudgetError(str(error)) from error
    note = (
        f"Measured on {measured.device!r} with {measured.threads} thread(s), in "
        f"storage {storage!r}, which may matter more than the bits."
    )
    return CostTable("latency_ms", "ms", layers, constant, None, note)


def is_uniform(method: KernelMethod) -> bool:
    """Whether a kernel quantizer has the largest codes of uniform grids, `2^(b-1) - 1`.

    The largest code decides the integer type that a file stores the kernel in.
    """
    for bits in ALL_BITS:
        try:
            largest = method.largest_code(bits)
        except PolicyError:
            continue  # never stored
        if largest != symmetric_limit(bits):
            return False
    return True
