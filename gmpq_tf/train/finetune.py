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
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from gmpq_tf.budget import parse_budget
from gmpq_tf.cost_tables import TableOptions
from gmpq_tf.data import DataConfig, Dataset
from gmpq_tf.files import read_jsonl
from gmpq_tf.limits import given_budget
from gmpq_tf.models import load_model
from gmpq_tf.models.file_checks import check_model_path, expand_user
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.quantizers.kernel_quantizer import (
    DEFAULT_KERNEL_QUANTIZER,
    kernel_method,
)
from gmpq_tf.report.layout import METRICS, POLICY, SEARCHED_POLICY
from gmpq_tf.run.app import run_main
from gmpq_tf.run.devices import (
    check_batch,
    devices,
    is_chief,
    open_shared_stage,
    wait_for_workers,
)
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import from_flags
from gmpq_tf.run.loop import fit_epochs, policy_results, save_model
from gmpq_tf.run.records import fingerprint, read_record
from gmpq_tf.run.run_config import RunConfig
from gmpq_tf.run.stage import Stage
from gmpq_tf.search.distill import Distiller
from gmpq_tf.space import SearchSpace, random_policy
from gmpq_tf.train.first_look import look
from gmpq_tf.train.found_events import write_map_events, write_policy_events
from gmpq_tf.train.inputs import (
    PRETRAINED,
    as_labelled,
    data_from_flags,
    file_identity,
    load_inputs,
    model_path,
    task_for,
)
from gmpq_tf.train.policies import check_other_layers, pruned_model, read_policy
from gmpq_tf.train.recipe import (
    Schedule,
    TrainingConfig,
    make_loss,
    make_metrics,
    make_optimizer,
    require,
    require_positive,
)
from gmpq_tf.transform import calibrate, quantize_model, snap_biases

VERIFIED_BATCHES = 16  # batches of training images, where no images are held out


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(TrainingConfig):
    """How a quantized model is fine-tuned.

    Unlike in section 4.1 of the paper (40 epochs, schedule=step, distillation=0), the
    learning rate follows a cosine and half of the loss is distillation from the float
    model.

    Args:
        model: Float model, a .keras or .h5 file; none: the workdir's
            pretrain/model.keras, or the pruned model that the policy is of.
        policy: A policy file, uniform:WEIGHT_BITS,ACTIVATION_BITS (first layer and
            those of outputs at 8), or random:SEED (needs a budget); none: the workdir's
            search/policy.json.
        rename_layers: How the layers of the policy file are called in the model:
            prefix=TEXT, or a JSON file {old name: new name}.
        other_layers: WEIGHT_BITS,ACTIVATION_BITS of the layers that the policy file
            does not name, where its network is the backbone of the model, as a
            classifier is of a detector; none: the file names all layers.
        drop_layers: With other_layers: layers of the policy file that the model does
            not have; none: a classifier's head_dense.
        name: Folder in the workdir for the results.
        bit_ops_budget: Only with policy=random:SEED: bit operations it may cost, up to
            1 as a fraction of full precision, above 1 as a count.
        budget: Only with policy=random:SEED: what it may cost, instead of
            bit_ops_budget, as in gmpq-search: such as W4A4, 60kB, or both with a comma.
        storage: Only with policy=random:SEED: storage of the .tflite file that a budget
            of bytes is about, as in gmpq-search.
        latency_table: Only with policy=random:SEED: as in gmpq-search.
        weight_bits: Only with policy=random:SEED: candidates of kernels.
        activation_bits: Only with policy=random:SEED: candidates of layer inputs.
        distillation: Share of the loss that compares with the teacher's scores, 0 to 1.
        teacher: Teacher of the distillation, a .keras or .h5 file of the same inputs
            and classes, such as a larger network; none: the float model, for a pruned
            one the whole model.
        temperature: Temperature that softens scores in distillation.
        statistics_images: Augmented training images on which the statistics of each
            BatchNormalization are measured after the last epoch, before biases are
            rounded to multiples of what an integer accumulator counts in; 0: they stay
            as training left them. Those of frozen layers always stay.
        snap_tolerance: Accuracy (of boxes mean average precision, of tensors the share
            by which the loss may grow), 0 to 1, that measuring statistics and rounding
            biases may cost before the stage stops with an error; 1: any (of tensors:
            twice the loss).
        calibration_images: Training images that set the first activation ranges.
        kernel_quantizer: How kernels are quantized: lsq, max_abs, apot (2 to 6 bits),
            alq (2 to 7 bits) or rq (drawn in training), best as in the search; none:
            lsq.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int = 30
    schedule: Schedule = "cosine"
    model: str | None = None
    policy: str | None = None
    rename_layers: str | None = None
    other_layers: tuple[int, ...] | None = None
    drop_layers: tuple[str, ...] | None = None
    name: str = "finetune"
    bit_ops_budget: float | None = None
    budget: str | None = None
    storage: str | None = None
    latency_table: str | None = None
    weight_bits: tuple[int, ...] = (2, 3, 4)
    activation_bits: tuple[int, ...] = (2, 3, 4)
    distillation: float = 0.5
    teacher: str | None = None
    temperature: float = 2.0
    statistics_images: int = 2048
    snap_tolerance: float = 0.05
    calibration_images: int = 512
    kernel_quantizer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "distillation", 0 <= self.distillation <= 1, "0 to 1")
        require_positive(self, "temperature")
        if self.teacher is not None:
            rule = "above 0 with a teacher, which nothing would follow"
            require(self, "distillation", self.distillation > 0, rule)
        require(self, "statistics_images", self.statistics_images >= 0, "0 or more")
        require(self, "snap_tolerance", 0 <= self.snap_tolerance <= 1, "0 to 1")
        require(self, "calibration_images", self.calibration_images > 0, "1 or more")
        kernel_method(self.kernel_quantizer or DEFAULT_KERNEL_QUANTIZER)
        check_other_layers(self.other_layers, self.drop_layers)
        if self.policy is not None and self.policy.startswith("random:"):
            require(
                self,
                "bit_ops_budget",
                self.bit_ops_budget is not None or self.budget is not None,
                "given with policy=random:SEED",
            )
        given, what = given_budget(self.budget, self.bit_ops_budget)
        if given is not None and what == "budget":
            parse_budget(given)
        TableOptions(self.storage, self.latency_table)


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


def whole_model(pruned: Path) -> str:
    """Finds the float model that a search has pruned, the teacher of its students.

    Args:
        pruned: file of the pruned model in the folder of the search.

    Returns:
        The path of the whole model: the recorded one, or the one in the same workdir.

    Raises:
        StageError: neither file exists with the recorded content.
    """
    workdir = pruned.parent.parent
    record = workdir / "config" / f"{pruned.parent.name}.json"
    known = read_record(record)["config"].get("model", {}) if record.is_file() else {}
    for path in (Path(known.get("path", "")), workdir / PRETRAINED):
        if path.is_file() and fingerprint(path) == known.get("sha256"):
            return str(path)
    raise StageError(
        "Students of a pruned model follow the whole one. "
        f"Received: {pruned}, and no {known.get('path', 'record of the search')}. Name "
        "it with --teacher, or train without it: --distillation=0."
    )


def read_teacher(path: str | None, model: keras.Model) -> keras.Model:
    """Returns the model that distillation follows.

    Args:
        path: a .keras or .h5 file; None: the float model itself.
        model: the float model, of which the student is made.

    Returns:
        A model of the same inputs and classes.

    Raises:
        ValueError: the file is unreadable, or its inputs or classes differ.
    """
    if path is None:
        return model
    check_model_path(expand_user(path))
    teacher = load_model(expand_user(path))
    for what, own, wanted in (
        ("inputs", teacher.input_shape, model.input_shape),
        ("outputs", teacher.output_shape, model.output_shape),
    ):
        if not _agree(own, wanted):
            raise StageError(
                f"A teacher must have the {what} of the float model, {wanted}. "
                f"Received: teacher={path!r} with {own}. Name a model of the same "
                "images and classes, or leave --teacher out."
            )
    return teacher


def _agree(own: Any, wanted: Any) -> bool:
    """Whether two structures of shapes are compatible; None stands for any size."""
    mine, its = keras.tree.flatten(own), keras.tree.flatten(wanted)
    same = len(mine) == len(its)
    return same and all(
        a is None or b is None or a == b for a, b in zip(mine, its, strict=True)
    )


def statistics_batches(config: FinetuneConfig, dataset: Dataset) -> Any:
    """Returns augmented training batches to measure statistics on, or None.

    Without augmentation the statistics of BatchNormalization differ from those that the
    weights were trained with; on CIFAR-10 that cost 1.4 points of accuracy.
    """
    if not config.epochs or not config.statistics_images:
        return None
    batches = math.ceil(config.statistics_images / dataset.config.batch_size)
    return dataset.train(config.epochs).take(batches)


def snap_student(
    student: keras.Model,
    trainee: keras.Model,
    dataset: Dataset,
    stage: Stage,
    config: FinetuneConfig,
) -> float | None:
    """Measures statistics, rounds biases, and compares the student with the last epoch.

    Args:
        student: trained; changed in place.
        trainee: what `train_student` returned.
        dataset: the images. Without a validation split the comparison is on training
            images.
        stage: its metrics.jsonl may have the accuracy of the last epoch.
        config: the number of images to measure on, and the tolerance.

    Returns:
        Accuracy of the student that is saved, 0 to 1, or the headline metric of its
        task; None where it is undefined (a detector's, on images without objects).

    Raises:
        StageError: it lies more than the tolerance below that of the last epoch.
    """
    batches = statistics_batches(config, dataset)
    task, labelled = task_for(student, dataset), as_labelled(dataset)
    if dataset.sizes["validation"]:
        images, key = labelled.validation(), f"val_{task.headline}"
    else:
        images = labelled.train(config.epochs).take(VERIFIED_BATCHES)
        key = task.headline

    def measured() -> float | None:
        return task.measure(trainee, images, dataset.class_names).get(task.headline)

    if config.precision != "float32":
        # `fit` has cached a test function that computes in the training precision.
        trainee.make_test_function(force=True)
    epochs = read_jsonl(stage.folder / METRICS)
    before = epochs[-1].get(f"val_{task.headline}") if epochs else None
    if before is None:
        before = measured()
    snap_biases(student, batches)
    after = measured()
    if before is None or after is None:
        return None
    if is_chief():
        print(
            f"{key} {before:.4f} after the last epoch, {after:.4f} with biases rounded."
        )
    if _cost(before, after, task.share) > config.snap_tolerance:
        raise StageError(_dropped(before, after, key, stage, config))
    return after


def _cost(before: float, after: float, share: bool) -> float:
    """What is lost: of a share the difference, of a loss how much it grew over it."""
    if share:
        return before - after
    return (after - before) / abs(before) if before else math.inf * (after > before)


def _dropped(
    before: float, after: float, key: str, stage: Stage, config: FinetuneConfig
) -> str:
    cause = "rounding biases cost that much: give layers more bits"
    if config.statistics_images and config.epochs:
        cause = (
            "the images that statistics were measured on are too few or not like those "
            "of training: use --statistics_images=0, which keeps the statistics of "
            "training, or more images"
        )
    return (
        "Rounding biases must leave a student as good as the last epoch. "
        f"Received: {key}={before:.4f} before and {after:.4f} after, with "
        f"snap_tolerance={config.snap_tolerance:g}. Most likely {cause}; or raise "
        f"--snap_tolerance. {stage.folder} keeps its epochs: the same command with "
        "these flags goes on from there."
    )


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
