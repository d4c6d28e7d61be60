"""What a policy bank says: ceiling, noise, and which values rank policies.

    python benchmarks/policy_bank_scores.py \
        --bank=results/policy_bank/resnet8_2-4.jsonl \
        --values=results/policy_bank/values --output=results/policy_bank/scores.json

Of the bank of `policy_bank.py`, or that of `policy_bank_jax` (`--reference=uniform3`),
and the values of `policy_bank_values.py`:

* the standard deviation between seeds of one policy (pooled) and between random
  policies (seed 0), and the highest correlation that values could have with one run of
  each, `sqrt(1 - seeds^2 / policies^2)`;
* the policies beside uniform: difference of test accuracy, a t-test of the seeds' pairs
  where there are three, McNemar's test on seed 0 where the bank kept which images;
* of each kind of value Spearman's rank correlation of the sum over a policy's choices
  with its test accuracy, over the random policies, with a bootstrap interval over them.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

SAMPLES = 10_000  # of the bootstrap
# Shares of the weights' values that are tried, where a kind has a table of both.
DISCOUNTS = (0.0, 0.1, 0.3)
WHOLE = ("random", "evolution", "haq")  # choose policies, and value no choices


def read_bank(path: Path) -> list[dict[str, Any]]:
    """The runs of two epochs and of the paper's recipe, in the order they were made."""
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    return [run for run in runs if run["epochs"] == 2 and not run.get("hyper")]


def right(run: dict) -> np.ndarray:
    """Which test images a run decided rightly, bool [images]."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(run["right"]), "uint8"))
    return bits[:10_000].astype(bool)


def spread(runs: list[dict]) -> dict[str, Any]:
    """Standard deviations in points, and the correlation they allow."""
    seeds: dict[str, list[float]] = {}
    for run in runs:
        seeds.setdefault(run["policy"], []).append(100 * run["test"])
    repeated = [values for values in seeds.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in repeated)
    squares = sum(np.var(values) * len(values) for values in repeated)
    noise = float(np.sqrt(squares / freedom)) if freedom else None
    drawn = [100 * run["test"] for run in random_runs(runs)]
    between = float(np.std(drawn, ddof=1))
    found = {
        "random_policies": len(drawn),
        "between_policies": between,
        "between_seeds": noise,
        "seed_degrees_of_freedom": freedom,
    }
    if noise is not None:
        found["ceiling"] = float(np.sqrt(max(1 - noise**2 / between**2, 0)))
    return found


def random_runs(runs: list[dict]) -> list[dict]:
    """Runs of random policies with the first seed."""
    return [r for r in runs if r["policy"].startswith("random") and r["seed"] == 0]


def beside_uniform(runs: list[dict], reference: str) -> list[dict[str, Any]]:
    """Every policy beside uniform, by the seeds both have; the best first."""
    by_seed: dict[str, dict[int, dict]] = {}
    for run in runs:
        by_seed.setdefault(run["policy"], {})[run["seed"]] = run
    uniform, rows = by_seed[reference], []
    for name, own in by_seed.items():
        shared = sorted(set(own) & set(uniform))
        gaps = [100 * (own[s]["test"] - uniform[s]["test"]) for s in shared]
        row = {
            "policy": name,
            "seeds": len(shared),
            "test": float(np.mean([100 * own[s]["test"] for s in shared])),
            "above_uniform": float(np.mean(gaps)),
        }
        if len(gaps) > 2 and np.std(gaps):
            row["paired_t_p"] = float(stats.ttest_1samp(gaps, 0).pvalue)
        if "right" in own[0]:
            a, b = right(own[0]), right(uniform[0])
            more, less = int((a & ~b).sum()), int((b & ~a).sum())
            test = stats.binomtest(more, more + less) if more + less else None
            row["mcnemar_p_of_seed_0"] = test.pvalue if test else 1.0
        rows.append(row)
    return sorted(rows, key=lambda row: -row["above_uniform"])


def score(
    values: Any,
    bits: dict[str, list[int]],
    discount: float = 1.0,
    pairs: Sequence[Sequence[Any]] = (),
) -> float:
    """Sum over a policy's choices; those of weights count `discount`.

    Where pairs of choices have values, these are added.
    """
    found = sum(
        discount * values[n]["weights"][str(w)] + values[n]["activations"][str(a)]
        for n, (w, a) in bits.items()
    )
    return found + sum(
        value
        for n, side, b, m, other, c, value in pairs
        if bits[n][side] == b and bits[m][other] == c
    )


def correlation(x: Any, y: Any) -> dict[str, float]:
    """Spearman's rank correlation, with its 95 % bootstrap interval."""
    x, y = np.asarray(x), np.asarray(y)
    rows = np.random.default_rng(0).integers(0, len(x), (SAMPLES, len(x)))
    # Ranks of what was drawn: Spearman's correlation without its p.
    ranks = [stats.rankdata(each[rows], axis=1) for each in (x, y)]
    a, b = (own - own.mean(1, keepdims=True) for own in ranks)
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    found = (a * b).sum(1)[scale > 0] / scale[scale > 0]
    low, high = np.percentile(found, [2.5, 97.5]) if len(found) else (np.nan, np.nan)
    rho = stats.spearmanr(x, y).statistic
    return {"rho": float(rho), "low": float(low), "high": float(high)}


def tables(values_of: dict[str, Any]) -> dict[str, tuple[Any, float, Any]]:
    """Name -> (values, discount of the weights', pairs), of each kind and column."""
    found: dict[str, tuple[Any, float, Any]] = {}
    for name, record in values_of.items():
        if record["strategy"] in WHOLE:
            continue
        found[name] = (record["values"], 1.0, record.get("pairs", ()))
        for column, own in record["columns"].items():
            if column in ("generalization", "rank_distance"):
                found[f"{name}: {column}"] = (own, 1.0, ())
        if name == "table":
            for discount in DISCOUNTS:
                key = f"{name}, weights x {discount:g}"
                found[key] = (record["values"], discount, ())
    return found


def main() -> None:
    """Read, compute, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--values", type=Path, required=True, help="folder")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--reference", default="uniform", help="policy to compare with")
    args = parser.parse_args()
    runs = read_bank(args.bank)
    drawn = random_runs(runs)
    accuracy = [run["test"] for run in drawn]
    files = sorted(args.values.glob("*.json"))
    values_of = {file.stem: json.loads(file.read_text()) for file in files}
    found = {
        "spread": spread(runs),
        "beside_uniform": beside_uniform(runs, args.reference),
        "correlations": {
            name: correlation([score(v, r["bits"], d, p) for r in drawn], accuracy)
            for name, (v, d, p) in tables(values_of).items()
        },
        "float_steps": {n: r["cost"]["float_steps"] for n, r in values_of.items()},
        "seconds": {n: r["cost"]["seconds"] for n, r in values_of.items()},
    }
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["spread"]))
    for row in found["beside_uniform"]:
        print(
            f"{row['policy']:12} {row['test']:6.2f} {row['above_uniform']:+6.2f} "
            f"({row['seeds']} seeds, p = {row.get('paired_t_p', float('nan')):.2g})"
        )
    for name, each in found["correlations"].items():
        print(f"{name:28} {each['rho']:5.2f} [{each['low']:.2f}, {each['high']:.2f}]")


if __name__ == "__main__":
    main()
