"""Budgets as people say them: `0.0107`, "W4A4", "60kB", "2.5ms", several at once."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from gmpq_tf.bits import MAX_BITS, MIN_BITS

FULL_PRECISION_BITS = 32
SLACK = 0.03  # a policy's cost is at most this fraction below its budget
Candidates = Mapping[str, tuple[Sequence[int], Sequence[int]]]

BIT_OPS, FILE_BYTES, LATENCY_MS = "bit_ops", "file_bytes", "latency_ms"
STORAGES = ("fast", "packed", "smallest")  # of kernels in a .tflite file
BYTES: dict[str, float] = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip
BOPS: dict[str, float] = {
    "BOPs": 1,
    "kBOPs": 10**3,
    "MBOPs": 10**6,
    "GBOPs": 10**9,
    "TBOPs": 10**12,
}
TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}
# Unit of the cost tables -> unit that people say -> factor to the former.
UNITS: dict[str, dict[str, float]] = {
    "bit operations": BOPS,
    "bytes": BYTES,
    "ms": TIMES,
}
# The resource of an amount without a name; bytes mean those of the file.
SAID_OF = {"bit operations": BIT_OPS, "bytes": FILE_BYTES, "ms": LATENCY_MS}
PERCENT = "%"
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
# "W4A4", and "A4W4", which means the same.
UNIFORM = (
    r"[wW](?P<w>[0-9]+)\s*/?\s*[aA](?P<a>[0-9]+)",
    r"[aA](?P<a>[0-9]+)\s*/?\s*[wW](?P<w>[0-9]+)",
)
FORMS = "0.0107, '1.07%', 'W4A4', '0.5GBOPs', '60kB' or '2.5ms'"
LONGEST = 80  # how many characters of a budget a message repeats


class BudgetError(ValueError):
    """A budget cannot be read, or no policy of the space can meet it."""


@dataclass(frozen=True)
class Budget:
    """One budget as the user gave it.

    Args:
        said: the user's value.
        resource: a key of `COST_TABLES`.
        amount: amount in the unit of the cost table, or a fraction; None with `bits`.
        fraction: whether `amount` is a fraction of the float model's cost.
        unit: quantity of the user's unit, a key of `UNITS`; None: a plain number.
        bits: (weight bits, activation bits) of the uniform policy whose cost is meant.
    """

    said: Any
    resource: str
    amount: float | None = None
    fraction: bool = False
    unit: str | None = None
    bits: tuple[int, int] | None = None


def bit_ops(macs: Any, weight_bits: Any, activation_bits: Any) -> Any:
    """Returns bit operations: macs * weight_bits * activation_bits (eq. 7).

    Args:
        macs: multiply-adds; a number, an array or a tensor, like the bits.
        weight_bits: bits of the weights, or their expectation.
        activation_bits: bits of the activations, or their expectation.

    Returns:
        The product, of the type the arguments have.
    """
    return macs * weight_bits * activation_bits


def times(amount: float, factor: float) -> float:
    """Returns the product of two numbers in the decimals they are written in.

    In binary 0.000498 * 1e6 is less than 498, so that a file of 498 bytes would not
    keep a budget of 0.000498 MB.

    Args:
        amount: a number.
        factor: another.
    """
    return float(Decimal(str(amount)) * Decimal(str(factor)))


def parse_budget(budget: Any, what: str = "budget") -> tuple[Budget, ...]:
    """Reads a budget, or several.

    Args:
        budget: a number (up to 1 a fraction of the bit operations of full precision,
            above 1 a count), "5%" of them, "W4A4" for what that uniform policy costs,
            "0.5GBOPs", "60kB" of file, "2.5ms"; "resource=amount"; several as a text
            with commas, a sequence, or a dict {resource: amount}.
        what: name of the option, for messages.

    Returns:
        One `Budget` for each resource, in the order given.

    Raises:
        BudgetError: it has none of these forms, is not positive, or names a resource
            twice.
    """
    budgets = tuple(_parsed(budget, what))
    if not budgets:
        raise _unreadable(budget, what)
    names = [each.resource for each in budgets]
    for name in names:
        if names.count(name) > 1:
            raise BudgetError(
                "A resource can have one budget. "
                f"Received: {what}={_short(budget)}, which names {name} "
                f"{names.count(name)} times. Leave all but one out, or say another "
                "resource, such as 'weight_bytes=60kB'."
            )
    return budgets


def plain_budget(budget: Any) -> Any:
    """Returns a budget as plain JSON values, which `parse_budget` reads alike.

    Args:
        budget: as `parse_budget` takes it, or None.
    """
    if isinstance(budget, Mapping):
        return {name: plain_budget(value) for name, value in budget.items()}
    if isinstance(budget, (tuple, list)):
        return [plain_budget(value) for value in budget]
    return budget.item() if getattr(budget, "ndim", None) == 0 else budget


def _parsed(budget: Any, what: str) -> Iterable[Budget]:
    if isinstance(budget, Mapping):
        return [_one(v, what, resource=_name(k, what)) for k, v in budget.items()]
    if isinstance(budget, str):
        _refuse_decimal_comma(budget, what)
        return [_from_text(part, what) for part in budget.split(",")]
    if isinstance(budget, (tuple, list)):
        return [each for part in budget for each in _parsed(part, what)]
    return [_one(budget, what)]


def _refuse_decimal_comma(text: str, what: str) -> None:
    """Refuses "1,5MB" and "60,000B", which commas would split into two budgets."""
    if match := re.search(r"(?:^|[,=\s])([0-9]{1,3}),(?=[0-9])", text):
        start, end = match.span(1)
        parted = f"{text[start:end]}, {text[end + 1 :]}"
        raise BudgetError(
            "A comma stands between budgets, not within a number. "
            f"Received: {what}={_short(text)}. Write such as '1.5MB' or '60000B'; of "
            f"two budgets, put a space: {_short(parted)}."
        )


def _from_text(text: str, what: str) -> Budget:
    name, equals, amount = text.rpartition("=")
    if equals:
        return _one(amount, what, text.strip(), _name(name.strip(), what))
    return _one(text, what)


def _name(resource: Any, what: str) -> str:
    if not isinstance(resource, str) or not resource:
        raise BudgetError(
            "The key of a budget must be the name of a resource. "
            f"Received: {what} with {_short(resource)}. "
            "Pass such as {'bit_ops': 'W4A4', 'file_bytes': '60kB'}."
        )
    return resource


def _one(
    value: Any, what: str, said: Any = None, resource: str | None = None
) -> Budget:
    """One budget, of a resource that is named or follows from the unit."""
    said = value if said is None else said
    if isinstance(value, str):
        text = value.strip()
        if bits := _uniform_bits(text, what):
            return Budget(said, resource or BIT_OPS, bits=bits)
        match = re.fullmatch(rf"({NUMBER})\s*([^\s0-9.+-]*)", text)
        if match is None:
            raise _unreadable(value, what)
        number, unit = float(match[1]), match[2]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number, unit = float(value), ""
    elif hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return _one(value.item(), what, resource=resource)  # a NumPy scalar
    else:
        raise _unreadable(value, what)
    if not 0 < number < math.inf:
        raise BudgetError(
            "A budget must be a finite number above 0. "
            f"Received: {what}={_short(said)}. Give such as {FORMS}."
        )
    if unit == PERCENT:
        share = times(number, 0.01)
        return Budget(said, resource or BIT_OPS, share, fraction=True)
    if not unit:
        resource = resource or BIT_OPS
        # For other resources a number is a count: 0.5 ms is not a fraction.
        return Budget(said, resource, number, resource == BIT_OPS and number <= 1)
    kind, scale = _unit(unit, value, what)
    if resource is None and kind not in SAID_OF:
        raise BudgetError(
            f"An amount in {kind} must name its resource. "
            f"Received: {what}={_short(said)}. Write 'resource={value.strip()}'."
        )
    return Budget(said, resource or SAID_OF[kind], times(number, scale), unit=kind)


def _uniform_bits(text: str, what: str) -> tuple[int, int] | None:
    match = next(filter(None, (re.fullmatch(form, text) for form in UNIFORM)), None)
    if match is None:
        return None
    bits = int(match["w"][:3]), int(match["a"][:3])
    valid = range(MIN_BITS, MAX_BITS + 1)
    if bits[0] not in valid or bits[1] not in valid:
        near = _uniform_text(bits)
        raise BudgetError(
            f"Bit-widths must be {MIN_BITS} to {MAX_BITS}. "
            f"Received: {what}={_short(text)}. Did you mean {near!r}?"
        )
    return bits


def _uniform_text(bits: Iterable[int]) -> str:
    weights, inputs = (min(max(b, MIN_BITS), MAX_BITS) for b in bits)
    return f"W{weights}A{inputs}"


def _unit(unit: str, value: Any, what: str) -> tuple[str, float]:
    for kind, scales in UNITS.items():
        for name, scale in scales.items():
            # Prefixes differ only by case for m (milli) and M, and nobody means milli.
            if unit == name or (
                kind == "bit operations"
                and unit[:1] == name[:1]
                and unit.lower() == name.lower()
            ):
                return kind, scale
    raise _unreadable(value, what)


def _unreadable(value: Any, what: str) -> BudgetError:
    near = _nearest(value) if isinstance(value, str) else ""
    return BudgetError(
        "A budget must be a number, a share, a uniform policy, or an amount with its "
        f"unit. Received: {what}={_short(value)}. {near}Give such as {FORMS}, or "
        "several with commas between them."
    )


def _nearest(text: str) -> str:
    """A sentence with the nearest valid budget for a text, or ""."""
    text = text.strip()[:LONGEST]
    match = re.fullmatch(rf"({NUMBER})\s*([A-Za-z]+)", text)
    if match:
        for scales in UNITS.values():
            for name in scales:
                if match[2].lower() == name.lower():
                    return f"Did you mean '{match[1]}{name}'? "
    digits = re.findall(r"[0-9]", text)
    if re.fullmatch(r"[wWaA0-9/ _-]*[wWaA][wWaA0-9/ _-]*", text) and digits:
        return f"Did you mean {_uniform_text(map(int, (digits[0], digits[-1])))!r}? "
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
