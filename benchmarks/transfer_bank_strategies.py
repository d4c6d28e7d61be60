"""What each strategy's values say of MobileNetV2's bank, and what they choose.

    python benchmarks/transfer_bank_strategies.py --shared=SHARED \
        --workdir=runs/transfer_strategies --output=results/strategies/mobilenet_v2

The network, candidates, budgets and photographs of `transfer_bank.py`, not trained:
values are made of the half of the photographs that the bank does not test on, with its
64 for ranges. One JSON file a strategy: its values, what they cost, and the policies
that they choose at both budgets with top-1 on the bank's photographs. Interrupted, the
same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from transfer_bank import Bank
from transfer_bank_network import (
    BUDGETS,
    CALIBRATED,
    SPACE,
    Bits,
    imagenet,
    key_of,
    mean,
)

import gmpq_tf as gmpq
from gmpq_tf.files import write_json
from gmpq_tf.search.choose import choose

# Of the photographs: as many as loss_delta takes by default, so that costs compare.
IMAGES = 32
TRIED: dict[str, Any] = {"images": IMAGES}
# Name -> strategy and options.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "loss_delta": ("loss_delta", TRIED),
    "fisher": ("fisher", TRIED),
    "ompq": ("ompq", TRIED),
    "topological_entropy": (
        "topological_entropy",
        TRIED | {"activations": "measured"},
    ),
    "hawq": ("hawq", TRIED | {"probes": 10, "trace_images": 16}),
    "clado": ("clado", TRIED | {"paired": 8, "pair_images": 16}),
    "random": ("random", TRIED | {"policies": 100}),
    "evolution": ("evolution", TRIED | {"trials": 100}),
    "haq": ("haq", TRIED | {"trials": 100}),
}
WHOLE = ("random", "evolution", "haq")  # search each budget by itself


def searched(model: keras.Model, images: Any, name: str, workdir: Path) -> dict:
    """What a kind finds, as plain JSON.

    Args:
        model: MobileNetV2.
        images: photographs and labels.
        name: of `KINDS`.
        workdir: of the journals.
    """
    strategy, options = KINDS[name]
    found: dict[str, Any] = {"policies": {}, "costs": {}}
    for budget in BUDGETS if name in WHOLE else BUDGETS[:1]:
        started = time.process_time()
        result = gmpq.search_policy(
            model,
            images,
            strategy,
            budget,
            SPACE,
            journal=workdir / f"{name}_{budget}.jsonl",
            progress="line",
            calibration_images=CALIBRATED,
            **options,
        )
        bits = {n: (b.weight_bits, b.activation_bits) for n, b in result.policy.items()}
        found["policies"][budget] = key_of(bits)
        found["costs"][budget] = {
            **dataclasses.asdict(result.cost),
            "cpu_seconds": round(time.process_time() - started, 1),
        }
        print(name, result, flush=True)
    record = {k: v for k, v in result.to_json().items() if k != "history"}
    found = {"options": options, **found, **record, "result": result.valued}
    return found


def main() -> None:
    """Search what has not been searched, and measure what it chose."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True, help="of journals")
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--output", type=Path, required=True, help="folder")
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    for folder in (args.workdir, args.output):
        folder.mkdir(parents=True, exist_ok=True)
    bank = Bank(args)
    _, own = imagenet(args.shared / "data")
    network = bank.network
    for name in args.only:
        file = args.output / f"{name}.json"
        if file.exists():
            continue
        found = searched(network.model, (own.inputs, own.labels), name, args.workdir)
        valued = found.pop("result")
        for budget in BUDGETS:
            if budget not in found["policies"]:
                problem = network.problem(budget)
                bits = choose(
                    valued.values,
                    problem.candidates,
                    problem.limits,
                    valued.bonds,
                    spends=True,
                )
                found["policies"][budget] = key_of(bits)
        found["chosen"] = {b: measured(bank, p) for b, p in found["policies"].items()}
        write_json(file, found)
        print(name, found["chosen"], flush=True)


def measured(bank: Bank, policy: dict[str, list[int]]) -> dict[str, float | str]:
    """What a policy does on the bank's photographs."""
    bits: Bits = {name: (pair[0], pair[1]) for name, pair in policy.items()}
    found = bank.journal.once(key_of(bits), lambda: bank.one(bits))
    return {
        "top1": mean(found["right"]),
        "top5": mean(found["top5"]),
        "divergence": round(float(np.mean(found["divergence"])), 4),
        "right": found["right"],
    }


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    main()
