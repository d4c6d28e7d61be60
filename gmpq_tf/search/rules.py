"""How the gradient of a training step is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.distribution import replica_count
from gmpq_tf.graph import read_graph
from gmpq_tf.layer_kinds import Role
from gmpq_tf.search.checks import check_number
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.spelling import suggest

LEAST = 0.1  # smallest radius, as a share of the largest
TINY = 1e-12


@dataclass(frozen=True)
class RuleConfig:
    """How gradients are computed.

    Args:
        rule: plain takes them at the variables; asga (sharpness-aware) also where the
            loss nearby is highest, so that flat minima are preferred, at twice the
            cost.
        rho: Largest radius of the neighbourhood, in the norm of all variables together.
        alpha: Step back along the gradient that aligns the two gradients.
    """

    rule: str = "plain"
    rho: float = 0.05
    alpha: float = 0.001

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise StrategyError(
                f"rule must be one of {', '.join(RULES)}. "
                f"Received: rule={self.rule!r}. {suggest(str(self.rule), RULES)}"
            )
        check_number("rho", self.rho, 0.0)
        check_number("alpha", self.alpha, 0.0)
        for name in ("rho", "alpha"):
            value = getattr(self, name)
            if self.rule == "plain" and value != getattr(RuleConfig, name):
                raise StrategyError(
                    f"{name} is of rule='asga'. Received: {name}={value!r}, "
                    "rule='plain'. Leave it out."
                )


class Plain:
    """Gradients at the variables.

    Args:
        config: options of the rule.
        hypernet: the model that is trained.
        draws: variables that count random draws.
        add_weight: as `keras.Model.add_weight`.
    """

    passes = 1  # over the hypernet, forward and backward

    def __init__(
        self,
        config: RuleConfig,
        hypernet: keras.Model,
        draws: Sequence[keras.Variable],
        add_weight: Callable[..., keras.Variable],
    ) -> None:
        self.config, self.hypernet, self.draws = config, hypernet, tuple(draws)

    def gradients(
        self, forward: Callable[[], tuple[tf.Tensor, Any]], variables: Sequence[Any]
    ) -> tuple[Any, list[tf.Tensor | None]]:
        """Results of a pass, and the gradients of its loss, of the variables' shapes.

        Args:
            forward: makes a forward pass; returns its loss, a scalar, and any results.
            variables: the variables that are trained.
        """
        _, found, gradients = self._pass(forward, variables)
        return found, gradients

    def _pass(
        self, forward: Callable[[], tuple[tf.Tensor, Any]], variables: Sequence[Any]
    ) -> tuple[tf.Tensor, Any, list[tf.Tensor | None]]:
        with tf.GradientTape() as tape:
            loss, found = forward()
        return loss, found, tape.gradient(loss, variables)


class ASGA(Plain):
    """`(g(theta) + g(theta + (rho / |g| - alpha) g)) / 2`: sharpness-aware gradients.

    Minimizes the loss and the highest loss within the radius `rho`; `alpha` aligns the
    two gradients. The radius follows the gap `h` between the two losses,
    `rho = ln(h + 1)`, between a tenth of its largest value and that. The second pass
    sees the same random draws, and does not change the statistics of
    BatchNormalization.

    Source: Ma et al., "Learning from Loss Landscape", ICML 2025 (ASGA), reconstructed
    from the abstract and reviews. The alignment is taken from Wang et al.,
    "Sharpness-Aware Gradient Matching for Domain Generalization", CVPR 2023, and its
    code. Unlike ASGA the radius has a lower bound: from 0 it would never rise again.

    Raises:
        StrategyError: training on several devices, whose variables would differ.
    """

    passes = 2

    def __init__(
        self,
        config: RuleConfig,
        hypernet: keras.Model,
        draws: Sequence[keras.Variable],
        add_weight: Callable[..., keras.Variable],
    ) -> None:
        super().__init__(config, hypernet, draws, add_weight)
        self.radius = add_weight(
            name="radius",
            shape=(),
            initializer=keras.initializers.Constant(config.rho),
            trainable=False,
            dtype="float32",
        )

    def gradients(
        self, forward: Callable[[], tuple[tf.Tensor, Any]], variables: Sequence[Any]
    ) -> tuple[Any, list[tf.Tensor | None]]:
        """Results of the first pass and mean gradients, of the variables' shapes.

        Raises:
            StrategyError: there are several replicas.
        """
        if replica_count() > 1:
            raise StrategyError(
                "The rule asga trains on one device. Received: rule='asga' and "
                f"{replica_count()} replicas. Leave distribution out, or rule='plain'."
            )
        draws = [tf.convert_to_tensor(each) for each in self.draws]
        loss, found, first = self._pass(forward, variables)
        known = [(v, g) for v, g in zip(variables, first, strict=True) if g is not None]
        norm = tf.linalg.global_norm([g for _, g in known])
        scale = tf.convert_to_tensor(self.radius) / (norm + TINY) - self.config.alpha
        kept = [tf.identity(v) for v, _ in known]
        for variable, gradient in known:
            variable.assign(variable + scale * gradient)
        for variable, before in zip(self.draws, draws, strict=True):
            variable.assign(before)
        with self._fixed_statistics():
            beside, _, second = self._pass(forward, variables)
        for (variable, _), before in zip(known, kept, strict=True):
            variable.assign(before)
        self._follow(beside - loss)
        return found, [
            a if b is None else (a + b) / 2 for a, b in zip(first, second, strict=True)
        ]

    def _follow(self, gap: tf.Tensor) -> None:
        most = self.config.rho
        radius = tf.math.log1p(tf.maximum(gap, 0.0))
        self.radius.assign(tf.clip_by_value(radius, LEAST * most, most))

    @contextmanager
    def _fixed_statistics(self) -> Iterator[None]:
        """What is traced inside the block does not change moving statistics."""
        calls = read_graph(self.hypernet).calls
        norms = [c.layer for c in calls if c.role is Role.NORM]
        norms = [norm for norm in norms if hasattr(norm, "momentum")]
        before = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        try:
            yield
        finally:
            for norm, momentum in zip(norms, before, strict=True):
                norm.momentum = momentum


RULES: dict[str, type[Plain]] = {"plain": Plain, "asga": ASGA}
