"""The search stage of a workdir, by any strategy of `STRATEGIES`.

Measurements are written to a journal. An interrupted search is started from the
beginning and takes the measurements that the journal holds instead of repeating them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from absl import flags

from gmpq_tf.cost_tables import TableOptions
from gmpq_tf.data import DataConfig, Dataset
from gmpq_tf.files import write_json
from gmpq_tf.quantizers.kernel_quantizer import (
    DEFAULT_KERNEL_QUANTIZER,
    kernel_method,
)
from gmpq_tf.report.layout import JOURNAL, POLICY, PRUNED, VALUES
from gmpq_tf.run.loop import fit_epochs, policy_results, save_model
from gmpq_tf.run.records import versions
from gmpq_tf.run.run_config import EventsConfig, RunConfig, WorkdirConfig
from gmpq_tf.run.stage import Stage, open_stage
from gmpq_tf.search import STRATEGIES, PolicySearch, SearchResult
from gmpq_tf.search.finalists import FinalistsConfig
from gmpq_tf.search.policies import (
    find_strategy,
    option_error,
    search_policy,
)
from gmpq_tf.search.problem import SearchProblem
from gmpq_tf.search.purposes import find_purpose
from gmpq_tf.space import SearchSpace
from gmpq_tf.task.kinds import OutputKindName
from gmpq_tf.train.first_look import look
from gmpq_tf.train.found_events import importances_log, write_search_events
from gmpq_tf.train.inputs import (
    comparable,
    file_identity,
    load_inputs,
    model_path,
    times_identity,
)
from gmpq_tf.train.recipe import require
from gmpq_tf.transform.rewrite import flattened

STAGE = "search"
DEFAULT = "gmpq"


@dataclasses.dataclass(frozen=True)
class StrategyConfig:
    """Which strategy values the choices.

    Args:
        strategy: How the choices are valued. gmpq and edmips train importances, as do
            bp_nas, hmq, dq, fracbits, sdq, ssps and bayesian_bits, each as in its
            paper; djpq removes channels, too;
            loss_delta measures the loss each choice adds (no training, no labels);
            one_shot does so after training with randomly drawn bits; limpq reads the
            step sizes that quantizers learn; fisher and hawq use derivatives; clado
            measures pairs; ompq and topological_entropy look at features; evolution and
            haq try whole policies; random draws some. Each has its own flags: see
            --strategy=NAME --help.
        purpose: What the policy is for; chooses the strategy and defaults of its flags
            where --strategy is not given: post_training (the model is not trained
            afterwards) or fine_tuning; none: the paper's search.
    """

    strategy: str = DEFAULT
    purpose: str | None = None


@dataclasses.dataclass(frozen=True)
class ChoicesConfig:
    """Model, candidates and budget of a search; the same for all strategies.

    Args:
        model: Float model, a .keras or .h5 file; none: the workdir's
            pretrain/model.keras.
        calibration_images: Training images that set the activation ranges.
        kernel_quantizer: How kernels are quantized: lsq, max_abs, apot (2 to 6 bits),
            alq (2 to 7 bits) or rq (drawn in training); none: lsq.
        budget: What the policy may cost: up to 1 a fraction of full precision, above 1
            a count of bit operations, or such as 5%, W4A4, 0.5GBOPs, 60kB (of the
            .tflite file), 2.5ms, or weight_bytes=60kB; several with commas between
            them, all of which it keeps.
        storage: Storage of kernels in the .tflite file that a budget of bytes or
            milliseconds is about: fast, packed or smallest.
        latency_table: JSON file that gmpq-latency wrote, for a budget of milliseconds.
        output_kind: Meaning of the output: classes (the largest score decides), binary
            (each number is a probability, decided at 0.5), binary_logit (decided at 0)
            or numbers; none: derived from the model and the labels.
        space: the candidates.

    Raises:
        ValueError: a value is out of range.
    """

    model: str | None = None
    calibration_images: int = 512
    kernel_quantizer: str | None = None
    budget: str | None = None
    storage: str | None = None
    latency_table: str | None = None
    output_kind: OutputKindName | None = None
    space: SearchSpace = dataclasses.field(default_factory=SearchSpace)

    def __post_init__(self) -> None:
        require(self, "calibration_images", self.calibration_images > 0, "1 or more")
        kernel_method(self.kernel_quantizer or DEFAULT_KERNEL_QUANTIZER)
        TableOptions(self.storage, self.latency_table)


def search_by(
    name: str,
    config: ChoicesConfig,
    options: Any,
    finalists: FinalistsConfig,
    data: DataConfig,
    run: WorkdirConfig,
    loaded: tuple[keras.Model, Dataset] | None = None,
) -> Stage:
    """Searches a policy by a strategy, unless that has been done.

    Args:
        name: name of the strategy.
        config: model, space and budget.
        options: options of the strategy, its `Strategy.config`.
        finalists: how the best policies are compared in the end.
        data: the images; choices are measured on training images without augmentation.
        run: workdir and how the command runs.
        loaded: what `load_inputs` returned, if the caller has called it; None: model
            and images are read here.

    Returns:
        The finished stage: policy.json, values.json and journal.jsonl in its folder,
        and pruned.keras where channels were removed, which the policy is of.

    Raises:
        ValueError: a file or an option cannot be used.
    """
    path = model_path(run, config.model)
    model, dataset = loaded or load_inputs(path, data, labels=False)
    tables = TableOptions(config.storage, config.latency_table, config.kernel_quantizer)
    # Before the stage is opened, so that an impossible budget leaves no files.
    problem = SearchProblem.of(
        flattened(model), config.space, None, config.budget, tables
    )
    resolved = {
        **dataclasses.asdict(config),
        "strategy": name,
        "options": dataclasses.asdict(options),
        "finalists": dataclasses.asdict(finalists),
        "model": file_identity(path),
        "space": config.space.to_config(),
        "data": dataclasses.asdict(dataset.config),
        "images": dataset.identity("train"),
        "milliseconds": times_identity(problem.limits),
    }
    scaling = dataset.config.input_scaling().to_config()
    stage = open_stage(run, STAGE, resolved, scaling)
    if stage.finished:
        print(f"{stage.folder} is finished already.")
        return stage
    with dataset.naming_damaged_images():
        if loaded is None:
            look(model, dataset)
        result = _searched(name, config, options, finalists, model, dataset, stage, run)
    if run.progress == "none":
        print(result, flush=True)
    made_by = {**result.policy.made_by, "versions": versions()}
    policy = dataclasses.replace(result.policy, made_by=made_by)
    if result.pruned is not None:
        model = result.pruned
        save_model(model, stage.folder / PRUNED)
        print(f"Pruned float model: {stage.folder / PRUNED}. {_left(result.kept)}")
    write_json(stage.folder / VALUES, result.to_json())
    policy.save(stage.folder / POLICY)
    if isinstance(run, EventsConfig) and run.tensorboard:
        write_search_events(stage, policy, result.to_json())
    cost = dataclasses.asdict(result.cost)
    stage.finish({**policy_results(stage, model, policy), "search_cost": cost})
    return stage


def _left(kept: Mapping[str, Sequence[bool]]) -> str:
    """Returns a line with the number of channels that each pruned layer keeps."""
    layers = (f"{name} {sum(mask)} of {len(mask)}" for name, mask in kept.items())
    return f"Channels: {', '.join(layers)}."


def _searched(
    name: str,
    config: ChoicesConfig,
    options: Any,
    finalists: FinalistsConfig,
    model: keras.Model,
    dataset: Dataset,
    stage: Stage,
    run: WorkdirConfig,
) -> SearchResult:
    def fit(trained: keras.Model, epochs: int, callbacks: Sequence[Any]) -> list:
        assert isinstance(run, RunConfig)
        watching = list(callbacks)
        if run.tensorboard and isinstance(trained, PolicySearch):
            watching.append(importances_log(stage, trained))
        fit_epochs(trained, dataset, stage, epochs, run, watching)
        return []  # it is in metrics.jsonl

    return search_policy(
        model,
        comparable(model, dataset, dataset.sizes["train"]),
        name,
        config.budget,
        config.space,
        dataset.config.seed,
        journal=stage.folder / JOURNAL,
        progress=run.progress,
        fit=fit,
        calibration_images=config.calibration_images,
        kernel_quantizer=config.kernel_quantizer,
        storage=config.storage,
        latency_table=config.latency_table,
        output_kinds=config.output_kind,
        **vars(options),
        **vars(finalists),
    )


def named_search(argv: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    """Finds the strategy that --strategy or --purpose names, or else the default.

    Args:
        argv: the command line, program name first; other flags are not defined yet.

    Returns:
        Its name, and the defaults that the purpose gives its flags.

    Raises:
        StrategyError: there is no strategy or no purpose of that name.
    """
    words = flags.FLAGS.read_flags_from_files(list(argv[1:]))
    named: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        flag, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and flag in ("strategy", "purpose"):
            named[flag] = value if equals else following
    purpose = named.get("purpose", "none")
    row = None if purpose.lower() == "none" else find_purpose(purpose)
    if row is not None and "strategy" not in named:
        return row.strategy, row.options
    name = named.get("strategy", DEFAULT)
    find_strategy(name)
    return name, {}


def check_flags(name: str, argv: Sequence[str]) -> None:
    """Refuses flags that only other strategies have.

    Args:
        name: name of the strategy.
        argv: the command line, program name first; all flags of the command are
            defined.

    Raises:
        StrategyError: there is such a flag; the message names its strategies.
    """
    for word in flags.FLAGS.read_flags_from_files(list(argv[1:])):
        flag, _, value = word.lstrip("-").partition("=")
        if word.startswith("--") and flag not in flags.FLAGS:
            others = [n for n, row in STRATEGIES.items() if _has(row.config, flag)]
            if others:
                raise option_error(name, flag, value)


def _has(config: type, name: str) -> bool:
    return name in {field.name for field in dataclasses.fields(config)}


def exit_with(error: ValueError) -> None:
    """Prints an error that occurs before flags are parsed, and exits with 1."""
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(1)
