"""Packed codes of fewer than eight bits, in TFLite's layout.

Codes are stored in two's complement, in row-major order, the first one in the lowest
bits of a byte. Packing continues across rows; only the end of a tensor is filled with
zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def pack_int4(codes: np.ndarray) -> bytes:
    """Packs codes -8..7, any shape, two a byte; the first is in the low nibble."""
    flat: np.ndarray = codes.astype(np.int8).ravel()
    flat = np.append(flat, np.zeros(flat.size % 2, np.int8)).view(np.uint8) & 0xF
    return (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8).tobytes()


def unpack_int4(data: np.ndarray, count: int) -> np.ndarray:
    """Inverse of `pack_int4`: the first codes in bytes [n], as int8 [count]."""
    data = data.astype(np.uint8)
    nibbles = np.stack([data & 0xF, data >> 4], axis=-1).ravel()[:count]
    # (x ^ 8) - 8 extends the sign of a four-bit number.
    return ((nibbles.astype(np.int8) ^ 8) - 8).astype(np.int8)


def pack_int2(codes: np.ndarray) -> bytes:
    """Packs codes -2..1, any shape, four a byte; the first is in the lowest bits."""
    flat: np.ndarray = codes.astype(np.int8).ravel()
    flat = np.append(flat, np.zeros(-flat.size % 4, np.int8)).view(np.uint8) & 0x3
    shifts: np.ndarray = np.arange(0, 8, 2, dtype=np.uint8)
    return np.bitwise_or.reduce(flat.reshape(-1, 4) << shifts, axis=1).tobytes()


def unpack_int2(data: np.ndarray, count: int) -> np.ndarray:
    """Inverse of `pack_int2`: the first codes in bytes [n], as int8 [count]."""
    shifts: np.ndarray = np.arange(0, 8, 2, dtype=np.uint8)
    pairs = (data.astype(np.uint8)[:, None] >> shifts).ravel()[:count] & 0x3
    return ((pairs.astype(np.int8) ^ 2) - 2).astype(np.int8)


PACKING: dict[str, Callable[[np.ndarray], bytes]] = {
    "INT8": lambda codes: np.ascontiguousarray(codes, np.int8).tobytes(),
    "INT4": pack_int4,
    "INT2": pack_int2,
}
UNPACKING = {"INT4": unpack_int4, "INT2": unpack_int2}
