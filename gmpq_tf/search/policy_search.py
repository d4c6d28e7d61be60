"""GMPQ as a Keras model: `compile`, `fit`, `policy()`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.attribution import (
    AttributionRankDistance,
    capacity_exponent,
    generalization_risk,
    grad_cam,
    labels_to_classes,
    resize_maps,
    split_head,
)
from gmpq_tf.budget import FULL_PRECISION_BITS, Candidates, bit_ops, resolve_budget
from gmpq_tf.distribution import replica_count
from gmpq_tf.first_trace import build_before_tracing
from gmpq_tf.float_layers import float_bit_ops
from gmpq_tf.graph import GraphError, layer_macs, read_graph
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.quantizers.input_quantizer import DEFAULT_INPUT_QUANTIZER
from gmpq_tf.quantizers.kernel_quantizer import DEFAULT_KERNEL_QUANTIZER
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.divergence import (
    WatchedMean,
    check_converged,
    check_temperature,
    nan_of_labels,
)
from gmpq_tf.search.first_steps import FirstSteps, MapCount
from gmpq_tf.search.knapsack import most_probable_bits
from gmpq_tf.search.optimizers import (
    check_optimizers,
    check_precision,
    describe_optimizer,
)
from gmpq_tf.search.zeta import adapted_zeta, damped_zeta
from gmpq_tf.space import SearchSpace
from gmpq_tf.task import Binary, outputs_of
from gmpq_tf.transform import build_hypernet, calibrate
from gmpq_tf.transform.calibrate import first_images, is_calibrated
from gmpq_tf.transform.front import leading_layers, misplaced_layers, split_front
from gmpq_tf.transform.rewrite import flat_copy
from gmpq_tf.version import __version__

DEFAULT_QUANTIZERS = {
    "input_quantizer": DEFAULT_INPUT_QUANTIZER,
    "kernel_quantizer": DEFAULT_KERNEL_QUANTIZER,
}


@keras.saving.register_keras_serializable("gmpq_tf")
class PolicySearch(keras.Model):
    """Searches the bit-width of every layer's weights and activations.

    Minimizes `R_E + zeta R_C + eta R_G` (eq. 6) over the hypernet's weights and branch
    importances together: the task loss, the expected bit operations (eq. 7) as a
    fraction of full precision, and the distance of the hypernet's attribution map from
    the l_p-normalized one of the float model, which is frozen and in inference mode.

        search = gmpq.PolicySearch(model, bit_ops_budget=0.0107)
        search.compile("sgd", "sgd", loss=..., metrics=["accuracy"])
        search.fit(dataset, epochs=25)
        policy = search.policy()

    Args:
        model: built functional classifier, trained; it is not modified.
        space: candidate bit-widths.
        input_quantizer: a name in `INPUT_QUANTIZERS`; None: the default.
        kernel_quantizer: a name in `KERNEL_QUANTIZERS`; None: the default.
        name: of the Keras model.
        **risk: fields of `RiskConfig`: zeta, eta, bit_ops_budget, p, top_k, ...; with
            `bit_ops_budget` zeta adapts by itself, with `eta=0` this is EdMIPS.

    Raises:
        GraphError: not a functional classifier with a feature map to attribute.
        BudgetError: no policy of the space meets the budget.
    """

    def __init__(
        self,
        model: keras.Model,
        space: SearchSpace | None = None,
        input_quantizer: str | None = None,
        kernel_quantizer: str | None = None,
        name: str | None = None,
        **risk: Any,
    ) -> None:
        # Under a global mixed_float16 Keras would scale the loss, of which the second
        # optimizer knows nothing.
        super().__init__(name=name, dtype="float32")
        self.risk = RiskConfig(**risk)
        self.space = space or SearchSpace()
        methods = {
            "input_quantizer": input_quantizer,
            "kernel_quantizer": kernel_quantizer,
        }
        self.quantizers = {key: value for key, value in methods.items() if value}
        self.macs = layer_macs(model)
        self.candidates = self.space.candidates(model)
        self.float_ops = float_bit_ops(model)
        check_choices(model.name, self.candidates)
        self.budget = None
        if self.risk.bit_ops_budget is not None:
            self.budget = resolve_budget(
                self.risk.bit_ops_budget, self.macs, self.candidates, self.float_ops
            )
        self._zeta_scale = self.risk.zeta or RiskConfig.zeta
        self.hypernet = build_hypernet(model, self.space, **self.quantizers)
        self.output_names = list(self.hypernet.output_names)
        # As text, which Keras does not track; before freezing, which changes it.
        serialize = keras.saving.serialize_keras_object
        self._model_config = json.dumps(serialize(flat_copy(model)))
        self.teacher = None
        # In namespaces, which Keras does not track: every layer is saved once.
        self._watched = SimpleNamespace(maps=None)
        if self.risk.eta:
            self.teacher = flat_copy(model, self.risk.teacher_dtype)
            self.teacher.trainable = False
            self._split(self.hypernet, self.teacher)
            self._watched.maps = MapCount()
        self.independent_labels = False
        self.epochs_trained = 0
        self.zeta = self.add_weight(
            name="zeta",
            shape=(),
            initializer=keras.initializers.Constant(self.risk.zeta),
            trainable=False,
            dtype="float32",
            aggregation="only_first_replica",  # all of them compute the same
        )
        self.risk_metrics = {
            key: WatchedMean(name=key)
            for key in (
                "loss_total",
                "task_risk",
                "complexity_risk",
                "generalization_risk",
            )
        }
        self.rank_metric = AttributionRankDistance()
        self.built = True

    def compile(
        self,
        optimizer: Any = "sgd",
        importance_optimizer: Any = "sgd",
        loss: Any = None,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configure training, as `keras.Model.compile`.

        Args:
            optimizer: of the hypernet's weights and ranges.
            importance_optimizer: of the branch importances.
            loss: task loss of (labels, model output); labels sparse or one-hot, for
                one logit 1 or 0 (or -1), for independent sigmoids any number of ones.
            metrics: of (labels, model output).
            **kwargs: passed to `keras.Model.compile` (jit_compile, run_eagerly, ...).

        Raises:
            ValueError: an optimizer that averages weights or divides by the scale of a
                loss, one optimizer for both, or layers that compute in float16.
        """
        optimizer = keras.optimizers.get(optimizer)
        importance_optimizer = keras.optimizers.get(importance_optimizer)
        check_optimizers(optimizer, importance_optimizer)
        check_precision(self.hypernet)
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)
        self.importance_optimizer = importance_optimizer
        self._described = json.dumps(
            {
                "optimizer": describe_optimizer(optimizer),
                "importance_optimizer": describe_optimizer(importance_optimizer),
            }
        )
        if self.teacher is not None:
            kind = outputs_of(self.teacher, loss=loss)[0].kind
            self.independent_labels = isinstance(kind, Binary)
        self.optimizer.build(self.network_variables)
        self.importance_optimizer.build(self.importance_variables)

    @property
    def importance_variables(self) -> list[keras.Variable]:
        """The trainable importances of every searched layer."""
        return [
            variable
            for layer in self.mixed_layers()
            for variable in (layer.kernel_importance, layer.input_importance)
            if variable.trainable
        ]

    @property
    def network_variables(self) -> list[keras.Variable]:
        """The hypernet's weights, ranges and steps: all that is not an importance."""
        importances = {id(v) for v in self.importance_variables}
        return [
            v for v in self.hypernet.trainable_variables if id(v) not in importances
        ]

    def mixed_layers(self) -> list[Any]:
        """Layers of the hypernet that hold quantizers, in graph order."""
        return [self.hypernet.get_layer(name) for name in self.macs]

    @property
    def temperature(self) -> float:
        """Temperature of the branch probabilities; 1 is the paper's softmax."""
        return float(np.asarray(self.mixed_layers()[0].kernel_branches.temperature))

    def set_temperature(self, value: float) -> None:
        """Set the temperature of every layer's branch probabilities, >= 1e-6."""
        check_temperature(value)
        for layer in self.mixed_layers():
            layer.kernel_branches.temperature.assign(value)
            layer.input_branches.temperature.assign(value)

    def calibrate(self, dataset: Iterable, batches: int | None = None) -> None:
        """Set every range of the hypernet from data; see `gmpq.calibrate`."""
        calibrate(self.hypernet, dataset, batches)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Search, as `keras.Model.fit`; ranges are calibrated first where they are not.

        Calibration reads the first 512 images of `x` (arrays, `tf.data.Dataset` or
        `keras.utils.PyDataset`; for other sources call `calibrate` before).
        """
        if not is_calibrated(self.hypernet):
            self.calibrate(first_images(self.hypernet, x))
        self.risk_metrics["loss_total"].forget()
        build_before_tracing(self, x, y)
        # An interrupted search goes on from an epoch that another process ended.
        self.epochs_trained = kwargs.get("initial_epoch", self.epochs_trained)
        watch = FirstSteps()
        if isinstance(callbacks, keras.callbacks.CallbackList):
            watch.set_model(self)
            callbacks.append(watch)
        else:
            callbacks = [watch, *keras.tree.flatten(callbacks or [])]
        return super().fit(
            x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs
        )

    def load_weights(self, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.load_weights`; an earlier divergence is forgotten."""
        super().load_weights(*args, **kwargs)
        self.risk_metrics["loss_total"].forget()

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The hypernet's output."""
        return self.hypernet(inputs, training=training)

    def expected_bit_ops(self) -> tf.Tensor:
        """Bit operations expected under the importances (eq. 7), a scalar.

        With those of layers that stay float.
        """
        terms = [
            bit_ops(float(self.macs[layer.name]), *layer.expected_bits())
            for layer in self.mixed_layers()
        ]
        return tf.add_n(terms) + float(self.float_ops)

    def full_bit_ops(self) -> float:
        """Bit operations of the full-precision model."""
        searched = bit_ops(sum(self.macs.values()), *[FULL_PRECISION_BITS] * 2)
        return float(searched + self.float_ops)

    def exponent(self) -> tf.Tensor:
        """The exponent p of the target: fixed, or eq. 8."""
        if self.risk.p is not None:
            return tf.constant(self.risk.p, tf.float32)
        bits = [layer.expected_bits() for layer in self.mixed_layers()]
        return capacity_exponent(
            bits, self.risk.weight_capacity, self.risk.activation_capacity
        )

    def train_step(self, data: Any) -> dict:
        """One step on weights and importances together (section 4.1)."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        seen = self._augmented(x)  # the same image for the hypernet and the teacher
        teacher_maps = self._teacher_maps(seen, y)
        network, importances = self.network_variables, self.importance_variables
        with tf.GradientTape() as tape:
            output, maps = self._forward(seen, y)
            task = self.compute_loss(
                x=x, y=y, y_pred=output, sample_weight=sample_weight
            )
            expected = self.expected_bit_ops()
            complexity = expected / self.full_bit_ops()
            generalization = tf.zeros([])
            if maps is not None:
                generalization = generalization_risk(
                    maps, teacher_maps, self.exponent(), self.risk.top_k
                )
            zeta = self._weight_of_complexity(expected)
            guidance = zeta * complexity + self.risk.eta * generalization
            # Gradients of replicas are added; Keras divides the task loss for that.
            share = task + guidance / replica_count()
        gradients = tape.gradient(share, network + importances)
        self.optimizer.apply(gradients[: len(network)], network)
        self.importance_optimizer.apply(gradients[len(network) :], importances)
        if self.budget is not None:
            self.zeta.assign(
                adapted_zeta(self.zeta, *self._searched(expected), self._zeta_scale)
            )
        task = task * replica_count()
        risks = (task + guidance, task, complexity, generalization)
        self._update_metrics(x, y, output, sample_weight, risks)
        if maps is not None:
            self.rank_metric.update_state(teacher_maps, maps)
        return self._logs(expected, zeta)

    @property
    def losses(self) -> list[Any]:
        """Penalties of the hypernet's layers; the teacher's are no part of the task."""
        return self.hypernet.losses

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Keras's loss; NaN where a label is, which XLA would take for a class."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + nan_of_labels(y)

    def _searched(self, expected: tf.Tensor) -> tuple[tf.Tensor, float]:
        """Expected bit operations and budget of the layers that are searched alone."""
        assert self.budget is not None
        return expected - float(self.float_ops), self.budget - self.float_ops

    def _weight_of_complexity(self, expected: tf.Tensor) -> tf.Tensor:
        """Zeta of this step; no gradient flows through its controller."""
        zeta = tf.convert_to_tensor(self.zeta)
        if self.budget is None:
            return zeta
        return damped_zeta(
            zeta, *self._searched(tf.stop_gradient(expected)), self._zeta_scale
        )

    def _augmented(self, x: Any) -> Any:
        """What the random layers at the front of the model make of a batch."""
        front = self._student_parts.front if self.risk.eta else None
        return x if front is None else front(x, training=True)

    def _forward(self, seen: Any, y: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        if not self.risk.eta:
            return self.hypernet(seen, training=True), None
        parts = self._student_parts
        feature = parts.backbone(seen, training=True)
        maps, (_, output) = grad_cam(
            parts.head, feature, self._classes(y), training=True
        )
        return output, self._at_map_size(maps)

    def _teacher_maps(self, seen: Any, y: Any) -> tf.Tensor | None:
        if not self.risk.eta:
            return None
        parts, classes = self._teacher_parts, self._classes(y)
        feature = parts.backbone(seen, training=False)
        maps, _ = grad_cam(parts.head, feature, classes, training=False)
        self._watched.maps.update_state(maps, classes, self.num_scores)
        return tf.stop_gradient(self._at_map_size(maps))

    def _classes(self, y: Any) -> tf.Tensor | None:
        if self.risk.attribution_class == "predicted":
            return None
        labels = keras.tree.flatten(y)
        if len(labels) != 1 or labels[0] is None:
            raise ValueError(
                "Attribution maps need the label of each image. "
                f"Received: y={type(y).__name__} with {len(labels)} parts. Pass "
                "labels, or search with attribution_class='predicted' or eta=0."
            )
        return labels_to_classes(labels[0], self.num_scores, self.independent_labels)

    @property
    def num_scores(self) -> int:
        """Scores that the model has: its classes, or 1 where one logit tells two."""
        return int(self._student_parts.head.outputs[0].shape[-1])

    @property
    def map_count(self) -> MapCount | None:
        """What `FirstSteps` looks at; None without a teacher."""
        return self._watched.maps

    @property
    def feature_name(self) -> str:
        """Name of the layer that is attributed."""
        return self._teacher_parts.backbone.output._keras_history.operation.name

    def _at_map_size(self, maps: tf.Tensor) -> tf.Tensor:
        shapes = [t.shape for t in self.hypernet.inputs if len(t.shape) == 4]
        if self.risk.map_size == "native" or not shapes:
            return maps
        return resize_maps(maps, *shapes[0][1:3])

    def _split(self, student: keras.Model, teacher: keras.Model) -> None:
        """Split both models where the image, and where the feature map is made."""
        graph = read_graph(student)
        misplaced = misplaced_layers(graph)
        if misplaced:
            raise GraphError(
                "Layers that change images at random must stand before the first layer "
                "with weights, so that teacher and hypernet see the same image. "
                f"Received: {', '.join(misplaced)}. Move them to the front, or search "
                "with eta=0 (no attribution)."
            )
        front = leading_layers(graph)
        self._student_parts = split_parts(student, self.risk.feature_layer, front)
        self._teacher_parts = split_parts(teacher, self.risk.feature_layer, front)

    def _update_metrics(
        self, x: Any, y: Any, output: tf.Tensor, sample_weight: Any, risks: tuple
    ) -> None:
        for metric, value in zip(self.risk_metrics.values(), risks, strict=True):
            metric.update_state(value)
        self.compute_metrics(x, y, output, sample_weight)

    def _logs(self, expected: tf.Tensor, zeta: tf.Tensor) -> dict:
        logs = self.get_metrics_result()
        logs["loss"] = self.risk_metrics["loss_total"].result()
        logs.pop("loss_total", None)
        if not self.risk.eta:
            logs.pop("rank_distance", None)
        logs["expected_bit_ops"] = expected
        logs["p"] = self.exponent()
        logs["zeta"] = zeta
        return logs

    def test_step(self, data: Any) -> dict:
        """Task loss and metrics of the hypernet."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        output = self.hypernet(x, training=False)
        task = self.compute_loss(
            x=x, y=y, y_pred=output, sample_weight=sample_weight, training=False
        )
        images = tf.shape(keras.tree.flatten(x)[0])[0]  # the last batch may be smaller
        self.risk_metrics["task_risk"].update_state(
            task * replica_count(), sample_weight=images
        )
        logs = self.compute_metrics(x, y, output, sample_weight)
        kept = {k: v for k, v in logs.items() if k not in NOT_EVALUATED}
        return {**kept, "loss": self.risk_metrics["task_risk"].result()}

    def importances(self) -> dict:
        """Candidate bits and branch probabilities of each layer, as plain JSON."""
        layers = {}
        for layer in self.mixed_layers():
            weights, inputs = (np.asarray(p) for p in layer.branch_probabilities())
            layers[layer.name] = {
                "weight_bits": list(layer.weight_bits),
                "weight_probabilities": [float(p) for p in weights],
                "activation_bits": list(layer.activation_bits),
                "activation_probabilities": [float(p) for p in inputs],
            }
        return {"layers": layers}

    def policy(self, made_by: Mapping[str, Any] | None = None) -> BitwidthPolicy:
        """The policy of the largest importances (section 3.3), within the budget.

        With a budget it is the most probable policy whose cost lies within 3 % below
        it, or as near below it as the space allows.

        Args:
            made_by: provenance to record; strategy and options are added.

        Raises:
            DivergenceError: an importance, another variable of the search, or a loss of
                the last `fit` is not finite.
        """
        check_converged(self)
        probabilities = {
            layer.name: tuple(np.asarray(p) for p in layer.branch_probabilities())
            for layer in self.mixed_layers()
        }
        bits = most_probable_bits(
            probabilities,
            self.candidates,
            self.macs,
            None if self.budget is None else self.budget - self.float_ops,
        )
        strategy = "gmpq" if self.risk.eta else "edmips"
        config = {**vars(self.risk), "space": self.space.to_config()}
        return BitwidthPolicy(
            self.hypernet.name,
            bits,
            {
                "strategy": strategy,
                "config": config,
                "quantizers": {**DEFAULT_QUANTIZERS, **self.quantizers},
                "training": self._training_record(),
                "versions": {"gmpq-tf": __version__},
                **(made_by or {}),
            },
        )

    def _training_record(self) -> dict[str, Any]:
        """Optimizers, and how long they ran, as far as this process knows."""
        if not self.compiled:
            return {}
        record = json.loads(self._described)
        record["steps"] = int(np.asarray(self.optimizer.iterations))
        if self.epochs_trained:
            record["epochs"] = self.epochs_trained
        return record

    def get_compile_config(self) -> dict | None:
        """What `compile` was given, with the second optimizer."""
        config = super().get_compile_config()
        if config is not None:
            serialize = keras.saving.serialize_keras_object
            config["importance_optimizer"] = serialize(self.importance_optimizer)
        return config

    def compile_from_config(self, config: dict) -> None:
        """Compile as the saved model was."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def get_config(self) -> dict:
        """Configuration, with the float model's architecture."""
        return {
            "name": self.name,
            "model": json.loads(self._model_config),
            "space": self.space.to_config(),
            **self.quantizers,
            **vars(self.risk),
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: Any = None) -> PolicySearch:
        """Rebuild from `get_config`; weights are loaded after."""
        config = dict(config)
        model = keras.saving.deserialize_keras_object(
            config.pop("model"), custom_objects=custom_objects
        )
        space = SearchSpace.from_config(config.pop("space"))
        return cls(model, space, **config)


NOT_EVALUATED = (
    "loss_total",
    "task_risk",
    "complexity_risk",
    "generalization_risk",
    "rank_distance",
)


def split_parts(
    model: keras.Model, feature_layer: str | None, leading: Sequence[str] = ()
) -> SimpleNamespace:
    """`split_front` and `split_head` as a namespace: `front`, `backbone`, `head`."""
    front, _ = split_front(model, leading, model.outputs)
    backbone, head = split_head(model, feature_layer, leading)
    return SimpleNamespace(front=front, backbone=backbone, head=head)


def check_choices(name: str, candidates: Candidates) -> None:
    """Refuse a model without layers to search, and warn where none has a choice.

    Args:
        name: of the model.
        candidates: weight and activation bits of each layer.

    Raises:
        GraphError: there is no layer.
    """
    if not candidates:
        raise GraphError(
            "A search needs a Conv2D, DepthwiseConv2D or Dense layer. "
            f"Received: model={name!r} without one."
        )
    if all(len(bits) == 1 for pair in candidates.values() for bits in pair):
        warnings.warn(
            "Nothing is left to search: each layer has one candidate for its weights "
            "and one for its activations, by weight_bits, activation_bits and the "
            "pinned layers of the space. Give more candidates, or take the policy as "
            "it is.",
            stacklevel=3,
        )
