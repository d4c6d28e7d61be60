"""Searches how many bits each layer's weights and activations need.

Reads the float model (--model, or the workdir's pretrain/model.keras). Writes into
<workdir>/search: policy.json, importances.json, metrics.jsonl. Defaults are the paper's
recipe; --budget replaces tuning of --zeta (W4A4, 5%, 0.5GBOPs, 60kB of exported file,
2.5ms, or several of them), and --eta=0 searches by EdMIPS.

  python -m train.search --workdir=runs/digits --budget=W3A3
  python -m train.search --workdir=runs/digits --budget=W4A4,60kB --storage=packed
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras

from gmpq_tf.data import DataConfig, Dataset
from gmpq_tf.files import write_json
from gmpq_tf.quantizers.kernel_quantizer import (
    DEFAULT_KERNEL_QUANTIZER,
    kernel_method,
)
from gmpq_tf.report.layout import IMPORTANCES, POLICY
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
from gmpq_tf.run.run_config import RunConfig
from gmpq_tf.run.stage import Stage
from gmpq_tf.search import (
    PolicySearch,
    RiskConfig,
    TemperatureScheduler,
)
from gmpq_tf.space import SearchSpace
from gmpq_tf.train.first_look import look
from gmpq_tf.train.inputs import data_from_flags, file_identity, load_inputs, model_path
from gmpq_tf.train.recipe import (
    OptimizerName,
    TrainingConfig,
    make_loss,
    make_metrics,
    make_optimizer,
    require,
    require_positive,
)

STAGE = "search"


@dataclasses.dataclass(frozen=True)
class SearchConfig(TrainingConfig):
    """How a policy is searched. Defaults: section 4.1 and the official command.

    Args:
        model: Float model, a .keras or .h5 file; none: the workdir's
            pretrain/model.keras.
        importance_optimizer: Optimizer of the branch importances.
        importance_learning_rate: Its learning rate in the first epoch; it falls as the
            other one does.
        final_temperature: Temperature of the branch probabilities in the last epoch,
            falling from 1; 1 keeps the softmax of the paper throughout, less pushes the
            mixture towards the policy that it stands for.
        calibration_images: Training images that set the first activation ranges.
        kernel_quantizer: How kernels are quantized: lsq, max_abs or apot (2 to 6
            bits); none: lsq.
        risk: the risks and the budget.
        space: the candidates.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int = 25
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    decay_epochs: tuple[int, ...] = (10, 20)
    model: str | None = None
    importance_optimizer: OptimizerName = "sgd"
    importance_learning_rate: float = 0.01
    final_temperature: float = 1.0
    calibration_images: int = 512
    kernel_quantizer: str | None = None
    risk: RiskConfig = dataclasses.field(default_factory=RiskConfig)
    space: SearchSpace = dataclasses.field(default_factory=SearchSpace)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "importance_learning_rate")
        require_positive(self, "final_temperature")
        require(self, "calibration_images", self.calibration_images > 0, "1 or more")
        kernel_method(self.kernel_quantizer or DEFAULT_KERNEL_QUANTIZER)
        # Two optimizers would scale one loss.
        narrow = self.precision == "mixed_float16"
        require(self, "precision", not narrow, "float32 or mixed_bfloat16 in a search")


def search(config: SearchConfig, data: DataConfig, run: RunConfig) -> Stage:
    """Searches a policy, unless that has been done.

    Args:
        config: model, space, risks and recipe.
        data: the images.
        run: where and how.

    Returns:
        The finished stage: policy.json, importances.json and metrics.jsonl in its
        folder.

    Raises:
        ValueError: a file or an option cannot be used, or training diverged.
    """
    path = model_path(run, config.model)
    check_batch(data)
    model, dataset = load_inputs(path, data)
    resolved = resolved_config(config, dataset, path)
    scaling = dataset.config.input_scaling().to_config()
    # Built before the stage is opened: an impossible budget leaves nothing behind.
    keras.utils.set_random_seed(data.seed)
    searcher = PolicySearch(
        model,
        config.space,
        kernel_quantizer=config.kernel_quantizer,
        risk=config.risk,
        class_names=dataset.class_names,
    )
    stage = open_shared_stage(run, STAGE, resolved, scaling)
    if stage.finished:
        print(f"{stage.folder} is finished already.")
        return stage
    with dataset.naming_damaged_images():
        if not stage.epochs:
            look(model, dataset)
        run_search(searcher, model, dataset, stage, config, run)
    # On every worker: it reads what they hold together.
    policy = searcher.policy({"seed": data.seed, "versions": versions()})
    if is_chief():
        write_json(stage.folder / IMPORTANCES, searcher.importances())
        policy.save(stage.folder / POLICY)
        stage.finish(policy_results(stage, model, policy))
    wait_for_workers()
    return stage


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
        searcher: what is trained.
        model: the float model.
        dataset: the images.
        stage: whose folder gets metrics.jsonl and the backup.
        config: the recipe.
        run: how.

    Raises:
        TrainingDivergedError: a risk became NaN or infinite; the message names it.
    """
    steps = dataset.steps_per_epoch
    searcher.compile(
        optimizer=make_optimizer(config.optimizer, config.learning_rate, config, steps),
        importance_optimizer=make_optimizer(
            config.importance_optimizer, config.importance_learning_rate, config, steps
        ),
        loss=make_loss(model),
        metrics=make_metrics(model),
        steps_per_execution=run.steps_per_execution,
        jit_compile=run.jit_compile,
    )
    searcher.calibrate(dataset.calibration(config.calibration_images))
    callbacks: list[keras.callbacks.Callback] = []
    if config.final_temperature != 1 and config.epochs:
        callbacks.append(TemperatureScheduler(config.final_temperature, config.epochs))
    fit_epochs(
        searcher, dataset, stage, config.epochs, run, callbacks, config.precision
    )


def resolved_config(
    config: SearchConfig, dataset: Dataset, path: Path
) -> dict[str, Any]:
    """Returns everything the result depends on, for `open_stage`."""
    options = dataclasses.asdict(config)
    if options["risk"]["attribution_share"] == 1:  # as before there was the option
        options["risk"]["attribution_share"] = None
    return {
        **options,
        "model": file_identity(path),
        "space": config.space.to_config(),
        "data": dataclasses.asdict(dataset.config),
    }


def main(argv: list[str]) -> None:
    """Runs the command; flags must have been parsed.

    Args:
        argv: not used.
    """
    run, config = from_flags(RunConfig), from_flags(SearchConfig)
    with devices(run):
        stage = search(config, data_from_flags(run, config.model), run)
    print(f"Policy: {stage.folder / POLICY}")


def run() -> None:
    """Entry point of `gmpq-search`."""
    run_main(main, __doc__, SearchConfig, DataConfig, RunConfig)


if __name__ == "__main__":
    run()
