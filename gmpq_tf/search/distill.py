"""Fine-tune a quantized model under the guidance of the float one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.distribution import replica_count
from gmpq_tf.graph import GraphError, functional_of, read_graph
from gmpq_tf.task import Binary, Classes, Numbers, Output, OutputKind, outputs_of
from gmpq_tf.task.guidance import binary_gap as binary_gap
from gmpq_tf.task.guidance import guidance
from gmpq_tf.task.guidance import soft_cross_entropy as soft_cross_entropy
from gmpq_tf.task.tasks import guidance_of
from gmpq_tf.transform.front import leading_layers, split_front
from gmpq_tf.transform.rewrite import all_scores, flattened


@keras.saving.register_keras_serializable("gmpq_tf")
class Distiller(keras.Model):
    """Trains a student on labels and on its teacher's softened scores.

    `loss = (1 - w) task + w T^2 KL(softmax(t / T) || softmax(s / T))` with the logits
    `s` of the student and `t` of the teacher, which is frozen and in inference mode.
    Random layers at the front of both models are run once, so both see the same image.
    For sigmoids and a single score the KL is that of two classes, summed over scores;
    for plain numbers (recognized by the loss, or by default boxes) it is replaced by
    the mean squared error. Terms of several outputs are added; for detectors see
    `box_gap`.

    Args:
        student: e.g. from `quantize_model`; it is trained, and is the model to save
            afterwards. Its outputs are logits, softmax, sigmoid, or numbers.
        teacher: the float model with the same outputs; it may hold nested models.
        weight: `w`, 0 to 1.
        temperature: `T > 0`.

    Raises:
        ValueError: weight or temperature is out of range.
        GraphError: the teacher lacks one of the student's random layers.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        weight: float = 0.5,
        temperature: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= weight <= 1 or temperature <= 0:
            raise ValueError(
                "Distillation needs 0 <= weight <= 1 and temperature > 0. "
                f"Received: weight={weight!r}, temperature={temperature!r}."
            )
        self.student = student
        self.weight, self.temperature = float(weight), float(temperature)
        scores = [before for before, _ in all_scores(student)]
        self.endings = [ending for _, ending in all_scores(student)]
        leading, teacher = shared_front(student, teacher)
        if leading:  # Keras refuses the same tensor twice
            own = {id(output) for output in student.outputs}
            same = keras.layers.Identity
            scores = [same()(z) if id(z) in own else z for z in scores]
        outputs = [functional_of(student)._outputs_struct, scores]
        front, both = split_front(student, leading, outputs)
        targets = [before for before, _ in all_scores(teacher)]
        _, teacher_logits = split_front(teacher, leading, targets)
        self.guidance = guidance_of(student)
        # In a namespace, which Keras does not track: so backups hold only the student.
        self._frozen = SimpleNamespace(front=front, both=both, teacher=teacher_logits)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return self.student(inputs, training=training)

    def train_step(self, data: Any) -> dict:
        """One step of the optimizer on the student's weights."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        front = self._frozen.front
        # The images after the random layers, for both models.
        seen = x if front is None else front(x, training=True)
        targets = self._frozen.teacher(seen, training=False)
        with tf.GradientTape() as tape:
            outputs, logits = self._frozen.both(seen, training=True)
            task = self.compute_loss(
                x=x, y=y, y_pred=outputs, sample_weight=sample_weight
            )
            gap = self._gap(keras.tree.flatten(targets), keras.tree.flatten(logits))
            # Gradients of replicas are added; Keras divides the task loss for that.
            loss = (1 - self.weight) * task + self.weight * gap / replica_count()
            scaled = self.optimizer.scale_loss(loss)  # unless for float16, as it is
        variables = self.student.trainable_variables
        self.optimizer.apply_gradients(
            zip(tape.gradient(scaled, variables), variables, strict=True)
        )
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss * replica_count())
        return self.compute_metrics(x, y, outputs, sample_weight)

    def _gap(self, targets: list, scores: list) -> tf.Tensor:
        """Distance of student and teacher scores ([B, ...] each), a scalar."""
        if self.guidance is not None:
            return self.guidance(targets, scores, self.temperature)
        kinds = [
            _kind(output, ending)
            for output, ending in zip(
                outputs_of(self.student, loss=getattr(self, "loss", None)),
                self.endings,
                strict=True,
            )
        ]
        return guidance(kinds, targets, scores, self.temperature)


def _kind(output: Output, ending: str) -> OutputKind:
    """The kind of an output, which decides how its scores are compared."""
    if ending == "sigmoid":  # whatever the loss
        return Binary(0.0)
    if isinstance(output.kind, Numbers) and output.known_from in ("loss", "graph"):
        return output.kind
    # A single score is the log-odds of two classes.
    if output.shape[-1] == 1:
        return Binary(0.0)
    return output.kind if isinstance(output.kind, Classes) else Classes()


def shared_front(
    student: keras.Model, teacher: keras.Model
) -> tuple[list[str], keras.Model]:
    """Random layers at the front of both models, and the teacher to cut behind them.

    Args:
        student: the model that is trained, so it cannot be copied; if it holds nested
            models, it is not cut.
        teacher: the float model, nested or not.

    Returns:
        Names of the layers, and the teacher or a copy of it without nested models.

    Raises:
        GraphError: the teacher lacks one of the student's random layers.
    """
    if flattened(student) is not student:
        return [], teacher
    leading = leading_layers(read_graph(student))
    if not leading:
        return [], teacher
    flat = flattened(teacher)
    own = {call.name for call in read_graph(flat).calls}
    missing = [name for name in leading if name not in own]
    if missing:
        raise GraphError(
            "Random layers at the front of a student must be its teacher's too, so "
            "that both see the same image. "
            f"Received: student={student.name!r} with {', '.join(missing)}, of which "
            f"teacher={teacher.name!r} has none. Make the student with "
            "quantize_model(teacher, policy)."
        )
    return leading, flat
