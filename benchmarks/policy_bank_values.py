"""Values of ResNet-8's choices made before fine-tuning, for `policy_bank_scores.py`.

    python benchmarks/policy_bank_values.py --model=mlperf_tiny_resnet8_cifar10.h5 \
        --data_dir=TFDS_FOLDER --output=results/policy_bank/values

One JSON file a kind of value: `values.json` of the search, the policy that it chooses
at the budget, and what it cost. Each is made of 20,000 training images, none of which
the bank's policies are judged on. Interrupted, the same command goes on with the next
kind.
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

import gmpq_tf as gmpq
from gmpq_tf.data import DataConfig, load_dataset
from gmpq_tf.files import write_json
from gmpq_tf.models import load_model

IMAGES = 20_000
FINALISTS: dict[str, Any] = {"finalists": 8}
TWO_EPOCHS: dict[str, Any] = {"epochs": 2, "learning_rate": 0.01}
WIDE: dict[str, Any] = {"space": "wide"}
# Name -> strategy and options.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    # The best policies of a table and the uniform one, fine-tuned shortly.
    "finalists": ("loss_delta", {"finalists": 8}),
    "finalists_task": (
        "one_shot",
        {"training_steps": 0, "measure": "task"} | FINALISTS,
    ),
    # Of 2 to 8 bits, the first layer's kernel too.
    "wide_around": ("one_shot", {"training_steps": 0, "measure": "task"} | WIDE),
    "wide_table": ("loss_delta", WIDE),
    "wide_one_shot": ("one_shot", {"measure": "task"} | WIDE),
    "table": ("loss_delta", {"attribution": True}),
    "table_task": ("loss_delta", {"measure": "task"}),
    # Around the uniform policy of the budget instead of around 8 bits.
    "around": ("one_shot", {"training_steps": 0}),
    "around_task": ("one_shot", {"training_steps": 0, "measure": "task"}),
    "around_healed": ("one_shot", {"training_steps": 0, "healing_steps": 20}),
    # In a hypernet trained with drawn bits.
    "one_shot": ("one_shot", {}),
    "one_shot_task": ("one_shot", {"measure": "task"}),
    "one_shot_healed": ("one_shot", {"measure": "task", "healing_steps": 20}),
    "limpq": ("limpq", {"measure": "task"}),
    "limpq_normalized": ("limpq", {"measure": "task", "normalize": True}),
    # Tables of the literature; bits of activations are measured.
    "fisher": ("fisher", {}),
    "fisher_task": ("fisher", {"measure": "task"}),
    "hawq": ("hawq", {}),
    "hawq_task": ("hawq", {"measure": "task"}),
    "clado": ("clado", {}),
    "ompq": ("ompq", {"activations": "measured"}),
    "topological_entropy": ("topological_entropy", {"activations": "measured"}),
    # Trained importances; the probabilities are a column, the values their mean bits.
    "edmips": ("edmips", {"epochs": 2, "learning_rate": 0.01}),
    "edmips_sampled": (
        "edmips",
        {
            "epochs": 2,
            "learning_rate": 0.01,
            "relaxation": "sampled",
            "readout": "expected_bits",
        },
    ),
    "gmpq_mean_bits": (
        "gmpq",
        {"epochs": 2, "learning_rate": 0.01, "readout": "expected_bits"},
    ),
    "bp_nas": ("bp_nas", TWO_EPOCHS),
    "hmq": ("hmq", TWO_EPOCHS),
    "dq": ("dq", TWO_EPOCHS),
    "fracbits": ("fracbits", TWO_EPOCHS),
    "ssps": ("ssps", TWO_EPOCHS),
    "bayesian_bits": ("bayesian_bits", TWO_EPOCHS),
    "sdq": ("sdq", TWO_EPOCHS),
    "djpq": ("djpq", TWO_EPOCHS),
    # Whole policies, of which the best is kept; they give no values of choices.
    "random": ("random", {}),
    # Successive halving of fine-tuned policies, at the cost of a search of two epochs.
    "random_halving": ("random", {"measure": "task", "steps": 40}),
    "evolution": ("evolution", {}),
    "haq": ("haq", {}),
}


def wide_space(model: keras.Model) -> gmpq.SearchSpace:
    """2 to 8 bits, for the first layer's kernel too; its input keeps 8."""
    first, *_, last = gmpq.BitwidthPolicy.uniform(model, 8, 8).layers
    bits = tuple(range(2, 9))
    return gmpq.SearchSpace(bits, bits, {first: (None, 8), last: (8, 8)})


def training_images(data_dir: str | None, count: int) -> tuple[np.ndarray, ...]:
    """Images and labels of CIFAR-10, without the 5,000 that are held out."""
    data = load_dataset(
        DataConfig(
            "cifar10",
            data_dir=data_dir,
            scaling="0..255",
            batch_size=128,
            validation_size=5000,
        )
    )
    batches = data.calibration(count).as_numpy_iterator()
    return tuple(np.concatenate(part) for part in zip(*batches, strict=True))


def main() -> None:
    """Make what has not been made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="float CIFAR-10 network, 0..255")
    parser.add_argument("--data_dir", help="TFDS folder that holds cifar10")
    parser.add_argument("--budget", default="W3A3")
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--output", type=Path, required=True, help="folder")
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    images, labels = training_images(args.data_dir, IMAGES)
    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        file = args.output / f"{name}.json"
        if file.exists():
            continue
        keras.backend.clear_session()
        strategy, options = KINDS[name]
        model, started = load_model(args.model), time.process_time()
        wide = "space" in options
        result = gmpq.search_policy(
            model,
            (images, labels),
            strategy,
            args.budget,
            wide_space(model) if wide else None,
            progress="line",
            **{k: v for k, v in options.items() if k != "space"},
        )
        layers = result.policy.layers.items()
        write_json(
            file,
            {
                "options": options,
                "policy": {n: [b.weight_bits, b.activation_bits] for n, b in layers},
                "cost": dataclasses.asdict(result.cost),
                "cpu_seconds": round(time.process_time() - started, 1),
                **{k: v for k, v in result.to_json().items() if k != "history"},
            },
        )
        print(name, result, flush=True)


if __name__ == "__main__":
    main()
