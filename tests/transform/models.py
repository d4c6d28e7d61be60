"""Small functional models of every shape a user may bring."""

import keras
import numpy as np
from keras import layers, ops

IMAGE = (8, 8, 3)


def finish(inputs, outputs, name="model"):
    """A model whose biases and statistics are not the initial zeros and ones."""
    model = keras.Model(inputs, outputs, name=name)
    random = np.random.default_rng(1)
    for weight in model.weights:
        if "kernel" not in weight.path and "seed" not in weight.path:
            weight.assign(random.uniform(0.3, 0.8, weight.shape))
    return model


def head(x, name="head", **kwargs):
    x = layers.GlobalAveragePooling2D(name=f"{name}_pool")(x)
    return layers.Dense(4, name=name, **kwargs)(x)


def plain():
    inputs = x = keras.Input(IMAGE, name="image")
    x = layers.Conv2D(6, 3, activation="relu", name="first")(x)
    x = layers.Conv2D(6, 3, use_bias=False, padding="same", name="middle")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    return finish(inputs, layers.Dense(4, activation="softmax", name="head")(x))


def strides_dilation_groups():
    inputs = x = keras.Input(IMAGE, name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="strided")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Conv2D(8, 3, dilation_rate=2, padding="same", name="dilated")(x)
    x = layers.Conv2D(8, (3, 1), groups=4, padding="valid", name="grouped")(x)
    return finish(inputs, head(x, use_bias=False))


def separable():
    inputs = x = keras.Input(IMAGE, name="image")
    x = layers.Conv2D(6, 1, activation="relu6", name="expand")(x)
    x = layers.ZeroPadding2D(1, name="pad")(x)
    x = layers.DepthwiseConv2D(3, strides=2, name="depthwise")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Activation("relu6", name="relu")(x)
    x = layers.Conv2D(6, 1, name="project")(x)
    return finish(inputs, head(x))


def residual():
    inputs = x = keras.Input(IMAGE, name="image")
    x = layers.Conv2D(6, 3, padding="same", name="first")(x)
    x = a = layers.ReLU(name="relu_1")(x)
    x = layers.Conv2D(6, 3, padding="same", name="inner")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Add(name="add")([a, x])
    x = layers.ReLU(name="relu_2")(x)
    x = layers.Conv2D(6, 3, name="last_conv")(x)
    return finish(inputs, head(x))


def branches():
    inputs = x = keras.Input(IMAGE, name="image")
    a = layers.Conv2D(3, 1, activation="relu", name="a")(x)
    b = layers.Conv2D(3, 3, padding="same", activation="relu", name="b")(x)
    c = layers.MaxPooling2D(3, 1, "same", name="c")(x)
    x = layers.Concatenate(name="concat")([a, b, c])
    x = layers.Conv2D(6, 3, name="after")(x)
    return finish(inputs, head(x))


def average_pool():
    inputs = x = keras.Input(IMAGE, name="image")
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="first")(x)
    x = layers.AveragePooling2D(2, name="pool")(x)
    x = layers.Conv2D(6, 3, activation="relu", name="second")(x)
    return finish(inputs, head(x))


def block(name, channels=5):
    inputs = keras.Input((8, 8, channels), name=f"{name}_in")
    x = layers.Conv2D(channels, 3, padding="same", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, layers.ReLU(name="relu")(x), name=name)


def nested():
    inputs = x = keras.Input(IMAGE, name="image")
    x = layers.Conv2D(5, 3, padding="same", name="first")(x)
    x = block("block_1")(x)
    x = block("block_2")(x)
    return finish(inputs, head(x))


def nested_sequential():
    inner = keras.Sequential(
        [layers.Conv2D(5, 3, activation="relu", name="conv"), layers.ReLU(name="relu")],
        name="inner",
    )
    inputs = keras.Input(IMAGE, name="image")
    return finish(inputs, head(inner(inputs)))


def sequential():
    return keras.Sequential(
        [
            keras.Input(IMAGE, name="image"),
            layers.Conv2D(6, 3, activation="relu", name="first"),
            layers.Flatten(name="flat"),
            layers.Dense(4, name="head"),
        ],
        name="model",
    )


def shared_layer():
    inputs = x = keras.Input((8, 8, 4), name="image")
    conv = layers.Conv2D(4, 3, padding="same", name="shared")
    norm = layers.BatchNormalization(name="norm")
    x = layers.ReLU(name="relu_1")(norm(conv(x)))
    x = layers.ReLU(name="relu_2")(norm(conv(x)))
    return finish(inputs, head(x))


def shared_model():
    left, right = keras.Input(IMAGE, name="left"), keras.Input(IMAGE, name="right")
    inner = keras.Input(IMAGE, name="inner_in")
    x = layers.Conv2D(5, 3, activation="relu", name="conv")(inner)
    tower = keras.Model(inner, layers.GlobalAveragePooling2D(name="gap")(x), name="t")
    x = layers.Concatenate(name="concat")([tower(left), tower(right)])
    return finish([left, right], layers.Dense(4, name="head")(x))


def two_inputs_two_outputs():
    image, extra = keras.Input(IMAGE, name="image"), keras.Input((5,), name="extra")
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(image)
    x = layers.Flatten(name="flat")(x)
    x = layers.Concatenate(name="concat")([x, extra])
    x = layers.Dense(8, activation="relu", name="hidden")(x)
    classes = layers.Dense(4, activation="softmax", name="classes")(x)
    boxes = layers.Dense(2, name="boxes")(x)
    return finish([image, extra], [classes, boxes])


def dictionaries():
    inputs = {"b": keras.Input(IMAGE, name="b"), "a": keras.Input(IMAGE, name="a")}
    x = layers.Conv2D(5, 3, activation="relu", name="conv_a")(inputs["a"])
    y = layers.Conv2D(5, 3, activation="relu", name="conv_b")(inputs["b"])
    z = layers.Add(name="add")([x, y])
    return finish(inputs, {"sum": head(z, "sum"), "first": head(x, "first")})


def activations_inside():
    inputs = x = keras.Input(IMAGE, name="image")
    x = layers.Conv2D(6, 3, activation="swish", name="swish")(x)
    x = layers.Conv2D(6, 3, activation="sigmoid", name="sigmoid")(x)
    x = layers.Conv2D(6, 1, activation=layers.LeakyReLU(0.2), name="leaky")(x)
    return finish(inputs, head(x, activation="softmax"))


def operations():
    inputs = x = keras.Input(IMAGE, name="image")
    x = ops.relu(layers.Conv2D(6, 3, name="conv")(x))
    x = layers.Conv2D(6, 3, padding="same", name="second")(x) + x
    x = ops.concatenate([x[:, ::2, ::2], x[:, 1::2, 1::2]], axis=-1) * 0.5
    x = ops.mean(x, axis=(1, 2))
    return finish(inputs, ops.softmax(layers.Dense(4, name="head")(x)))


def preprocessing():
    inputs = x = keras.Input(IMAGE, name="image")
    x = layers.Rescaling(2.0, offset=-1.0, name="scale")(x)
    norm = layers.Normalization(name="normalize")
    norm.adapt(np.random.default_rng(5).normal(0.5, 2, (50, *IMAGE)))
    x = norm(x)
    x = layers.Conv2D(6, 3, activation="relu", name="first")(x)
    return keras.Model(inputs, head(x), name="model")


def separable_layer():
    """SeparableConv2D, one of them used twice."""
    inputs = x = keras.Input(IMAGE, name="image")
    x = layers.SeparableConv2D(
        6, 3, strides=2, padding="same", activation="relu", name="first"
    )(x)
    twice = layers.SeparableConv2D(
        6, (3, 1), padding="same", depth_multiplier=2, use_bias=False, name="twice"
    )
    x = layers.BatchNormalization(name="norm")(twice(twice(x)))
    return finish(inputs, head(layers.ReLU(name="relu")(x)))


def gates():
    """Swish, hard swish and squeeze-excite, as EfficientNet and MobileNetV3 have them.

    The second gate is spelled out in operations.
    """
    inputs = x = keras.Input(IMAGE, name="image")
    x = layers.Conv2D(6, 3, padding="same", name="first")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Activation("silu", name="swish")(x)
    y = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    y = layers.Conv2D(6, 1, activation="sigmoid", name="excite")(y)
    x = layers.Multiply(name="scaled")([x, y])
    x = layers.Activation("hard_silu", name="hard")(layers.Conv2D(6, 3, name="conv")(x))
    y = layers.GlobalAveragePooling2D(name="squeeze_again")(x)
    y = layers.Dense(6, name="excite_again")(y)
    y = layers.ReLU(6.0, name="six")(y + 3.0) * (1.0 / 6.0)
    x = layers.Multiply(name="scaled_again")([x, layers.Reshape((1, 1, 6))(y)])
    return finish(inputs, head(x))


def preactivation():
    """BatchNormalization before the convolutions, on sums and on concatenations."""
    inputs = x = keras.Input(IMAGE, name="image")
    x = layers.Conv2D(6, 3, padding="same", name="first")(x)
    y = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    y = layers.Conv2D(6, 3, padding="same", name="inner")(y)
    x = layers.Concatenate(name="concat")([x, layers.Add(name="add")([x, y])])
    x = layers.BatchNormalization(name="last_norm")(x)
    return finish(inputs, head(layers.Activation("relu", name="last_relu")(x)))


MODELS = {
    function.__name__: function
    for function in (
        plain,
        strides_dilation_groups,
        separable,
        residual,
        branches,
        average_pool,
        nested,
        nested_sequential,
        sequential,
        shared_layer,
        shared_model,
        two_inputs_two_outputs,
        dictionaries,
        activations_inside,
        operations,
        preprocessing,
        separable_layer,
        gates,
        preactivation,
    )
}


def batch_of(model, size=32, seed=0):
    """Random inputs of a model, in the structure it takes; images differ in color."""
    random = np.random.default_rng(seed)

    def draw(shape):
        color = random.uniform(-1, 1, (size, *[1] * (len(shape) - 2), shape[-1]))
        return (color + random.uniform(-0.5, 0.5, (size, *shape[1:]))).astype("float32")

    if isinstance(model, keras.Sequential):
        return draw(model.input_shape)
    return keras.tree.map_structure(lambda tensor: draw(tensor.shape), model.input)


def flat(outputs):
    """All outputs of a model as one [batch, features] array."""
    parts = [np.asarray(part) for part in keras.tree.flatten(outputs)]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
