"""The specification of a sweep: a grid of flags, or a list of points."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmpq_tf.data import DataConfig
from gmpq_tf.data.datasets import find_spec
from gmpq_tf.files import parse_json, read_text
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import field_types, word_for_none
from gmpq_tf.run.run_config import RunConfig, WorkdirConfig
from gmpq_tf.search import STRATEGIES, StrategyError
from gmpq_tf.search.policies import find_strategy, option_error
from gmpq_tf.search.purposes import find_purpose
from gmpq_tf.spelling import suggest
from gmpq_tf.train.evaluate import EvaluateConfig
from gmpq_tf.train.finetune import FinetuneConfig
from gmpq_tf.train.search import configs_of
from gmpq_tf.train.strategies import DEFAULT

TRAININGS = ("search", "finetune")
# Stage -> classes of its flags; for a search those of all strategies. A point may only
# have the flags of its own strategy, which is checked later.
STAGES: dict[str, tuple[type, ...]] = {
    "search": tuple(dict.fromkeys(cls for s in STRATEGIES for cls in configs_of(s))),
    "finetune": (FinetuneConfig, DataConfig, RunConfig),
    "evaluate": (EvaluateConfig, DataConfig, WorkdirConfig),
}
# Flags that the sweep sets itself.
TAKEN = frozenset(["workdir", "overwrite", "model", "policy", "name", "names"])
# Flags of a stage that may be given all the same: policies may be deployed on another
# network than the one that was searched.
GIVEN = {"finetune": ["model"]}
# What data hold -> the figure that models of them are compared by.
FIGURES = {"classes": "accuracy", "boxes": "map_07", "tensors": "loss"}
WAYS = ("grid", "points", "ranges")
MOST_POINTS = 10_000
Flags = dict[str, Any]
Point = dict[str, Flags]  # stage -> its flags


def read_points(spec: Path) -> dict[str, Point]:
    """Reads a specification.

    Args:
        spec: the JSON file.

    Returns:
        Name of each point -> its flags, by stage.

    Raises:
        StageError: the file is not a specification, or a flag is unknown.
    """
    content = read_spec(spec)
    common = common_flags(content)
    if "ranges" in content:
        raise StageError(
            "Ranges are drawn from, which grid and points are not. "
            f"Received: {spec} with ranges. Give --trials=N."
        )
    choices = _listed(content) if "points" in content else _combinations(content)
    width = len(str(len(choices) - 1))
    points = {}
    for number, choice in enumerate(choices):
        points[f"{number:0{width}}_{label_of(choice)}"] = point_of(common, choice)
    return points


def common_flags(content: Flags) -> Point:
    """Returns the flags that a specification gives to every point, by stage.

    Raises:
        StageError: a flag is unknown.
    """
    return {stage: _checked(content.get(stage, {}), stage) for stage in STAGES}


def point_of(common: Point, choice: Flags) -> Point:
    """Returns the flags of all stages of a point.

    Args:
        common: flags of every point, by stage.
        choice: flags of this point; keys such as `search.eta`.

    Raises:
        StageError: a flag is unknown, or the point would have no figure.
    """
    point = {stage: dict(flags) for stage, flags in common.items()}
    for key, value in _checked_values("a point", choice).items():
        for stage, flag in stages_of(key):
            point[stage][flag] = value
    _check_figure(point)
    _check_strategy(point)
    _find_model(point)
    return point


def _check_figure(point: Point) -> None:
    """Refuses points that would have no figure when they are finished."""
    numbers = point["evaluate"].get("output_kind") == "numbers"
    if numbers and figure_of_point(point) != "loss":
        raise StageError(
            "A sweep draws accuracies, which numbers do not have. "
            "Received: evaluate.output_kind=numbers. Leave it out, or give data with "
            "targets: those are compared by their loss."
        )


def figure_of_point(point: Point) -> str | None:
    """The figure that the model of a point is compared by, as its data say.

    Args:
        point: flags of its stages.

    Returns:
        "accuracy", "map_07" for boxes or "loss" for tensors; None: no data are named.
    """
    data = {**point["finetune"], **point["evaluate"]}
    if data.get("targets") is not None:
        return FIGURES["tensors"]
    name = data.get("dataset")
    if not isinstance(name, str):
        return None
    crops = data.get("labels") == "crops"
    return FIGURES["classes" if crops else find_spec(name).holds]


def _check_strategy(point: Point) -> None:
    """Refuses search flags that the point's strategy does not have."""
    flags = point["search"]
    try:
        purpose = flags.get("purpose")
        usual = DEFAULT if purpose is None else find_purpose(str(purpose)).strategy
        name = str(flags.get("strategy", usual))
        find_strategy(name)
        own = {flag for cls in configs_of(name) for flag in field_types(cls)}
        for flag, value in flags.items():
            if flag not in own:
                raise option_error(name, flag, value)
    except StrategyError as error:
        raise StageError(str(error)) from error


def _find_model(point: Point) -> None:
    """Makes the path of a fine-tuning's model absolute; stages run in any folder."""
    flags = point["finetune"]
    if "model" in flags:
        if not isinstance(flags["model"], str):
            raise StageError(
                "The model that policies are deployed on is a file. "
                f"Received: finetune.model={flags['model']!r:.80}. Give a .keras or "
                ".h5 file, or leave it out: then it is the model that is searched."
            )
        flags["model"] = str(Path(flags["model"]).expanduser().resolve())


def deployed_models(points: Mapping[str, Point]) -> list[str]:
    """Returns the paths of other models that policies are deployed on."""
    found = (point["finetune"].get("model") for point in points.values())
    return sorted({path for path in found if path is not None})


def read_spec(spec: Path) -> dict[str, Any]:
    """Reads the file of a specification, and checks its keys.

    Args:
        spec: the JSON file.

    Raises:
        StageError: it is not a JSON object, has unknown keys, or does not have exactly
            one of grid, points and ranges.
    """
    try:
        content = parse_json(read_text(spec))
    except (OSError, ValueError) as error:
        raise StageError(
            f"A specification must be a JSON file. Received: {spec}: {error}. "
            "See --help for one."
        ) from error
    keys = [*STAGES, *WAYS]
    if not isinstance(content, dict) or any(key not in keys for key in content):
        named = content if isinstance(content, dict) else ("no object",)
        unknown = next(key for key in named if key not in keys)[:80]
        raise StageError(
            f"A specification must have the keys {', '.join(keys)} only. "
            f"Received: {unknown!r} in {spec}. {suggest(unknown, keys)}"
        )
    if len([way for way in WAYS if way in content]) != 1:
        raise StageError(
            "A specification must have either a grid or points, or else ranges. "
            f"Received: {spec} with {', '.join(content) or 'nothing'}."
        )
    return content


def _listed(content: Flags) -> list[Flags]:
    points = content["points"]
    if not isinstance(points, list) or not points:
        raise StageError(
            "Points must be a list of objects, each from flags to values. "
            f"Received: points={points!r:.80}. Write [{{'search.eta': 100}}]."
        )
    check_count(len(points))
    return points


def _combinations(content: Flags) -> list[Flags]:
    grid = content["grid"]
    valid = isinstance(grid, dict) and grid
    if not valid or not all(isinstance(v, list) and v for v in grid.values()):
        raise StageError(
            "A grid must map each flag to a list of values. "
            f"Received: grid={grid!r:.80}. Write {{'search.eta': [0, 100]}}."
        )
    check_count(math.prod(len(values) for values in grid.values()))
    values = itertools.product(*grid.values())
    return [dict(zip(grid, chosen, strict=True)) for chosen in values]


def check_count(count: int) -> None:
    """Refuses more points than a sweep may have.

    Raises:
        StageError: there are more.
    """
    if count > MOST_POINTS:
        raise StageError(
            f"A sweep must have at most {MOST_POINTS} points. Received: {count}. "
            "Give fewer values, or several specifications."
        )


def stages_of(key: str) -> list[tuple[str, str]]:
    """Returns the (stage, flag) pairs of a key such as `search.eta` or `seed`."""
    stage, _, flag = key.rpartition(".")
    stages = [stage] if stage else [s for s in TRAININGS if flag in flag_names(s)]
    for name in stages or TRAININGS:
        _checked({flag: None}, name)
    return [(name, flag) for name in stages]


def _checked(flags: Any, stage: str) -> Flags:
    """Returns the flags of a stage after checking that the stage has them."""
    known = flag_names(stage) + GIVEN.get(stage, []) if stage in STAGES else []
    for flag in _checked_values(stage, flags):
        if flag not in known:
            raise StageError(
                "A flag must be one of the stage's that the sweep leaves open. "
                f"Received: {f'{stage}.{flag}':.80}. "
                f"{suggest(flag[:80], known or STAGES)}"
            )
    return dict(flags)


def _checked_values(name: str, flags: Any) -> Flags:
    """Returns flags after checking that a command line can give their values."""
    valid = isinstance(flags, dict)
    if not valid or not all(map(_is_value, flags.values())):
        raise StageError(
            "Flags must be an object from names to texts, numbers, true, false, null "
            f"or lists of them. Received: {name} with {flags!r:.80}. "
            "Write such as {'search.eta': 100}."
        )
    return flags


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_value(item) and not isinstance(item, list) for item in value)
    text = "" if value is None else value  # no process can be given a NUL
    return isinstance(text, int | float) or (isinstance(text, str) and "\0" not in text)


@functools.cache
def flag_names(stage: str) -> list[str]:
    """Returns the names of a stage's flags that a specification may give."""
    return sorted({name for cls in STAGES[stage] for name in field_types(cls)} - TAKEN)


@functools.cache
def _words_for_none() -> dict[str, str]:
    """Returns flag -> the word that stands for None."""
    classes = {cls for stage in STAGES.values() for cls in stage}
    types = {name: hint for cls in classes for name, hint in field_types(cls).items()}
    return {name: word_for_none(hint) or "none" for name, hint in types.items()}


def label_of(choice: Flags) -> str:
    """Returns the part of a point's folder name that lists its flags."""
    pairs = [f"{key.rpartition('.')[2]}={as_flag(key, v)}" for key, v in choice.items()]
    # ASCII only, because a file name is limited in bytes (255), not in characters.
    return re.sub(r"[^\w.=,+-]+", "-", "_".join(pairs), flags=re.ASCII)[:100]


def as_flag(key: str, value: Any) -> str:
    """Returns the text of a value on a command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    flag = key.rpartition(".")[2]
    return _words_for_none().get(flag, "none") if value is None else str(value)
