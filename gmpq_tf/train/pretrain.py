"""Trains the float model.

Writes <workdir>/pretrain/model.keras and metrics.jsonl. To use a model that is already
trained, give --model=FILE --epochs=0: it is checked, measured and copied. A built-in
model can start from published weights (--weights=imagenet) or from those in a file.

  python -m train.pretrain --dataset=digits --model=digits_cnn --workdir=runs/digits
  python -m train.pretrain --model=resnet8.h5 --epochs=0 --scaling=0..255
  python -m train.pretrain --model=mobilenet_v2 --weights=imagenet --scaling=-1..1 \
      --dataset=oxford_flowers102 --epochs=10 --learning_rate=0.01
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, Literal

import keras

from gmpq_tf.data import DataConfig, Dataset, load_dataset
from gmpq_tf.data.datasets import find_spec
from gmpq_tf.distribution import support_workers
from gmpq_tf.models import MODELS, PUBLISHED, build_pretrained, load_model
from gmpq_tf.run.app import run_main
from gmpq_tf.run.devices import (
    check_batch,
    devices,
    is_chief,
    open_shared_stage,
    wait_for_workers,
)
from gmpq_tf.run.flags import from_flags
from gmpq_tf.run.loop import fit_epochs, save_model
from gmpq_tf.run.run_config import RunConfig
from gmpq_tf.run.stage import Stage
from gmpq_tf.spelling import suggest
from gmpq_tf.train.first_look import look
from gmpq_tf.train.inputs import (
    as_labelled,
    as_targets,
    check_model,
    file_identity,
    load_inputs,
    model_path,
    task_for,
)
from gmpq_tf.train.recipe import (
    OptimizerName,
    Schedule,
    TrainingConfig,
    make_loss,
    make_metrics,
    make_optimizer,
    require,
    require_positive,
)

STAGE = "pretrain"
# Fields that the record of a stage leaves out at their defaults, so that it stays equal
# to the records of versions without these fields.
_MODEL_OPTIONS = ("stem", "alpha")
_OPTIONAL = (*_MODEL_OPTIONS, "weights", "weights_channels")


@dataclasses.dataclass(frozen=True)
class PretrainConfig(TrainingConfig):
    """How the float model is trained.

    Args:
        model: A built-in model (digits_cnn, digits_mobilenet, mobilenet_v2, resnet8,
            resnet18, resnet20, resnet50, resnet50_v1_5, resnet56, vgg16), of boxes
            (faster_rcnn_resnet18, ssd300_vgg16, ssd_mobilenet_v2, ssd_resnet20,
            ssd_resnet8), or a .keras or .h5 file.
        weight_decay: Weight decay, 0 or more: each step lowers a weight by this share
            of it, times the learning rate.
        weights: What a built-in model starts from: imagenet (published by
            keras.applications for mobilenet_v2, resnet50, vgg16; fetched), a .keras,
            .weights.h5 or .h5 file of that model (ours or keras.applications'), or a
            torchvision state dict of mobilenet_v2, resnet18, resnet50_v1_5 as
            .safetensors or .npz; none: new weights.
        weights_channels: Order of colours that the weights in a file expect: bgr for
            those that keras.applications publishes for resnet50 and vgg16.
        stem: First layers of mobilenet_v2, resnet18, resnet50, resnet50_v1_5 and of
            detectors made of them: imagenet shrinks the image, cifar does not; auto:
            cifar below 64 pixels.
        alpha: Width multiplier of mobilenet_v2 and faster_rcnn_resnet18, above 0.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int = 100
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    schedule: Schedule = "cosine"
    model: str = "resnet18"
    weight_decay: float = 5e-4
    weights: str | None = None
    weights_channels: Literal["rgb", "bgr"] = "rgb"
    stem: Literal["auto", "imagenet", "cifar"] = "auto"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "weight_decay", self.weight_decay >= 0, "0 or more")
        require_positive(self, "alpha")
        _check_options(self)


def pretrain(
    config: PretrainConfig,
    data: DataConfig,
    run: RunConfig,
    loaded: tuple[keras.Model, Dataset] | None = None,
) -> Stage:
    """Trains the float model, unless that has been done.

    Args:
        config: model and recipe.
        data: the images.
        run: workdir and how the command runs.
        loaded: what `load_inputs` returned, if the caller has called it; None: model
            and images are read here.

    Returns:
        The finished stage: model.keras and metrics.jsonl in its folder.

    Raises:
        ValueError: a file or an option cannot be used, or training diverged.
    """
    check_batch(data)
    if config.model in MODELS:
        _refuse_tensors(config, data)
        dataset = load_dataset(data, _colours(config, data))
        keras.utils.set_random_seed(data.seed)
        model = float_model(config, dataset)
        check_model(model, dataset)
        dataset = as_targets(model, dataset)
    else:
        keras.utils.set_random_seed(data.seed)
        model, dataset = loaded or load_inputs(
            Path(config.model), data, labels=config.epochs > 0
        )
    resolved = resolved_config(config, dataset, run)
    scaling = dataset.config.input_scaling().to_config()
    stage = open_shared_stage(run, STAGE, resolved, scaling)
    if stage.finished:
        print(f"{stage.folder} is finished already.")
        return stage
    compile_model(model, dataset, config, run)
    with dataset.naming_damaged_images():
        if loaded is None and config.model not in MODELS and not stage.epochs:
            look(model, dataset)
        if config.epochs:
            fit_epochs(
                model, dataset, stage, config.epochs, run, precision=config.precision
            )
        results = measure(model, dataset)
    if is_chief():
        save_model(model, stage.folder / "model.keras")
        stage.finish(results)
    wait_for_workers()
    return stage


def _refuse_tensors(config: PretrainConfig, data: DataConfig) -> None:
    """Refuses a built-in model for tensors: they give classes or boxes."""
    if find_spec(data.dataset).holds == "tensors" or data.targets is not None:
        raise ValueError(
            "Built-in models are classifiers and detectors. Received: "
            f"model={config.model!r} with dataset={data.dataset!r}, whose targets are "
            "tensors. Save a Keras model of your own, and name its file by --model."
        )


def _colours(config: PretrainConfig, data: DataConfig) -> Any:
    """Image shape to read from a folder: published weights need RGB images."""
    folder = find_spec(data.dataset).any_size
    return (None, None, 3) if folder and config.weights else None


def float_model(config: PretrainConfig, dataset: Dataset) -> keras.Model:
    """Builds or reads the model that training starts from.

    Args:
        config: model and weights.
        dataset: the images; a built-in model gets their shape and number of classes.

    Returns:
        The model, not compiled.

    Raises:
        ValueError: a name, a file or an option cannot be used.
    """
    height, width, colors = dataset.input_shape
    shape, classes = (height, width, colors), dataset.num_classes
    options = _given(config, _MODEL_OPTIONS)
    if config.weights is None:
        return load_model(config.model, shape, classes, **options)
    channels = config.weights_channels
    pretrained = build_pretrained(
        config.model, shape, classes, config.weights, channels, **options
    )
    print(*pretrained.notes, sep="\n")
    return pretrained.model


def compile_model(
    model: keras.Model, dataset: Dataset, config: PretrainConfig, run: RunConfig
) -> None:
    """Compiles a float model by the recipe.

    Args:
        model: the model, compiled in place.
        dataset: the images; their number sets the steps of the schedule.
        config: the recipe.
        run: steps per execution and XLA.
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
        loss=make_loss(model, dataset.targets),
        metrics=make_metrics(model, dataset.targets),
        steps_per_execution=run.steps_per_execution,
        jit_compile=run.jit_compile,
    )


def measure(model: keras.Model, dataset: Dataset) -> dict[str, Any]:
    """Evaluates a compiled model on the held-out images, if there are any.

    Args:
        model: a compiled model.
        dataset: the images.

    Returns:
        `val_loss` and `val_accuracy`, or the metrics of the model's task, by name; {}
        without labelled held-out images.
    """
    if not dataset.sizes["validation"] or not dataset.labelled:
        return {}
    support_workers(model)
    task, images = task_for(model, dataset), as_labelled(dataset).validation()
    logs = task.measure(model, images, dataset.class_names)
    if task.headline in logs:
        said = task.of_images.format("held-out")
        print(f"Float model: {task.said(logs[task.headline])} {said}")
    return {f"val_{name}": value for name, value in logs.items()}


def resolved_config(
    config: PretrainConfig, dataset: Dataset, run: RunConfig
) -> dict[str, Any]:
    """Returns everything the result depends on, for `open_stage`."""
    resolved = dataclasses.asdict(config)
    given = _given(config, _OPTIONAL)
    resolved = {k: v for k, v in resolved.items() if k in given or k not in _OPTIONAL}
    if config.model not in MODELS and config.model.endswith((".keras", ".h5")):
        resolved["model"] = file_identity(model_path(run, config.model))
    if config.weights not in (None, PUBLISHED):
        resolved["weights"] = file_identity(Path(str(config.weights)).expanduser())
    return {**resolved, "data": dataclasses.asdict(dataset.config)}


def _given(config: PretrainConfig, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the fields that are not at their defaults."""
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    values = {name: getattr(config, name) for name in names}
    return {name: v for name, v in values.items() if v != defaults[name]}


def _check_options(config: PretrainConfig) -> None:
    """Refuses an option that is not at its default though the model lacks it."""
    for name in _given(config, _OPTIONAL):
        having = [model for model in MODELS if name in _options_of(model)]
        if config.model not in having:
            raise ValueError(
                f"{name} is an option of {', '.join(having)}. Received: "
                f"model={config.model!r}, {name}={getattr(config, name)!r}. "
                f"{suggest(config.model, having)}"
            )


def _options_of(model: str) -> list[str]:
    """Returns the optional fields that a built-in model takes."""
    arguments = inspect.signature(MODELS[model]).parameters
    own = [name for name in _MODEL_OPTIONS if name in arguments]
    return [*own, "weights", "weights_channels"]


def main(argv: list[str]) -> None:
    """Runs the command with the flags already parsed.

    Args:
        argv: not used.
    """
    run = from_flags(RunConfig)
    with devices(run):
        stage = pretrain(from_flags(PretrainConfig), from_flags(DataConfig), run)
    print(f"Float model: {stage.folder / 'model.keras'}")


def run() -> None:
    """Parses the flags and runs the command; entry point of `gmpq-pretrain`."""
    run_main(main, __doc__, PretrainConfig, DataConfig, RunConfig)


if __name__ == "__main__":
    run()
