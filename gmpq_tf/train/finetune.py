"""Fine-tunes the quantized model of a policy.

Reads the float model (--model, or the workdir's pretrain/model.keras) and a policy
(--policy, or the workdir's search/policy.json). Writes into <workdir>/<name>:
model.keras, policy.json, metrics.jsonl. The paper's recipe is --epochs=40
--schedule=step --distillation=0. The defaults are those of the best student we measured
(results/cifar10_resnet8); they were not compared with the paper's recipe.

  python -m train.finetune --workdir=runs/digits
  python -m train.finetune --workdir=runs/digits --name=uniform --policy=uniform:3,3
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from gmpq_tf.data import DataConfig, Dataset
from gmpq_tf.models.file_checks import expand_user
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.quantizers.kernel_quantizer import DEFAULT_KERNEL_QUANTIZER
from gmpq_tf.report.layout import POLICY, SEARCHED_POLICY
from gmpq_tf.run.app import run_main
from gmpq_tf.run.devices import (
    check_batch,
    devices,
    is_chief,
    open_shared_stage,
    wait_for_workers,
)
from gmpq_tf.run.flags import from_flags
from gmpq_tf.run.loop import fit_epochs, policy_results, save_model
from gmpq_tf.run.run_config import RunConfig
from gmpq_tf.run.stage import Stage
from gmpq_tf.search.distill import Distiller
from gmpq_tf.space import SearchSpace, random_policy
from gmpq_tf.train.finetune_config import FinetuneConfig
from gmpq_tf.train.first_look import look
from gmpq_tf.train.found_events import write_map_events, write_policy_events
from gmpq_tf.train.inputs import (
    data_from_flags,
    file_identity,
    load_inputs,
    model_path,
    task_for,
)
from gmpq_tf.train.policies import pruned_model, read_policy
from gmpq_tf.train.recipe import make_loss, make_metrics, make_optimizer
from gmpq_tf.train.snapping import snap_student
from gmpq_tf.train.teachers import read_teacher, whole_model
from gmpq_tf.transform import calibrate, quantize_model


def finetune(config: FinetuneConfig, data: DataConfig, run: RunConfig) -> Stage:
    """Fine-tunes the quantized model of a policy, unless that has been done.

    Args:
        config: model, policy and recipe.
        data: the images.
        run: workdir and how the command runs.

    Returns:
        The finished stage: model.keras, policy.json and metrics.jsonl in its folder.

    Raises:
        ValueError: a file or an option cannot be used, or training diverged.
    """
    pruned = None if config.model else pruned_model(run.workdir, config.policy)
    path = pruned or model_path(run, config.model)
    check_batch(data)
    model, dataset = load_inputs(path, data)
    policy = choose_policy(config, run, model, dataset.class_names)
    policy.check_model(model)
    if pruned and config.distillation and config.teacher is None:
        config = dataclasses.replace(config, teacher=whole_model(pruned))
    teacher = read_teacher(config.teacher, model)
    resolved = resolved_config(config, dataset, path, policy)
    stage = open_shared_stage(
        run, config.name, resolved, dataset.config.input_scaling().to_config()
    )
    if stage.finished:
        print(f"{stage.folder} is finished already.")
        return stage
    keras.utils.set_random_seed(data.seed)
    if is_chief():
        policy.save(stage.folder / POLICY)
    method = config.kernel_quantizer or DEFAULT_KERNEL_QUANTIZER
    student = quantize_model(model, policy, kernel_quantizer=method)
    with dataset.naming_damaged_images():
        if not stage.epochs and not pruned:  # which is not accurate before training
            look(model, dataset)
        calibrate(student, dataset.calibration(config.calibration_images))
        trainee = train_student(student, model, dataset, stage, config, run, teacher)
        figure = snap_student(student, trainee, dataset, stage, config)
    if is_chief():
        save_model(student, stage.folder / "model.keras")
        if run.tensorboard:
            write_policy_events(stage, policy)
            write_map_events(stage, model, student, dataset, run)
        results = policy_results(stage, model, policy)
        headline = task_for(student, dataset).headline
        stage.finish({**results, f"rounded_{headline}": figure})
    wait_for_workers()
    return stage


def train_student(
    student: keras.Model,
    model: keras.Model,
    dataset: Dataset,
    stage: Stage,
    config: FinetuneConfig,
    run: RunConfig,
    teacher: keras.Model | None = None,
) -> keras.Model:
    """Trains a calibrated student, guided by the teacher if the configuration says so.

    Args:
        student: from `quantize_model`; trained in place, with the weights of the last
            epoch in the end.
        model: the float model; its outputs decide which loss is used.
        dataset: the images.
        stage: its folder gets metrics.jsonl and the backup.
        config: the recipe.
        run: how training runs and shows progress.
        teacher: the teacher of the distillation; None: the float model.

    Returns:
        The compiled model that was trained: the student, or its `Distiller`.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite.
    """
    trainee = student
    if config.distillation:
        guide = model if teacher is None else teacher
        trainee = Distiller(student, guide, config.distillation, config.temperature)
    optimizer = make_optimizer(
        config.optimizer, config.learning_rate, config, dataset.steps_per_epoch
    )
    optimizer.build(student.trainable_variables)
    trainee.compile(
        optimizer=optimizer,
        loss=make_loss(model, dataset.targets),
        metrics=make_metrics(model, dataset.targets),
        steps_per_execution=run.steps_per_execution,
        jit_compile=run.jit_compile,
    )
    fit_epochs(trainee, dataset, stage, config.epochs, run, precision=config.precision)
    return trainee


def choose_policy(
    config: FinetuneConfig,
    run: RunConfig,
    model: keras.Model,
    class_names: Sequence[str] = (),
) -> BitwidthPolicy:
    """Returns the policy that the `--policy` flag describes.

    Args:
        config: the flag, and the space and budget of a random policy.
        run: its workdir may hold a searched policy.
        model: the float model.
        class_names: names that the exported file will hold; they add to its bytes.

    Returns:
        A policy for the model.

    Raises:
        PolicyError: the text has none of the forms, or the file is unusable.
    """
    text = config.policy or str(Path(run.workdir) / SEARCHED_POLICY)
    if match := re.fullmatch(r"random:(\d+)", text):
        space = SearchSpace(config.weight_bits, config.activation_bits)
        budget = config.budget or config.bit_ops_budget or 0.0
        options = config.storage, config.latency_table, config.kernel_quantizer
        return random_policy(
            model, space, budget, int(match[1]), *options, class_names=class_names
        )
    return read_policy(
        text, model, config.rename_layers, config.other_layers, config.drop_layers
    )


def resolved_config(
    config: FinetuneConfig, dataset: Dataset, path: Path, policy: BitwidthPolicy
) -> dict[str, Any]:
    """Returns everything the result depends on, for `open_stage`."""
    bits = {n: [b.weight_bits, b.activation_bits] for n, b in policy.items()}
    resolved = dataclasses.asdict(config)
    for name in ("other_layers", "drop_layers", "teacher"):
        if resolved[name] is None:  # keeps records of versions without the option equal
            del resolved[name]
    if config.teacher is not None:
        resolved["teacher"] = file_identity(expand_user(config.teacher))
    return {
        **resolved,
        "model": file_identity(path),
        "policy": bits,
        "data": dataclasses.asdict(dataset.config),
    }


def main(argv: list[str]) -> None:
    """Runs the command with the flags already parsed.

    Args:
        argv: not used.
    """
    run, config = from_flags(RunConfig), from_flags(FinetuneConfig)
    with devices(run):
        stage = finetune(config, data_from_flags(run, config.model), run)
    print(f"Fine-tuned model: {stage.folder / 'model.keras'}")


def run() -> None:
    """Parses the flags and runs the command; entry point of `gmpq-finetune`."""
    run_main(main, __doc__, FinetuneConfig, DataConfig, RunConfig)


if __name__ == "__main__":
    run()
