"""An agent that learns actions between 0 and 1 from rewards: DDPG, as HAQ uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

HIDDEN = 300
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
TAU = 0.01  # step size of the target networks towards the trained ones
# Standard deviation of the noise after the warm-up, and its factor in each episode.
NOISE, DECAY = 0.5, 0.99
BASELINE = 0.5  # share of a new mean reward in the moving baseline
TRIES = 64  # draws of a normal action before the mean is taken


@dataclass(frozen=True)
class Transition:
    """One step of an episode.

    Args:
        state: state before the action, [states].
        action: 0 to 1.
        reward: reward of the whole episode.
        following: state after the action, [states].
        last: whether the episode ends here.
    """

    state: np.ndarray
    action: float
    reward: float
    following: np.ndarray
    last: bool


class Agent:
    """Actor and critic with two hidden layers each, and slowly following targets.

    For the same seed and rewards it takes the same actions, so that a search can be
    replayed.

    Args:
        states: number of features of a state.
        seed: seed of the networks, the noise and the batches.
        warmup: number of episodes with random actions at the start.
        memory: number of transitions that are kept, the last ones.
        batch: number of transitions in a training step.
    """

    def __init__(
        self, states: int, seed: int, warmup: int, memory: int, batch: int = 64
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.warmup, self.batch, self.most = warmup, batch, memory
        self.memory: list[Transition] = []
        self.baseline: float | None = None
        with tf.device("CPU"):  # such small networks gain nothing from a GPU
            self.actor, self.slow_actor = (_network(states, 1, seed) for _ in range(2))
            self.critic, self.slow_critic = (
                _network(states + 1, 1, seed + 1) for _ in range(2)
            )
            self._optimizers = [
                _optimizer(self.actor, ACTOR_RATE),
                _optimizer(self.critic, CRITIC_RATE),
            ]

    def act(self, state: np.ndarray, episode: int) -> float:
        """An action, 0 to 1: random at first, then the actor's with noise.

        Args:
            state: [states].
            episode: number of the episode, from 0.
        """
        if episode < self.warmup:
            return float(self.random.uniform())
        with tf.device("CPU"):
            mean = float(tf.sigmoid(self._act(_row(state)))[0, 0])
        spread = NOISE * DECAY ** (episode - self.warmup)
        for _ in range(TRIES):  # a normal distribution truncated to [0, 1]
            action = float(self.random.normal(mean, spread))
            if 0 <= action <= 1:
                return action
        return float(np.clip(mean, 0, 1))

    def learn(self, transitions: Sequence[Transition], episode: int) -> None:
        """Stores an episode; after the warm-up also trains, one step per episode step.

        Args:
            transitions: the transitions of the episode.
            episode: number of the episode, from 0.
        """
        self.memory = (self.memory + list(transitions))[-self.most :]
        if episode + 1 < self.warmup:
            return
        for _ in transitions:
            self._step()

    def _step(self) -> None:
        picks = self.random.integers(0, len(self.memory), self.batch)
        drawn = [self.memory[i] for i in picks]
        rewards = np.array([own.reward for own in drawn])
        mean = float(rewards.mean())
        known = mean if self.baseline is None else self.baseline
        self.baseline = known + BASELINE * (mean - known)
        with tf.device("CPU"):
            self._train(
                tf.constant(np.stack([own.state for own in drawn]), tf.float32),
                tf.constant([[own.action] for own in drawn], tf.float32),
                tf.constant((rewards - self.baseline)[:, None], tf.float32),
                tf.constant(np.stack([own.following for own in drawn]), tf.float32),
                tf.constant([[1.0 - own.last] for own in drawn], tf.float32),
            )

    @tf.function
    def _act(self, state: tf.Tensor) -> tf.Tensor:
        return self.actor(state)

    @tf.function
    def _train(
        self, state: Any, action: Any, reward: Any, following: Any, on: Any
    ) -> None:
        """One training step of actor and critic, and of their target networks."""
        after = tf.sigmoid(self.slow_actor(following))
        worth = reward + on * self.slow_critic(tf.concat([following, after], 1))
        with tf.GradientTape() as tape:
            error = self.critic(tf.concat([state, action], 1)) - worth
            loss = tf.reduce_mean(tf.square(error))
        self._update(1, self.critic, tape, loss)
        with tf.GradientTape() as tape:
            taken = tf.sigmoid(self.actor(state))
            loss = -tf.reduce_mean(self.critic(tf.concat([state, taken], 1)))
        self._update(0, self.actor, tape, loss)
        for slow, fast in (
            (self.slow_actor, self.actor),
            (self.slow_critic, self.critic),
        ):
            for old, new in zip(slow.variables, fast.variables, strict=True):
                old.assign((1 - TAU) * old + TAU * new)

    def _update(self, which: int, network: Any, tape: Any, loss: tf.Tensor) -> None:
        gradients = tape.gradient(loss, network.trainable_variables)
        self._optimizers[which].apply(gradients, network.trainable_variables)


def _network(inputs: int, outputs: int, seed: int) -> keras.Model:
    """A network with two hidden ReLU layers; the seed fixes its initial weights."""
    layers = [
        keras.layers.Dense(
            units,
            activation=activation,
            kernel_initializer=keras.initializers.GlorotUniform(seed=seed + place),
        )
        for place, (units, activation) in enumerate(
            ((HIDDEN, "relu"), (HIDDEN, "relu"), (outputs, None))
        )
    ]
    return keras.Sequential([keras.Input((inputs,)), *layers])


def _optimizer(network: keras.Model, rate: float) -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(network.trainable_variables)
    return optimizer


def _row(state: np.ndarray) -> tf.Tensor:
    return tf.constant(state[None], tf.float32)
