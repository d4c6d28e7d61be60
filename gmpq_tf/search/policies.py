"""`search_policy`: a strategy values the choices, and the knapsack chooses a policy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from gmpq_tf.cost_tables import TableOptions
from gmpq_tf.limits import records
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.progress import TrainingProgress
from gmpq_tf.search.case import Fit, SearchCase, SearchData
from gmpq_tf.search.checks import check_whole
from gmpq_tf.search.choose import (
    Margin,
    choose,
    margin_of,
    margin_of_ranked,
)
from gmpq_tf.search.decisions import Decisions, decisions_of, decisions_of_ranked
from gmpq_tf.search.deltas import default_images
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.finalists import FinalistsConfig, check_data, compare
from gmpq_tf.search.journal import Journal
from gmpq_tf.search.meter import Meter, SearchCost
from gmpq_tf.search.problem import SearchProblem
from gmpq_tf.search.provenance import DEFAULT_QUANTIZERS
from gmpq_tf.search.purposes import DEFAULT_PURPOSE, find_purpose
from gmpq_tf.search.strategies import STRATEGIES
from gmpq_tf.search.values import Bits, Valued, Values, plain
from gmpq_tf.search.watch import Watch
from gmpq_tf.space import SearchSpace
from gmpq_tf.spelling import lookup, suggest
from gmpq_tf.task import outputs_of
from gmpq_tf.transform.prune import channel_counts
from gmpq_tf.transform.rewrite import flattened
from gmpq_tf.version import __version__


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Args:
        policy: the policy that was chosen.
        values: value of every choice: layer -> (weight bits -> value, activation bits
            -> value). A policy's value is the sum of those of its choices; more is
            better.
        history: what was measured or trained, as plain JSON values.
        cost: cost of the search, in steps of float training and in seconds.
        margin: how far the policy lies above the next, in standard errors.
        decisions: how far it lies above the best policy without each of its choices.
        valued: all that the strategy returned, with further columns.
        finalists: policies that were compared in the end, with their mean risk, the
            best first; () without finalists.
        kept: layer -> a boolean for each channel, of layers that lose some; {}: none.
        pruned: the float model without those channels, with the weights that the search
            trained: the policy is of it; None: it is of the model itself.
    """

    policy: BitwidthPolicy
    values: Values
    history: Any
    cost: SearchCost
    margin: Margin
    decisions: Decisions
    valued: Valued
    finalists: tuple[tuple[Bits, float], ...] = ()
    kept: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    pruned: keras.Model | None = None

    def to_json(self) -> dict[str, Any]:
        """The contents of `values.json`; interruptions do not change them."""
        pairs = [[*a, *b, v] for (a, b), v in self.valued.bonds.pairs.items()]
        return {
            "strategy": self.policy.made_by["strategy"],
            "values": plain(self.values),
            **({"pairs": pairs} if pairs else {}),
            "spends": self.valued.spends,
            "columns": {n: plain(own) for n, own in self.valued.columns.items()},
            "finalists": [
                {"risk": risk, "layers": _listed(bits)} for bits, risk in self.finalists
            ],
            "margin": self.margin.to_json(),
            "decisions": self.decisions.to_json(),
            **({"kept": kept_places(self.kept)} if self.kept else {}),
            "history": self.history,
        }

    def __str__(self) -> str:
        """Text for the log: what the search cost, and how sure its result is."""
        return f"Search: {self.cost}. {self.margin} {self.decisions}".rstrip()


def search_policy(
    model: keras.Model,
    dataset: Any,
    strategy: str | None = None,
    budget: Any = None,
    space: SearchSpace | None = None,
    seed: int = 0,
    *,
    purpose: str | None = None,
    journal: str | os.PathLike[str] | None = None,
    progress: str = "auto",
    fit: Fit | None = None,
    calibration_images: int = 512,
    input_quantizer: str | None = None,
    kernel_quantizer: str | None = None,
    storage: str | None = None,
    latency_table: str | None = None,
    output_kinds: Any = None,
    **options: Any,
) -> SearchResult:
    """Searches the bits of every layer's weights and activations, within budgets.

        result = gmpq.search_policy(model, images, budget="W4A4")
        student = gmpq.quantize_model(model, result.policy)

    Args:
        model: built functional model, trained; it is not modified.
        dataset: training images, in the same order each time: an array, (inputs,
            labels) arrays, or a list of batches, a `tf.data.Dataset` or a
            `keras.utils.PyDataset` of inputs or of (inputs, labels).
        strategy: a name in `gmpq_tf.search.STRATEGIES`; None: the purpose decides.
        budget: what the policy may cost: "W3A3", "60kB", ("W4A4", "60kB"), 0.01, ...;
            see `gmpq_tf.budget`. None: there is no budget.
        space: candidate bit-widths; None: the default.
        seed: seed of everything random.
        purpose: what the policy is for, "post_training" or "fine_tuning"; it decides
            strategy and options if no strategy is named. None: "post_training".
        journal: JSON-lines file for all measurements, created or continued: an
            interrupted search is replayed from it.
        progress: how progress and the time left are shown: "bar", "line", "none", or
            "auto" (a bar on a terminal, lines elsewhere). Unless it is "none", cost and
            margin are printed at the end.
        fit: (model, epochs, callbacks) -> history, which strategies with gradients use
            for training; None: `model.fit` on the data set.
        calibration_images: number of first images that set activation ranges.
        input_quantizer: a name in `INPUT_QUANTIZERS`; None: the default.
        kernel_quantizer: a name in `KERNEL_QUANTIZERS`; None: the default.
        storage: storage of the file, for a budget of bytes or milliseconds.
        latency_table: JSON file of `gmpq-latency`, for a budget of milliseconds.
        output_kinds: what the outputs mean, as `gmpq_tf.task.outputs_of` takes it;
            None: derived from graph, loss and labels.
        **options: fields of the strategy's config and of `FinalistsConfig`.

    Returns:
        The policy, the values of all choices, and how sure the choice is.

    Raises:
        BudgetError: no policy of the space keeps the budgets.
        StrategyError: the strategy is unknown, an option belongs to another one or is
            out of range, or labels are missing.
        JournalError: the journal is of another problem.
        GraphError: the model cannot be searched.
        TaskError: there is no such kind of output, or labels do not fit.
    """
    if purpose is not None:
        find_purpose(purpose)
    if strategy is None:
        row = find_purpose(purpose or DEFAULT_PURPOSE)
        strategy, options = row.strategy, {**row.options, **options}
    seed = _plain_number(seed)
    calibration_images = _plain_number(calibration_images)
    options = {name: _plain_number(value) for name, value in options.items()}
    config, finalists = read_options(strategy, options)
    watch = Watch(progress)
    check_whole("calibration_images", calibration_images, 1)
    check_whole("seed", seed, 0)
    model = flattened(model)
    given = {"budget": budget, "storage": storage, "latency_table": latency_table}
    named = {"input_quantizer": input_quantizer, "kernel_quantizer": kernel_quantizer}
    tables = TableOptions(storage, latency_table, kernel_quantizer)
    outputs_of(model, output_kinds)  # refuses unknown ones before any work
    problem = SearchProblem.of(model, space, None, budget, tables)
    data = SearchData(model, dataset)
    meter = Meter()
    case = SearchCase(
        model,
        problem,
        data,
        fit or _plain_fit(data, seed, progress),
        seed,
        Journal(None, {}, meter),
        meter,
        calibration_images,
        {key: value for key, value in named.items() if value},
        given,
        watch,
        output_kinds,
    )
    if journal is not None:
        identity = _identity(case, strategy, config, finalists)
        case = dataclasses.replace(case, journal=Journal(journal, identity, meter))
    with closing(watch):
        result = search_case(case, strategy, config, finalists)
    if progress != "none":
        print(result, flush=True)
    return result


def search_case(
    case: SearchCase, strategy: str, config: Any, finalists: FinalistsConfig
) -> SearchResult:
    """As `search_policy`, for a case that is set up already.

    Args:
        case: model, choices, budgets, images and journal.
        strategy: a name in `STRATEGIES`.
        config: the strategy's options.
        finalists: how the best policies are compared.
    """
    check_data(case, finalists)
    valued = find_strategy(strategy).value(case, config)
    case = case.pruned(valued.kept, valued.trained)

    def made_by(best: Bits) -> dict[str, Any]:
        return _made_by(case, strategy, config, finalists, best)

    return conclude(case, valued, finalists, made_by)


def conclude(
    case: SearchCase,
    valued: Valued,
    finalists: FinalistsConfig,
    made_by: Callable[[Bits], Mapping[str, Any]],
    best: Bits | None = None,
) -> SearchResult:
    """Chooses a policy by values, compares finalists, and tells how sure the result is.

    Args:
        case: budgets, images and meter.
        valued: what a strategy returned.
        finalists: how the best policies are compared.
        made_by: policy -> its provenance.
        best: the policy of highest value, if it is known.
    """
    candidates, limits = case.problem.candidates, case.problem.limits
    best = dict(
        best or choose(valued.values, candidates, limits, valued.bonds, valued.spends)
    )
    compared: tuple[tuple[Bits, float], ...] = ()
    if finalists.finalists:
        ranked = compare(case, valued, finalists)
        best, margin = dict(ranked[0][0]), margin_of_ranked(ranked)
        decisions = decisions_of_ranked(ranked, candidates)
        compared = tuple((bits, float(risk.mean())) for bits, risk in ranked)
    else:
        margin = margin_of(valued, candidates, limits, best)
        decisions = decisions_of(valued, candidates, limits, best)
    counts = channel_counts(valued.kept)
    made = {**made_by(best), **({"channels": counts} if counts else {})}
    policy = BitwidthPolicy(case.model.name, best, made)
    return SearchResult(
        policy,
        valued.values,
        valued.history,
        case.meter.cost(),
        margin,
        decisions,
        valued,
        compared,
        valued.kept,
        case.model if valued.kept else None,
    )


def find_strategy(name: str) -> Any:
    """The row of `STRATEGIES` with this name.

    Raises:
        StrategyError: there is none; the nearest name is given.
    """
    try:
        return lookup(STRATEGIES, name, "strategy")
    except (ValueError, TypeError) as error:
        raise StrategyError(f"{error}") from error


def read_options(
    strategy: str, options: Mapping[str, Any]
) -> tuple[Any, FinalistsConfig]:
    """The options of a strategy, and those of the finalists.

    Args:
        strategy: a name in `STRATEGIES`.
        options: name -> value.

    Raises:
        StrategyError: an option belongs to no strategy or another one, or is out of
            range.
    """
    row = find_strategy(strategy)
    own, shared = _fields(row.config), _fields(FinalistsConfig)
    for name, value in options.items():
        if name not in own and name not in shared:
            raise option_error(strategy, name, value)
    config = row.config(**{k: v for k, v in options.items() if k in own})
    return config, FinalistsConfig(**{k: options[k] for k in options if k in shared})


def option_error(strategy: str, name: str, value: Any) -> StrategyError:
    """The error for an option that a strategy lacks, with the strategies that have it.

    If none has it, the nearest name is given.
    """
    others = [n for n, row in STRATEGIES.items() if name in _fields(row.config)]
    known = [*_fields(STRATEGIES[strategy].config), *_fields(FinalistsConfig)]
    hint = f"It is one of {', '.join(map(repr, others))}." if others else ""
    return StrategyError(
        f"An option must be one of the strategy {strategy!r}. "
        f"Received: {name}={value!r}. {hint or suggest(name, known)}"
    )


def _fields(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _plain_fit(data: SearchData, seed: int, progress: str) -> Fit:
    """A `Fit` that calls `model.fit` on the data of a search, and shows progress."""

    def fit(model: keras.Model, epochs: int, callbacks: Sequence[Any]) -> Any:
        shown = TrainingProgress(progress, data.batch_images)
        with closing(shown):
            history = model.fit(
                data.epochs(seed),
                epochs=epochs,
                callbacks=[*callbacks, shown],
                verbose=0,
            )
        return {k: [float(v) for v in values] for k, values in history.history.items()}

    return fit


def _identity(
    case: SearchCase, strategy: str, config: Any, finalists: FinalistsConfig
) -> dict[str, Any]:
    """Everything that measurements depend on, for the journal."""
    weights = hashlib.sha256()
    for variable in case.model.weights:  # without the states of random layers
        weights.update(np.ascontiguousarray(variable).tobytes())
    compared = vars(finalists) if finalists.finalists else {}
    images = _images_read(case, {**vars(config), **compared})
    stated = case.output_kinds
    return {
        "model": case.model.name,
        "weights": weights.hexdigest()[:16],
        "space": case.problem.space.to_config(),
        "candidates": {
            n: list(map(list, p)) for n, p in case.problem.candidates.items()
        },
        "budget": json.loads(json.dumps(case.budget, default=str)),
        "strategy": strategy,
        "options": {**vars(config), **vars(finalists)},
        "seed": case.seed,
        "calibration_images": case.calibration_images,
        "quantizers": dict(case.quantizers),
        "images": case.data.first(images).digest(),
        **({"output_kinds": repr(stated)} if stated is not None else {}),
    }


def _plain_number(value: Any) -> Any:
    """A number of NumPy as one of Python, which files hold; others as they are."""
    return value.item() if isinstance(value, np.generic) else value


def _images_read(case: SearchCase, options: Mapping[str, Any]) -> int:
    """How many of the first images ranges and measurements depend on."""
    counts = [v for k, v in options.items() if k == "images" or k.endswith("_images")]
    default = default_images(case) if None in counts else 0
    return max(case.calibration_images, default, *(each or 0 for each in counts))


def _made_by(
    case: SearchCase,
    strategy: str,
    config: Any,
    finalists: FinalistsConfig,
    bits: Bits,
) -> dict[str, Any]:
    """Provenance of a policy; interruptions of the search do not change it."""
    options = {**vars(config), "space": case.problem.space.to_config()}
    if finalists.finalists:
        options |= vars(finalists)
    if case.problem.limits:
        options["limits"] = records(case.problem.limits, bits)
    return {
        "strategy": strategy,
        "config": options,
        "quantizers": {**DEFAULT_QUANTIZERS, **case.quantizers},
        "seed": case.seed,
        "versions": {"gmpq-tf": __version__},
    }


def kept_places(kept: Mapping[str, Sequence[bool]]) -> dict[str, list[int]]:
    """Returns layer -> indices of the channels that stay, from masks."""
    return {name: np.flatnonzero(mask).tolist() for name, mask in kept.items()}


def _listed(bits: Bits) -> dict[str, list[int]]:
    return {name: list(pair) for name, pair in bits.items()}
