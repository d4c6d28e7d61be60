"""Puts the results of a workdir into a table and an HTML page.

Reads the results of the other commands (run `python -m train.evaluate` first) and
writes summary.json, cost.json, attribution.npz and report/report.html.

  python -m train.report --workdir=runs/digits
  python -m train.report --workdir=runs/digits --format=pdf     figures for a paper
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import keras

import gmpq_tf.layers  # noqa: F401  registers the layers that the model files name
from gmpq_tf.attribution import split_head
from gmpq_tf.cost import Cost, count_cost
from gmpq_tf.data import DataConfig, load_dataset
from gmpq_tf.files import write_json
from gmpq_tf.graph import GraphError
from gmpq_tf.models import load_model
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report import format_table, read_summary, write_figures, write_report
from gmpq_tf.report.budgets import budget_lines, search_limits
from gmpq_tf.report.drawing import FigureFormat
from gmpq_tf.report.layout import (
    ATTRIBUTION,
    COST,
    POLICY,
    SEARCHED_POLICY,
    SUMMARY,
)
from gmpq_tf.report.objects import OBJECTS
from gmpq_tf.report.plots import MOST_IMAGES
from gmpq_tf.run.app import run_main
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import from_flags
from gmpq_tf.run.records import command, read_json, recorded_data, versions
from gmpq_tf.run.run_config import WorkdirConfig, set_threads
from gmpq_tf.task.tasks import task_of
from gmpq_tf.train.attribute import write_attribution
from gmpq_tf.train.evaluate import RESULT, model_folders
from gmpq_tf.train.inputs import PRETRAINED, image_shape
from gmpq_tf.train.policies import pruned_model
from gmpq_tf.train.show_objects import write_objects


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Which images, figures and other runs the page shows.

    Args:
        attribution_images: Test images whose attribution maps are shown, at most 8; 0
            for none.
        object_images: For a detector: test images that are shown with their boxes; 0
            for none.
        format: Write each figure also as a separate file into report/figures: png, svg
            or pdf.
        beside: Workdirs of other runs that have a summary.json. Their rows are drawn
            together with this run's, with the Pareto front of all.
    """

    attribution_images: int = 8
    object_images: int = 4
    format: FigureFormat | None = None
    beside: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("attribution_images", "object_images"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must be 0 or more. Received: {name}={getattr(self, name)}."
                )
        if self.attribution_images > MOST_IMAGES:
            raise ValueError(
                f"At most {MOST_IMAGES} images are drawn with their maps. "
                f"Received: attribution_images={self.attribution_images}. "
                f"Give 0 to {MOST_IMAGES}."
            )


def report(config: ReportConfig, data: DataConfig, run: WorkdirConfig) -> Path:
    """Writes the summary and the page of a workdir, and prints the table.

    Args:
        config: images, figures and other runs to show.
        data: the images.
        run: the workdir.

    Returns:
        The path of the page.

    Raises:
        ValueError: a result is missing or damaged.
    """
    workdir = Path(run.workdir)
    folders = [f for f in model_folders(workdir) if (workdir / f / RESULT).exists()]
    _check_measured(workdir, folders)
    model = load_model(float_model_path(workdir, folders))
    cost = count_cost(model)
    attribution = None
    of_classes = measured_by(workdir / folders[0], model) == "accuracy"
    if config.attribution_images and of_classes:
        attribution = attribute(workdir, folders, model, data, config)
    pruned = pruned_model(workdir, None)
    drawn = count_cost(load_model(pruned)) if pruned else cost
    write_json(workdir / COST, dataclasses.asdict(drawn))
    show_objects(workdir, folders, model, data, config.object_images)
    rows = [result_row(workdir / folder, model) for folder in folders]
    metric = measured_by(workdir / folders[0], model)
    summary = {
        "dataset": data.dataset,
        "model": model.name,
        "full_precision_bit_ops": cost.bit_ops,
        "rows": sorted(rows, key=lambda row: -row["bit_ops"]),
        "split": read_json(workdir / folders[0] / RESULT).get("split"),
        "attribution": attribution,
        "bit_ops_budget": searched_budget(workdir),
        "command": command(),
        "versions": versions(),
        **({} if metric == "accuracy" else {"metric": metric}),
    }
    write_json(workdir / SUMMARY, summary)
    read = read_summary(workdir)
    print(format_table(read.rows, read.metric))
    made_by = _inside(read_json(workdir / SEARCHED_POLICY), "made_by")
    for line in budget_lines(search_limits(read, made_by or {})):
        print(line)
    if config.format is not None:
        for path in write_figures(workdir, config.format):
            print(f"Figure: {path}")
    return write_report(workdir, config.beside)


def show_objects(
    workdir: Path, folders: list[str], model: keras.Model, data: DataConfig, count: int
) -> None:
    """Writes the objects that detectors find in the first images.

    Nothing is written for models of other tasks.

    Args:
        workdir: folder of the run.
        folders: folders with a measured model.
        model: the float model.
        data: the images.
        count: number of images; 0: nothing is written.
    """
    path = workdir / OBJECTS
    if not count or measured_by(workdir / folders[0], model) != "map_07":
        path.unlink(missing_ok=True)
        return
    results = {folder: read_json(workdir / folder / RESULT) for folder in folders}
    shown: dict[str, Path] = {}
    students = [f for f in folders if (workdir / f / POLICY).exists()]
    students.sort(key=lambda folder: folder != "finetune")
    for folder in [f for f in folders if f not in students][:1] + students[:1]:
        name = row_name(workdir / folder)
        shown[name] = workdir / folder / "model.keras"
        file = workdir / folder / "model.tflite"
        if file.exists() and results[folder].get("tflite_map_07") is not None:
            shown[f"{name}, .tflite"] = file
    split = str(results[folders[0]].get("split", "test"))
    dataset = load_dataset(data, image_shape(model))
    write_objects(path, shown, dataset, split, count)


def result_row(folder: Path, model: keras.Model) -> dict[str, Any]:
    """Returns the row of the table for one folder.

    Args:
        folder: has model.keras, evaluation.json and, unless it holds the float model,
            policy.json.
        model: the float model.

    Returns:
        The fields of `gmpq_tf.report.ResultRow`.
    """
    result = read_json(folder / RESULT)
    name, cost = row_name(folder), row_cost(folder, model)
    headline = measured_by(folder, model)
    figures = {p: result.get(f"{p}{headline}") for p in ("", "tflite_", "twin_")}
    measured = ("file_bytes", "agreement", "twin_agreement", "float_agreement")
    return {
        "name": name,
        "bit_ops": cost.bit_ops,
        "weight_bytes": cost.weight_bytes,
        **{f"{prefix}accuracy": figure for prefix, figure in figures.items()},
        **{key: result.get(key) for key in measured},
        "labelled": result.get(headline, 0.0) is not None,
    }


def measured_by(folder: Path, model: keras.Model) -> str:
    """Returns the name of the metric that models are compared by.

    Args:
        folder: its evaluation.json may name the metric.
        model: the float model, whose task decides otherwise.
    """
    said = read_json(folder / RESULT).get("metric")
    return said if isinstance(said, str) else task_of(model).headline


def row_name(folder: Path) -> str:
    """Returns the name of a folder in the table, by how its policy was made.

    Args:
        folder: the folder of a fine-tuned model, or of the float one.

    Returns:
        Such as "float", "searched", "uniform W3A3" or, for other strategies, the name
        of the folder.
    """
    if not (folder / POLICY).exists():
        return "float" if folder.name == "pretrain" else folder.name
    made_by = BitwidthPolicy.load(folder / POLICY).made_by
    bits = [_inside(made_by, "config", f"{x}_bits") for x in ("weight", "activation")]
    if made_by.get("strategy") == "uniform" and None not in bits:
        name = "uniform W{}A{}".format(*bits)
        return name if folder.name == "uniform" else f"{name} ({folder.name})"
    return "searched" if folder.name == "finetune" else folder.name


def row_cost(folder: Path, model: keras.Model) -> Cost:
    """Returns the cost of the float model under a folder's policy, if it has one."""
    path = folder / POLICY
    if not path.exists():
        return count_cost(model)
    pruned = pruned_model(folder.parent, str(path))
    return count_cost(
        load_model(pruned) if pruned else model, BitwidthPolicy.load(path)
    )


def attribute(
    workdir: Path,
    folders: list[str],
    model: keras.Model,
    data: DataConfig,
    config: ReportConfig,
) -> str | None:
    """Writes the attribution maps of the float model and of the students.

    Args:
        workdir: folder of the run.
        folders: those with a measured model.
        model: the float model.
        data: the images.
        config: how many images.

    Returns:
        The name of the file; None for a model without a feature map, for one whose
        feature maps have one dimension (time steps), and for a detector.
    """
    if task_of(model).holds != "classes":
        return None
    try:
        backbone, _ = split_head(model)
    except GraphError:
        return None
    if len(backbone.output.shape) != 4:
        print(
            "Attribution maps are left out of the report: those of "
            f"{model.name!r} are over steps, which are no pixels of an image."
        )
        return None
    students = {
        re.sub(r"\W", "_", row_name(workdir / f)): load_model(
            workdir / f / "model.keras"
        )
        for f in folders
        if (workdir / f / POLICY).exists()
    }
    dataset = load_dataset(data)
    path = workdir / ATTRIBUTION
    write_attribution(path, model, students, dataset, config.attribution_images)
    return ATTRIBUTION


def float_model_path(workdir: Path, folders: list[str]) -> Path:
    """Returns the file of the float model that the folders were made from.

    Args:
        workdir: folder of the run.
        folders: those with a measured model.

    Returns:
        The workdir's own float model, or the one a fine-tuning recorded.

    Raises:
        StageError: neither exists.
    """
    path = workdir / PRETRAINED
    for folder in folders:
        if path.is_file():
            break
        record = read_json(workdir / "config" / f"{folder}.json")
        named = _inside(record, "config", "model", "path")
        path = Path(named) if isinstance(named, str) else path
    if not path.is_file():
        raise StageError(
            "The float model must be there. "
            f"Received: {path}, which does not exist. Run `python -m train.pretrain "
            "--model=FILE --epochs=0` with this --workdir."
        )
    return path


def searched_budget(workdir: Path) -> float | None:
    """Returns the budget of bit operations that a workdir's search had.

    Args:
        workdir: folder of the run.

    Returns:
        The value of --bit_ops_budget (at most 1: a fraction of full precision), or the
        count that a --budget such as W4A4 stands for; None without such a budget.
    """
    record = read_json(workdir / "config" / "search.json")
    asked = _inside(record, "config", "risk", "bit_ops_budget")
    if asked is not None:
        return asked
    found = read_json(workdir / SEARCHED_POLICY)
    limits = _inside(found, "made_by", "config", "limits") or []
    return next((x["limit"] for x in limits if x["resource"] == "bit_ops"), None)


def _inside(record: Any, *names: str) -> Any:
    """Returns a value inside nested JSON objects; None where a key is missing."""
    for name in names:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _check_measured(workdir: Path, folders: list[str]) -> None:
    if not folders:
        raise StageError(
            f"A report needs a measured model. Received: {workdir}, which has none. "
            "Run `python -m train.evaluate` with this --workdir first."
        )
    results = {folder: read_json(workdir / folder / RESULT) for folder in folders}
    for folder, result in results.items():
        # Without labels, decisions have neither an accuracy nor errors.
        named = "metric" in result
        if not named and result.get("accuracy", 0.0) is None and "mean_error" in result:
            raise StageError(
                "A table of accuracies needs models that decide something. "
                f"Received: {folder}, measured as numbers. Run `python -m "
                "train.evaluate` without --output_kind=numbers."
            )
    splits = {folder: str(result.get("split")) for folder, result in results.items()}
    if len(set(splits.values())) > 1:
        raise StageError(
            "All models of a table must be measured on the same images. "
            f"Received: {splits}. Run `python -m train.evaluate --split=test`."
        )


def main(argv: list[str]) -> None:
    """Runs the command with the flags already parsed.

    Args:
        argv: not used.
    """
    run = from_flags(WorkdirConfig)
    set_threads(run.threads)
    stages = ("pretrain", *(f for f in model_folders(run.workdir) if f != "pretrain"))
    records = [recorded_data(run.workdir, stage) for stage in stages]
    recorded: dict[str, Any] = next(filter(None, records), {})
    data = from_flags(DataConfig, inherited=recorded)
    print(f"Report: {report(from_flags(ReportConfig), data, run)}")


def run() -> None:
    """Parses the flags and runs the command; entry point of `gmpq-report`."""
    run_main(main, __doc__, ReportConfig, DataConfig, WorkdirConfig)


if __name__ == "__main__":
    run()
