"""Small random networks and their quantized students, to test the exporters on."""

import keras
import numpy as np

from gmpq_tf.detection import DefaultBoxesLayer, ssd_boxes
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.transform import calibrate, quantize_model

L = keras.layers


def conv_bn(x, filters, name, size=3, relu="relu", **options):
    x = L.Conv2D(filters, size, use_bias=False, name=name, **options)(x)
    x = L.BatchNormalization(name=f"{name}_bn")(x)
    return L.Activation(relu, name=f"{name}_{relu}")(x) if relu else x


def plain():
    x = inputs = keras.Input((12, 12, 3), name="image")
    x = conv_bn(x, 8, "a", padding="same", strides=2)
    x = L.Conv2D(8, 3, activation="relu", name="b")(x)
    x = L.MaxPooling2D(2)(x)
    x = L.Flatten()(x)
    x = L.Dense(12, activation="relu", name="c")(x)
    return keras.Model(inputs, L.Dense(5, activation="softmax", name="scores")(x))


def residual():
    x = inputs = keras.Input((12, 12, 3), name="image")
    x = conv_bn(x, 8, "stem", padding="same")
    y = conv_bn(x, 8, "a", padding="same")
    y = conv_bn(y, 8, "b", padding="same", relu=None)
    x = L.ReLU()(L.Add()([x, y]))
    y = conv_bn(x, 12, "c", padding="same", strides=2)
    y = conv_bn(y, 12, "d", padding="same", relu=None)
    x = L.Conv2D(12, 1, strides=2, name="short")(x)
    x = L.Activation("relu")(L.Add()([x, y]))
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, L.Dense(5, name="scores")(x))


def inverted():
    """Linear bottlenecks, so signed grids, as in MobileNetV2."""
    x = inputs = keras.Input((12, 12, 3), name="image")
    x = conv_bn(x, 8, "stem", padding="same", strides=2, relu="relu6")
    for block in "ab":
        y = conv_bn(x, 16, f"{block}_up", size=1, relu="relu6")
        y = L.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{block}_dw")(y)
        y = L.BatchNormalization()(y)
        y = L.ReLU(6.0)(y)
        y = conv_bn(y, 8, f"{block}_down", size=1, relu=None)
        x = y if block == "a" else L.Add()([x, y])
    x = conv_bn(x, 16, "top", size=1, relu="relu6")
    x = L.AveragePooling2D(6)(x)
    return keras.Model(inputs, L.Dense(5, name="scores")(L.Flatten()(x)))


def branches():
    x = inputs = keras.Input((12, 12, 4), name="image")
    x = L.ZeroPadding2D(((0, 1), (0, 1)))(conv_bn(x, 8, "stem"))
    a = conv_bn(x, 8, "groups", groups=4, padding="same")
    b = L.DepthwiseConv2D(
        3, depth_multiplier=2, dilation_rate=2, padding="same", name="deep"
    )(x)
    c = L.MaxPooling2D(3, strides=1, padding="same")(x)
    d = L.AveragePooling2D(3, strides=1, padding="same")(x)
    x = L.Concatenate()([a, b, c, d])
    x = conv_bn(x, 8, "wide", dilation_rate=2)
    x = L.AveragePooling2D(2)(x)
    x = conv_bn(x, 8, "last", padding="same")
    return keras.Model(inputs, L.Dense(5, name="scores")(L.GlobalMaxPooling2D()(x)))


def shared():
    """One convolution used twice, two inputs, two outputs."""
    left, right = (
        keras.Input((8, 8, 3), name="left"),
        keras.Input((8, 8, 3), name="right"),
    )
    trunk = L.Conv2D(8, 3, padding="same", activation="relu", name="trunk")
    x = L.Concatenate()([trunk(left), trunk(right)])
    y = conv_bn(x, 8, "after")
    features = L.GlobalAveragePooling2D()(y)
    scores = L.Dense(4, activation="softmax", name="scores")(features)
    return keras.Model([left, right], [scores, L.Dense(3, name="box")(features)])


def moving():
    """Scaling and ReLU on their own, and layers that only move values."""
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = L.Rescaling(1 / 2.0, offset=-0.25)(x)
    x = L.Conv2D(8, 3, padding="same", name="a")(x)
    x = L.Add()([x, L.Conv2D(8, 1, name="b")(x)])
    x = L.ReLU()(L.BatchNormalization(name="alone")(x))
    x = L.UpSampling2D(2)(L.Cropping2D(1)(x))
    x = L.Permute((2, 1, 3))(x)
    x = L.Dense(6, activation="relu", name="pointwise")(x)
    x = L.Reshape((72, 12))(x)
    x = L.Dropout(0.5)(x)
    x = L.Dense(4, name="c")(x)
    return keras.Model(inputs, L.Dense(5, name="scores")(L.Flatten()(x)))


NETS = {f.__name__: f for f in (plain, residual, inverted, branches, shared, moving)}


def randomize(model, seed):
    """Random BatchNormalization statistics, some factors negative and one zero."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            channels = layer.gamma.shape[0]
            gamma = random.uniform(0.5, 1.5, channels) * random.choice(
                [1, 1, -1], channels
            )
            gamma[-1] = 0.0
            layer.set_weights(
                [
                    gamma,
                    random.normal(0.2, 0.3, channels),
                    random.normal(0, 0.2, channels),
                    random.uniform(0.3, 1.0, channels),
                ]
            )
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(random.normal(0, 0.2, layer.bias.shape))
    return model


def images(model, count=16, seed=1):
    """Random inputs between -1 and 2."""
    random = np.random.default_rng(seed)
    arrays = [
        random.uniform(-1, 2, (count, *t.shape[1:])).astype("float32")
        for t in model.inputs
    ]
    return arrays[0] if len(arrays) == 1 else arrays


def student_of(model, weight_bits, activation_bits, x=None, pinned=None, **options):
    """Quantized and calibrated copy of a model; `pinned` as for the policy."""
    policy = BitwidthPolicy.uniform(model, weight_bits, activation_bits, pinned)
    student = quantize_model(model, policy, **options)
    calibrate(student, [(images(model) if x is None else x,)])
    return student


def detector(classes=3, background=True, end=None, seed=0, side=32):
    """Two levels of default boxes, random offsets and scores (logits without `end`)."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((side, side, 3), name="image")
    x = L.Conv2D(8, 3, 2, padding="same", activation="relu", name="stem")(x)
    columns, offsets, scores = classes + background, [], []
    for level in "ab":
        x = L.Conv2D(16, 3, 2, padding="same", activation="relu", name=level)(x)
        y = L.Conv2D(24, 3, padding="same", name=f"boxes_{level}")(x)
        offsets.append(L.Reshape((-1, 4))(y))
        y = L.Conv2D(6 * columns, 3, padding="same", name=f"scores_{level}")(x)
        scores.append(L.Reshape((-1, columns))(y))
    shapes = [(side // 4, side // 4), (side // 8, side // 8)]
    boxes = DefaultBoxesLayer(ssd_boxes(shapes, smallest=0.2), name="boxes")
    scores = L.Concatenate(axis=1, name="all_scores")(scores)
    if end:
        scores = L.Activation(end, name="scores")(scores)
    offsets = boxes(L.Concatenate(axis=1, name="all_boxes")(offsets))
    return keras.Model(inputs, {"boxes": offsets, "scores": scores})
