"""Networks written down a second time: torchvision's, from its definition, in tf.nn."""

import numpy as np
import tensorflow as tf

EPSILON = 1e-5  # torch.nn.BatchNorm2d
BASIC, BOTTLENECK = "basic", "bottleneck"
# Gains of the normalizations with which signals neither die out nor overflow.
RESIDUAL_GAIN, CHAIN_GAIN = 0.7, 1.0
MOBILE_ROWS = [
    # expansion, channels, repeats, stride: inverted_residual_setting
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


def randomize(model, gain=RESIDUAL_GAIN, seed=0):
    """Give every weight of a Keras model, statistics too, a value of its own.

    Variances reach down to where another epsilon shows.
    """
    random = np.random.default_rng(seed)
    for layer in model.layers:
        values = layer.get_weights()
        if len(values) == 4:
            values = batch_norm_values(random, len(values[0]), gain)
        elif values:
            values = [he_normal(random, values[0].shape), *values[1:]]
            values[1:] = [random.normal(0, 0.1, v.shape) for v in values[1:]]
        layer.set_weights(values)


def he_normal(random, shape):
    fan_in = np.prod(shape[:-1]) if shape[-1] != 1 else shape[0] * shape[1]
    return random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)


def batch_norm_values(random, channels, gain):
    """Gamma, beta, mean, variance; gamma / deviation stays near the gain."""
    variance = 10 ** random.uniform(-3, 0, channels)
    gamma = random.uniform(gain - 0.2, gain + 0.2, channels) * np.sqrt(variance)
    beta, mean = random.normal(0, 0.1, (2, channels))
    mean = mean * np.sqrt(variance)
    return [x.astype(np.float32) for x in (gamma, beta, mean, variance)]


class StateDict(dict):
    """Collects random tensors under PyTorch's names and in its layout."""

    def __init__(self, gain):
        super().__init__()
        self.gain, self.random = gain, np.random.default_rng(0)

    def conv(self, name, outputs, inputs, kernel):
        fan_in = inputs * kernel * kernel
        shape = (outputs, inputs, kernel, kernel)
        self[f"{name}.weight"] = self.normal(shape, fan_in)

    def batch_norm(self, name, channels):
        keys = ("weight", "bias", "running_mean", "running_var")
        values = batch_norm_values(self.random, channels, self.gain)
        for key, value in zip(keys, values, strict=True):
            self[f"{name}.{key}"] = value
        self[f"{name}.num_batches_tracked"] = np.int64(7)

    def linear(self, name, outputs, inputs):
        self[f"{name}.weight"] = self.normal((outputs, inputs), inputs)
        self[f"{name}.bias"] = self.normal((outputs,), 100)

    def normal(self, shape, fan_in):
        return self.random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)


def resnet_state(block, counts, classes):
    state = StateDict(RESIDUAL_GAIN)
    state.conv("conv1", 64, 3, 7)
    state.batch_norm("bn1", 64)
    inputs = 64
    for stage, count in enumerate(counts, 1):
        width = 64 * 2 ** (stage - 1)
        outputs = width if block == BASIC else 4 * width
        for index in range(count):
            name = f"layer{stage}.{index}"
            rows = [(width, inputs, 3), (width, width, 3)]
            if block == BOTTLENECK:
                rows = [(width, inputs, 1), (width, width, 3), (outputs, width, 1)]
            for number, row in enumerate(rows, 1):
                state.conv(f"{name}.conv{number}", *row)
                state.batch_norm(f"{name}.bn{number}", row[0])
            if index == 0 and (stage > 1 or inputs != outputs):
                state.conv(f"{name}.downsample.0", outputs, inputs, 1)
                state.batch_norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    state.linear("fc", classes, inputs)
    return dict(state)


def resnet_forward(state, images, block, counts):
    x = conv_bn(state, images, "conv1", "bn1", stride=2)
    x = tf.nn.relu(x)
    x = tf.nn.max_pool2d(pad(x, 1, -np.inf), 3, 2, "VALID")
    for stage, count in enumerate(counts, 1):
        for index in range(count):
            stride = 2 if stage > 1 and index == 0 else 1
            # torchvision's bottlenecks put the stride in conv2.
            strides = [stride, 1] if block == BASIC else [1, stride, 1]
            x = residual(state, x, f"layer{stage}.{index}", strides)
    return linear(state, tf.reduce_mean(x, (1, 2)), "fc")


def residual(state, x, name, strides):
    y = x
    for number, stride in enumerate(strides, 1):
        y = conv_bn(state, y, f"{name}.conv{number}", f"{name}.bn{number}", stride)
        y = tf.nn.relu(y) if number < len(strides) else y
    if f"{name}.downsample.0.weight" in state:
        down = f"{name}.downsample."
        x = conv_bn(state, x, f"{down}0", f"{down}1", max(strides))
    return tf.nn.relu(x + y)


def mobilenet_state(classes):
    state = StateDict(CHAIN_GAIN)
    state.conv("features.0.0", 32, 3, 3)
    state.batch_norm("features.0.1", 32)
    inputs, number = 32, 1
    for expansion, outputs, repeats, _ in MOBILE_ROWS:
        for _ in range(repeats):
            name, hidden, at = f"features.{number}.conv", inputs * expansion, 0
            if expansion != 1:
                state.conv(f"{name}.0.0", hidden, inputs, 1)
                state.batch_norm(f"{name}.0.1", hidden)
                at = 1
            state.conv(f"{name}.{at}.0", hidden, 1, 3)  # groups=hidden
            state.batch_norm(f"{name}.{at}.1", hidden)
            state.conv(f"{name}.{at + 1}", outputs, hidden, 1)
            state.batch_norm(f"{name}.{at + 2}", outputs)
            inputs, number = outputs, number + 1
    state.conv("features.18.0", 1280, inputs, 1)
    state.batch_norm("features.18.1", 1280)
    state.linear("classifier.1", classes, 1280)
    return dict(state)


def mobilenet_forward(state, images):
    x = tf.nn.relu6(conv_bn(state, images, "features.0.0", "features.0.1", 2))
    number = 1
    for expansion, _, repeats, first in MOBILE_ROWS:
        for index in range(repeats):
            stride = first if index == 0 else 1
            y = inverted(state, x, f"features.{number}.conv", expansion, stride)
            x = x + y if stride == 1 and x.shape[-1] == y.shape[-1] else y
            number += 1
    x = tf.nn.relu6(conv_bn(state, x, "features.18.0", "features.18.1"))
    return linear(state, tf.reduce_mean(x, (1, 2)), "classifier.1")


def inverted(state, x, name, expansion, stride):
    at = 0
    if expansion != 1:
        x = tf.nn.relu6(conv_bn(state, x, f"{name}.0.0", f"{name}.0.1"))
        at = 1
    kernel = state[f"{name}.{at}.0.weight"].transpose(2, 3, 0, 1)
    strides = (1, stride, stride, 1)
    x = tf.nn.depthwise_conv2d(pad(x, 1), kernel, strides, "VALID")
    x = tf.nn.relu6(normalized(state, x, f"{name}.{at}.1"))
    return conv_bn(state, x, f"{name}.{at + 1}", f"{name}.{at + 2}")


def conv_bn(state, x, conv, bn, stride=1):
    kernel = state[f"{conv}.weight"].transpose(2, 3, 1, 0)
    x = tf.nn.conv2d(pad(x, kernel.shape[0] // 2), kernel, stride, "VALID")
    return normalized(state, x, bn)


def normalized(state, x, name):
    scale = state[f"{name}.weight"] / np.sqrt(state[f"{name}.running_var"] + EPSILON)
    return (x - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]


def pad(x, pixels, value=0.0):
    sides = [pixels, pixels]
    return tf.pad(x, [[0, 0], sides, sides, [0, 0]], constant_values=value)


def linear(state, x, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
