"""Fine-tunes hundreds of policies on one GPU: how far is the best above uniform?

    pip install jax[cuda13]
    python benchmarks/policy_bank_jax/run.py bank --folder=bank --output=bank.jsonl
    python benchmarks/policy_bank_jax/run.py full --folder=bank --output=full.jsonl

`bank`: every policy of the folder for two epochs without distillation, as
`benchmarks/policy_bank.py` does it; recipes at uniform W3A3 for twelve epochs; then the
best policies are varied (one to three changes of a bit, at 97 to 100 % of the
operations; the best by held-out images and training loss), two rounds in the space of
the paper and three with 2 to 8 bits and a free stem. `full`: long runs of the uniform
policies, ResNet-20 by itself, ResNet-8 guided by ResNet-20. The networks must be called
resnet8 and resnet20.

The question, and what answers would mean, written before: does this program, which
shares no line with the library, rank policies as the library does? If not, one of the
two is wrong. If so: is any policy of the space above uniform by more than seeds (0.16
points)? Nothing above it: the search can only find uniform again.

Sixteen students train at once. Interrupted, what is in the output is kept, and the
command starts again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from students import BATCH, HYPER, Network, decisions_of, epoch_of, measured_of

TOGETHER, HELD_OUT = 16, 5000
GUIDED = {"distill": 0.5, "ema": 0.999}
RECIPES = [
    {"ema": 0.999},
    GUIDED,
    GUIDED | {"distill": 1.0},
    {"free": 1.0, "ema": 0.999},
    GUIDED | {"free": 1.0},
    GUIDED | {"distill": 1.0, "free": 1.0},
    GUIDED | {"distill": 1.0, "free": 1.0, "lr": 5e-4},
    GUIDED | {"distill": 1.0, "free": 1.0, "lr": 2e-3},
    GUIDED | {"distill": 1.0, "free": 1.0, "lr": 4e-3},
    GUIDED | {"distill": 1.0, "free": 1.0, "step_cos": 0.0},
    GUIDED | {"distill": 1.0, "free": 1.0, "step_lr": 0.3},
    GUIDED | {"distill": 1.0, "free": 1.0, "T": 4.0},
    GUIDED | {"distill": 1.0, "free": 1.0, "wd": 0.1},
    GUIDED | {"free": 1.0, "lr": 2e-3},
    GUIDED | {"lr": 2e-3},
    GUIDED | {"distill": 0.9, "free": 1.0, "T": 3.0, "lr": 2e-3},
]


@dataclasses.dataclass(frozen=True)
class Job:
    """A student to train: of which policy, with what."""

    policy: str
    bits: dict
    seed: int = 0
    epochs: int = 2
    hyper: dict = dataclasses.field(default_factory=dict)


def stacked(trees: list) -> Any:
    """Trees of arrays as one tree, of a first axis more."""
    return jax.tree.map(lambda *v: jnp.stack([jnp.asarray(x) for x in v]), *trees)


class Bench:
    """Trains jobs of one network, and appends what came of them to a file.

    Args:
        args: folder, output, and how much.
        name: of the network.
        teacher: of the network that guides; None: itself.
    """

    def __init__(self, args: argparse.Namespace, name: str, teacher: str | None = None):
        self.args, self.name, self.rows = args, name, []
        self.network = Network(args.folder, name)
        if teacher:
            self.network.teacher = Network(args.folder, teacher)
        load = lambda file: np.load(args.folder / f"{file}.npy")  # noqa: E731
        images, labels = load("train"), load("train_labels")
        kept = len(images) - HELD_OUT
        self.steps = args.steps or kept // BATCH
        self.images, self.labels = (
            jnp.asarray(images[:kept]),
            jnp.asarray(labels[:kept]),
        )
        tests = {"held": (images[kept:], labels[kept:])}
        tests["test"] = (load("test"), load("test_labels"))
        if args.steps:  # a trial
            tests = {k: (x[:500], y[:500]) for k, (x, y) in tests.items()}
        self.tests = {k: (jnp.asarray(x), y) for k, (x, y) in tests.items()}
        self.policies = json.loads((args.folder / "policies.json").read_text())[name]
        self.macs = json.loads((args.folder / "macs.json").read_text())[name]
        self.epochs: dict[bool, Any] = {}
        self.measured = measured_of(self.network, 64 if args.steps else 2048)
        self.decisions = decisions_of(self.network)

    def job(self, name: str, **changes: Any) -> Job:
        """A job of a policy of the folder."""
        return Job(name, self.policies[name], **changes)

    def run(self, jobs: list[Job], guided: bool = False) -> list[dict]:
        """Train jobs of as many epochs each; the last group is filled up with seeds."""
        found = []
        together = min(self.args.together, len(jobs))
        for start in range(0, len(jobs), together):
            group = jobs[start : start + together]
            missing = range(together - len(group))
            group += [dataclasses.replace(group[-1], seed=1000 + i) for i in missing]
            found += self._group(group, guided)
        self.rows += found
        return found

    def _group(self, jobs: list[Job], guided: bool) -> list[dict]:
        started, network = time.time(), self.network
        if guided not in self.epochs:
            self.epochs[guided] = epoch_of(network, self.steps, guided)
        p = stacked([network.parameters(j.bits) for j in jobs])
        c = stacked([network.limits(j.bits) for j in jobs])
        s = stacked([network.statistics() for _ in jobs])
        total = jobs[0].epochs * self.steps
        hyper = [{**HYPER, **j.hyper, "total": total} for j in jobs]
        h = stacked([jax.tree.map(np.float32, x) for x in hyper])
        keys = jnp.stack([jax.random.key(j.seed) for j in jobs])
        eight = {name: [8, 8] for name in network.teacher.searched}
        teacher = network.teacher.parameters(eight), network.teacher.statistics()
        zeros = [jax.tree.map(jnp.zeros_like, p) for _ in range(2)]
        carry = (p, *zeros, jax.tree.map(jnp.copy, p), s, jnp.zeros(len(jobs)))
        for number in range(jobs[0].epochs):
            carry, losses = self.epochs[guided](
                carry, c, h, self.images, self.labels, teacher, keys, number
            )
        found = []
        for kind, values in (("last", carry[0]), ("ema", carry[3])):
            of = [i for i, j in enumerate(jobs) if kind == "last" or j.hyper.get("ema")]
            if of:
                s = self.measured(values, carry[4], c, h, self.images, keys)
                right = {
                    k: np.asarray(self.decisions(values, s, c, h, x)) == y
                    for k, (x, y) in self.tests.items()
                }
                found += [self._row(jobs[i], kind, right, losses, i) for i in of]
        with self.args.output.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
        print(self.name, len(jobs), "students,", round(time.time() - started, 1), "s")
        return found

    def _row(self, job: Job, kind: str, right: dict, losses: Any, i: int) -> dict:
        row = {"network": self.name, "weights": kind, **dataclasses.asdict(job)}
        row |= {k: round(float(v[i].mean()), 6) for k, v in right.items()}
        return row | {"loss": round(float(losses[i]), 6)}

    def operations(self, bits: dict) -> int:
        """Bit operations of a policy."""
        return sum(self.macs[n] * w * a for n, (w, a) in bits.items())


def scores(rows: list[dict]) -> np.ndarray:
    """How good students are without a look at test images; [rows], more is better."""
    held, loss = (np.array([r[k] for r in rows]) for k in ("held", "loss"))
    return (held - held.mean()) / held.std() - (loss - loss.mean()) / loss.std()


def vary(bench: Bench, name: str, low: int, high: int, stem: bool, rounds: int) -> None:
    """Evolution from the two-epoch students that are there."""
    rng, order = np.random.default_rng(0), list(bench.macs)
    most = bench.operations(bench.policies["uniform3"])
    inner, first = order[1:-1], order[0]

    def belongs(row: dict) -> bool:
        bits = [b for n in inner for b in row["bits"][n]]
        few = row["epochs"] == 2 and min(bits) >= low and max(bits) <= high
        return few and (stem or row["bits"][first][0] == 8)

    pool = [row for row in bench.rows if belongs(row)]
    seen = {json.dumps(row["bits"]) for row in pool}
    for number in range(rounds):
        top, jobs = [pool[i] for i in np.argsort(-scores(pool))[:8]], []
        while len(jobs) < TOGETHER:
            one, two = rng.choice(len(top), 2)
            parents = [top[one if rng.random() < 0.7 else two] for _ in order]
            bits = {n: list(r["bits"][n]) for n, r in zip(order, parents, strict=True)}
            for _ in range(rng.integers(1, 4)):
                layer = order[rng.integers(0, len(order) - 1)]
                side, limits = int(rng.integers(2)), (low, high)
                if layer == first:
                    if not stem:
                        continue
                    side, limits = 0, (2, 8)
                bits[layer][side] = int(
                    np.clip(bits[layer][side] + rng.choice([-1, 1]), *limits)
                )
            key = json.dumps(bits)
            if 0.97 * most <= bench.operations(bits) <= most and key not in seen:
                seen.add(key)
                jobs.append(Job(f"{name}{number}_{len(jobs)}", bits))
        pool += bench.run(jobs)


def bank(args: argparse.Namespace) -> None:
    """Two epochs of all; recipes; evolution."""
    bench = Bench(args, "resnet8")
    spaces = ("wide", "stemfree")
    random = [n for n in bench.policies if n.startswith("random")]
    given = [
        n for n in bench.policies if not n.startswith(("random", "uniform", *spaces))
    ]
    several = ["uniform3", *given]
    bench.run([bench.job(n, seed=s) for s in range(3) for n in several])
    bench.run([bench.job(n) for n in random])
    bench.run([bench.job("uniform3", epochs=12, hyper=h) for h in RECIPES], True)
    vary(bench, "varied", 2, 4, False, 2)
    bench.run([bench.job(f"{n}{i}") for n in spaces for i in range(16)])
    vary(bench, "wide_varied", 2, 8, True, 3)


def full(args: argparse.Namespace) -> None:
    """Thirty epochs of ResNet-20, twenty of ResNet-8 under its guidance."""
    own = {"distill": 0.5, "free": 1.0}
    bench = Bench(args, "resnet20")
    bits = {4: own, 3: own, 2: own | {"lr": 2e-3}}
    bench.run(
        [bench.job(f"uniform{b}", epochs=30, hyper=h) for b, h in bits.items()], True
    )
    fast = {"distill": 0.7, "lr": 2e-3}
    free, bench = fast | {"free": 1.0}, Bench(args, "resnet8", "resnet20")
    runs = [
        ("uniform3", free | {"distill": 0.5}),
        ("uniform3", free | {"distill": 0.9, "T": 4.0}),
        ("uniform3", fast),
        ("uniform4", free),
        ("uniform2", free),
    ]
    runs += [(n, free) for n in ("stem4_early",) if n in bench.policies]
    bench.run([bench.job(n, epochs=20, hyper=h) for n, h in runs], True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("bank", "full"))
    parser.add_argument("--folder", type=Path, required=True, help="of the networks")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines")
    parser.add_argument("--together", type=int, default=TOGETHER, help="students")
    parser.add_argument("--steps", type=int, default=0, help="an epoch; 0: all images")
    args = parser.parse_args()
    {"bank": bank, "full": full}[args.what](args)


if __name__ == "__main__":
    main()
