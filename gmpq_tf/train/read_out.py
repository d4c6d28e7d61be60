"""From a trained search to its policy: reading importances, comparing finalists."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from gmpq_tf.data import Dataset
from gmpq_tf.files import read_jsonl
from gmpq_tf.limits import records
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report.layout import METRICS
from gmpq_tf.run.run_config import RunConfig
from gmpq_tf.run.stage import Stage
from gmpq_tf.search import PolicySearch, SearchResult
from gmpq_tf.search.case import SearchCase, SearchData
from gmpq_tf.search.finalists import FinalistsConfig
from gmpq_tf.search.journal import Journal
from gmpq_tf.search.meter import Meter
from gmpq_tf.search.policies import conclude
from gmpq_tf.search.readouts import (
    DEFAULT_READOUT,
    ReadoutConfig,
    perturbation,
    read_importances,
)
from gmpq_tf.search.strategies.training import step_cost
from gmpq_tf.search.values import Bits
from gmpq_tf.search.watch import Watch
from gmpq_tf.train.inputs import comparable
from gmpq_tf.transform.rewrite import flattened


def check_measuring(
    readout: ReadoutConfig, finalists: FinalistsConfig, run: RunConfig
) -> None:
    """Refuses to measure policies on several devices.

    Raises:
        ValueError: policies are to be measured, and the run is distributed.
    """
    if measures(readout, finalists) and run.distribution != "none":
        raise ValueError(
            "Policies are measured on one device. Received: "
            f"readout={readout.readout!r}, finalists={finalists.finalists}, "
            f"distribution={run.distribution!r}. Leave --distribution out, or "
            "--readout=perturbation and --finalists."
        )


def measures(readout: ReadoutConfig, finalists: FinalistsConfig) -> bool:
    """Whether policies are measured once the importances are trained."""
    return readout.readout == "perturbation" or finalists.finalists > 0


def started_meter(stage: Stage) -> Meter:
    """Returns a meter that starts with the seconds of the epochs already finished."""
    meter = Meter()
    lines = read_jsonl(stage.folder / METRICS)[: stage.epochs]
    meter.replayed(0.0, sum(float(line.get("seconds", 0.0)) for line in lines))
    return meter


def _count_training(
    meter: Meter, searcher: PolicySearch, dataset: Dataset, calibration_images: int
) -> None:
    """Adds calibration and all training steps of a search to the meter."""
    steps = int(np.asarray(searcher.optimizer.iterations))
    meter.forward(calibration_images)
    meter.training(steps * dataset.config.batch_size, step_cost(searcher))


def read_out(
    searcher: PolicySearch,
    policy: BitwidthPolicy,
    model: keras.Model,
    dataset: Dataset,
    stage: Stage,
    readout: ReadoutConfig,
    finalists: FinalistsConfig,
    run: RunConfig,
    calibration_images: int,
    meter: Meter,
) -> SearchResult:
    """Chooses the policy of a trained search.

    Args:
        searcher: a trained search; its importances change where policies are measured.
        policy: the most probable policy, with its provenance.
        model: the float model.
        dataset: policies are measured on its training images, without augmentation.
        stage: its journal keeps the measurements.
        readout: how importances are read.
        finalists: how the best policies are compared in the end.
        run: how progress is shown.
        calibration_images: number of training images that set activation ranges.
        meter: counter of the search's cost so far; this cost is added.

    Returns:
        The policy, the values it was chosen by, and how sure each decision is.
    """
    _count_training(meter, searcher, dataset, calibration_images)
    model, problem = flattened(model), searcher.problem
    best = {n: (policy[n].weight_bits, policy[n].activation_bits) for n in policy}
    probabilities = searcher.branches.probabilities()
    watch = Watch(run.progress)
    journal = Journal(None, {}, meter)
    if measures(readout, finalists):
        identity = {
            "policy": {name: list(pair) for name, pair in best.items()},
            "readout": vars(readout),
            "finalists": vars(finalists),
            "seed": dataset.config.seed,
        }
        journal = Journal(stage.journal, identity, meter)
    case = SearchCase(
        model,
        problem,
        SearchData(model, comparable(model, dataset, dataset.sizes["train"])),
        _no_fit,
        dataset.config.seed,
        journal,
        meter,
        calibration_images,
        quantizers=searcher.quantizers,
        watch=watch,
    )
    valued = read_importances(probabilities, problem.candidates, readout.readout)
    if readout.readout == "perturbation":
        columns = valued.columns
        valued = perturbation(
            case, best, readout, searcher.risk, lambda: searcher.hypernet
        )
        valued = dataclasses.replace(valued, columns={**columns, **valued.columns})

    def made_by(bits: Bits) -> Mapping[str, Any]:
        return _made_by(searcher, policy, readout, finalists, bits)

    known = best if readout.readout == DEFAULT_READOUT else None
    try:
        return conclude(case, valued, finalists, made_by, known)
    finally:
        watch.close()


def _made_by(
    searcher: PolicySearch,
    policy: BitwidthPolicy,
    readout: ReadoutConfig,
    finalists: FinalistsConfig,
    bits: Bits,
) -> dict[str, Any]:
    """Returns the provenance of the policy that was chosen in the end."""
    config = dict(policy.made_by["config"])
    if readout.readout != DEFAULT_READOUT:
        config |= vars(readout)
    if finalists.finalists:
        config |= vars(finalists)
    if "limits" in config:
        config["limits"] = records(searcher.limits, bits)
    return {**policy.made_by, "config": config}


def _no_fit(*_: Any) -> Any:
    raise AssertionError("The importances are trained already.")
