"""Fine-tunes the quantized model of a policy.

Reads the float model (--model, or the workdir's pretrain/model.keras) and a policy
(--policy, or the workdir's search/policy.json). Writes into <workdir>/<name>:
model.keras, policy.json, metrics.jsonl. Defaults are the paper's recipe.

  python -m train.finetune --workdir=runs/digits
  python -m train.finetune --workdir=runs/digits --name=uniform --policy=uniform:3,3
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import keras

from gmpq_tf.data import DataConfig, Dataset, load_dataset
from gmpq_tf.export.app import run_main
from gmpq_tf.export.flags import from_flags
from gmpq_tf.export.run_config import RunConfig
from gmpq_tf.export.stage import Stage
from gmpq_tf.graph import searchable_names
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.search.random_policy import random_policy
from gmpq_tf.space import SearchSpace
from gmpq_tf.transform import calibrate, quantize_model, snap_biases
from gmpq_tf.transform.distill import Distiller

from .devices import (
    check_batch,
    devices,
    is_chief,
    open_shared_stage,
    wait_for_workers,
)
from .inputs import data_from_flags, file_identity, load_float_model, model_path
from .loop import fit_epochs, policy_results, save_model
from .policies import read_policy
from .recipe import (
    TrainingConfig,
    make_loss,
    make_metrics,
    make_optimizer,
    require,
    require_positive,
)

SEARCHED_POLICY = "search/policy.json"


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(TrainingConfig):
    """How a quantized model is fine-tuned. Defaults: section 4.1 of the paper.

    Args:
        model: Float model, a .keras or .h5 file; none: the workdir's
            pretrain/model.keras.
        policy: A policy file, uniform:WEIGHT_BITS,ACTIVATION_BITS (first and last
            layer at 8), or random:SEED (needs bit_ops_budget); none: the workdir's
            search/policy.json.
        rename_layers: How the layers of the policy file are called in the model:
            prefix=TEXT, or a JSON file {old name: new name}.
        name: Folder in the workdir for what is made.
        bit_ops_budget: Only with policy=random:SEED: bit operations it may cost, up to
            1 as a fraction of full precision, above 1 as a count.
        weight_bits: Only with policy=random:SEED: candidates of kernels.
        activation_bits: Only with policy=random:SEED: candidates of layer inputs.
        distillation: Share of the loss that follows the float model's scores, 0 to 1.
        temperature: Temperature that softens scores in distillation.
        statistics_images: Augmented training images on which the statistics of each
            BatchNormalization are measured after the last epoch, before biases are
            rounded to what integer kernels add; 0: they stay as training left them.
        calibration_images: Training images that set the first activation ranges.

    Raises:
        ValueError: a value is out of range.
    """

    model: str | None = None
    policy: str | None = None
    rename_layers: str | None = None
    name: str = "finetune"
    bit_ops_budget: float | None = None
    weight_bits: tuple[int, ...] = (2, 3, 4)
    activation_bits: tuple[int, ...] = (2, 3, 4)
    distillation: float = 0.0
    temperature: float = 2.0
    statistics_images: int = 2048
    calibration_images: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "distillation", 0 <= self.distillation <= 1, "0 to 1")
        require_positive(self, "temperature")
        require(self, "statistics_images", self.statistics_images >= 0, "0 or more")
        require(self, "calibration_images", self.calibration_images > 0, "1 or more")
        if self.policy is not None and self.policy.startswith("random:"):
            require(
                self,
                "bit_ops_budget",
                self.bit_ops_budget is not None,
                "given with policy=random:SEED",
            )


def finetune(config: FinetuneConfig, data: DataConfig, run: RunConfig) -> Stage:
    """Fine-tunes the quantized model of a policy, unless that has been done.

    Args:
        config: model, policy and recipe.
        data: the images.
        run: where and how.

    Returns:
        The finished stage: model.keras, policy.json and metrics.jsonl in its folder.

    Raises:
        ValueError: a file or an option cannot be used, or training diverged.
    """
    path = model_path(run, config.model)
    check_batch(data)
    dataset = load_dataset(data)
    model = load_float_model(path, dataset)
    policy = choose_policy(config, run, model)
    policy.check(searchable_names(model))
    resolved = resolved_config(config, dataset, path, policy)
    stage = open_shared_stage(
        run, config.name, resolved, dataset.config.input_scaling().to_config()
    )
    if stage.finished:
        print(f"{stage.folder} is finished already.")
        return stage
    keras.utils.set_random_seed(data.seed)
    if is_chief():
        policy.save(stage.folder / "policy.json")
    student = quantize_model(model, policy)
    with dataset.naming_damaged_images():
        calibrate(student, dataset.calibration(config.calibration_images))
        train_student(student, model, dataset, stage, config, run)
        snap_biases(student, statistics_batches(config, dataset))
    if is_chief():
        save_model(student, stage.folder / "model.keras")
        stage.finish(policy_results(stage, model, policy))
    wait_for_workers()
    return stage


def statistics_batches(config: FinetuneConfig, dataset: Dataset) -> Any:
    """Returns augmented training batches to measure statistics on, or None.

    Without augmentation statistics differ from those the weights were trained with: on
    CIFAR-10 that cost 1.4 points.
    """
    if not config.epochs or not config.statistics_images:
        return None
    batches = math.ceil(config.statistics_images / dataset.config.batch_size)
    return dataset.train(config.epochs).take(batches)


def train_student(
    student: keras.Model,
    teacher: keras.Model,
    dataset: Dataset,
    stage: Stage,
    config: FinetuneConfig,
    run: RunConfig,
) -> None:
    """Trains a calibrated student, guided by the teacher if the configuration says so.

    Args:
        student: from `quantize_model`; trained in place, kept as after the last epoch.
        teacher: the float model.
        dataset: the images.
        stage: whose folder gets metrics.jsonl and the backup.
        config: the recipe.
        run: how.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite.
    """
    trainee = student
    if config.distillation:
        trainee = Distiller(student, teacher, config.distillation, config.temperature)
    optimizer = make_optimizer(
        config.optimizer, config.learning_rate, config, dataset.steps_per_epoch
    )
    optimizer.build(student.trainable_variables)
    trainee.compile(
        optimizer=optimizer,
        loss=make_loss(teacher),
        metrics=make_metrics(),
        steps_per_execution=run.steps_per_execution,
        jit_compile=run.jit_compile,
    )
    fit_epochs(trainee, dataset, stage, config.epochs, run, precision=config.precision)


def choose_policy(
    config: FinetuneConfig, run: RunConfig, model: keras.Model
) -> BitwidthPolicy:
    """Returns the policy that the `--policy` flag describes.

    Args:
        config: the flag, and the space and budget of a random policy.
        run: whose workdir may hold a searched policy.
        model: the float model.

    Returns:
        A policy for the model.

    Raises:
        PolicyError: the text is none of the forms, or the file is unusable.
    """
    text = config.policy or str(Path(run.workdir) / SEARCHED_POLICY)
    if match := re.fullmatch(r"random:(\d+)", text):
        space = SearchSpace(config.weight_bits, config.activation_bits)
        budget = config.bit_ops_budget or 0.0
        return random_policy(model, space, budget, int(match[1]))
    return read_policy(text, model, config.rename_layers)


def resolved_config(
    config: FinetuneConfig, dataset: Dataset, path: Path, policy: BitwidthPolicy
) -> dict[str, Any]:
    """Returns everything the result depends on, for `open_stage`."""
    bits = {n: [b.weight_bits, b.activation_bits] for n, b in policy.items()}
    return {
        **dataclasses.asdict(config),
        "model": file_identity(path),
        "policy": bits,
        "data": dataclasses.asdict(dataset.config),
    }


def main(argv: list[str]) -> None:
    """Runs the command; flags must have been parsed.

    Args:
        argv: not used.
    """
    run, config = from_flags(RunConfig), from_flags(FinetuneConfig)
    with devices(run):
        stage = finetune(config, data_from_flags(run, config.model), run)
    print(f"Fine-tuned model: {stage.folder / 'model.keras'}")


def run() -> None:
    """Entry point of `gmpq-finetune`."""
    run_main(main, __doc__, FinetuneConfig, DataConfig, RunConfig)


if __name__ == "__main__":
    run()
