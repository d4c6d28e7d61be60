"""Random functional models of the kinds the exporters claim, small enough for a test.

A seed is a model: the same layers, weights, statistics and policy every time. Kernels
are sharp (many weights near zero, some large), and the statistics of
BatchNormalization are those of data, then shaken: so the scores depend on the image,
as those of a trained model do, instead of on the biases.
"""

import keras
import numpy as np

from gmpq_tf.graph import searchable_names
from gmpq_tf.policy import BitwidthPolicy

L = keras.layers
SHAPES = ((7, 9), (13, 5), (8, 8), (11, 6), (5, 12), (10, 15))
CLASSES = 5


class RandomModel:
    """Draws a model layer by layer; every choice comes from one generator."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.names = 0

    def pick(self, *choices):
        return choices[self.random.integers(len(choices))]

    def chance(self, probability):
        return self.random.random() < probability

    def name(self, kind):
        self.names += 1
        return f"{kind}{self.names}"

    # Layers.

    def activation(self):
        return self.pick(None, "relu", "relu6", "linear")

    def normalized(self, x, act=True):
        """BatchNormalization and an activation, or one of them, or none."""
        if self.chance(0.7):
            center, scale = not self.chance(0.15), not self.chance(0.15)
            x = L.BatchNormalization(
                center=center, scale=scale, name=self.name("norm")
            )(x)
        if not act or self.chance(0.2):
            return x
        kind = self.pick("relu", "relu6", "layer", "layer6")
        if kind in ("relu", "relu6"):
            return L.Activation(kind, name=self.name(kind))(x)
        return L.ReLU(6.0 if kind == "layer6" else None, name=self.name("relu"))(x)

    def window(self, x):
        """Kernel size, strides, padding and dilation that fit the image."""
        height, width = x.shape[1:3]
        size = (min(self.pick(1, 2, 3), height), min(self.pick(1, 2, 3), width))
        padding = self.pick("same", "valid")
        if self.chance(0.25) and min(height, width) >= 5:
            return {"kernel_size": size, "padding": padding, "dilation_rate": 2}
        strides = self.pick(1, 1, 1, 2) if min(height, width) >= 4 else 1
        return {"kernel_size": size, "padding": padding, "strides": strides}

    def conv(self, x, filters=None, same=False, act=True):
        """A convolution, perhaps in groups, with what follows it."""
        channels = x.shape[-1]
        filters = filters or self.pick(4, 6, 8, 12)
        window = self.window(x)
        if same:
            window |= {"padding": "same", "strides": 1}
        groups = [g for g in (2, 3, 4) if channels % g == 0 and filters % g == 0]
        inside = self.activation() if act and self.chance(0.3) else None
        layer = L.Conv2D(
            filters,
            groups=self.pick(*groups) if groups and self.chance(0.4) else 1,
            activation=inside,
            use_bias=self.chance(0.6),
            name=self.name("conv"),
            **window,
        )
        x = layer(x)
        return x if inside not in (None, "linear") else self.normalized(x, act)

    def depthwise(self, x, same=False):
        window = self.window(x)
        if same:
            window |= {"padding": "same", "strides": 1}
        multiplier = self.pick(1, 2) if x.shape[-1] <= 8 else 1
        layer = L.DepthwiseConv2D(
            depth_multiplier=multiplier,
            use_bias=self.chance(0.5),
            name=self.name("depthwise"),
            **window,
        )
        return self.normalized(layer(x))

    def max_pool(self, x, same=False):
        return L.MaxPooling2D(**self.pool(x, same), name=self.name("max"))(x)

    def average_pool(self, x, same=False):
        return L.AveragePooling2D(**self.pool(x, same), name=self.name("average"))(x)

    def pool(self, x, same):
        size = (min(self.pick(2, 3), x.shape[1]), min(self.pick(2, 3), x.shape[2]))
        strides = 1 if same or min(x.shape[1:3]) < 4 else self.pick(1, 2)
        padding = "same" if same else self.pick("same", "valid")
        return {"pool_size": size, "strides": strides, "padding": padding}

    # Blocks.

    def residual(self, x):
        """The image plus a convolution of it, or two convolutions."""
        channels = self.pick(4, 8)
        left = x if x.shape[-1] == channels else self.conv(x, channels, same=True)
        right = self.conv(self.conv(x, same=True), channels, same=True, act=False)
        x = L.Add(name=self.name("add"))([left, right])
        kind = self.pick(None, "relu", "relu6")
        return L.Activation(kind, name=self.name(kind))(x) if kind else x

    def branches(self, x):
        """Two or three branches side by side."""
        kinds = [self.conv, self.depthwise, self.max_pool, self.average_pool]
        count = self.pick(2, 3)
        parts = [self.pick(*kinds)(x, same=True) for _ in range(count)]
        if self.chance(0.3):
            parts.append(x)
        return L.Concatenate(name=self.name("concatenate"))(parts)

    def shared(self, x):
        """One convolution used twice, on the image and on its own result."""
        channels = x.shape[-1]
        layer = L.Conv2D(
            channels,
            self.pick(1, 3),
            padding="same",
            activation=self.pick(None, "relu"),
            name=self.name("shared"),
        )
        once = layer(x)
        if self.chance(0.5):
            return layer(once)
        return L.Add(name=self.name("add"))([once, layer(once)])

    def moving(self, x):
        """Layers that only move values."""
        pads = tuple((int(a), int(b)) for a, b in self.random.integers(0, 3, (2, 2)))
        kinds = [(L.ZeroPadding2D, pads), (L.ZeroPadding2D, 1), (L.Dropout, 0.5)]
        if min(x.shape[1:3]) >= 4:
            kinds.append((L.Cropping2D, ((0, 1), (1, 0))))
        if max(x.shape[1:3]) <= 6:
            kinds.append((L.UpSampling2D, 2))
        kind, argument = self.pick(*kinds)
        return kind(argument, name=self.name(kind.__name__.lower()))(x)

    def alone(self, x):
        """ReLU or BatchNormalization that nothing fuses with."""
        return self.normalized(self.max_pool(x))

    # Ends.

    def inputs(self):
        """One image, or two of one size that a shared convolution reads."""
        shape = (*self.pick(*SHAPES), self.pick(1, 3, 4))
        if self.chance(0.75):
            image = keras.Input(shape, name="image")
            x = image
            if self.chance(0.2):
                x = L.Rescaling(0.5, offset=-0.1, name=self.name("rescaling"))(x)
            return [image], self.conv(x)
        images = [keras.Input(shape, name=n) for n in ("left", "right")]
        trunk = L.Conv2D(
            self.pick(4, 8), 3, padding="same", activation="relu", name="trunk"
        )
        join = self.pick(L.Add, L.Concatenate)(name=self.name("join"))
        return images, join([trunk(image) for image in images])

    def features(self, x):
        """[images, features]."""
        kind = self.pick("average", "max", "flatten", "reshape")
        if kind == "average":
            return L.GlobalAveragePooling2D(name=self.name("mean"))(x)
        if kind == "max":
            return L.GlobalMaxPooling2D(name=self.name("largest"))(x)
        if kind == "flatten":
            x = L.Flatten(name=self.name("flatten"))(x)
            return L.Dense(12, self.activation(), name=self.name("dense"))(x)
        height, width, channels = x.shape[1:]
        x = L.Reshape((height * width, channels), name=self.name("reshape"))(x)
        x = L.Dense(6, activation="relu", name=self.name("dense"))(x)
        return L.Flatten(name=self.name("flatten"))(x)

    def head(self, x, name):
        """Scores, or probabilities made in one of three ways."""
        kind = self.pick("logits", "inside", "activation", "softmax")
        inside = "softmax" if kind == "inside" else None
        x = L.Dense(CLASSES, activation=inside, name=name)(x)
        if kind == "activation":
            return L.Activation("softmax", name=f"{name}_probabilities")(x)
        return L.Softmax(name=f"{name}_softmax")(x) if kind == "softmax" else x

    def build(self):
        """The model, with random weights and statistics."""
        inputs, x = self.inputs()
        blocks = [self.residual, self.branches, self.shared, self.conv]
        blocks += [self.depthwise, self.alone, self.moving, self.moving]
        blocks += [self.max_pool, self.average_pool]
        for _ in range(self.pick(2, 3, 4)):
            x = self.pick(*blocks)(x)
        features = self.features(x)
        outputs = [self.head(features, "scores")]
        if self.chance(0.25):
            source = self.pick(features, L.GlobalAveragePooling2D(name="side")(x))
            outputs.append(self.head(source, "more"))
        model = keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0])
        self.fill(model)
        return model

    # Weights.

    def fill(self, model):
        """Set every weight; statistics are of what the layers before make of data."""
        for layer in model.layers:
            if hasattr(layer, "kernel"):
                self.fill_kernel(layer)
        x = random_images(model, 32, int(self.random.integers(2**31)))
        inputs = model.inputs if len(model.inputs) > 1 else model.inputs[0]
        for layer in model.layers:
            if isinstance(layer, L.BatchNormalization):
                probe = keras.Model(inputs, layer.input)
                self.fill_norm(layer, np.asarray(probe(x, training=False)))

    def fill_kernel(self, layer):
        shape = layer.kernel.shape
        fan_in = np.prod(shape[:-1])
        if "Depthwise" in type(layer).__name__:
            fan_in = np.prod(shape[:2])
        values = self.random.standard_t(4, shape) * np.sqrt(1 / fan_in)
        layer.kernel.assign(values)
        if layer.use_bias:
            layer.bias.assign(self.random.normal(0, 0.1, layer.bias.shape))

    def fill_norm(self, layer, values):
        axes = tuple(range(values.ndim - 1))
        mean, deviation = values.mean(axes), values.std(axes) + 0.05
        channels = mean.size
        if layer.scale:
            signs = self.random.choice([1, 1, 1, -1], channels)
            layer.gamma.assign(self.random.uniform(0.5, 1.5, channels) * signs)
        if layer.center:
            layer.beta.assign(self.random.normal(0.3, 0.4, channels))
        shift = self.random.normal(0, 0.3, channels) * deviation
        layer.moving_mean.assign(mean + shift)
        stretch = self.random.uniform(0.7, 1.4, channels)
        layer.moving_variance.assign(np.square(deviation * stretch))


def random_model(seed):
    """A model with random structure and weights."""
    return RandomModel(seed).build()


def random_policy(model, seed):
    """2 to 8 bits for the kernel and for the input of each layer."""
    random = np.random.default_rng(seed)
    names = searchable_names(model)
    bits = random.integers(2, 9, (len(names), 2)).tolist()
    return BitwidthPolicy(
        model.name, {n: tuple(b) for n, b in zip(names, bits, strict=True)}
    )


def random_images(model, count, seed):
    """Images of a few waves and noise: neighbours are alike, images are not."""
    random = np.random.default_rng(seed)
    arrays = [_waves(random, (count, *t.shape[1:])) for t in model.inputs]
    return arrays if len(arrays) > 1 else arrays[0]


def _waves(random, shape):
    count, height, width, channels = shape
    down, right = np.mgrid[:height, :width] / max(height, width)
    total = random.normal(0, 0.3, shape)
    for _ in range(3):
        down_by, right_by, phase = random.uniform(-6, 6, (3, count, 1, 1, channels))
        wave = np.sin(
            down[None, :, :, None] * down_by
            + right[None, :, :, None] * right_by
            + phase
        )
        total += wave * random.uniform(0.2, 1, (count, 1, 1, channels))
    return total.astype("float32")
