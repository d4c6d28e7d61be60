"""The quantized training of gmpq_tf written again in JAX: many students at once.

Nothing here is shared with the library: LSQ's gradients, the straight-through
estimator, measured statistics and rounded biases are from the equations, so that two
programs have to agree on what a policy is worth.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BATCH = 128
EXACT = jax.lax.Precision.HIGHEST  # training may round products to 10 bits (TF32)
HYPER = {
    "lr": 1e-3,
    "distill": 0.0,
    "T": 2.0,
    "wd": 0.0,
    "free": 0.0,  # 1: steps of inputs that nest are learned too, not powers of two
    "step_lr": 1.0,
    "step_cos": 1.0,  # 0: the learning rate of steps does not fall
    "ema": 0.0,
}
Tree = Any


def scale_gradient(value: jax.Array, factor: jax.Array) -> jax.Array:
    """`value` with its gradient times `factor`."""
    scaled = value * factor
    return jax.lax.stop_gradient(value) + (scaled - jax.lax.stop_gradient(scaled))


def grid(
    x: jax.Array, step: jax.Array, low: jax.Array, high: jax.Array, half_up: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x / step`, clipped, and rounded."""
    scaled = x * (1 / step)
    clipped = jnp.minimum(jnp.maximum(scaled, low), high)
    codes = jnp.floor(clipped + 0.5) if half_up else jnp.round(clipped)
    return scaled, clipped, codes


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def quantize(
    x: jax.Array, step: jax.Array, low: jax.Array, high: jax.Array, half_up: bool
) -> jax.Array:
    """LSQ (Esser et al., 2020): code times step."""
    return grid(x, step, low, high, half_up)[2] * step


def _forward(x, step, low, high, half_up):
    return quantize(x, step, low, high, half_up), (x, step, low, high)


def _backward(half_up, kept, upstream):
    x, step, low, high = kept
    scaled, clipped, codes = grid(x, step, low, high, half_up)
    inside = (clipped == scaled).astype(x.dtype)
    of_step = upstream * (codes - inside * clipped)
    axes = tuple(i for i in range(x.ndim) if step.ndim == 0 or step.shape[i] == 1)
    of_step = of_step.sum(axes, keepdims=step.ndim > 0)
    return upstream * inside, of_step, jnp.zeros_like(low), jnp.zeros_like(high)


quantize.defvjp(_forward, _backward)


def convolve(x: jax.Array, w: jax.Array, stride: int, padding: str, precision: Any):
    """Convolution as one matrix product: as fast for sixteen models as for one."""
    size, out = w.shape[0], -(-x.shape[1] // stride)
    if padding == "same":
        total = max((out - 1) * stride + size - x.shape[1], 0)
        sides = (total // 2, total - total // 2)
        x = jnp.pad(x, ((0, 0), sides, sides, (0, 0)))
    else:
        out = (x.shape[1] - size) // stride + 1
    end = (out - 1) * stride + 1
    taps = [
        x[:, i : i + end : stride, j : j + end : stride]
        for i in range(size)
        for j in range(size)
    ]
    patches = jnp.concatenate(taps, -1)
    kernel = w.reshape(-1, w.shape[-1])
    return jnp.einsum("bhwk,ko->bhwo", patches, kernel, precision=precision)


class Network:
    """A graph that `export_network.py` wrote.

    Args:
        folder: that it wrote.
        name: of the network.
    """

    def __init__(self, folder: Path, name: str) -> None:
        graph = json.loads((folder / f"{name}.json").read_text())
        self.ops, self.input = graph["ops"], graph["input"]
        self.arrays = dict(np.load(folder / f"{name}.npz"))
        self.searched = [op["name"] for op in self.ops if "group" in op]
        self.norms = [o["name"] for o in self.ops if o["type"] == "BatchNormalization"]
        # Behind the logits stands their grid; a softmax may follow.
        grids = [op for op in self.ops if op["type"] == "InputQuantizer"]
        self.output = grids[-1]["outs"][0]
        self.teacher: Network = self

    def parameters(self, policy: dict) -> Tree:
        """What is trained, from the float weights and the grids of a policy."""
        a, found = self.arrays, {}
        for op in self.ops:
            name = op["name"]
            if name in self.searched:
                weights, activations = policy[name]
                found[name] = {
                    "kernel": a[f"{name}/kernel"],
                    "log2_step": a[f"{name}/log2_step/{weights}"],
                    "log2_range": a[f"{name}/log2_range/{activations}"][0],
                }
                if op["bias"]:
                    found[name]["bias"] = a[f"{name}/bias"]
            elif op["type"] == "InputQuantizer":
                found[name] = {"log2_range": a[f"{name}/log2_range"][0]}
            elif name in self.norms:
                found[name] = {key: a[f"{name}/{key}"] for key in ("gamma", "beta")}
        return jax.tree.map(lambda v: np.asarray(v, "float32"), found)

    def statistics(self) -> Tree:
        """Moving means and variances of the float model."""
        keys = {"mean": "moving_mean", "var": "moving_variance"}
        return {
            n: {k: self.arrays[f"{n}/{v}"].astype("float32") for k, v in keys.items()}
            for n in self.norms
        }

    def limits(self, policy: dict) -> Tree:
        """Largest and smallest codes."""
        found = {}
        for op in self.ops:
            name = op["name"]
            if "signed" not in op:
                continue
            weights, bits = policy.get(name, (None, op["bits"]))
            end = "" if weights is None else f"/{bits}"
            zero = self.arrays[f"{name}/zero{end}"][0]
            high = 2 ** (bits - 1) - 1 if op["signed"] else 2**bits - 1
            low = -(2 ** (bits - 1)) if op["signed"] else 0
            placed = op["signed"] is None  # calibration placed the zero
            found[name] = {
                "limit": high,
                "low": -zero if placed else low,
                "high": high - zero if placed else high,
            }
            if weights is not None:
                found[name]["kernel"] = 2 ** (weights - 1) - 1
        return jax.tree.map(np.float32, found)

    def step(self, op: dict, p: Tree, c: Tree, free: jax.Array) -> jax.Array:
        """Step of a tensor's grid; one that nests is a power of two unless `free`."""
        factor = 1 / jnp.sqrt(c["limit"] * op["features"])
        learned = jnp.exp2(scale_gradient(p["log2_range"], factor)) / c["limit"]
        fixed = jax.lax.stop_gradient(learned)
        if op["pow2"]:
            fixed = jnp.exp2(jnp.round(jnp.log2(fixed)))
            return jnp.where(free > 0, learned, fixed) if "group" in op else fixed
        return learned if op["learn"] else fixed

    def run(
        self,
        p: Tree,
        s: Tree,
        c: Tree,
        x: jax.Array,
        mode: str,
        free: jax.Array,
        precision: Any = None,
    ) -> tuple[jax.Array, Tree]:
        """Logits [B, C], and mean and variance of what each normalization reads.

        Args:
            p: parameters.
            s: statistics.
            c: limits.
            x: [B, 32, 32, 3], 0 to 255.
            mode: float (no grids), train (statistics of the batch) or eval.
            free: see `step`.
            precision: of products.
        """
        tensors, found = {self.input: x}, {}

        def on_grid(v: jax.Array, op: dict) -> jax.Array:
            if mode == "float":
                return v
            name, codes = op["name"], c[op["name"]]
            step = self.step(op, p[name], codes, free)
            return quantize(v, step, codes["low"], codes["high"], True)

        for op in self.ops:
            name, kind = op["name"], op["type"]
            v = tensors[op["ins"][0]]
            if name in self.searched:
                v, w = on_grid(v, op), p[name]["kernel"]
                if mode != "float":
                    top = c[name]["kernel"]
                    factor = 1 / jnp.sqrt(op["group"] * top)
                    step = jnp.exp2(scale_gradient(p[name]["log2_step"], factor))
                    step = step.reshape((1,) * (w.ndim - 1) + (-1,))
                    w = quantize(w, step, -top, top, False)
                if op["dense"]:
                    v = jnp.dot(v, w, precision=precision)
                else:
                    v = convolve(v, w, op["strides"][0], op["padding"], precision)
                if op["bias"]:
                    v = v + p[name]["bias"]
            elif kind == "InputQuantizer":
                v = on_grid(v, op)
            elif kind == "BatchNormalization":
                mean = v.mean((0, 1, 2))
                var = jnp.square(v - mean).mean((0, 1, 2))
                found[name] = {"mean": mean, "var": var}
                if mode != "train":
                    mean, var = s[name]["mean"], s[name]["var"]
                factor = p[name]["gamma"] * jax.lax.rsqrt(var + op["epsilon"])
                v = (v - mean) * factor + p[name]["beta"]
            elif kind in ("Activation", "ReLU"):
                v = jnp.maximum(v, 0) if op.get("act", "relu") == "relu" else v
            elif kind == "Add":
                v = v + tensors[op["ins"][1]]
            elif kind == "AveragePooling2D":  # one window over the image
                v = v.mean((1, 2), keepdims=True)
            elif kind == "GlobalAveragePooling2D":
                v = v.mean((1, 2))
            elif kind == "Flatten":
                v = v.reshape(v.shape[0], -1)
            elif kind == "ZeroPadding2D":
                v = jnp.pad(v, ((0, 0), *[tuple(q) for q in op["pad"]], (0, 0)))
            elif kind == "Normalization":
                v = (v - jnp.array(op["mean"])) / jnp.array(op["std"])
            else:
                raise ValueError(f"No such layer here: {kind}")
            tensors[op["outs"][0]] = v
        return tensors[self.output], found

    def rounded(self, p: Tree, s: Tree, c: Tree, free: jax.Array, number: int) -> Tree:
        """Statistics with the folded bias of one normalization in accumulator units."""
        new = dict(s)
        for k, name in enumerate(self.norms):
            norm = next(op for op in self.ops if op["name"] == name)
            layer = next(op for op in self.ops if op["outs"][0] == norm["ins"][0])
            own, before = p[layer["name"]], s[name]
            step = self.step(layer, own, c[layer["name"]], free)
            unit = step * jnp.exp2(own["log2_step"])
            gamma, sigma = p[name]["gamma"], jnp.sqrt(before["var"] + norm["epsilon"])
            live = jnp.abs(gamma) > 1e-6 * sigma
            offset = own.get("bias", 0.0) + p[name]["beta"] * sigma / jnp.where(
                live, gamma, 1.0
            )
            mean = offset - jnp.round((offset - before["mean"]) / unit) * unit
            mean = jnp.where(live & (number == k), mean, before["mean"])
            new[name] = {"mean": mean, "var": before["var"]}
        return new


def augmented(key: jax.Array, images: jax.Array) -> jax.Array:
    """Shifts by up to 4 pixels, and mirrors, float32 [B, 32, 32, 3]."""
    keys, count = jax.random.split(key, 3), images.shape[0]
    rows, columns = (jax.random.randint(k, (count,), 0, 9) for k in keys[:2])
    padded = jnp.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))

    def cut(image, y, x):
        return jax.lax.dynamic_slice(image, (y, x, 0), (32, 32, 3))

    found = jax.vmap(cut)(padded, rows, columns)
    mirrored = jax.random.bernoulli(keys[2], 0.5, (count,))[:, None, None, None]
    return jnp.where(mirrored, found[:, :, ::-1], found).astype(jnp.float32)


def loss_of(network, p, s, c, h, teacher, x, y, guided: bool):
    """Loss, (statistics of the batch, cross-entropy)."""
    logits, found = network.run(p, s, c, x, "train", h["free"])
    scores = jax.nn.log_softmax(logits)
    task = loss = -jnp.take_along_axis(scores, y[:, None], 1).mean()
    if guided:
        target = network.teacher.run(*teacher, None, x, "float", h["free"])[0]
        target = jax.nn.log_softmax(jax.lax.stop_gradient(target) / h["T"])
        gap = target - jax.nn.log_softmax(logits / h["T"])
        soft = (jnp.exp(target) * gap).sum(-1).mean()
        loss = (1 - h["distill"]) * task + h["distill"] * h["T"] ** 2 * soft
    return loss, (found, task)


def epoch_of(network: Network, steps: int, guided: bool):
    """One epoch of Adam, of [models]: `carry, limits, hyper, images, labels, ...`."""
    momentum = next(op["momentum"] for op in network.ops if "momentum" in op)

    def one(carry, c, h, images, labels, teacher, key, epoch):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), len(images))
        order = order[: steps * BATCH].reshape(steps, BATCH)
        noise = jax.random.fold_in(key, 7919 + epoch)

        def step(carry, xs):
            p, m, v, mean, s, t = carry
            index, number = xs
            x = augmented(jax.random.fold_in(noise, number), images[index])

            def loss(q):
                return loss_of(network, q, s, c, h, teacher, x, labels[index], guided)

            (_, (seen, task)), slopes = jax.value_and_grad(loss, has_aux=True)(p)
            t = t + 1
            cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum((t - 1) / h["total"], 1)))
            m = jax.tree.map(lambda a, g: a + 0.1 * (g - a), m, slopes)
            v = jax.tree.map(lambda a, g: a + 0.001 * (g * g - a), v, slopes)
            correction = jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)

            def update(path, a, first, second):
                rate = h["lr"] * cosine
                if "log2" in str(path[-1]):
                    falls = h["step_cos"] * cosine + 1 - h["step_cos"]
                    rate = h["lr"] * h["step_lr"] * falls
                new = a - rate * correction * first / (jnp.sqrt(second) + 1e-7)
                decays = "kernel" in str(path[-1])
                return new - h["lr"] * cosine * h["wd"] * a if decays else new

            p = jax.tree_util.tree_map_with_path(update, p, m, v)
            d = jnp.minimum(h["ema"], (1 + t) / (10 + t))
            mean = jax.tree.map(lambda e, a: d * e + (1 - d) * a, mean, p)
            s = jax.tree.map(lambda a, b: momentum * a + (1 - momentum) * b, s, seen)
            return (p, m, v, mean, s, t), task

        carry, losses = jax.lax.scan(step, carry, (order, jnp.arange(steps)))
        return carry, losses.mean()

    return jax.jit(
        jax.vmap(one, (0, 0, 0, None, None, None, 0, None)), donate_argnums=0
    )


def measured_of(network: Network, count: int = 2048):
    """Statistics of augmented images layer after layer, biases rounded: [models]."""

    def one(p, s, c, h, images, key):
        key = jax.random.fold_in(key, 10**6)
        index = jax.random.permutation(key, len(images))[:count]
        x = augmented(jax.random.fold_in(key, 1), images[index])

        def body(k, s):
            found = network.run(p, s, c, x, "eval", h["free"], EXACT)[1]
            chosen = {n: k == i for i, n in enumerate(network.norms)}
            s = {
                n: {key: jnp.where(now, found[n][key], s[n][key]) for key in s[n]}
                for n, now in chosen.items()
            }
            return network.rounded(p, s, c, h["free"], k)

        return jax.lax.fori_loop(0, len(network.norms), body, s)

    return jax.jit(jax.vmap(one, (0, 0, 0, 0, None, 0)))


def decisions_of(network: Network, batch: int = 500):
    """Decisions of students, [models, images]."""

    def one(p, s, c, h, images):
        def body(_, x):
            x = x.astype(jnp.float32)
            logits = network.run(p, s, c, x, "eval", h["free"], EXACT)[0]
            return None, logits.argmax(-1)

        batches = images.reshape(-1, batch, *images.shape[1:])
        return jax.lax.scan(body, None, batches)[1].reshape(-1)

    return jax.jit(jax.vmap(one, (0, 0, 0, 0, None)))
