"""Options of the overall risk, validated on construction."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from gmpq_tf.budget import parse_budget, plain_budget
from gmpq_tf.cost_tables import TableOptions
from gmpq_tf.limits import given_budget
from gmpq_tf.spelling import suggest

ATTRIBUTION_CLASSES = ("label", "predicted")
MAP_SIZES = ("input", "native")
TEACHER_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class RiskConfig:
    """The overall risk `R_E + zeta R_C + eta R_G` (eq. 6) and its parts.

    Args:
        zeta: weight of the complexity risk; with a budget, its initial value.
        eta: weight of the generalization risk; 0 searches by EdMIPS, without a teacher.
        bit_ops_budget: bit operations the policy may cost: up to 1 a fraction of full
            precision (32 x 32 bits), above 1 a count. None: zeta stays as given, or
            follows budget.
        p: exponent of the teacher's map; None: the capacity-aware p of eq. 8.
        top_k: pixels of the teacher's map that count, the highest first.
        attribution_class: class whose score is attributed: "label", or "predicted" as
            in the official code.
        map_size: compare maps at the resolution of the "input" or of the feature map
            ("native").
        weight_capacity: Q_w0 of eq. 8, in bits.
        activation_capacity: Q_a0 of eq. 8, in bits.
        feature_layer: layer whose output is attributed; None: the last feature map
            with more than one pixel that the whole model passes through.
        teacher_dtype: float type in which the frozen float model computes, float32 or
            bfloat16; the latter has 8 significant bits and is faster on some devices.
        budget: what the policy may cost, instead of bit_ops_budget: the same numbers,
            or such as 5%, W4A4, 0.5GBOPs, 60kB (of the .tflite file), 2.5ms, or
            weight_bytes=60kB; several with commas between them, all of which it keeps.
        storage: storage of the .tflite file, for a budget of bytes or milliseconds:
            fast, packed or smallest. None: smallest where the file's bytes are
            budgeted, else fast.
        latency_table: JSON file that gmpq-latency wrote, for a budget of milliseconds.
        attribution_share: share of each batch, above 0 and at most 1, on which the
            generalization risk is computed: images drawn anew in each step, one at
            least. The estimate is unbiased; a step is faster, and the risk noisier.
        generalization: what the generalization risk compares: attribution (maps, as
            eq. 4), partitioned (groups of pixels near in rank, after R-GMPQ), margin
            (how well classes are separated, after SEAM), or none, as eta=0. The second
            and third are reconstructions from abstracts.
        groups: number of groups of pixels, for generalization=partitioned.
    """

    zeta: float = 50.0
    eta: float = 100.0
    bit_ops_budget: float | None = None
    p: float | None = None
    top_k: int = 1000
    attribution_class: str = "label"
    map_size: str = "input"
    weight_capacity: float = 4.0
    activation_capacity: float = 6.0
    feature_layer: str | None = None
    teacher_dtype: str = "float32"
    budget: str | None = None
    storage: str | None = None
    latency_table: str | None = None
    attribution_share: float = 1.0
    generalization: str = "attribution"
    groups: int = 8

    def __post_init__(self) -> None:
        _check_range("zeta", self.zeta, 0.0)
        _check_range("eta", self.eta, 0.0)
        if self.bit_ops_budget is not None:
            _check_range("bit_ops_budget", self.bit_ops_budget, 0.0, exclusive=True)
        if self.p is not None:
            _check_range("p", self.p, 0.0, exclusive=True)
        _check_range("top_k", self.top_k, 1)
        _check_range("weight_capacity", self.weight_capacity, 0.0, exclusive=True)
        _check_range(
            "activation_capacity", self.activation_capacity, 0.0, exclusive=True
        )
        _check_range("attribution_share", self.attribution_share, 0.0, exclusive=True)
        if self.attribution_share > 1:
            raise ValueError(
                "attribution_share must be at most 1, which is the whole batch. "
                f"Received: attribution_share={self.attribution_share!r}."
            )
        _check_choice("attribution_class", self.attribution_class, ATTRIBUTION_CLASSES)
        _check_choice("map_size", self.map_size, MAP_SIZES)
        _check_choice("teacher_dtype", self.teacher_dtype, TEACHER_DTYPES)
        if self.generalization == "none":
            object.__setattr__(self, "eta", 0.0)
        whole = isinstance(self.groups, int) and not isinstance(self.groups, bool)
        if not whole or self.groups < 1:
            raise ValueError(
                "groups must be a whole number of at least 1. "
                f"Received: groups={self.groups!r}."
            )
        given_budget(self.budget, self.bit_ops_budget)
        if self.budget is not None:
            object.__setattr__(self, "budget", plain_budget(self.budget))
            parse_budget(self.budget)
        TableOptions(self.storage, self.latency_table)


def chosen_risk(risk: RiskConfig | None, **options: Any) -> RiskConfig:
    """The options of a search, given as one object or one by one.

    Args:
        risk: all options; None: those in `options`.
        **options: fields of `RiskConfig`.

    Raises:
        TypeError: an option that does not exist.
        ValueError: an option is out of range, or both `risk` and options are given.
    """
    defaults = {field.name: field.default for field in fields(RiskConfig)}
    for name, value in options.items():
        if name not in defaults:
            raise TypeError(
                "An option must be one that the search knows. "
                f"Received: {name}={value!r}. {suggest(name, defaults)}"
            )
    if risk is None:
        return RiskConfig(**options)
    if not isinstance(risk, RiskConfig):
        raise TypeError(
            "risk must hold the options of a search. "
            f"Received: risk={risk!r}. Pass a gmpq_tf.search.RiskConfig, or the "
            "options by their names."
        )
    given = [name for name, value in options.items() if value != defaults[name]]
    if given:
        raise ValueError(
            "Options must be given in risk=RiskConfig(...) or by name, not both ways. "
            f"Received: risk={risk!r} and {given[0]}={options[given[0]]!r}. Use "
            f"dataclasses.replace(risk, {given[0]}=...)."
        )
    return risk


def _check_range(name: str, value: float, low: float, exclusive: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (
        not number
        or not math.isfinite(value)
        or value < low
        or (exclusive and value == low)
    ):
        sign = ">" if exclusive else ">="
        raise ValueError(
            f"{name} must be a finite number {sign} {low}. Received: {name}={value!r}."
        )


def _check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(
            f"{name} must be one of {', '.join(valid)}. Received: {name}={value!r}."
        )
