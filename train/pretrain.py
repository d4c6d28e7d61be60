"""Trains the float model.

Writes <workdir>/pretrain/model.keras and metrics.jsonl. A trained model is taken over
with --model=FILE --epochs=0: it is checked, measured and copied.

  python -m train.pretrain --dataset=digits --model=digits_cnn --workdir=runs/digits
  python -m train.pretrain --model=resnet8.h5 --epochs=0 --scaling=0..255
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from gmpq_tf.export.app import run_main
from gmpq_tf.export.flags import from_flags
from gmpq_tf.export.stage import RunConfig, Stage, open_stage, set_threads

from gmpq_tf.data import DataConfig, Dataset, load_dataset
from gmpq_tf.models import MODELS, load_model

from .inputs import check_model, file_identity, model_path
from .loop import fit_epochs, save_model
from .recipe import (
    OptimizerName,
    Schedule,
    TrainingConfig,
    make_loss,
    make_metrics,
    make_optimizer,
    require,
)

STAGE = "pretrain"


@dataclasses.dataclass(frozen=True)
class PretrainConfig(TrainingConfig):
    """How the float model is trained.

    Args:
        model: A built-in model (digits_cnn, mobilenet_v2, resnet8, resnet18, resnet20)
            or a .keras or .h5 file.
        weight_decay: Share of each weight that a step takes off at a learning rate of
            1, 0 or more.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int = 100
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    schedule: Schedule = "cosine"
    model: str = "resnet18"
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "weight_decay", self.weight_decay >= 0, "0 or more")


def pretrain(config: PretrainConfig, data: DataConfig, run: RunConfig) -> Stage:
    """Trains the float model, unless that has been done.

    Args:
        config: model and recipe.
        data: the images.
        run: where and how.

    Returns:
        The finished stage: model.keras and metrics.jsonl in its folder.

    Raises:
        ValueError: a file or an option cannot be used, or training diverged.
    """
    dataset = load_dataset(data)
    keras.utils.set_random_seed(data.seed)
    model = load_model(config.model, dataset.input_shape, dataset.num_classes)
    check_model(model, dataset)
    resolved = resolved_config(config, dataset, run)
    scaling = dataset.config.input_scaling().to_config()
    stage = open_stage(run, STAGE, resolved, scaling)
    if stage.finished:
        print(f"{stage.folder} is finished already.")
        return stage
    compile_model(model, dataset, config, run)
    if config.epochs:
        fit_epochs(model, dataset, stage, config.epochs, run)
    save_model(model, stage.folder / "model.keras")
    stage.finish(measure(model, dataset))
    return stage


def compile_model(
    model: keras.Model, dataset: Dataset, config: PretrainConfig, run: RunConfig
) -> None:
    """Compiles a float model by the recipe.

    Args:
        model: a classifier.
        dataset: the images; their number sets the schedule.
        config: the recipe.
        run: how.
    """
    optimizer = make_optimizer(
        config.optimizer,
        config.learning_rate,
        config,
        dataset.steps_per_epoch,
        config.weight_decay or None,
    )
    model.compile(
        optimizer=optimizer,
        loss=make_loss(model),
        metrics=make_metrics(),
        steps_per_execution=run.steps_per_execution,
        jit_compile=run.jit_compile,
    )


def measure(model: keras.Model, dataset: Dataset) -> dict[str, Any]:
    """Evaluates a compiled model on the held-out images, if there are any.

    Args:
        model: a compiled model.
        dataset: the images.

    Returns:
        `val_loss` and `val_accuracy`, or nothing.
    """
    if not dataset.sizes["validation"]:
        return {}
    logs = model.evaluate(dataset.validation(), verbose=0, return_dict=True)
    print(f"Float model: {100 * logs['accuracy']:.2f} % of the held-out images")
    return {f"val_{name}": float(value) for name, value in logs.items()}


def resolved_config(
    config: PretrainConfig, dataset: Dataset, run: RunConfig
) -> dict[str, Any]:
    """Returns everything the result depends on, for `open_stage`."""
    model: Any = config.model
    if model not in MODELS and model.endswith((".keras", ".h5")):
        model = file_identity(model_path(run, model))
    return {
        **dataclasses.asdict(config),
        "model": model,
        "data": dataclasses.asdict(dataset.config),
    }


def main(argv: list[str]) -> None:
    """Runs the command; flags must have been parsed.

    Args:
        argv: not used.
    """
    run = from_flags(RunConfig)
    set_threads(run.threads)
    stage = pretrain(from_flags(PretrainConfig), from_flags(DataConfig), run)
    print(f"Float model: {stage.folder / 'model.keras'}")


def run() -> None:
    """Entry point of `gmpq-pretrain`."""
    run_main(main, __doc__, PretrainConfig, DataConfig, RunConfig)


if __name__ == "__main__":
    run()
