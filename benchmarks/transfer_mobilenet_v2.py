"""Do MobileNetV2's policies from CIFAR-10 serve flowers, and a detector of animals?

    python benchmarks/transfer_mobilenet_v2.py --shared=SHARED --target=flowers17 \
        --workdir=runs/transfer_mobilenet_v2 --output=results/transfer_mobilenet_v2

Question, policies, tests and what each answer would mean:
results/transfer_mobilenet_v2/README.md. `--shared` holds data/tfds with cifar10,
data/flowers17, data/detection/voc_animals and weights/mobilenet_v2_imagenet.weights.h5.
Every stage is a command of gmpq_tf in a workdir; interrupted, the same command goes on.
`--output` gets the policies, a line of TARGET.jsonl a model, and TARGET.json and
TARGET.md of the lines there are.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow_datasets as tfds
from detection_transfer import holm, rows, run, spread
from scipy import stats
from transfer_mobilenet_v2_start import start_of
from transfer_study import link_flowers

import gmpq_tf as gmpq
from gmpq_tf.attribution import rank_distance
from gmpq_tf.data import DataConfig, load_dataset
from gmpq_tf.graph import searchable_names
from gmpq_tf.models import build_model, load_model
from gmpq_tf.space import random_policy
from gmpq_tf.train.attribute import attribution_maps

BUDGET, BITS = "W4A4", (2, 3, 4, 5, 6, 7, 8)
SEEDS, OTHERS = (0, 1, 2), "8,8"
POLICIES = ("uniform", "gmpq", "edmips", "loss_delta", "haq", "random")
CIFAR10_IMAGES = {"train": 10_000, "test": 2_000}
TOP_K = 100  # pixels, as in figure 1 of the paper
IMPORTANCES = (
    "--epochs=1",
    "--batch_size=32",
    "--optimizer=adam",
    "--learning_rate=0.0005",
    "--schedule=cosine",
    "--final_temperature=0.1",
    "--importance_optimizer=adam",
    "--importance_learning_rate=0.02",
)
SEARCHES = {
    "gmpq": ("--strategy=gmpq", *IMPORTANCES),
    "edmips": ("--strategy=edmips", *IMPORTANCES),
    "loss_delta": ("--strategy=loss_delta", "--images=128"),
    "haq": ("--strategy=haq", "--trials=60", "--steps=5", "--images=256"),
}


@dataclass(frozen=True)
class Task:
    """A set of images, and how a network learns it.

    Args:
        network: of `build_model`.
        classes: how many the set has.
        measure: what decides, of evaluation.json.
        images: what `DataConfig` takes.
        heads: passes over the images of training what is new, on the features of the
            frozen backbone.
        trained, tuned: flags of float training of all layers, and of fine-tuning.
    """

    network: str
    classes: int
    measure: str
    images: dict[str, Any]
    heads: int
    trained: tuple[str, ...]
    tuned: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return (self.images["image_size"], self.images["image_size"], 3)

    @property
    def flags(self) -> list[str]:
        """The images, as flags of any command."""
        given = {"scaling": "-1..1", **self.images}
        return [f"--{name}={value}" for name, value in given.items()]

    @property
    def config(self) -> DataConfig:
        """The images, in batches of 32."""
        return DataConfig(batch_size=32, scaling="-1..1", **self.images)


def tasks(args: argparse.Namespace) -> dict[str, Task]:
    """CIFAR-10, where policies are searched, and the targets."""
    data = args.shared.resolve() / "data"
    falling = ("--schedule=cosine", "--threads=1", "--progress=line")
    adam = (*falling, "--optimizer=adam", "--batch_size=32")
    trained = (*adam, "--learning_rate=0.0001")
    few = ("--calibration_images=128", "--statistics_images=256")
    tuned = (*adam, *few, "--learning_rate=0.0003")
    return {
        "cifar10": Task(
            "mobilenet_v2",
            10,
            "accuracy",
            {
                "dataset": str(args.workdir / "cifar10_images"),
                "image_size": 96,
                "validation_size": 0,
            },
            6,
            (*trained, "--epochs=2"),
        ),
        "flowers17": Task(
            "mobilenet_v2",
            17,
            "accuracy",
            {
                "dataset": str(args.workdir / "flowers17_images"),
                "image_size": 96,
                "validation_size": 0,
            },
            20,
            (*trained, "--epochs=15"),
            (*tuned, "--epochs=15"),
        ),
        "voc_animals": Task(
            "ssd_mobilenet_v2",
            5,
            "map_07",
            {
                "dataset": str(data / "detection/voc_animals"),
                "image_size": 128,
                "augment": "flip",
            },
            60,
            (*trained, "--epochs=3"),
            (*tuned, "--epochs=2"),
        ),
    }


def main() -> None:
    """Search on CIFAR-10, fine-tune on the target, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--target", choices=("flowers17", "voc_animals"), required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES)
    args = parser.parse_args()
    args.workdir = args.workdir.resolve()
    args.workdir.mkdir(parents=True, exist_ok=True)
    link_flowers(args.shared / "data/flowers17", args.workdir / "flowers17_images")
    write_cifar10(args.shared / "data/tfds", args.workdir / "cifar10_images")
    study = Study(args, args.target)
    for seed in args.seeds:
        for name in args.policies:
            study.student(name, seed)
    study.summarize()


@dataclass
class Study:
    """The models of one target.

    Args:
        args: of the command line.
        target: of `tasks`.
    """

    args: argparse.Namespace
    target: str
    tasks: dict[str, Task] = field(init=False)

    def __post_init__(self) -> None:
        self.tasks = tasks(self.args)
        self.task = self.tasks[self.target]
        self.records = self.args.output / f"{self.target}.jsonl"

    def policy(self, name: str, seed: int) -> Path:
        """File of a policy, by the classifier's names of layers; made if missing."""
        path = self.args.output / f"policies/{name}.json"
        if name == "random":  # another one for each seed
            path = path.with_name(f"random{seed}.json")
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        source = self.tasks["cifar10"]
        model = build_model(source.network, source.shape, source.classes)
        if name == "uniform":
            gmpq.BitwidthPolicy.uniform(model, 4, 4).save(path)
        elif name == "random":
            random_policy(model, gmpq.SearchSpace(BITS, BITS), BUDGET, seed).save(path)
        else:
            self.search(name, path)
        return path

    def search(self, name: str, path: Path) -> None:
        """Search a policy on CIFAR-10."""
        model = self.float_model("cifar10")
        workdir = self.args.workdir / name
        bits = ",".join(map(str, BITS))
        started = time.time()
        run(
            "train.search",
            f"--workdir={workdir}",
            f"--model={model}",
            *self.tasks["cifar10"].flags,
            f"--budget={BUDGET}",
            f"--weight_bits={bits}",
            f"--activation_bits={bits}",
            *SEARCHES[name],
            "--threads=1",
            "--progress=line",
        )
        minutes = round((time.time() - started) / 60, 1)
        with (self.args.output / "searches.jsonl").open("a") as file:
            file.write(json.dumps({"policy": name, "minutes": minutes}) + "\n")
        shutil.copy(workdir / "search/policy.json", path)

    def float_model(self, name: str) -> Path:
        """File of a float network: new layers are trained first, then all."""
        task, workdir = self.tasks[name], self.args.workdir / name
        path = workdir / "pretrain/model.keras"
        if not path.exists():
            start = self.args.workdir / f"{name}.keras"
            if not start.exists():
                weights = self.args.shared / "weights/mobilenet_v2_imagenet.weights.h5"
                images = load_dataset(task.config)
                keras.utils.set_random_seed(0)
                model = start_of(
                    task.network, task.shape, task.classes, weights, images, task.heads
                )
                model.save(start)
            run(
                "train.pretrain",
                f"--workdir={workdir}",
                f"--model={start}",
                *task.flags,
                *task.trained,
            )
        return path

    def workdir(self, seed: int) -> Path:
        """Where a seed's students are; each seed may be a process of its own."""
        trained = self.float_model(self.target).parents[1]
        workdir = self.args.workdir / f"{self.target}_seed{seed}"
        for name in ("config", "pretrain"):
            if not (workdir / name).exists():
                shutil.copytree(trained / name, workdir / name)
        return workdir

    def student(self, name: str, seed: int) -> None:
        """Fine-tune and measure one policy's student, unless it is recorded."""
        known = {(row["policy"], row["seed"]) for row in rows(self.records)}
        if (name, seed) in known:
            return
        policy, workdir = self.policy(name, seed).resolve(), self.workdir(seed)
        if not (workdir / name / "evaluation.json").exists():
            adapted = self.task.network != self.tasks["cifar10"].network
            run(
                "train.finetune",
                f"--workdir={workdir}",
                f"--name={name}",
                f"--policy={policy}",
                *([f"--other_layers={OTHERS}"] if adapted else []),
                *self.task.flags,
                *self.task.tuned,
                f"--seed={seed}",
            )
            run("train.evaluate", f"--workdir={workdir}", "--split=test")
        for row in (("pretrain", 0), (name, seed)):  # one float network for all seeds
            if row not in known:
                record = {"policy": row[0], "seed": row[1]}
                record |= self.measured(workdir / row[0])
                with self.records.open("a") as file:
                    file.write(json.dumps(record) + "\n")

    def measured(self, folder: Path) -> dict[str, Any]:
        """What a model costs and decides."""
        found = json.loads((folder / "evaluation.json").read_text())
        task = self.task
        model = build_model(task.network, task.shape, task.classes)
        policy = None
        if folder.name != "pretrain":
            policy = gmpq.BitwidthPolicy.load(folder / "policy.json")
        cost = gmpq.count_cost(model, policy)
        source = self.tasks["cifar10"]
        names = searchable_names(build_model(source.network, source.shape, 10))
        backbone = [layer for layer in cost.layers if layer.name in names]
        kept = ("accuracy", "twin_accuracy", "map_07", "map_area", "twin_map_07")
        line = {
            "backbone_bit_ops": sum(layer.bit_ops for layer in backbone),
            "bit_ops": cost.bit_ops,
            "weight_bytes": cost.weight_bytes,
            **{key: found[key] for key in kept if found.get(key) is not None},
            "images": found["images"],
        }
        if policy is not None and task.measure == "accuracy":
            line["rank_distance"] = self.rank_distance(folder)
        return line

    def rank_distance(self, folder: Path) -> float:
        """Of a student's maps from the float network's, mean of the test images."""
        test = load_dataset(self.task.config).test()
        models = [
            load_model(each / "model.keras")
            for each in (folder, folder.parent / "pretrain")
        ]
        found = []
        for inputs, labels in test:
            maps = [attribution_maps(model, inputs, labels) for model in models]
            found.extend(np.asarray(rank_distance(*maps, TOP_K)))
        keras.backend.clear_session()
        return float(np.mean(found))

    def summarize(self) -> None:
        """Write the table and the tests of what has been measured."""
        groups: dict[str, dict[int, dict]] = {}
        for row in rows(self.records):
            groups.setdefault(row["policy"], {})[row["seed"]] = row
        measures = [
            key
            for key in (
                "accuracy",
                "twin_accuracy",
                "map_07",
                "map_area",
                "twin_map_07",
                "rank_distance",
            )
            if next(iter(groups[self.args.policies[0]].values())).get(key) is not None
        ]
        heads = ["policy", "kernels, bytes", "backbone GBOPs", "compression"]
        heads += ["search, minutes", *measures]
        searched = {
            row["policy"]: row["minutes"]
            for row in rows(self.args.output / "searches.jsonl")
        }
        full = next(iter(groups["pretrain"].values()))["backbone_bit_ops"]
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for name in ("pretrain", *POLICIES):
            if name in groups:
                members = list(groups[name].values())
                members = members[:1] if name == "pretrain" else members
                known = (f"{full / members[0]['backbone_bit_ops']:.1f}",)
                known += (str(searched.get(name, "")),)
                lines.append(line(name, members, known, measures))
        output = self.records.with_suffix("")
        output.with_suffix(".md").write_text("\n".join(lines) + "\n")
        found = compare(groups, self.task.measure)
        output.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
        print(*lines, json.dumps(found, indent=2), sep="\n")


def write_cifar10(source: Path, target: Path) -> None:
    """Write the first images of CIFAR-10 as a folder of classes."""
    for split, count in CIFAR10_IMAGES.items():
        if (target / split).exists():
            continue
        part = f"{split}[:{count}]"
        data = tfds.load("cifar10", split=part, data_dir=source, download=False)
        unfinished = target / f"{split}.unfinished"
        for index, example in enumerate(data):
            path = unfinished / f"{int(example['label'])}/{index:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            keras.utils.save_img(path, example["image"], scale=False)
        unfinished.rename(target / split)


def line(
    name: str, members: list[dict], known: Sequence[str], measures: list[str]
) -> str:
    """One row of the table."""
    first = members[0]
    cells = [
        "float" if name == "pretrain" else name,
        f"{first['weight_bytes']:,}",
        f"{first['backbone_bit_ops'] / 1e9:.4f}",
        *known,
    ]
    for key in measures:
        values = [row[key] for row in members if row.get(key) is not None]
        cells.append(spread(values) if values else "")
    return "| " + " | ".join(cells) + " |"


def compare(groups: dict[str, dict[int, dict]], measure: str) -> dict[str, Any]:
    """The tests that the README names, over seeds that ran every policy."""
    names = [name for name in POLICIES if name in groups]
    seeds = sorted(set.intersection(*(set(groups[name]) for name in names)))
    values = {name: [groups[name][seed][measure] for seed in seeds] for name in names}
    found: dict[str, Any] = {"seeds": seeds, measure: values}
    if len(seeds) > 2 and len(names) > 2:
        test = stats.friedmanchisquare(*values.values())
        found["friedman"] = {"chi2": test.statistic, "p": test.pvalue}
    for base in ("uniform", "edmips", "loss_delta"):
        others = [n for n in names if n != base and (base == "uniform" or n == "gmpq")]
        if base in names and others and len(seeds) > 1:
            p = {n: stats.ttest_rel(values[n], values[base]).pvalue for n in others}
            found[f"against {base}"] = holm(p)
    students = [row for name in names for row in groups[name].values()]
    if all("rank_distance" in row for row in students):
        test = stats.spearmanr(
            [row["rank_distance"] for row in students],
            [row[measure] for row in students],
        )
        found["spearman with rank distance"] = [test.statistic, test.pvalue]
    return found


if __name__ == "__main__":
    main()
