"""Decides whether an exported file is kept, with the errors of refused ones."""

from __future__ import annotations

import warnings

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.lowering import Lowered
from gmpq_tf.export.tflite.outputs import OutputReport, Outputs
from gmpq_tf.export.tflite.runtime import runtime_name
from gmpq_tf.export.tflite.twin.compare import TwinCheck
from gmpq_tf.export.tflite.verify import Deviation, LayerReport

# Mean distance of biases from whole units, above which they count as never rounded: it
# is 0.25 for arbitrary biases, and at most 0.06 where only float32 moved rounded ones.
LOOSE_UNITS = 0.1
# Tolerance for a final softmax or sigmoid in float; all else must be equal.
FLOAT_ENDS = 1e-6
ESCAPE = (
    "Kernels of another processor or runtime may round otherwise: with "
    "verify='agreement' (--verify=agreement) the file is judged by its decisions. "
    "Please report this line."
)


def check_layers(
    layers: list[LayerReport], deviations: list[Deviation], exact: bool = False
) -> None:
    """Refuses a file if a layer stores or computes something else than in Keras.

    Args:
        layers: the layers of the file.
        deviations: deviations from Keras, given equal inputs.
        exact: whether the kernels round once; then no code may be farther from Keras's
            value than one rounding explains.

    Raises:
        ExportError: a layer differs.
    """
    for layer in layers:
        if not layer.codes_equal:
            raise ExportError(
                "Stored kernel codes and biases must be the trained ones. "
                f"Received: layer={layer.name!r}, whose own in the file differ. "
                "Nothing was written; please report the layer's configuration."
            )
    wrong = [d for d in deviations if (d.wrong if exact else d.excessive)]
    first = wrong[0] if wrong else None
    if first is not None:
        raise ExportError(
            "Every layer of the file must compute what the Keras layer does. "
            f"Received: layer={first.name!r} ({first.kind}), of whose output codes "
            f"{first.off:.1%} are off, {first.far:.1%} by more than one step"
            f"{_beyond(first) if exact else ''}. Nothing was written; please report "
            "the layer's configuration."
        )


def _beyond(deviation: Deviation) -> str:
    return (
        f", one of them {deviation.beyond:.3g} steps farther from Keras's value than "
        f"rounding it once leaves it. {ESCAPE}"
    )


def check_twin(found: TwinCheck) -> None:
    """Refuses a file if one of its integers differs from exact arithmetic.

    Raises:
        ExportError: one differs, or an operator has no exact counterpart.
    """
    if found.unknown:
        raise ExportError(
            f"{found.unknown[0]} So that every integer of the file is right cannot be "
            f"checked here, of {len(found.unknown)} operator(s). {ESCAPE}"
        )
    if found.off:
        name, code, share = found.names[0]
        raise ExportError(
            "Every integer of the file must be what exact arithmetic makes of it. "
            f"Received: {found.off} of {found.codes} that differ, by {found.largest} "
            f"step(s) at the most, in {len(found.names)} of {found.tensors} tensors, "
            f"the first of them {name!r} ({code}) with {share:.2%} of its own, "
            f"computed by {runtime_name()}. Nothing was written. {ESCAPE}"
        )


def check_twin_outputs(outputs: Outputs) -> None:
    """Refuses a file if its outputs differ from those of its twin on any image.

    Raises:
        ExportError: an output differs.
    """
    for output in outputs.outputs:
        off, same = output.twin_max_error or 0.0, output.twin_agreement
        if off > FLOAT_ENDS or (same is not None and same < 1):
            raise ExportError(
                "The outputs of the file must be those that exact arithmetic makes. "
                f"Received: output={output.name!r}, which is off by {off:.3g} on "
                f"{outputs.images} images, computed by {runtime_name()}. Nothing was "
                f"written. {ESCAPE}"
            )


def warn_apart(outputs: Outputs, deviations: list[Deviation], least: float) -> None:
    """Warns if the Keras model, which rounds in float, differs from the file."""
    try:
        check_outputs(outputs, deviations, least)
    except ExportError as error:
        warnings.warn(
            "The file is right to the last integer, but the Keras model, which rounds "
            "in float, is not the same as its file: go by the file's figures, or by "
            f"gmpq_tf.integer_twin(student), which has them. {error}",
            UserWarning,
            stacklevel=3,
        )


def check_outputs(outputs: Outputs, deviations: list[Deviation], least: float) -> None:
    """Refuses a file that decides or computes something else than the Keras model.

    Raises:
        ExportError: less than the share `least` of decisions or numbers agree.
    """
    plain = outputs.outputs and all(o.agreement is None for o in outputs.outputs)
    alike = 1.0 if plain or outputs.agreement is None else outputs.agreement
    if alike + (outputs.ties or 0.0) < least:
        raise ExportError(_disagreement(outputs, deviations, least))
    for output in outputs.outputs:
        if output.near is not None and output.near < least:
            raise ExportError(_distance(output, outputs.images, deviations, least))


def _disagreement(outputs: Outputs, deviations: list[Deviation], least: float) -> str:
    deciding = [o for o in outputs.outputs if o.agreement is not None]
    output = min(deciding, key=lambda o: o.alike)
    return (
        "The file must decide as the Keras model does on "
        f"{least:.0%} of the images. "
        f"Received: agreement={outputs.agreement:.1%} on {outputs.images} images, "
        f"output={output.name!r} ({output.compared}). {_rounding(deviations)}, so the "
        "scores are too close to call: fine-tune longer, give layers more bits, or, if "
        f"the accuracy of both is the same, lower least_agreement.{_reading(output)}"
    )


def _distance(
    output: OutputReport, images: int, deviations: list[Deviation], least: float
) -> str:
    share = output.relative_error
    return (
        f"The numbers of the file must be within {output.near_steps:g} steps of the "
        f"Keras model's in {least:.0%} of all. Received: {output.near:.1%} on {images} "
        f"images, output={output.name!r}, whose step is {output.step:.3g}: mean error "
        f"{output.mean_error:.3g}"
        + (f" ({share:.1%} of the range)" if share is not None else "")
        + f", largest {output.max_error:.3g}. {_rounding(deviations)}, and it adds up: "
        "call snap_biases, fine-tune longer, give layers more bits, or, if the error "
        f"will do, raise near_steps or lower least_agreement.{_reading(output)}"
    )


def _rounding(deviations: list[Deviation]) -> str:
    worst = max(deviations, key=lambda d: d.off)
    return (
        "Given equal inputs every layer is right but for rounding (most of it at "
        f"{worst.name!r}, {worst.off:.2%} of whose codes are a step off)"
    )


def _reading(output: OutputReport) -> str:
    """Text: what to do if the kind of the output was guessed wrongly."""
    if output.known_from == "stated":
        return ""
    source = "" if output.known_from == "assumed" else f" by its {output.known_from}"
    return (
        f" The output was taken for {output.kind}{source}; should it be something "
        "else, say so with output_kinds, or compile the float model with its loss."
    )


def unsnapped(lowered: Lowered) -> list[str]:
    """Layers whose biases were never rounded, if they are most layers with biases."""
    biased = {k.name for k in lowered.kernels if k.folded.bias.any()}
    loose = [k.name for k in lowered.kernels if k.folded.loose > LOOSE_UNITS]
    loose = list(dict.fromkeys(loose))
    return loose if 2 * len(loose) > len(biased) else []


def warn_unsnapped(layers: list[str]) -> None:
    """Warns that the biases of these layers were never rounded, with the remedy."""
    shown = ", ".join(map(repr, layers[:5])) + (", ..." if len(layers) > 5 else "")
    warnings.warn(
        f"The biases of {len(layers)} layer(s) were never rounded to what integer "
        f"kernels add: {shown}. The file rounds them, the Keras model does not, and "
        "some codes come out a step apart. Call gmpq_tf.snap_biases(student, images) "
        "after fine-tuning, before saving and exporting.",
        UserWarning,
        stacklevel=3,
    )
