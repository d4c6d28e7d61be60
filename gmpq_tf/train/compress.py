"""Compresses a trained model to a budget, without training: five minutes, no labels.

Measures the float model (if there are labels) and the loss each choice of bits adds,
chooses bits within the budget, calibrates, corrects the shifts that rounding caused,
writes and verifies the .tflite file in the storage that the budget is about, and a
report. --images is a folder of images, flat or with one sub-folder per class; --dataset
takes the sets that the other commands know. An interrupted command resumes when it is
started again.

  gmpq-compress --model=model.keras --scaling=0..255 --images=photos --budget=60kB \
      --workdir=runs/me
  gmpq-compress --model=model.keras --scaling=-1..1 --images=photos --budget=W5A5
  gmpq-compress --workdir=runs/me --dataset=cifar10 --budget=W4A4,60kB --epochs=5
      after gmpq-pretrain, with fine-tuning in place of the corrections

Budgets: 60kB of exported file, W4A4 (the bit operations of that uniform policy), 5% of
those of full precision, 2.5ms (needs --latency_table), or several with commas. Without
a budget every layer keeps 8 bits, a quarter of the float bytes, which costs the least
accuracy. The workdir gets search/policy.json, compress/model.keras,
compress/model.tflite, export_report.json and report/report.html.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import keras
from absl import flags

from gmpq_tf.compression.checks import (
    BATCH,
    check_exportable,
    check_images,
    check_labels,
)
from gmpq_tf.compression.corrections import AUTO
from gmpq_tf.compression.space import suited_space
from gmpq_tf.compression.whole import (
    BITS,
    HELD,
    IMAGES,
    correct,
    correction_images,
)
from gmpq_tf.cost_tables import TableOptions
from gmpq_tf.data import DataConfig, Dataset
from gmpq_tf.data.datasets import find_spec
from gmpq_tf.data.folder import has_classes
from gmpq_tf.data.tensor_files import is_tensors
from gmpq_tf.export.command import export
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report.layout import POLICY, SEARCHED_POLICY
from gmpq_tf.run.app import run_main
from gmpq_tf.run.devices import devices
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import from_flags
from gmpq_tf.run.loop import policy_results, save_model
from gmpq_tf.run.records import read_json, recorded_data
from gmpq_tf.run.run_config import RunConfig
from gmpq_tf.run.stage import Stage, open_stage
from gmpq_tf.search.case import SearchData
from gmpq_tf.search.finalists import FinalistsConfig
from gmpq_tf.search.strategies.loss_delta import LossDeltaConfig
from gmpq_tf.space import SearchSpace
from gmpq_tf.train.compress_config import STAGE, CompressConfig
from gmpq_tf.train.evaluate import RESULT, EvaluateConfig, describe, evaluate
from gmpq_tf.train.finetune import FinetuneConfig, finetune
from gmpq_tf.train.first_look import look
from gmpq_tf.train.inputs import (
    PRETRAINED,
    comparable,
    data_from_flags,
    file_identity,
    load_inputs,
    model_path,
)
from gmpq_tf.train.pretrain import PretrainConfig, pretrain
from gmpq_tf.train.report import ReportConfig, report
from gmpq_tf.train.strategies import ChoicesConfig, search_by
from gmpq_tf.transform.rewrite import flattened

STAGES = 5
STRATEGY = "loss_delta"
DISTILLATION = 0.5  # share of the loss in fine-tuning with --epochs


def compress(config: CompressConfig, data: DataConfig, run: RunConfig) -> Path:
    """Runs every stage that is not finished yet.

    Args:
        config: model, budget and options.
        data: the images.
        run: workdir and how the command runs.

    Returns:
        The path of the .tflite file.

    Raises:
        ValueError: an option, the model or the images cannot be used.
    """
    _heading(1, "Float model and images")
    path = model_path(run, config.model)
    model, dataset = load_inputs(path, data, labels=config.epochs > 0)
    data = dataset.config
    check_exportable(model, config.float_layers, config.output_kind)
    check_images(dataset.sizes["train"])
    _describe_images(dataset, model)
    with dataset.naming_damaged_images():
        _check_scaling(model, dataset)
        if config.output_kind is not None:
            _check_kind(config.output_kind, model, dataset)
    if config.model is not None:
        start = PretrainConfig(epochs=0, model=config.model)
        pretrain(start, data, run, (model, dataset))
    _heading(2, "Bits")
    if config.budget is None:
        print(
            f"No --budget: every layer keeps {BITS} bits, which costs the least "
            "accuracy and a quarter of the float bytes. For less give such as "
            "--budget=60kB or --budget=W4A4."
        )
    else:
        choose_bits(config, model, dataset, run)
    _heading(3, "Fine-tuning" if config.epochs else "Calibration and corrections")
    stage = mended(config, model, dataset, run)
    _heading(4, "Export")
    file = export(config.exported(stage.name), data, run, dataset)
    _heading(5, "Accuracy and report")
    split = config.split if dataset.sizes[config.split] else "validation"
    for name in ("pretrain", stage.name):
        measured = EvaluateConfig(split=split, output_kind=config.output_kind)
        result = evaluate(measured, data, run, name, dataset)
        print(describe(name, result))
    print(f"Report: {report(ReportConfig(attribution_images=0), data, run)}")
    return file


def choose_bits(
    config: CompressConfig, model: keras.Model, dataset: Dataset, run: RunConfig
) -> Stage:
    """Searches a policy within the budget by measuring, without training.

    Args:
        config: budget and candidates.
        model: the float model.
        dataset: the images.
        run: workdir and how the command runs.

    Returns:
        The finished search stage, with policy.json in its folder.
    """
    options = TableOptions(config.storage, config.latency_table)
    suited = suited_space(flattened(model), config.budget, options)
    space = SearchSpace(
        config.weight_bits or suited.weight_bits,
        config.activation_bits or suited.activation_bits,
        suited.pinned,
    )
    choices = ChoicesConfig(
        calibration_images=config.calibration_images,
        budget=config.budget,
        storage=config.storage,
        latency_table=config.latency_table,
        output_kind=config.output_kind,
        space=space,
    )
    table = LossDeltaConfig(images=config.table_images)
    return search_by(
        STRATEGY,
        choices,
        table,
        FinalistsConfig(),
        dataset.config,
        run,
        (model, dataset),
    )


def mended(
    config: CompressConfig, model: keras.Model, dataset: Dataset, run: RunConfig
) -> Stage:
    """Corrects or fine-tunes the student of the searched policy, as one stage.

    Args:
        config: the correction, or the epochs of fine-tuning.
        model: the float model.
        dataset: the images.
        run: workdir and how the command runs.

    Returns:
        The finished stage, with model.keras in its folder.
    """
    if config.epochs:
        tuned = FinetuneConfig(
            epochs=config.epochs,
            schedule="cosine",
            policy=None if config.budget else f"uniform:{BITS},{BITS}",
            distillation=DISTILLATION,
            calibration_images=config.calibration_images,
        )
        return finetune(tuned, dataset.config, run)
    policy = BitwidthPolicy.uniform(model, BITS, BITS)
    if config.budget is not None:
        policy = BitwidthPolicy.load(Path(run.workdir) / SEARCHED_POLICY)
    return corrected(
        STAGE,
        policy,
        model,
        dataset,
        run,
        config.correction,
        config.calibration_images,
        config.output_kind,
    )


def corrected(
    name: str,
    policy: BitwidthPolicy,
    model: keras.Model,
    dataset: Dataset,
    run: RunConfig,
    correction: str = AUTO,
    images: int = IMAGES,
    output_kind: str | None = None,
) -> Stage:
    """Calibrates and corrects the student of a policy, as one stage.

    Args:
        name: name of the stage and of its folder.
        policy: bit-widths of the float model's layers.
        model: the float model, as in the workdir's pretrain/model.keras.
        dataset: the images.
        run: workdir and how the command runs.
        correction: "auto", or a key of `CORRECTIONS`.
        images: number of images to measure on; with "auto" the same number of other
            images decides which correction is taken.
        output_kind: meaning of the outputs; None: derived from model and labels.

    Returns:
        The finished stage, with model.keras in its folder.
    """
    resolved: dict[str, Any] = {
        "model": file_identity(Path(run.workdir) / PRETRAINED),
        "policy": {n: [b.weight_bits, b.activation_bits] for n, b in policy.items()},
        "correction": correction,
        "calibration_images": images,
        "output_kind": output_kind,
        "data": dataclasses.asdict(dataset.config),
        "images": dataset.identity("train"),
    }
    scaling = dataset.config.input_scaling().to_config()
    stage = open_stage(run, name, resolved, scaling)
    if stage.finished:
        print(f"{stage.folder} is finished already.")
        return stage
    keras.utils.set_random_seed(dataset.config.seed)
    policy.save(stage.folder / POLICY)
    count = HELD * min(images, correction_images(model))
    source = SearchData(model, comparable(model, dataset, count))
    with dataset.naming_damaged_images():
        held = source.first(count)
        found = correct(model, policy, source, held, correction, print, output_kind)
    print(f"Corrected: {found.correction}")
    save_model(found.student, stage.folder / "model.keras")
    stage.finish(
        {
            **policy_results(stage, model, policy),
            "correction": found.correction,
            "divergences": dict(found.divergences),
            "losses": dict(found.losses),
        }
    )
    return stage


def _describe_images(dataset: Dataset, model: keras.Model) -> None:
    sizes = dataset.sizes
    labels = f"{dataset.num_classes} classes" if dataset.labelled else "without labels"
    labels = "targets for each" if dataset.targets is not None else labels
    print(
        f"{model.name}: images of {dataset.input_shape}, {labels}; "
        f"{sizes['train']} to measure on, {sizes['validation']} to verify, "
        f"{sizes['test']} to test.",
        flush=True,
    )


def _check_scaling(model: keras.Model, dataset: Dataset) -> None:
    """Refuses the input scaling if another one clearly fits the model better."""
    hint = look(model, dataset)
    if hint is not None:
        raise StageError(
            "Images must be scaled as the model reads them. "
            f"Received: scaling={dataset.config.scaling!r}; {hint}. Give that flag."
        )


def _check_kind(kind: str, model: keras.Model, dataset: Dataset) -> None:
    """Refuses a meaning of the output that the labels, or the report, do not have."""
    if kind == "numbers" and dataset.targets is None:
        raise StageError(
            "Numbers are measured where the data has targets, such as a folder of .npz "
            f"files. Received: output_kind='numbers' with {dataset.config.dataset!r}. "
            "Give such data, or use gmpq.compress(..., output_kinds='numbers')."
        )
    source = SearchData(model, comparable(model, dataset, BATCH))
    check_labels(model, source, source.first(BATCH), kind)


def data_of(config: CompressConfig, run: RunConfig) -> DataConfig:
    """Returns the data configuration from the data flags or the folder --images.

    Args:
        config: may name a folder of images, flat or with classes.
        run: its workdir may record how images were scaled.

    Raises:
        StageError: no images are named, or two sets of images, or no scaling is known.
    """
    given = flags.FLAGS["dataset"].present
    data = data_from_flags(run, config.model)
    recorded = {} if config.model else recorded_data(run.workdir)
    if config.images is not None:
        if given:
            raise StageError(
                "Images are named once. "
                f"Received: images={config.images!r}, dataset={data.dataset!r}. Leave "
                "one of the two out."
            )
        data = dataclasses.replace(data, dataset=config.images)
    elif not given and not recorded:
        raise StageError(
            "Compressing needs images like those the model was trained on; labels are "
            "not needed. Received: neither --images nor --dataset. Give such as "
            "--images=FOLDER or --dataset=cifar10."
        )
    folder = Path(data.dataset).expanduser()
    if config.images is not None and not folder.is_dir():
        raise StageError(
            "--images must be a folder of images. "
            f"Received: images={config.images!r}, which is no folder. Name one; sets "
            "by name are given with --dataset."
        )
    of_classes = find_spec(data.dataset).holds == "classes"
    flat = of_classes and folder.is_dir() and not has_classes(folder)
    if data.labels is None and flat:
        data = dataclasses.replace(data, labels="none")
    said = flags.FLAGS["scaling"].present or is_tensors(folder)
    if not said and "scaling" not in recorded:
        raise StageError(
            "What the model reads must be said. Received: no --scaling. Give "
            "--scaling=0..255 (pixels as they are: a model that scales them itself), "
            "0..1, -1..1, or mean_std with --mean and --std."
        )
    return data


def _heading(number: int, text: str) -> None:
    print(f"\n[{number}/{STAGES}] {text}", flush=True)


def main(argv: list[str]) -> None:
    """Runs the command with the flags already parsed.

    Args:
        argv: not used.
    """
    started = time.perf_counter()
    run, config = from_flags(RunConfig), from_flags(CompressConfig)
    with devices(run):
        path = compress(config, data_of(config, run), run)
    minutes = (time.perf_counter() - started) / 60
    result = read_json(path.parent / RESULT)
    print(f"\n{path}: {result['file_bytes']} bytes ({minutes:.1f} minutes)")


def run() -> None:
    """Parses the flags and runs the command; entry point of `gmpq-compress`."""
    run_main(main, __doc__, CompressConfig, DataConfig, RunConfig)


if __name__ == "__main__":
    run()
