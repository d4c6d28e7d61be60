"""Runs the whole method on real images: float model, policy, .tflite file, report.

Trains a float model, searches a policy that costs no more than uniform bits, quantizes
the searched and the uniform model alike, exports both, measures everything on the test
images and writes the report. Finished stages are skipped when it is run again.

  python -m train.demo                                  2 minutes on 2 cores
      without training: bits chosen by measuring, BatchNormalization measured again
  python -m train.demo --purpose=fine_tuning --workdir=runs/digits_trained
      the paper's search, and fine-tuning
  python -m train.demo --dataset=cifar10 --workdir=runs/cifar10
      resnet8, with 30, 8 and 10 epochs where the paper's recipes have more: 1.5 hours
      on 2 cores; --model=FILE starts from a trained model instead
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Literal

from gmpq_tf.cost import count_cost
from gmpq_tf.data import DataConfig
from gmpq_tf.export.command import ExportConfig, export
from gmpq_tf.graph import searchable_names
from gmpq_tf.models import MODELS, load_model
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report.layout import SEARCHED_POLICY
from gmpq_tf.run.app import run_main
from gmpq_tf.run.flags import from_flags
from gmpq_tf.run.run_config import RunConfig, set_threads
from gmpq_tf.search import RiskConfig
from gmpq_tf.search.policies import FinalistsConfig
from gmpq_tf.search.strategies.loss_delta import LossDeltaConfig
from gmpq_tf.space import SearchSpace
from gmpq_tf.train.compress import corrected
from gmpq_tf.train.evaluate import EvaluateConfig, describe, evaluate
from gmpq_tf.train.finetune import FinetuneConfig, finetune
from gmpq_tf.train.inputs import PRETRAINED, load_inputs
from gmpq_tf.train.pretrain import PretrainConfig, pretrain
from gmpq_tf.train.report import ReportConfig, report
from gmpq_tf.train.search import search
from gmpq_tf.train.search_config import SearchConfig
from gmpq_tf.train.strategies import ChoicesConfig, search_by

STAGES = 6
SEARCHED, UNIFORM = "finetune", "uniform"  # the students' folders in the workdir
Purpose = Literal["post_training", "fine_tuning"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes that suit a data set.

    Args:
        model: built-in model.
        purpose: whether the quantized models are trained.
        bits: weight and activation bits of the uniform model, for that purpose.
        batch_size: images in a batch.
        pretrain_epochs: epochs of the float model.
        search_epochs: epochs of the search.
        finetune_epochs: epochs of each fine-tuning.
    """

    model: str
    purpose: Purpose
    bits: tuple[int, int]
    batch_size: int
    pretrain_epochs: int
    search_epochs: int
    finetune_epochs: int


WIDTHS = (2, 3, 4, 5, 6, 8)
USUAL_BITS = (3, 3)
PRESETS = {
    "digits": Preset("digits_mobilenet", "post_training", (2, 4), 64, 40, 25, 30)
}
OTHER = Preset("resnet8", "fine_tuning", USUAL_BITS, 128, 30, 8, 10)


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Model, purpose, bits and epochs of the demonstration.

    Args:
        model: A built-in model, or a trained .keras or .h5 file; none: one that suits
            the data set.
        purpose: post_training (bits chosen by measuring each choice, no training after)
            or fine_tuning (the paper's search, then training); none: post_training for
            digits, fine_tuning for other sets.
        bits: Weight bits of the uniform model, whose bit operations are the budget of
            the search; none: 2 for digits without training, else 3.
        activation_bits: Activation bits of the uniform model; none: as for weights, or
            4 for digits without training.
        pretrain_epochs: Epochs of the float model; none: enough for the data set, and
            none for a trained file.
        search_epochs: Epochs of the search; none: enough for the data set.
        finetune_epochs: Epochs of each fine-tuning; none: enough for the data set.
        distillation: Share of the fine-tuning loss that follows the float model.
    """

    model: str | None = None
    purpose: Purpose | None = None
    bits: int | None = None
    activation_bits: int | None = None
    pretrain_epochs: int | None = None
    search_epochs: int | None = None
    finetune_epochs: int | None = None
    distillation: float = 0.5


def demo(config: DemoConfig, data: DataConfig, run: RunConfig) -> Path:
    """Runs every stage that is not finished yet.

    Args:
        config: model, purpose, bits and epochs.
        data: the images.
        run: workdir and how the command runs.

    Returns:
        The path of the report.

    Raises:
        ValueError: an option cannot be used, or training diverged.
    """
    config = with_preset(config, data.dataset)
    _heading(1, "Float model")
    trained = pretrain(pretrain_config(config), data, run)
    _heading(2, "Search")
    search_bits(config, trained.folder / "model.keras", data, run)
    _heading(3, "The searched policy")
    _quantized(config, SEARCHED, None, data, run)
    bits = uniform_bits(config)
    _heading(4, f"Uniform bits: W{bits[0]}A{bits[1]}")
    _quantized(config, UNIFORM, bits, data, run)
    _heading(5, "Export and test")
    for name in (SEARCHED, UNIFORM):
        export(ExportConfig(name=name), data, run)
    for name in ("pretrain", SEARCHED, UNIFORM):
        print(describe(name, evaluate(EvaluateConfig(split="test"), data, run, name)))
    _heading(6, "Report")
    return report(ReportConfig(), data, run)


def uniform_bits(config: DemoConfig) -> tuple[int, int]:
    """Returns weight and activation bits of the uniform model."""
    return config.bits or USUAL_BITS[0], config.activation_bits or USUAL_BITS[1]


def _quantized(
    config: DemoConfig,
    name: str,
    bits: tuple[int, int] | None,
    data: DataConfig,
    run: RunConfig,
) -> None:
    """Quantizes the model with uniform bits, or with the searched policy if None."""
    if config.purpose == "fine_tuning":
        policy = None if bits is None else f"uniform:{bits[0]},{bits[1]}"
        finetune(finetune_config(config, name, policy), data, run)
        return
    model, dataset = load_inputs(Path(run.workdir) / PRETRAINED, data)
    if bits is None:
        found = BitwidthPolicy.load(Path(run.workdir) / SEARCHED_POLICY)
    else:
        found = BitwidthPolicy.uniform(model, *bits)
    corrected(name, found, model, dataset, run, "statistics")


def with_preset(config: DemoConfig, dataset: str) -> DemoConfig:
    """Fills in the fields that are None with values that suit the data set.

    Args:
        config: the configuration.
        dataset: name of the data set.

    Returns:
        A configuration in which no field is None.
    """
    preset = PRESETS.get(dataset, OTHER)
    values = dataclasses.asdict(preset)
    usual = config.purpose in (None, preset.purpose)
    bits = preset.bits if usual and config.bits is None else USUAL_BITS
    values["bits"] = bits[0]
    values["activation_bits"] = bits[1] if config.bits is None else config.bits
    if config.model is not None and config.model not in MODELS:
        values["pretrain_epochs"] = 0  # the file holds a trained model
    missing = {
        field.name: values[field.name]
        for field in dataclasses.fields(config)
        if getattr(config, field.name) is None
    }
    return dataclasses.replace(config, **missing)


def pretrain_config(config: DemoConfig) -> PretrainConfig:
    """Returns the configuration of the stage that trains the float model."""
    return PretrainConfig(
        epochs=config.pretrain_epochs or 0,
        model=config.model or "",
        learning_rate=0.05,
    )


def search_bits(
    config: DemoConfig, path: Path, data: DataConfig, run: RunConfig
) -> None:
    """Searches a policy within the bit operations of the uniform one.

    Args:
        config: purpose, bits and epochs.
        path: file of the float model.
        data: the images.
        run: workdir and how the command runs.
    """
    if config.purpose == "fine_tuning":
        budget = uniform_bit_ops(path, *uniform_bits(config))
        search(search_config(config, budget), data, run)
        return
    first, *_, last = searchable_names(load_model(path))
    # The first kernel is searched too: at 8 bits it takes a sixth of W2A4's operations.
    pinned = {first: (None, 8), last: (8, 8)}
    weights, activations = uniform_bits(config)
    choices = ChoicesConfig(
        budget=f"W{weights}A{activations}",
        space=SearchSpace(WIDTHS, WIDTHS, pinned),
    )
    search_by("loss_delta", choices, LossDeltaConfig(), FinalistsConfig(), data, run)


def search_config(config: DemoConfig, budget: int) -> SearchConfig:
    """Returns the search's configuration, within a budget of bit operations."""
    return SearchConfig(
        epochs=config.search_epochs or 0,
        learning_rate=0.02,
        schedule="cosine",
        importance_learning_rate=0.05,
        risk=RiskConfig(bit_ops_budget=budget),
    )


def finetune_config(
    config: DemoConfig, name: str, policy: str | None
) -> FinetuneConfig:
    """Returns the configuration of the fine-tuning of a policy."""
    return FinetuneConfig(
        epochs=config.finetune_epochs or 0,
        schedule="cosine",
        name=name,
        policy=policy,
        distillation=config.distillation,
    )


def uniform_bit_ops(path: Path, weight_bits: int, activation_bits: int) -> int:
    """Returns the bit operations at uniform bits, with first and last layer at 8.

    Args:
        path: file of the float model.
        weight_bits: bits of kernels, except of the first and last layer.
        activation_bits: bits of layer inputs, except of the first and last layer.

    Returns:
        Bit operations per image.
    """
    model = load_model(path)
    return count_cost(
        model, BitwidthPolicy.uniform(model, weight_bits, activation_bits)
    ).bit_ops


def _heading(number: int, text: str) -> None:
    print(f"\n[{number}/{STAGES}] {text}", flush=True)


def main(argv: list[str]) -> None:
    """Runs the command with the flags already parsed.

    Args:
        argv: not used.
    """
    started = time.perf_counter()
    run = from_flags(RunConfig)
    set_threads(run.threads)
    preset = PRESETS.get(from_flags(DataConfig).dataset, OTHER)
    data = from_flags(DataConfig, inherited={"batch_size": preset.batch_size})
    path = demo(from_flags(DemoConfig), data, run)
    minutes = (time.perf_counter() - started) / 60
    print(f"\nReport: {path} ({minutes:.1f} minutes)")


def run() -> None:
    """Parses the flags and runs the command; entry point of `gmpq-demo`."""
    defaults = {"dataset": "digits", "workdir": "runs/demo"}
    run_main(main, __doc__, DemoConfig, DataConfig, RunConfig, defaults=defaults)


if __name__ == "__main__":
    run()
