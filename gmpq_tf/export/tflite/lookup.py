"""Activations by table: any function of one value, exact on any grid."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.integers.grids import Grid, Value, quantization
from gmpq_tf.export.tflite.integer_graph import Check, IntegerGraph
from gmpq_tf.graph import Call
from gmpq_tf.layer_kinds import Role

CODES = 256  # number of codes of an INT8 tensor


def lower_lookup(net: IntegerGraph, call: Call) -> None:
    """Writes LeakyReLU, PReLU and the like: a table with a code for each input code.

    TFLite's LEAKY_RELU and PRELU round the slope, or round twice: 2 to 8 % of their
    codes are a step off, and for LEAKY_RELU XNNPACK differs from other kernels
    (measured with LiteRT 2.3). A table holds exactly what Keras computes: `CAST` and
    `ADD` turn each code into an index, `GATHER` reads the table. Channels with their
    own slopes have a table each.
    """
    source, index = net.input(call), call.outputs[0]
    assert source.grid is not None
    grid = net.next_grid(index, call.name)
    rows = table(call, source, grid)
    file, shape = net.file, net.shape(index, call.name)
    values = file.constant(f"{call.name}_table", rows.ravel(), quantization(grid))
    starts: np.ndarray = CODES // 2 + CODES * np.arange(len(rows))
    wide, place = (file.tensor(None, shape, "INT32") for _ in range(2))
    tensor = file.tensor(call.name, shape, "INT8", quantization(grid))
    cast = schema.CastOptionsT()
    cast.inDataType, cast.outDataType = schema.TensorType.INT8, schema.TensorType.INT32
    file.operator("CAST", [source.tensor], [wide], cast)
    file.operator("ADD", [wide, file.integers(starts)], [place], schema.AddOptionsT())
    file.operator("GATHER", [values, place], [tensor], schema.GatherOptionsT())
    value = net.values[index] = Value(tensor, grid, grid.zero_point)
    # Values midway between two codes are rounded as the quantizer does in float32.
    reader = net.consumers[index][0]
    checked = reader.outputs[0] if reader.role is Role.QUANTIZER else index
    net.checks.append(Check(call.name, call.kind, checked, value))


def table(call: Call, source: Value, grid: Grid) -> np.ndarray:
    """Stored codes of the results, int8 [channels or 1, 256].

    Args:
        call: call of a layer that works on each value.
        source: the tensor that it reads.
        grid: grid of the result.
    """
    assert source.grid is not None
    alpha = getattr(call.layer, "alpha", None)
    ones = (1,) if alpha is None else alpha.shape
    codes: np.ndarray = np.arange(-CODES // 2, CODES // 2) - source.zero_point
    read = codes.astype("float32") * np.float32(source.grid.step)
    stack = read.reshape(CODES, *(1 for _ in ones)) * np.ones(ones, "float32")
    # Rounded in the same way as by the quantizer that reads the value.
    scaled = np.asarray(call.layer(stack)) * (np.float32(1) / np.float32(grid.step))
    found = np.clip(np.floor(scaled + np.float32(0.5)), grid.low, grid.high)
    stored = (found + grid.zero_point).astype("int8")
    return stored.reshape(CODES, -1).T
