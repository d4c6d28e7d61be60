"""Do policies that keep the attribution rank transfer? CIFAR-10 to Flowers-17.

    python benchmarks/transfer_study.py --weights=pretrainedResnet.h5 \
        --cifar10=TFDS_FOLDER --flowers17=FOLDER --workdir=runs/transfer

Policies of ResNet-8 are searched on CIFAR-10 at 32 pixels, by GMPQ and with eta = 0
(EdMIPS), at two budgets; they are fine-tuned on Flowers-17 at 64 pixels beside uniform
and random policies. 40 photographs of each flower train, the other 40 test. Writes
summary.json and table.md into the workdir; interrupted, the same command goes on.

`--weights` is MLPerf Tiny's ResNet-8 (mlcommons/tiny), `--cifar10` a TFDS data_dir
that holds cifar10, `--flowers17` a folder with a folder of photographs for each flower,
maybe below `train` and `validation`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIZE = 64  # pixels
TRAIN_IMAGES = 40  # of each class's 80
# Budget -> the uniform policies (weights, activations) whose bit operations it is.
BUDGETS = {"b3": ((3, 3),), "b2.5": ((2, 3), (3, 2))}
SEARCHES = {"gmpq": 100.0, "edmips": 0.0}  # name -> eta
SEEDS = (0, 1, 2)
TOP_K = 100  # pixels, as in figure 1 of the paper


def main() -> None:
    """Prepare, search, fine-tune, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--flowers17", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--search_epochs", type=int, default=4)
    parser.add_argument("--float_epochs", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=15, help="of fine-tuning")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    link_flowers(args.flowers17, args.workdir / "images")
    if not (args.workdir / "flowers17.keras").exists():
        write_models(args.weights, args.workdir)
    run("train.pretrain", *float_flags(args))
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda flags: run(*flags), searches(args)))
        list(pool.map(lambda flags: run(*flags), finetunings(args)))
    run("train.evaluate", f"--workdir={args.workdir}/flowers17", "--split=test")
    summarize(args.workdir)


def run(module: str, *flags: str) -> None:
    """Run a command line of gmpq_tf; its output goes to a log in the workdir."""
    command = [sys.executable, "-m", module, *flags]
    print(" ".join(command[1:]), flush=True)
    workdir = Path(next(f for f in flags if f.startswith("--workdir=")).split("=")[1])
    name = next((f.split("=")[1] for f in flags if f.startswith("--name=")), module)
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / f"{name}.log").open("a") as log:
        subprocess.run(command, check=True, cwd=ROOT, stdout=log, stderr=log)


def link_flowers(source: Path, target: Path) -> None:
    """Lay out the photographs as train/ and test/ by links, the same every time."""
    photographs: dict[str, list[Path]] = {}
    for path in sorted(source.resolve().rglob("*.jpg"), key=lambda path: path.name):
        photographs.setdefault(path.parent.name, []).append(path)
    for flower, paths in photographs.items():
        for index, path in enumerate(paths):
            # Numbers follow the order of shooting: take every second one.
            split = "train" if index % 2 == 0 else "test"
            link = target / split / flower / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path)


def write_models(weights: Path, workdir: Path) -> None:
    """Write ResNet-8 with the published weights, and one with a head for flowers."""
    import keras

    from gmpq_tf.models import build_model

    published = keras.models.load_model(weights, compile=False)
    cifar10 = build_model("resnet8", (32, 32, 3), 10, classifier_activation="softmax")
    for kind in (keras.layers.Conv2D, keras.layers.BatchNormalization):
        copy_in_order(published, cifar10, kind)
    copy_in_order(published, cifar10, keras.layers.Dense)
    flowers17 = build_model("resnet8", (SIZE, SIZE, 3), 17)
    for layer in flowers17.layers:
        if layer.name != "head_dense":
            layer.set_weights(cifar10.get_layer(layer.name).get_weights())
    cifar10.save(workdir / "cifar10.keras")
    flowers17.save(workdir / "flowers17.keras")


def copy_in_order(source: object, target: object, kind: type) -> None:
    """Copy the weights of the layers of one kind, in the order of the graphs."""
    pairs = [
        [layer for layer in model.layers if isinstance(layer, kind)]
        for model in (source, target)
    ]
    for given, taken in zip(*pairs, strict=True):
        taken.set_weights(given.get_weights())


def float_flags(args: argparse.Namespace) -> list[str]:
    """Flags of the float model's training on flowers."""
    return [
        f"--model={args.workdir.resolve()}/flowers17.keras",
        f"--workdir={args.workdir.resolve()}/flowers17",
        f"--epochs={args.float_epochs}",
        "--learning_rate=0.05",
        *flower_flags(args),
    ]


def flower_flags(args: argparse.Namespace) -> list[str]:
    """Flags of the images of every training on flowers."""
    return [
        f"--dataset={args.workdir.resolve()}/images",
        f"--image_size={SIZE}",
        "--scaling=0..255",
        "--batch_size=64",
        "--validation_size=0",
        "--threads=1",
    ]


def searches(args: argparse.Namespace) -> list[list[str]]:
    """Flags of every search."""
    return [search_flags(args, name, budget) for budget in BUDGETS for name in SEARCHES]


def found_policies(args: argparse.Namespace, budget: str) -> dict[str, Path]:
    """Searches of a budget, those that found one policy under one name -> its file."""
    import gmpq_tf as gmpq

    found: dict[gmpq.BitwidthPolicy, list[str]] = {}
    folder = args.workdir.resolve()
    for name in SEARCHES:
        path = folder / f"{name}_{budget}/search/policy.json"
        found.setdefault(gmpq.BitwidthPolicy.load(path), []).append(name)
    return {
        "+".join(names): folder / f"{names[0]}_{budget}/search/policy.json"
        for names in found.values()
    }


def finetunings(args: argparse.Namespace) -> list[list[str]]:
    """Flags of every fine-tuning."""
    baselines, searched = [], []
    for budget, uniform in BUDGETS.items():
        policies = found_policies(args, budget)
        for seed in SEEDS:
            for weights, activations in uniform:
                policy = f"uniform:{weights},{activations}"
                name = f"uniform_w{weights}a{activations}_{budget}_seed{seed}"
                baselines.append(finetune_flags(args, name, policy, seed))
            name = f"random{seed}_{budget}_seed{seed}"
            flags = finetune_flags(args, name, f"random:{seed}", seed)
            baselines.append([*flags, f"--bit_ops_budget={bit_ops(args, budget, 64)}"])
            for name, path in policies.items():
                label = f"{name}_{budget}_seed{seed}"
                searched.append(finetune_flags(args, label, str(path), seed))
    return [*searched, *baselines]


def search_flags(args: argparse.Namespace, name: str, budget: str) -> list[str]:
    """Flags of one search on CIFAR-10."""
    return [
        "train.search",
        f"--model={args.workdir.resolve()}/cifar10.keras",
        f"--workdir={args.workdir.resolve()}/{name}_{budget}",
        "--dataset=cifar10",
        f"--data_dir={args.cifar10}",
        "--scaling=0..255",
        "--batch_size=128",
        f"--epochs={args.search_epochs}",
        f"--eta={SEARCHES[name]}",
        f"--bit_ops_budget={bit_ops(args, budget, 32)}",
        "--optimizer=adam",
        "--learning_rate=1e-3",
        "--schedule=cosine",
        "--final_temperature=0.1",
        "--importance_optimizer=adam",
        "--importance_learning_rate=0.02",
        "--threads=1",
    ]


def finetune_flags(
    args: argparse.Namespace, name: str, policy: str, seed: int
) -> list[str]:
    """Flags of one fine-tuning on flowers."""
    return [
        "train.finetune",
        f"--workdir={args.workdir.resolve()}/flowers17",
        f"--name={name}",
        f"--policy={policy}",
        f"--epochs={args.epochs}",
        "--schedule=cosine",
        f"--seed={seed}",
        *flower_flags(args),
    ]


def bit_ops(args: argparse.Namespace, budget: str, size: int) -> int:
    """Bit operations of the uniform policy that a budget is named after."""
    import gmpq_tf as gmpq
    from gmpq_tf.models import build_model

    model = build_model("resnet8", (size, size, 3), 10 if size == 32 else 17)
    policy = gmpq.BitwidthPolicy.uniform(model, *BUDGETS[budget][0])
    return gmpq.count_cost(model, policy).bit_ops


def summarize(workdir: Path) -> None:
    """Write accuracies, rank distances and their correlation."""
    rows = [measure(workdir, folder) for folder in folders(workdir)]
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["budget"], row["policy"]), []).append(row)
    lines = [
        "| budget | policy | accuracy, % | rank distance | MBOPs |",
        "|" + "---|" * 5,
    ]
    for (budget, policy), members in sorted(groups.items()):
        accuracy = [100 * row["accuracy"] for row in members]
        distance = [row["rank_distance"] for row in members]
        spread = f" ± {statistics.stdev(accuracy):.2f}" if len(members) > 1 else ""
        lines.append(
            f"| {budget} | {policy} | {statistics.mean(accuracy):.2f}{spread} "
            f"| {statistics.mean(distance):.2f} "
            f"| {members[0]['bit_ops'] / 1e6:.1f} |"
        )
    students = [row for row in rows if row["policy"] != "float"]
    correlations = {
        name: correlation([r for r in students if r["budget"] in budgets])
        for name, budgets in [*((b, (b,)) for b in BUDGETS), ("all", tuple(BUDGETS))]
    }
    record = {"rows": rows, "spearman of rank distance and accuracy": correlations}
    (workdir / "summary.json").write_text(json.dumps(record, indent=2) + "\n")
    (workdir / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(json.dumps(correlations, indent=2))


def correlation(rows: list[dict]) -> dict[str, float]:
    """Spearman's correlation of attribution rank distance and accuracy."""
    from scipy.stats import spearmanr

    result = spearmanr(
        [r["rank_distance"] for r in rows], [r["accuracy"] for r in rows]
    )
    return {"rho": float(result.statistic), "p": float(result.pvalue), "n": len(rows)}


def measure(workdir: Path, folder: Path) -> dict:
    """Accuracy, attribution rank distance and cost of one model on the test images."""
    import keras

    import gmpq_tf as gmpq
    from gmpq_tf.attribution import rank_distance
    from gmpq_tf.data import DataConfig, load_dataset
    from gmpq_tf.models import load_model
    from gmpq_tf.train.attribute import attribution_maps

    budget, policy = "", "float"
    if folder.name != "pretrain":
        policy, budget, _ = folder.name.rsplit("_", 2)
    if policy.startswith("random"):
        policy = "random"  # another one for each seed
    result = {"name": folder.name, "policy": policy, "budget": budget}
    evaluation = json.loads((folder / "evaluation.json").read_text())
    result |= {key: evaluation[key] for key in ("accuracy", "images")}
    data = load_dataset(
        DataConfig(str(workdir / "images"), image_size=SIZE, scaling="0..255")
    )
    images, labels = next(iter(data.test().unbatch().batch(data.sizes["test"])))
    teacher = load_model(workdir / "flowers17/pretrain/model.keras")
    maps = [
        attribution_maps(model, images, labels)
        for model in (teacher, load_model(folder / "model.keras"))
    ]
    result["rank_distance"] = float(
        rank_distance(maps[1], maps[0], TOP_K).numpy().mean()
    )
    path = folder / "policy.json"
    bits = gmpq.BitwidthPolicy.load(path) if path.exists() else None
    result["bit_ops"] = gmpq.count_cost(teacher, bits).bit_ops
    keras.backend.clear_session()
    return result


def folders(workdir: Path) -> list[Path]:
    """Folders of the float model and of every student."""
    return sorted(path.parent for path in workdir.glob("flowers17/*/model.keras"))


if __name__ == "__main__":
    main()
