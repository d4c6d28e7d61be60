"""Searches how many bits each layer's weights and activations need.

Reads the float model (--model, or the workdir's pretrain/model.keras). Writes into
<workdir>/search: policy.json, values.json, importances.json, metrics.jsonl.

The defaults are the paper's recipe. With --budget (W4A4, 5%, 0.5GBOPs, 60kB of exported
file, 2.5ms, or several of them) --zeta need not be tuned; --eta=0 searches by EdMIPS.
Each --strategy has its own flags: --strategy=loss_delta measures the loss that each
choice adds, without training, for models that are not fine-tuned afterwards;
--strategy=djpq also removes channels, and writes the smaller model pruned.keras.
--purpose=post_training or --purpose=fine_tuning chooses a strategy for that purpose.
--relaxation=sampled and --readout=perturbation make importances tell better which layer
needs its bits. --finalists=8 fine-tunes the best policies, and the uniform one, for a
few steps and takes the best.

  python -m train.search --workdir=runs/digits --budget=W3A3
  python -m train.search --workdir=runs/digits --budget=W3A3 --strategy=loss_delta
  python -m train.search --workdir=runs/digits --budget=W4A4,60kB --storage=packed
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import keras

from gmpq_tf.data import DataConfig, Dataset
from gmpq_tf.files import write_json
from gmpq_tf.layers.relaxation import DEFAULT_RELAXATION
from gmpq_tf.report.layout import IMPORTANCES, POLICY, VALUES
from gmpq_tf.run.app import run_main
from gmpq_tf.run.devices import (
    check_batch,
    devices,
    is_chief,
    open_shared_stage,
    wait_for_workers,
)
from gmpq_tf.run.flags import from_flags
from gmpq_tf.run.loop import fit_epochs, policy_results
from gmpq_tf.run.records import versions
from gmpq_tf.run.run_config import EventsConfig, RunConfig, set_threads
from gmpq_tf.run.stage import Stage
from gmpq_tf.search import (
    STRATEGIES,
    PolicySearch,
    RiskConfig,
    SearchResult,
    TemperatureScheduler,
)
from gmpq_tf.search.finalists import NO_FINALISTS, FinalistsConfig
from gmpq_tf.search.formulation import Formulation
from gmpq_tf.search.readouts import DEFAULT_READOUT
from gmpq_tf.search.rules import RuleConfig
from gmpq_tf.train.first_look import look
from gmpq_tf.train.found_events import (
    importances_log,
    write_map_events,
    write_search_events,
)
from gmpq_tf.train.inputs import (
    data_from_flags,
    file_identity,
    load_inputs,
    model_path,
    times_identity,
)
from gmpq_tf.train.read_out import (
    check_measuring,
    read_out,
    started_meter,
)
from gmpq_tf.train.recipe import make_loss, make_metrics, make_optimizer
from gmpq_tf.train.search_config import EdMIPSSearchConfig, SearchConfig
from gmpq_tf.train.strategies import (
    ChoicesConfig,
    StrategyConfig,
    check_flags,
    exit_with,
    named_search,
    search_by,
)

STAGE = "search"


def search(
    config: SearchConfig,
    data: DataConfig,
    run: RunConfig,
    finalists: FinalistsConfig = NO_FINALISTS,
) -> Stage:
    """Searches a policy, unless that has been done.

    Args:
        config: model, space, risks and recipe.
        data: the images.
        run: workdir and how the command runs.
        finalists: how the best policies are compared in the end.

    Returns:
        The finished stage: policy.json, values.json, importances.json and metrics.jsonl
        in its folder.

    Raises:
        ValueError: a file or an option cannot be used, or training diverged.
    """
    path = model_path(run, config.model)
    check_batch(data)
    check_measuring(config.readout, finalists, run)
    model, dataset = load_inputs(path, data)
    _check_attribution(config, dataset)
    resolved = resolved_config(config, dataset, path, finalists)
    scaling = dataset.config.input_scaling().to_config()
    # Built before the stage is opened, so that an impossible budget leaves no files.
    keras.utils.set_random_seed(data.seed)
    searcher = _searcher(config, model, dataset)
    resolved["milliseconds"] = times_identity(searcher.problem.limits)
    stage = open_shared_stage(run, STAGE, resolved, scaling)
    if stage.finished:
        print(f"{stage.folder} is finished already.")
        return stage
    meter = started_meter(stage)
    with dataset.naming_damaged_images():
        if not stage.epochs:
            look(model, dataset)
        run_search(searcher, model, dataset, stage, config, run)
    # On every worker, because the variables are shared by all.
    policy = searcher.policy({"seed": data.seed, "versions": versions()})
    if is_chief():
        importances = searcher.importances()  # measuring changes them
        if run.tensorboard:
            write_map_events(stage, model, searcher.hypernet, dataset, run)
        result = read_out(
            searcher,
            policy,
            model,
            dataset,
            stage,
            config.readout,
            finalists,
            run,
            config.calibration_images,
            meter,
        )
        print(result, flush=True)
        write_json(stage.folder / IMPORTANCES, importances)
        _finish(stage, model, result, run)
    wait_for_workers()
    return stage


def _searcher(
    config: SearchConfig, model: keras.Model, dataset: Dataset
) -> PolicySearch:
    """The hypernet of a float model with its risks, before calibration."""
    return PolicySearch(
        model,
        config.space,
        kernel_quantizer=config.kernel_quantizer,
        risk=config.risk,
        class_names=dataset.class_names,
        relaxation=config.relaxation,
        formulation=Formulation(rule=config.rule),
    )


def _finish(
    stage: Stage, model: keras.Model, result: SearchResult, run: RunConfig
) -> None:
    """Writes the values and the policy of a search, and finishes its stage."""
    write_json(stage.folder / VALUES, result.to_json())
    result.policy.save(stage.folder / POLICY)
    if run.tensorboard:
        write_search_events(stage, result.policy, result.to_json())
    cost = dataclasses.asdict(result.cost)
    results = policy_results(stage, model, result.policy)
    stage.finish({**results, "search_cost": cost})


def _check_attribution(config: SearchConfig, dataset: Dataset) -> None:
    """Refuses attribution for data without classes."""
    if dataset.targets is not None and config.risk.eta > 0:
        raise ValueError(
            "Attribution is of the class of an image, which tensors have not. Received:"
            f" eta={config.risk.eta:g} with dataset={dataset.config.dataset!r}. Give "
            "--eta=0 (or --strategy=edmips), or --strategy=loss_delta."
        )


def run_search(
    searcher: PolicySearch,
    model: keras.Model,
    dataset: Dataset,
    stage: Stage,
    config: SearchConfig,
    run: RunConfig,
) -> None:
    """Calibrates and trains a hypernet.

    Args:
        searcher: the hypernet with its risks; trained in place.
        model: the float model.
        dataset: the images.
        stage: its folder gets metrics.jsonl and the backup.
        config: the recipe.
        run: how training runs and shows progress.

    Raises:
        TrainingDivergedError: a risk became NaN or infinite; the message names it.
    """
    steps = dataset.steps_per_epoch
    searcher.compile(
        optimizer=make_optimizer(config.optimizer, config.learning_rate, config, steps),
        importance_optimizer=make_optimizer(
            config.importance_optimizer, config.importance_learning_rate, config, steps
        ),
        loss=make_loss(model, dataset.targets),
        metrics=make_metrics(model, dataset.targets),
        steps_per_execution=run.steps_per_execution,
        jit_compile=run.jit_compile,
    )
    searcher.calibrate(dataset.calibration(config.calibration_images))
    callbacks: list[keras.callbacks.Callback] = []
    if config.final_temperature != 1 and config.epochs:
        callbacks.append(TemperatureScheduler(config.final_temperature, config.epochs))
    if run.tensorboard and is_chief():
        callbacks.append(importances_log(stage, searcher))
    fit_epochs(
        searcher, dataset, stage, config.epochs, run, callbacks, config.precision
    )


def resolved_config(
    config: SearchConfig,
    dataset: Dataset,
    path: Path,
    finalists: FinalistsConfig = NO_FINALISTS,
) -> dict[str, Any]:
    """Returns everything the result depends on, for `open_stage`."""
    options = dataclasses.asdict(config)
    if config.relaxation == DEFAULT_RELAXATION:  # as before there were these options
        options["relaxation"] = None
    if config.readout.readout == DEFAULT_READOUT:
        options["readout"] = None
    if config.rule == RuleConfig():
        options["rule"] = None
    options["finalists"] = (
        dataclasses.asdict(finalists) if finalists.finalists else None
    )
    for name in ("attribution_share", "generalization", "groups"):
        if options["risk"][name] == getattr(RiskConfig, name):
            options["risk"][name] = None  # as in versions without the option
    return {
        **options,
        "model": file_identity(path),
        "space": config.space.to_config(),
        "data": dataclasses.asdict(dataset.config),
    }


# Strategies with their own training flags; all others use `ChoicesConfig`.
RECIPES: dict[str, type] = {"gmpq": SearchConfig, "edmips": EdMIPSSearchConfig}


def main(argv: list[str]) -> None:
    """Runs the command with the flags already parsed.

    Args:
        argv: not used.
    """
    run, name = from_flags(RunConfig), from_flags(StrategyConfig).strategy
    config: Any = from_flags(RECIPES[name])
    finalists = from_flags(FinalistsConfig)
    if isinstance(config, EdMIPSSearchConfig):
        config = config.with_risk()
    with devices(run):
        stage = search(config, data_from_flags(run, config.model), run, finalists)
    print(f"Policy: {stage.folder / POLICY}")


def main_of_strategy(argv: list[str]) -> None:
    """Runs the command with a strategy that is not in `RECIPES`.

    Args:
        argv: not used.
    """
    name = from_flags(StrategyConfig).strategy
    row = STRATEGIES[name]
    run = from_flags(RunConfig if row.gradient else EventsConfig)
    set_threads(run.threads)
    config, finalists = from_flags(ChoicesConfig), from_flags(FinalistsConfig)
    data = data_from_flags(run, config.model)
    stage = search_by(name, config, from_flags(row.config), finalists, data, run)
    print(f"Policy: {stage.folder / POLICY}")


def configs_of(strategy: str) -> tuple[type, ...]:
    """Returns the dataclasses whose fields are the flags of a search by a strategy."""
    row = STRATEGIES[strategy]
    shared = (StrategyConfig, FinalistsConfig, DataConfig)
    if strategy in RECIPES:
        return (*shared, RECIPES[strategy], RunConfig)
    stage = RunConfig if row.gradient else EventsConfig
    return (*shared, ChoicesConfig, row.config, stage)


def run() -> None:
    """Parses the flags and runs the command; entry point of `gmpq-search`."""
    try:
        name, defaults = named_search(sys.argv)
    except ValueError as error:
        exit_with(error)
    command = main if name in RECIPES else main_of_strategy
    run_main(
        command,
        __doc__,
        *configs_of(name),
        defaults={**defaults, "strategy": name},
        check=lambda: check_flags(name, sys.argv),
    )


if __name__ == "__main__":
    run()
