"""The registry of layer kinds and their meaning for quantization: one row for each.

Graphs, signs, placement, export and costs use these rows. To add a kind, add a row, the
function that lowers it (`gmpq_tf.export.tflite.lowering`), and a case of the
conformance test (`tests/export/conformance_test.py`). This module imports neither
TensorFlow nor Keras.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from gmpq_tf.kernel_kinds import KERNEL_KINDS


class Role(Enum):
    """What a layer does with its inputs, from the view of quantization."""

    KERNEL = "multiplies by a kernel whose bits are searched"
    NORM = "scales each channel by statistics"
    SCALING = "scales and shifts by constants"
    SUM = "adds two tensors, or a constant"
    PRODUCT = "multiplies two tensors, or by a constant"
    JOIN = "puts tensors side by side, on one grid"
    MEAN = "averages tensors that are on one grid"
    POOL = "averages"
    MOVE = "moves values or picks the largest, whether before rounding or after"
    REPEAT = "repeats values that are on a grid"
    BLEND = "mixes neighbours with fixed weights"
    IDENTITY = "does nothing in inference"
    CURVE = "is an activation function"
    LOOKUP = "computes each value from one value, by a table of its 256 codes"
    QUANTIZER = "puts a tensor on a grid"
    HOST = "is computed in float, between two files"
    FLOAT = "has no integer counterpart"


# Roles that are always lowered to a TFLite operator, whatever the layer's settings.
LOWERED = frozenset(Role) - {Role.IDENTITY, Role.CURVE, Role.FLOAT, Role.HOST}
BILINEAR = "UpSampling2D bilinear"  # row for UpSampling2D with this interpolation
# A property of a layer that may depend on its settings.
Test = Callable[[Any], bool]
# (layer, number of input tensors) -> reason why it cannot be computed in integers, or
# None.
Check = Callable[[Any, int], "str | None"]


def always(layer: Any) -> bool:
    """A `Test` that holds for every layer."""
    return True


def never(layer: Any) -> bool:
    """A `Test` that holds for no layer."""
    return False


@dataclass(frozen=True)
class Kind:
    """A kind of layer, or of a Keras operation on tensors.

    Args:
        name: name of the class.
        role: what the layer does.
        keeps_sign: layer -> whether its output is non-negative if all inputs are.
        nonnegative: layer -> whether its output is always non-negative.
        whole: whether it maps whole numbers to the same numbers in any type.
        of_images: whether models have it in front to scale pixels. What it makes of a
            model input is quantized like one: calibration places the zero.
        of_indices: whether its inputs are indices, such as the numbers of words, which
            must not be quantized.
        elementwise: whether its weights only scale and shift, so that they are not
            counted as multiply-adds.
        fuses_into: roles whose kernels can compute it, if it is the only reader.
        function: the activation function that it is, a key of `FUNCTIONS`.
        arguments: names of arguments that exist in Keras 3 and tf_keras, with
            attributes of the same names; None: the export through TFMOT refuses the
            kind.
        trains: whether its call takes `training`.
        twin: for an operation, the equivalent layer and its arguments.
        images: for a layer on sequences, [batch, steps, channels], the kind that
            computes the same on images of one row.
        variant: layer -> name of another row for its settings; None: this row.
        refuses: (layer, number of inputs) -> reason why it cannot be computed in
            integers, or None.
    """

    name: str
    role: Role
    keeps_sign: Test = never
    nonnegative: Test = never
    whole: bool = False
    of_images: bool = False
    of_indices: bool = False
    elementwise: bool = False
    fuses_into: tuple[Role, ...] = ()
    function: str | None = None
    arguments: str | None = None
    trains: bool = False
    twin: tuple[str, tuple[tuple[str, Any], ...]] | None = None
    images: str | None = None
    variant: Callable[[Any], str | None] = lambda layer: None
    refuses: Check = lambda layer, tensors: None

    @property
    def shares_grid(self) -> bool:
        """Whether all its inputs must be on the same grid."""
        return self.role in (Role.JOIN, Role.MEAN)


@dataclass(frozen=True)
class Function:
    """An activation function.

    Args:
        name: name of the function, as `graph.activation_name` gives it.
        nonnegative: whether its values are always non-negative.
        fused: whether kernels can compute it on their results.
        ends: whether it stays float at the end of a model.
        gate: whether its values lie between 0 and 1, on the grid of 1/256.
        gated_by: name of g, if the function is `f(x) = x g(x)`.
        lookup: whether it is computed by a table of 256 codes.
    """

    name: str
    nonnegative: bool = False
    fused: bool = False
    ends: bool = False
    gate: bool = False
    gated_by: str | None = None
    lookup: bool = False

    @property
    def exports(self) -> bool:
        """Whether it can be computed in integers, by one operator or two."""
        return self.gate or self.lookup or self.gated_by is not None


def _is_rectifier(layer: Any) -> bool:
    return not layer.negative_slope and layer.threshold >= 0


def _stays_between(layer: Any) -> bool:
    return layer.interpolation in ("nearest", "bilinear")  # others can overshoot


def _of_two(layer: Any, tensors: int) -> str | None:
    many = tensors > 2
    return f"of {tensors} tensors, write it as several of two" if many else None


def _operation(layer: Any, tensors: int) -> str | None:
    """Refuses `keras.ops.average`, whose class has the same name as the layer's."""
    return "along an axis" if hasattr(layer, "axis") else None


def _nearest(layer: Any, tensors: int) -> str | None:
    if layer.interpolation == "nearest":
        return None
    return f"with interpolation={layer.interpolation!r}, use 'nearest'"


def _doubled(layer: Any, tensors: int) -> str | None:
    """Refuses sizes that are not powers of two: float32 rounds their weights."""
    if all(size & (size - 1) == 0 for size in layer.size):
        return None
    return f"with size={tuple(layer.size)} and 'bilinear', use powers of two"


def _blended(layer: Any) -> str | None:
    return BILINEAR if layer.interpolation == "bilinear" else None


def _other_axis(layer: Any, tensors: int) -> str | None:
    last = layer.input_spec.ndim - 1
    if layer.axis in (-1, last, [-1], [last]):  # tf_keras holds a list
        return None
    return f"along axis {layer.axis}, normalize the channels, axis=-1"


def _one_slope(layer: Any, tensors: int) -> str | None:
    if max(layer.alpha.shape[:-1], default=1) == 1:
        return None
    axes = list(range(1, len(layer.alpha.shape)))
    return f"with slopes of shape {tuple(layer.alpha.shape)}, use shared_axes={axes}"


_RELU = (Role.KERNEL, Role.SUM, Role.NORM)  # roles whose kernels can compute a ReLU
_POOL_ARGUMENTS = "pool_size strides padding"
_FUNCTIONS = (
    Function("linear", fused=True),
    Function("relu", nonnegative=True, fused=True),
    Function("relu6", nonnegative=True, fused=True),
    Function("softmax", nonnegative=True, ends=True),
    Function("sigmoid", nonnegative=True, ends=True, gate=True),
    Function("hard_sigmoid", nonnegative=True, gate=True),
    Function("silu", gated_by="sigmoid"),
    Function("hard_silu", gated_by="hard_sigmoid"),
    Function("leaky_relu", lookup=True),
    Function("exponential", nonnegative=True),
    Function("softplus", nonnegative=True),
)
_KINDS = (
    *(
        Kind(
            kind.name,
            Role.KERNEL,
            arguments=kind.arguments,
            refuses=kind.refuses,
            images=kind.name if kind.of_lines else None,
        )
        for kind in KERNEL_KINDS.values()
    ),
    Kind("InputQuantizer", Role.QUANTIZER, keeps_sign=always, elementwise=True),
    Kind(
        "BatchNormalization",
        Role.NORM,
        elementwise=True,
        fuses_into=(Role.KERNEL,),
        arguments="axis momentum epsilon center scale beta_regularizer "
        "gamma_regularizer beta_constraint gamma_constraint",
        trains=True,
        refuses=_other_axis,
    ),
    Kind("Rescaling", Role.SCALING, of_images=True, arguments="scale offset"),
    Kind("Normalization", Role.SCALING, of_images=True, elementwise=True),
    Kind("Subtract", Role.SCALING),
    Kind("Divide", Role.SCALING),
    Kind("TrueDivide", Role.SCALING),
    Kind("Add", Role.SUM, keeps_sign=always, arguments="", refuses=_of_two),
    Kind("Multiply", Role.PRODUCT, keeps_sign=always, refuses=_of_two),
    Kind("Concatenate", Role.JOIN, keeps_sign=always, whole=True, arguments="axis"),
    Kind("Average", Role.MEAN, keeps_sign=always, refuses=_operation),
    Kind("AveragePooling2D", Role.POOL, keeps_sign=always, arguments=_POOL_ARGUMENTS),
    Kind("GlobalAveragePooling2D", Role.POOL, keeps_sign=always, arguments="keepdims"),
    *(
        Kind(name, Role.MOVE, keeps_sign=always, whole=True, arguments=arguments)
        for name, arguments in (
            ("MaxPooling2D", _POOL_ARGUMENTS),
            ("GlobalMaxPooling2D", "keepdims"),
            ("Flatten", ""),
            ("Reshape", "target_shape"),
            ("Permute", "dims"),
            ("ZeroPadding2D", "padding"),
            ("Cropping2D", "cropping"),
        )
    ),
    Kind(
        "UpSampling2D",
        Role.REPEAT,
        keeps_sign=_stays_between,
        arguments="size interpolation",
        refuses=_nearest,
        variant=_blended,
    ),
    Kind(
        BILINEAR,
        Role.BLEND,
        keeps_sign=always,
        arguments="size interpolation",
        refuses=_doubled,
    ),
    Kind(
        "UpSampling1D",
        Role.REPEAT,
        keeps_sign=always,
        arguments="size",
        images="UpSampling2D",
    ),
    # Activations in a call of their own.
    Kind("Activation", Role.CURVE, fuses_into=_RELU, arguments="activation"),
    Kind(
        "ReLU",
        Role.CURVE,
        nonnegative=_is_rectifier,
        fuses_into=_RELU,
        arguments="max_value negative_slope threshold",
    ),
    Kind(
        "Softmax", Role.CURVE, nonnegative=always, function="softmax", arguments="axis"
    ),
    Kind(
        "Relu",
        Role.CURVE,
        nonnegative=always,
        fuses_into=_RELU,
        function="relu",
        twin=("ReLU", ()),
    ),
    Kind(
        "Relu6",
        Role.CURVE,
        nonnegative=always,
        fuses_into=_RELU,
        function="relu6",
        twin=("ReLU", (("max_value", 6.0),)),
    ),
    Kind(
        "Sigmoid",
        Role.CURVE,
        nonnegative=always,
        function="sigmoid",
        twin=("Activation", (("activation", "sigmoid"),)),
    ),
    Kind("HardSigmoid", Role.CURVE, nonnegative=always, function="hard_sigmoid"),
    Kind("Silu", Role.CURVE, function="silu"),
    Kind("HardSilu", Role.CURVE, function="hard_silu"),
    *(Kind(n, Role.LOOKUP, keeps_sign=always) for n in ("LeakyReLU", "LeakyRelu")),
    Kind("PReLU", Role.LOOKUP, keeps_sign=always, elementwise=True, refuses=_one_slope),
    # Nothing in inference.
    *(
        Kind(name, Role.IDENTITY, keeps_sign=always, arguments=arguments)
        for name, arguments in (("ActivityRegularization", "l1 l2"), ("Identity", ""))
    ),
    *(
        Kind(name, Role.IDENTITY, keeps_sign=always, arguments="rate", trains=True)
        for name in ("Dropout", "SpatialDropout1D", "SpatialDropout2D")
    ),
    Kind("GaussianNoise", Role.IDENTITY, arguments="stddev", trains=True),
    Kind("GaussianDropout", Role.IDENTITY, arguments="rate", trains=True),
    *(
        Kind(name, Role.IDENTITY)
        for name in (
            "SpatialDropout3D AlphaDropout AugMix CutMix MixUp "
            "RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter "
            "RandomContrast RandomElasticTransform RandomErasing RandomFlip "
            "RandomGaussianBlur RandomGrayscale RandomHue RandomInvert "
            "RandomPerspective RandomPosterization RandomRotation RandomSaturation "
            "RandomSharpness RandomShear RandomTranslation RandomZoom"
        ).split()
    ),
    # Between the files of a two-stage detector.
    Kind("RegionProposal", Role.HOST, nonnegative=always),
    Kind("RegionAlign", Role.HOST, keeps_sign=always),
    Kind("RegionOutputs", Role.HOST),
    # Computed in float: only signs, whole numbers and costs are known.
    *(
        Kind(name, Role.FLOAT, keeps_sign=always)
        for name in "Maximum Minimum Dot RepeatVector Mean Max Sum".split()
    ),
    *(
        Kind(name, Role.FLOAT, nonnegative=always)
        for name in "Absolute Exp Square".split()
    ),
    *(
        Kind(name, Role.FLOAT, of_indices=True)
        for name in ("Embedding", "CategoryEncoding")
    ),
    *(
        Kind(name, Role.FLOAT, whole=True)
        for name in "GetItem Squeeze ExpandDims Transpose Stack Split Cast".split()
    ),
    *(
        Kind(name, Role.FLOAT, elementwise=True)
        for name in (
            "LayerNormalization RMSNormalization GroupNormalization UnitNormalization"
        ).split()
    ),
)
# Kinds that Keras also has for sequences, with the same arguments.
_OF_LINES = (
    "AveragePooling GlobalAveragePooling MaxPooling GlobalMaxPooling ZeroPadding "
    "Cropping"
).split()
_LINES = tuple(
    replace(kind, name=f"{kind.name[:-2]}1D", images=kind.name)
    for kind in _KINDS
    if kind.name in [f"{name}2D" for name in _OF_LINES]
)
ACTIVATION = "Activation"  # kind of layers whose function is an argument
KINDS = {kind.name: kind for kind in (*_KINDS, *_LINES)}
FUNCTIONS = {function.name: function for function in _FUNCTIONS}


def kind_of(name: str) -> Kind:
    """The row of a kind; for an unknown kind one with the role FLOAT."""
    return KINDS.get(name) or Kind(name, Role.FLOAT)


def function_of(name: str | None) -> Function:
    """The row of an activation function; for an unknown one a row of defaults."""
    return FUNCTIONS.get(name or "") or Function(name or "")


def names(*roles: Role) -> frozenset[str]:
    """Names of the kinds that have one of some roles."""
    return frozenset(kind.name for kind in KINDS.values() if kind.role in roles)
