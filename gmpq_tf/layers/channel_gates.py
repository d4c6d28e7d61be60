"""Gates of whole channels, whose learned noise tells which can be removed (DJPQ)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.quantizers.draws import add_draws
from gmpq_tf.quantizers.straight_through import straight_through

START = -9.0  # log of the variance over the squared mean, as in the code of VIBNet
# Factor on log variances: Adam moves all variables at the same rate, but these have to
# move farther.
SPEED = 10.0
LEAST = 1e-6  # least squared mean, so that its logarithm is finite


@keras.saving.register_keras_serializable("gmpq_tf")
class ChannelGates(keras.layers.Layer):
    """Multiplies channels by `z = mu + sigma eps`, `eps` drawn for each image.

    A channel is open while `log(sigma^2 / mu^2) < 0`. In inference `z` is `mu` for open
    channels and 0 for closed ones. One layer object holds the gates of a whole network.
    It is called on every tensor that a kernel reads, with the gate index of each
    channel.

    Args:
        producers: layer -> gate index of each output channel; -1: no gate, always open.
        readers: layer -> gate index of each input channel; -1: no gate.
        start: `log(sigma^2 / mu^2)` before training, below 0.

    Source: Dai et al., "Compressing Neural Networks using the Variational Information
    Bottleneck", ICML 2018; Wang, Lu and Blankevoort, "Differentiable Joint Pruning and
    Quantization for Hardware Efficiency" (DJPQ), ECCV 2020. Unlike there, a channel is
    gated where it is read, so that channels that are added to each other share a gate.
    """

    graph_kind = "Identity"  # what `read_graph` takes it for: all gates start open

    def __init__(
        self,
        producers: Mapping[str, Sequence[int]],
        readers: Mapping[str, Sequence[int]],
        start: float = START,
        name: str = "channel_gates",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.given: dict[str, Any] = {
            "producers": {n: [int(i) for i in own] for n, own in producers.items()},
            "readers": {n: [int(i) for i in own] for n, own in readers.items()},
            "start": float(start),
        }
        places = [i for own in producers.values() for i in own]
        self.count = max(places, default=-1) + 1
        # A negative gate would make unsigned inputs negative, which are then clipped.
        self.mean = self._weight("mean", 1.0, keras.constraints.NonNeg())
        self.log_variance = self._weight("log_variance", start / SPEED)
        self.draws = add_draws(self, "int64", 2**31)
        self.built = True

    def _weight(self, name: str, value: float, constraint: Any = None) -> Any:
        return self.add_weight(
            name=name,
            shape=(self.count,),
            initializer=keras.initializers.Constant(value),
            constraint=constraint,
            autocast=False,
            dtype="float32",
        )

    def call(
        self, inputs: tf.Tensor, places: Sequence[int], training: bool | None = None
    ) -> tf.Tensor:
        """Multiplies inputs by their gates.

        Args:
            inputs: [batch, ..., channels].
            places: gate of each channel, -1 where it has none.
            training: whether noise is drawn.
        """
        # Channels without a gate use one more gate behind the others, which is 1.
        gates = np.where(np.asarray(places) < 0, self.count, places)
        used, order = np.unique(gates, return_inverse=True)
        mean = tf.concat([tf.convert_to_tensor(self.mean), [1.0]], 0)
        if training:
            sigma = tf.concat([tf.exp(self._log_variances() / 2), [0.0]], 0)
            mean, sigma = tf.gather(mean, used), tf.gather(sigma, used)
            noise = self._noise([tf.shape(inputs)[0], len(used)])
            z = tf.gather(mean + sigma * noise, order, axis=1)
            one = [1] * (len(inputs.shape) - 2)
            z = tf.reshape(z, [-1, *one, len(order)])
        else:
            open_ = tf.concat([self.open(), [1.0]], 0)
            z = tf.gather(mean * open_, gates)
        return inputs * tf.cast(z, inputs.dtype)

    def _noise(self, shape: Sequence[Any]) -> tf.Tensor:
        """Draws new standard normal noise of a shape."""
        seed = tf.convert_to_tensor(self.draws)
        noise = tf.random.stateless_normal(shape, seed)
        with tf.control_dependencies([noise]):
            self.draws.assign(seed + tf.constant([0, 1], seed.dtype))
        return noise

    def _log_variances(self) -> tf.Tensor:
        return SPEED * tf.convert_to_tensor(self.log_variance)

    def log_ratios(self) -> tf.Tensor:
        """Returns `log(sigma^2 / mu^2)` of each gate, [gates]; closed from 0 on."""
        squared = tf.maximum(tf.square(tf.convert_to_tensor(self.mean)), LEAST)
        return self._log_variances() - tf.math.log(squared)

    def open(self) -> tf.Tensor:
        """Returns 1 for each open gate and 0 for each closed one, float32 [gates]."""
        return tf.cast(self.log_ratios() < 0, "float32")

    def information(self) -> tf.Tensor:
        """Returns `log(1 + mu^2 / sigma^2)` of each gate in nats, [gates]."""
        return tf.nn.softplus(-self.log_ratios())

    def shares(self) -> dict[str, tf.Tensor]:
        """Returns layer -> share of its multiply-adds that remain, scalars of 0 to 1.

        Open gates are counted exactly; the gradient is that of
        `sigmoid(-log(sigma^2 / mu^2))`.
        """
        kept = straight_through(self.open(), tf.sigmoid(-self.log_ratios()))
        kept = tf.concat([kept, [1.0]], 0)  # -1 is the last
        found: dict[str, tf.Tensor] = {}
        for side in ("readers", "producers"):
            for name, places in self.given[side].items():
                gates = np.where(np.asarray(places) < 0, self.count, places)
                share = tf.reduce_mean(tf.gather(kept, gates))
                found[name] = found[name] * share if name in found else share
        return found

    def compute_output_shape(self, input_shape: Any, *args: Any, **kwargs: Any) -> Any:
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), **self.given}
