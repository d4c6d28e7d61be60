"""The quantized model as a tf_keras model for users of TFMOT, and the way back.

    model = quantize_apply(student, policy)   # tf_keras, wrapped by TFMOT
    model.compile(...); model.fit(...)        # with TFMOT's callbacks, Keras 2 code
    export_tflite(model, "model.tflite", verify_data=images)

TFMOT works on Keras 2 models only, which the package tf_keras holds, and leaves the
bits to a converter that changes the grids of most widths below 8. So the wrappers are
TFMOT's and the quantizers ours (`fake_quantizers`), and the way to TFLite leads through
the Keras 3 student and the writer of `export_tflite`.

`pip install gmpq-tf[tfmot]` installs both packages; they are imported when first used.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.layouts import check_layer
from gmpq_tf.export.tflite.exporter import ExportReport
from gmpq_tf.export.tflite.exporter import export_tflite as export_student
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.verify import as_list, random_inputs
from gmpq_tf.export.tfmot.fake_quantizers import (
    InputFakeQuantizer,
    KernelFakeQuantizer,
    PolicyQuantizeConfig,
)
from gmpq_tf.export.tfmot.translate import MERGES, describe, make_layer, training_of
from gmpq_tf.files import replace_file
from gmpq_tf.graph import (
    Call,
    Graph,
    Ref,
    fill,
    is_searchable,
    read_graph,
    searchable_names,
)
from gmpq_tf.layers import QUANT_LAYERS
from gmpq_tf.models.file_checks import check_hdf5, has_lambda, read_config
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer
from gmpq_tf.quantizers.decay import spare_quantizers
from gmpq_tf.transform.batches import ModelInputs
from gmpq_tf.transform.calibrate import input_quantizers, is_calibrated
from gmpq_tf.transform.quantize import quantize_model
from gmpq_tf.transform.rewrite import rebuild, split_activations

LEGACY = "TF_USE_LEGACY_KERAS"
PACKAGE = "gmpq_tf"  # of the registered names in tf_keras files
SUFFIXES = (".h5", ".keras")
NORM_WEIGHTS = ("gamma", "beta", "moving_mean", "moving_variance")
QUANTIZER_WEIGHTS = ("log2_step", "log2_range", "zero_code", "calibrated")
# Where the float sums of both libraries differ in their last bits a code may flip, so a
# few outputs may differ by more; a wrong layer moves most of them.
TOLERANCE = 1e-4
FLIPPED = 0.05


def quantize_configs(policy: BitwidthPolicy) -> dict[str, Any]:
    """A `QuantizeConfig` for each layer of a policy, to annotate tf_keras layers with.

    For tf_keras models of one's own: `quantize_annotate_layer(layer, configs[name])`,
    then TFMOT's `quantize_apply`, which adds its own 8-bit quantizers elsewhere. Ranges
    and steps are set by the first training batch and learned from there. To keep those
    of a trained student use `quantize_apply` of this module.

    Args:
        policy: bits of each layer.

    Returns:
        Layer name -> `tfmot.quantization.keras.QuantizeConfig`; one layer each.

    Raises:
        ExportError: TFMOT or tf_keras is missing.
    """
    _libraries()
    return {
        name: PolicyQuantizeConfig(
            KernelFakeQuantizer(bits.weight_bits),
            InputFakeQuantizer(bits.activation_bits),
        )
        for name, bits in policy.items()
    }


def quantize_apply(model: keras.Model, policy: BitwidthPolicy) -> Any:
    """The quantized model as a tf_keras model, its layers wrapped by TFMOT.

    It computes what the student computes and trains as the student does. Kernels,
    biases, BatchNormalization, learned steps and ranges are copied. Layers keep their
    names behind TFMOT's prefix `quant_`. TFMOT trains the kernels of frozen layers too.

    Args:
        model: Keras 3 student from `gmpq_tf.quantize_model`; or a float model, which is
            quantized first. Ranges that were not calibrated are set by the first
            training batch.
        policy: bits of each layer; those of the student.

    Returns:
        A functional `tf_keras.Model`, not compiled.

    Raises:
        ExportError: TFMOT or tf_keras is missing, a layer that TFLite or tf_keras
            lacks, or a policy that is not the student's.
        PolicyError: the policy is for other layers.
    """
    student = _student_for(model, policy)
    graph = read_graph(student)
    quantized = _rebuild(graph, student.name, _quantized_layer)
    _copy_weights(graph, quantized)
    return quantized


def to_tf_keras(model: keras.Model) -> Any:
    """A Keras 3 model as a float tf_keras model, weights copied, quantizers left out.

    Args:
        model: functional float model, or student from `gmpq_tf.quantize_model`.

    Returns:
        A functional `tf_keras.Model`.

    Raises:
        ExportError: TFMOT or tf_keras is missing, or a layer that TFLite or tf_keras
            lacks.
    """
    graph = split_activations(read_graph(model))
    converted = _rebuild(graph, model.name, _float_layer)
    _copy_weights(graph, converted)
    return converted


def to_student(model: Any) -> keras.Model:
    """The Keras 3 student of a tf_keras model: inverse of `quantize_apply`.

    Args:
        model: from `quantize_apply`, trained or not.

    Returns:
        A Keras 3 model as from `gmpq_tf.quantize_model`, with the weights, steps and
        ranges of the tf_keras model.

    Raises:
        ExportError: a model that `quantize_apply` did not make.
    """
    graph = _read_tf_keras(model)
    student = rebuild(graph, model.name, lambda call: _student_layer(call, graph))
    for call in graph.calls:
        _copy(call.layer, student.get_layer(call.name))
    return student


def export_tflite(
    model: Any, path: str | os.PathLike[str], verify_data: Any = None, **options: Any
) -> ExportReport:
    """Write a tf_keras model as TFLite, with the guarantees of the Keras 3 exporter.

    The stored codes are those of the tf_keras model, and the file is checked on data.
    To move biases onto the accumulators' grid first, call `to_student`,
    `gmpq_tf.snap_biases` and the Keras 3 exporter one after the other.

    Args:
        model: from `quantize_apply`, trained.
        path: the `.tflite` file to make or to replace.
        verify_data: as for `export.exporter.export_tflite`.
        **options: its other arguments.

    Returns:
        An `ExportReport`.

    Raises:
        ExportError: as `export.exporter.export_tflite`; or the Keras 3 model does not
            compute what the tf_keras model does.
    """
    student = to_student(model)
    if is_calibrated(student):  # the exporter says what to do if not
        _check_equal(model, student)
    return export_student(student, path, verify_data=verify_data, **options)


def write_tfmot(
    student: keras.Model, policy: BitwidthPolicy, path: str | os.PathLike[str]
) -> Path:
    """Save what `quantize_apply` makes; `load_model` reads it.

    Args:
        student: as for `quantize_apply`.
        policy: likewise.
        path: the `.h5` or `.keras` file to make or to replace; whole or not at all.

    Returns:
        The path written.

    Raises:
        ExportError: as `quantize_apply`; or a path that cannot be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ExportError(
            f"A tf_keras file must end in {' or '.join(SUFFIXES)}. "
            f"Received: path={str(path)!r}. Rename it."
        )
    model = quantize_apply(student, policy)
    try:
        with replace_file(path) as temporary:
            model.save(temporary)
    except OSError as error:
        raise ExportError(
            "The path must be writable. "
            f"Received: path={str(path)!r} ({error}). Choose another folder."
        ) from error
    return path


def load_model(path: str | os.PathLike[str], compile: bool = True) -> Any:
    """Load a model that `quantize_apply` made and tf_keras saved.

    Args:
        path: `.h5` or `.keras` file.
        compile: whether to restore the optimizer and the loss.

    Returns:
        The `tf_keras.Model`.

    Raises:
        ExportError: TFMOT or tf_keras is missing, the file is not such a model, or it
            holds Python code.
    """
    models = _libraries().tf_keras.models
    try:
        _refuse_code(Path(path))
        with quantize_scope():
            model = models.load_model(Path(path), compile=compile)
    except (OSError, ValueError, TypeError) as error:
        raise ExportError(
            "The file must be a tf_keras model with the quantizers of gmpq_tf. "
            f"Received: path={str(path)!r} ({str(error)[:200]}). Pass what "
            "write_tfmot wrote."
        ) from error
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.fused = False  # tf_keras does not save it
    return model


def _refuse_code(path: Path) -> None:
    """Refuses an `.h5` file with a Lambda layer: tf_keras is safe for `.keras` only."""
    if path.suffix == ".h5":
        check_hdf5(path)
        if has_lambda(read_config(path)):
            raise ValueError("it has a Lambda layer, whose Python code would be run")


def quantize_scope() -> AbstractContextManager:
    """Scope in which `tf_keras.models.load_model` knows TFMOT's classes and ours.

    Raises:
        ExportError: TFMOT or tf_keras is missing.
    """
    library = _libraries()
    return library.tfmot.quantize_scope(library.ours)


@functools.cache
def _libraries() -> SimpleNamespace:
    """`tfmot.quantization.keras` and `tf_keras`, which know our classes from now on.

    Importing TFMOT sets TF_USE_LEGACY_KERAS for this process and all it starts, and
    would turn a `tf.keras` that nobody has used yet into Keras 2.
    """
    before = os.environ.get(LEGACY)
    tf.keras.Model  # noqa: B018 - decides which Keras `tf.keras` is
    try:
        import tf_keras
        from tensorflow_model_optimization.python.core.quantization.keras import (
            quantize_layer,
        )
        from tensorflow_model_optimization.quantization import keras as tfmot
    except ImportError as error:
        raise ExportError(
            "TFMOT export needs tensorflow-model-optimization and tf_keras. "
            f"Received: {error}. Run pip install gmpq-tf[tfmot]."
        ) from error
    finally:
        os.environ.pop(LEGACY, None)
        if before is not None:
            os.environ[LEGACY] = before
    bases = {
        PolicyQuantizeConfig: tfmot.QuantizeConfig,
        InputFakeQuantizer: tfmot.quantizers.Quantizer,
        KernelFakeQuantizer: tfmot.quantizers.Quantizer,
    }
    for cls, base in bases.items():
        base.register(cls)
        tf_keras.utils.register_keras_serializable(PACKAGE)(cls)
    ours = {f"{PACKAGE}>{cls.__name__}": cls for cls in bases}
    spare_quantizers(tf_keras.optimizers.Optimizer)
    return SimpleNamespace(
        tf_keras=tf_keras,
        tfmot=tfmot,
        QuantizeLayer=quantize_layer.QuantizeLayer,
        ours=ours,
    )


def _student_for(model: Any, policy: BitwidthPolicy) -> keras.Model:
    if not isinstance(model, keras.Model):
        raise ExportError(
            "model must be a Keras 3 model. "
            f"Received: model={type(model).__name__}. Pass what "
            "gmpq_tf.quantize_model(model, policy) returned."
        )
    policy.check(searchable_names(model))
    if not input_quantizers(model):
        return quantize_model(model, policy)
    for call in read_graph(model).calls:
        if is_searchable(call.layer):
            check_layer(call)
            _check_bits(call, policy)
    return model


def _check_bits(call: Call, policy: BitwidthPolicy) -> None:
    layer, bits = call.layer, policy[call.name]
    has = (layer.kernel_quantizer.bits[0], layer.input_quantizer.bits[0])
    if has != (bits.weight_bits, bits.activation_bits):
        raise ExportError(
            "The policy must be the one that the student was made with. "
            f"Received: layer={call.name!r} with W{has[0]}/A{has[1]}, policy "
            f"W{bits.weight_bits}/A{bits.activation_bits}. Quantize the float model "
            "with this policy, or pass the student's."
        )


def _rebuild(graph: Graph, name: str, make_layer: Callable[[Call, Graph], Any]) -> Any:
    """The tf_keras model of a Keras 3 graph; where `make_layer` gives None: nothing."""
    tf_keras = _libraries().tf_keras
    inputs = {
        index: tf_keras.Input(
            graph.shapes[index][1:],
            batch_size=graph.shapes[index][0],
            dtype=graph.dtypes[index],
            name=input_name,
        )
        for index, input_name in zip(graph.inputs, graph.input_names, strict=True)
    }
    tensors: dict[int, Any] = dict(inputs)
    layers: dict[int, Any] = {}
    for call in graph.calls:
        if id(call.layer) not in layers:
            layers[id(call.layer)] = make_layer(call, graph)
        layer = layers[id(call.layer)]
        operands = [tensors[i] for i in call.inputs]
        result = operands[0]
        if layer is not None:
            given = operands if call.kind in MERGES else operands[0]
            result = layer(given, **training_of(call.kind, call.kwargs))
        tensors[call.outputs[0]] = result
    return tf_keras.Model(
        fill(graph.input_structure, inputs),
        fill(graph.output_structure, tensors),
        name=name,
    )


def _quantized_layer(call: Call, graph: Graph) -> Any:
    """The tf_keras layer of a student's layer, quantizers included."""
    library = _libraries()
    if isinstance(call.layer, InputQuantizer):
        return library.QuantizeLayer(_input_quantizer(call.layer), name=call.name)
    layer = _float_layer(call, graph)
    if not is_searchable(call.layer):
        return layer
    check_layer(call)
    config = PolicyQuantizeConfig(
        _kernel_quantizer(call.layer), _input_quantizer(call.layer.input_quantizer)
    )
    return library.tfmot.QuantizeWrapperV2(layer, config)


def _float_layer(call: Call, graph: Graph) -> Any:
    """The tf_keras layer of a student's layer; None for a quantizer."""
    if isinstance(call.layer, InputQuantizer):
        return None
    kind, arguments = describe(call, graph)
    if kind == "BatchNormalization":
        arguments["fused"] = False  # the fused one differs from Keras 3 in the last bit
    return make_layer(_libraries().tf_keras.layers, kind, arguments, call)


def _student_layer(call: Call, graph: Graph) -> Any:
    """The Keras 3 layer of a tf_keras layer, quantizers included."""
    _check_ours(call)
    if isinstance(call.layer, _libraries().QuantizeLayer):
        return _student_quantizer(call.layer.quantizer, call.name)
    inner = replace(call, layer=_unwrapped(call.layer))
    kind, arguments = describe(inner, graph)
    if kind not in QUANT_LAYERS:
        return make_layer(keras.layers, kind, arguments, inner)
    config = call.layer.quantize_config
    quantizer, name = config.kernel_quantizer, "kernel_quantizer"
    arguments[name] = KernelQuantizer(
        quantizer.bits, quantizer.method, quantizer.shared_axes, name=name
    )
    arguments["input_quantizer"] = _student_quantizer(
        config.input_quantizer, "input_quantizer"
    )
    return make_layer(SimpleNamespace(**QUANT_LAYERS), kind, arguments, inner)


def _check_ours(call: Call) -> None:
    """Refuse the quantizers of others, and layers without any."""
    layer = call.layer
    found: Any = None
    wanted: type = PolicyQuantizeConfig
    if isinstance(layer, _libraries().QuantizeLayer):
        found, wanted = layer.quantizer, InputFakeQuantizer
    elif hasattr(layer, "quantize_config"):
        found = layer.quantize_config
    elif type(layer).__name__ not in QUANT_LAYERS:
        return
    if not isinstance(found, wanted):
        raise ExportError(
            "Every quantizer must be one of gmpq_tf's. "
            f"Received: layer={call.name!r} with {type(found).__name__}. "
            "Pass what quantize_apply of export.tfmot returned, not of TFMOT."
        )


def _student_quantizer(quantizer: InputFakeQuantizer, name: str) -> InputQuantizer:
    return InputQuantizer(
        quantizer.bits,
        quantizer.signed,
        quantizer.method,
        power_of_two=quantizer.power_of_two,
        learn_range=quantizer.learn_range,
        name=name,
    )


def _input_quantizer(quantizer: InputQuantizer) -> InputFakeQuantizer:
    return InputFakeQuantizer(
        quantizer.bits[0],
        quantizer.signed,
        quantizer.method,
        quantizer.power_of_two,
        quantizer.learn_range,
        first_batch=float(quantizer.calibrated) == 0,
    )


def _kernel_quantizer(layer: Any) -> KernelFakeQuantizer:
    quantizer = layer.kernel_quantizer
    return KernelFakeQuantizer(
        quantizer.bits[0], quantizer.method, quantizer.shared_axes, first_batch=False
    )


def _copy_weights(graph: Graph, model: Any) -> None:
    """Copy the weights of a Keras 3 graph into its tf_keras model."""
    layers = {_unwrapped(layer).name: layer for layer in model.layers}
    for call in graph.calls:
        if call.name in layers:
            _copy(call.layer, layers[call.name])


def _copy(source: Any, target: Any) -> None:
    """Copy the weights of a layer into its counterpart in the other library."""
    values, variables = _weights(source), _weights(target)
    for name, variable in variables.items():
        if name in values:
            variable.assign(np.asarray(values[name]))


def _weights(layer: Any) -> dict[str, Any]:
    """Variables of a layer of either library, by the names of the student's."""
    config, inner = getattr(layer, "quantize_config", None), _unwrapped(layer)
    found = {name: getattr(inner, name, None) for name in ("bias", *NORM_WEIGHTS)}
    kernel = getattr(inner, "depthwise_kernel", getattr(inner, "kernel", None))
    found["kernel"] = kernel if config is None else config.kernel
    owner = config or layer
    for name in ("kernel_quantizer", "input_quantizer", "quantizer"):
        found |= _quantizer_weights(getattr(owner, name, None))
    found |= _quantizer_weights(layer)
    return {name: value for name, value in found.items() if value is not None}


def _quantizer_weights(quantizer: Any) -> dict[str, Any]:
    """Variables of a quantizer of either library; none of anything else."""
    if isinstance(quantizer, (InputFakeQuantizer, KernelFakeQuantizer)):
        return dict(quantizer.variables)
    if isinstance(quantizer, (InputQuantizer, KernelQuantizer)):
        owned = [name for name in QUANTIZER_WEIGHTS if hasattr(quantizer, name)]
        return {name: getattr(quantizer, name) for name in owned}
    return {}


def _unwrapped(layer: Any) -> Any:
    """The layer inside TFMOT's wrapper."""
    return layer.layer if hasattr(layer, "quantize_config") else layer


def _described(model: Any) -> str:
    kind = "keras.Model of Keras 3" if isinstance(model, keras.Model) else "object"
    return f"{kind}, {type(model).__module__}.{type(model).__name__}"


def _read_tf_keras(model: Any) -> Graph:
    """The graph of a functional tf_keras model."""
    if not isinstance(model, _libraries().tf_keras.Model) or not hasattr(
        model, "_nodes_by_depth"
    ):
        raise ExportError(
            "model must be a functional tf_keras model. "
            f"Received: model={_described(model)}. Pass what quantize_apply returned."
        )
    graph = Graph(input_names=list(model.input_names))
    numbers = {id(t): graph.new_tensor(t.shape, t.dtype.name) for t in model.inputs}
    graph.inputs = list(numbers.values())
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                graph.calls.append(_read_node(node, numbers, graph))

    def refs(structure: Any) -> Any:
        return tf.nest.map_structure(lambda t: Ref(numbers[id(t)]), structure)

    graph.outputs = [numbers[id(t)] for t in model.outputs]
    graph.input_structure = refs(model._nested_inputs)
    graph.output_structure = refs(model._nested_outputs)
    return graph


def _read_node(node: Any, numbers: dict[int, int], graph: Graph) -> Call:
    sources = tuple(numbers[id(t)] for t in node.keras_inputs)
    output = graph.new_tensor(node.outputs.shape, node.outputs.dtype.name)
    numbers[id(node.outputs)] = output
    operands = [Ref(i) for i in sources]
    layer = _unwrapped(node.layer)
    merges = type(layer).__name__ in MERGES
    return Call(
        node.layer,
        layer.name,
        (operands,) if merges else (operands[0],),
        training_of(type(layer).__name__, node.call_kwargs),
        sources,
        (output,),
    )


def _check_equal(model: Any, student: keras.Model) -> None:
    """Refuse a student that does not compute what the tf_keras model does."""
    given = random_inputs(student, lower(student).input_grids, seed=0)
    inputs = ModelInputs(_read_tf_keras(model)), ModelInputs(read_graph(student))
    both = (
        as_list(m(i.structured(i.read(given)), training=False))
        for m, i in zip((model, student), inputs, strict=True)
    )
    for outputs in zip(*both, strict=True):
        want, have = map(np.asarray, outputs)
        limit = TOLERANCE * max(1.0, float(np.abs(want).max()))
        moved = float(np.mean(np.abs(want - have) > limit))
        if moved > FLIPPED:
            raise ExportError(
                "The Keras 3 model must compute what the tf_keras model does. "
                f"Received: model={model.name!r}, of whose outputs {moved:.1%} differ. "
                "Nothing was written; please report the model's layers."
            )
