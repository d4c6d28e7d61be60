"""Does a policy made on CIFAR-10 serve a detector of the same backbone? Table 2, small.

    python benchmarks/detection_transfer.py --bccd=VOC_FOLDER --cifar10=TFDS_FOLDER \
        --weights=mlperf_tiny_resnet8_cifar10.h5 --workdir=runs/detection_transfer \
        --output=results/detection_transfer

Question, policies, tests and what each answer would mean:
results/detection_transfer/README.md. `--output` gets one line of runs.jsonl a detector,
and summary.json and table.md of those there are. Every stage is a command of gmpq_tf in
a workdir; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BANK = ROOT / "results/policy_bank"
SEEDS = (0, 1, 2)
OTHERS = (8, 8)
RANDOM = (0, 1)
POLICIES = ("uniform", "gmpq", "edmips", "loss_delta", "random0", "random1", "haq")
# Minutes that the searches took, of the records beside the policies.
SEARCHED = {"gmpq": 24.1, "edmips": 1.2, "loss_delta": 0.7}
HAQ = ("--strategy=haq", "--trials=60", "--steps=20", "--images=512", "--warmup=20")


def main() -> None:
    """Train, fine-tune, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bccd", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--float_epochs", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=8, help="of fine-tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES)
    args = parser.parse_args()
    for seed in args.seeds:
        if not (folder(args, seed) / "pretrain/model.keras").exists():
            run("train.pretrain", *float_flags(args, seed))
        for name in args.policies:
            finetune(args, seed, name)
            record(args, seed)
    summarize(args.output)


def run(module: str, *flags: str) -> None:
    """Run a command of gmpq_tf; its output goes to a log in the workdir."""
    workdir = Path(next(f for f in flags if f.startswith("--workdir=")).split("=")[1])
    workdir.mkdir(parents=True, exist_ok=True)
    print(time.strftime("%H:%M:%S"), module, *flags, flush=True)
    command = [sys.executable, "-m", module, *flags]
    with (workdir / "log").open("a") as log:
        subprocess.run(command, check=True, cwd=ROOT, stdout=log, stderr=log)


def folder(args: argparse.Namespace, seed: int) -> Path:
    """Workdir of the detectors of a seed."""
    return args.workdir.resolve() / f"seed{seed}"


def float_flags(args: argparse.Namespace, seed: int) -> list[str]:
    """Flags of the float detector's training; results/detection has 80 epochs."""
    return [
        f"--workdir={folder(args, seed)}",
        f"--dataset={args.bccd.resolve()}",
        "--model=ssd_resnet8",
        "--image_size=160",
        "--augment=flip",
        "--batch_size=32",
        f"--epochs={args.float_epochs}",
        "--optimizer=adam",
        "--learning_rate=0.003",
        "--schedule=cosine",
        f"--seed={seed}",
        "--threads=1",
        "--progress=line",
    ]


def finetune(args: argparse.Namespace, seed: int, name: str) -> None:
    """Fine-tune and measure one policy's detector."""
    workdir = folder(args, seed)
    if (workdir / name / "evaluation.json").exists():
        return
    run(
        "train.finetune",
        f"--workdir={workdir}",
        f"--name={name}",
        f"--policy={policy_file(args, name)}",
        f"--other_layers={OTHERS[0]},{OTHERS[1]}",
        f"--epochs={args.epochs}",
        "--learning_rate=0.001",
        "--schedule=cosine",
        f"--seed={seed}",
        "--threads=1",
        "--progress=line",
    )
    run("train.evaluate", f"--workdir={workdir}", "--split=test", "--threads=1")


def policy_file(args: argparse.Namespace, name: str) -> Path:
    """Write a policy of the classifier `resnet8`, by its names of layers."""
    import gmpq_tf as gmpq
    from gmpq_tf.graph import searchable_names
    from gmpq_tf.models import build_model, load_model
    from gmpq_tf.space import random_policy

    path = args.workdir.resolve() / "policies" / f"{name}.json"
    if path.exists():
        return path
    classifier = build_model("resnet8", (32, 32, 3), 10)
    if name == "uniform":
        policy = gmpq.BitwidthPolicy.uniform(classifier, 3, 3)
    elif name.startswith("random"):
        space = gmpq.SearchSpace((2, 3, 4), (2, 3, 4))
        policy = random_policy(classifier, space, "W3A3", int(name[len("random") :]))
    else:
        found = searched_file(args, name)
        pairs = zip(
            searchable_names(load_model(args.weights)),
            searchable_names(classifier),
            strict=True,
        )
        policy = gmpq.BitwidthPolicy.load(found).rename(dict(pairs))
    path.parent.mkdir(parents=True, exist_ok=True)
    policy.save(path)
    return path


def searched_file(args: argparse.Namespace, name: str) -> Path:
    """A policy of the published network: made before, or searched now."""
    if name != "haq":
        return BANK / "policies" / f"{name}.json"
    workdir = args.workdir.resolve() / name
    run(
        "train.search",
        f"--workdir={workdir}",
        f"--model={args.weights.resolve()}",
        "--dataset=cifar10",
        f"--data_dir={args.cifar10.resolve()}",
        "--scaling=0..255",
        "--budget=W3A3",
        *HAQ,
        "--threads=1",
    )
    return workdir / "search/policy.json"


def record(args: argparse.Namespace, seed: int) -> None:
    """Append what is not in runs.jsonl yet."""
    path = args.output / "runs.jsonl"
    known = {(row["seed"], row["policy"]) for row in rows(path)}
    for name in ("pretrain", *POLICIES):
        measured = folder(args, seed) / name / "evaluation.json"
        if (seed, name) in known or not measured.exists():
            continue
        with path.open("a") as file:
            file.write(json.dumps(measure(measured, seed, name)) + "\n")


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """What has been measured."""
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def measure(measured: Path, seed: int, name: str) -> dict[str, Any]:
    """One line: what a detector costs and decides."""
    import gmpq_tf as gmpq
    from gmpq_tf.graph import searchable_names
    from gmpq_tf.models import build_model

    kept = ("map_07", "map_area", "twin_map_07", "twin_map_area", "images")
    found = json.loads(measured.read_text())
    detector = build_model("ssd_resnet8", (160, 160, 3), 3)
    policy = None
    if name != "pretrain":
        policy = gmpq.BitwidthPolicy.load(measured.parent / "policy.json")
    cost = gmpq.count_cost(detector, policy)
    names = searchable_names(build_model("resnet8", (32, 32, 3), 10))
    backbone = [layer for layer in cost.layers if layer.name in names]
    return {
        "seed": seed,
        "policy": name,
        "backbone_bit_ops": sum(layer.bit_ops for layer in backbone),
        "bit_ops": cost.bit_ops,
        "weight_bytes": cost.weight_bytes,
        "bits": [[layer.weight_bits, layer.activation_bits] for layer in backbone],
        **{key: found.get(key) for key in kept},
    }


def summarize(output: Path) -> None:
    """Write the table and the tests of what has been measured."""
    groups: dict[str, dict[int, dict]] = {}
    for row in rows(output / "runs.jsonl"):
        groups.setdefault(row["policy"], {})[row["seed"]] = row
    lines = [
        "| policy | parameters, bytes | backbone GBOPs | compression | whole GBOPs "
        "| search, minutes | mAP 2007 | mAP area | in integers, 2007 |",
        "|" + "---|" * 9,
    ]
    full = next(iter(groups["pretrain"].values()))["backbone_bit_ops"]
    for name in ("pretrain", *POLICIES):
        if name in groups:
            lines.append(line(name, list(groups[name].values()), full))
    (output / "table.md").write_text("\n".join(lines) + "\n")
    summary = tests(groups)
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print("\n".join(lines), json.dumps(summary, indent=2), sep="\n")


def line(name: str, members: list[dict], full: int) -> str:
    """One row of the table."""
    first = min(members, key=lambda row: row["seed"])
    cells = [
        "float" if name == "pretrain" else name,
        f"{first['weight_bytes']:,}",
        f"{first['backbone_bit_ops'] / 1e9:.4f}",
        f"{full / first['backbone_bit_ops']:.1f}",
        f"{first['bit_ops'] / 1e9:.3f}",
        str(SEARCHED.get(name, "")),
    ]
    for key in ("map_07", "map_area", "twin_map_07"):
        values = [row[key] for row in members if row[key] is not None]
        cells.append(spread(values) if values else "")
    return "| " + " | ".join(cells) + " |"


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    if len(values) < 2:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def tests(groups: dict[str, dict[int, dict]]) -> dict[str, Any]:
    """The tests that the README names, over seeds that ran every policy."""
    from scipy import stats

    names = [name for name in POLICIES if name in groups]
    seeds = sorted(set.intersection(*(set(groups[name]) for name in names)))
    maps = {name: [groups[name][seed]["map_07"] for seed in seeds] for name in names}
    found: dict[str, Any] = {"seeds": seeds, "map_07": maps}
    if len(seeds) > 2 and len(names) > 2:
        test = stats.friedmanchisquare(*maps.values())
        found["friedman"] = {"chi2": test.statistic, "p": test.pvalue}
    if len(seeds) > 1:
        found["against uniform"] = holm(
            {
                name: stats.ttest_rel(maps[name], maps["uniform"]).pvalue
                for name in names
                if name != "uniform"
            }
        )
    bank = {
        row["policy"]: row["test"]
        for row in rows(BANK / "resnet8_2-4.jsonl")
        if row["seed"] == 0
    }
    both = [name for name in names if name in bank]
    test = stats.spearmanr(
        [bank[name] for name in both],
        [statistics.mean(maps[name]) for name in both],
    )
    found["spearman with CIFAR-10"] = {
        "rho": test.statistic,
        "p": test.pvalue,
        "policies": both,
    }
    return found


def holm(values: dict[str, float]) -> dict[str, dict[str, float]]:
    """The p of each test, and by Holm's correction."""
    ordered = sorted(values, key=lambda name: values[name])
    found, least = {}, 0.0
    for index, name in enumerate(ordered):
        least = max(least, min(1.0, (len(ordered) - index) * values[name]))
        found[name] = {"p": values[name], "holm": least}
    return found


if __name__ == "__main__":
    main()
