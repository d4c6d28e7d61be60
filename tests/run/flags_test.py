import dataclasses
import importlib
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Literal

import pytest
from absl import flags

from gmpq_tf.run.flags import (
    FieldSerializer,
    define_flags,
    field_help,
    field_types,
    from_flags,
)


@dataclasses.dataclass(frozen=True)
class Inner:
    """Inner.

    Args:
        pinned: Layers.
    """

    pinned: Mapping[str, tuple[int, int]] | None = None


@dataclasses.dataclass(frozen=True)
class Base:
    """Base.

    Args:
        count: How many,
            at most `7`.
        ratio: A ratio.
    """

    count: int = 3
    ratio: float = 0.5


@dataclasses.dataclass(frozen=True)
class Options(Base):
    """Options.

    Args:
        kind: Which one.
        ratio: Another text.
        bits: Some.

    Raises:
        ValueError: never.
    """

    ratio: float = 0.25
    kind: Literal["a", "b"] = "a"
    bits: tuple[int, ...] = (2, 3)
    mean: Sequence[float] | None = None
    limit: float | None = None
    fast: bool = False
    maybe: bool | None = None
    inner: Inner = dataclasses.field(default_factory=Inner)


@pytest.fixture(autouse=True)
def own_flags(monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())


def parse(*words, cls=Options, inherited=None, defaults=None):
    define_flags(cls, defaults)
    flags.FLAGS(["program", *words])
    return from_flags(cls, inherited)


def test_without_flags_every_field_has_its_default():
    assert parse() == Options()


def test_each_kind_of_field_is_parsed():
    made = parse(
        "--count=7",
        "--ratio=1.5",
        "--kind=b",
        "--bits=2,4,8",
        "--mean=0.5,.25",
        "--limit=3e9",
        "--fast",
        "--maybe=true",
        "--pinned=conv/1:8/4,head:8/8",
    )
    pinned = {"conv/1": (8, 4), "head": (8, 8)}
    assert made == Options(
        7, 1.5, "b", (2, 4, 8), (0.5, 0.25), 3e9, True, True, Inner(pinned)
    )


def test_none_and_negation_undo_a_default():
    defaults = {"limit": 2.0, "fast": True, "pinned": {"x": (8, 8)}}
    made = parse("--limit=none", "--nofast", "--pinned=none", defaults=defaults)
    assert made == Options()


def test_one_side_of_a_pinned_layer_may_be_searched():
    made = parse("--pinned=conv1:*/8,head:8/*").inner.pinned
    assert made == {"conv1": (None, 8), "head": (8, None)}
    assert FieldSerializer().serialize(made) == "conv1:*/8,head:8/*"


def test_no_layer_pinned_differs_from_the_default():
    assert parse("--pinned={}").inner.pinned == {}


def test_a_flag_that_is_given_beats_an_inherited_value():
    made = parse("--count=1", inherited={"count": 9, "ratio": 0.75})
    assert (made.count, made.ratio) == (1, 0.75)


@pytest.mark.parametrize(
    "word",
    ["--count=x", "--count=1.5", "--kind=c", "--bits=2,x", "--pinned=conv:8", "--no=1"],
)
def test_a_wrong_value_is_refused_with_the_flag_named(word):
    with pytest.raises(flags.Error, match=word[2:].split("=")[0]):
        parse(word)


def test_help_comes_from_the_docstrings_of_class_and_bases():
    texts = field_help(Options)
    assert texts["count"] == "How many, at most 7."
    assert texts["ratio"] == "Another text."
    assert texts["bits"] == "Some."


def test_flags_belong_to_the_program_so_that_help_lists_them():
    parse()
    listed = flags.FLAGS.module_help(sys.argv[0])
    assert "--count: How many, at most 7." in listed
    assert "(one of a, b)" in listed and "(a whole number)" in listed


@pytest.mark.parametrize("value", [(2, 3), {"a": (8, 4), "b": (2, 2)}, {}, 1.5, "x"])
def test_a_value_written_as_text_reads_back(value):
    text = FieldSerializer().serialize(value)
    names = {tuple: "bits", dict: "pinned", float: "limit", str: "kind"}
    if value == "x":
        assert text == "x"
        return
    made = parse(f"--{names[type(value)]}={text}")
    found = {tuple: made.bits, dict: made.inner.pinned, float: made.limit}
    assert found[type(value)] == value


def test_the_dataclass_still_refuses_what_it_does():
    from gmpq_tf.space import SearchSpace

    with pytest.raises(ValueError, match="2 to 8"):
        parse("--weight_bits=1,2", cls=SearchSpace)


COMMANDS = [
    "gmpq_tf.export.command",
    *(
        f"gmpq_tf.train.{name}"
        for name in ("compress", "cost", "demo", "evaluate", "finetune", "pretrain")
        + ("report", "search", "sweep")
    ),
]


def configs_of(command, monkeypatch):
    """The dataclasses whose fields are the flags of a command."""
    module, given = importlib.import_module(command), []
    monkeypatch.setattr(module, "run_main", lambda *a, **k: given.extend(a[2:]))
    module.run()
    return given


@pytest.mark.parametrize("command", COMMANDS)
def test_every_choice_and_none_survive_the_command_line(command, monkeypatch):
    seen = 0
    for config in configs_of(command, monkeypatch):
        define_flags(config)
        for name, hint in field_types(config).items():
            if hint is bool:
                continue
            kinds = typing.get_args(hint)
            literals = [k for k in (hint, *kinds) if typing.get_origin(k) is Literal]
            values = [v for kind in literals for v in typing.get_args(kind)]
            values += [None] if type(None) in kinds else []
            flag = flags.FLAGS[name]
            for value in values:
                text = flag.serializer.serialize(value)
                assert flag.parser.parse(text) == value, f"--{name}={text}"
                seen += 1
    assert seen


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("--augment=none", "none"),
        ("--augment=None", "none"),
        ("--augment=default", None),
        ("--augment=shift", "shift"),
    ],
)
def test_none_is_a_choice_where_it_is_one(word, value):
    from gmpq_tf.data import DataConfig

    inherited = {"augment": "flip_crop"}
    assert parse(word, cls=DataConfig, inherited=inherited).augment == value


def test_every_augmentation_is_a_choice():
    from gmpq_tf.data import AUGMENTATIONS, DataConfig

    (kind, _) = typing.get_args(field_types(DataConfig)["augment"])
    assert set(typing.get_args(kind)) == set(AUGMENTATIONS)


def test_help_names_the_word_for_none():
    from gmpq_tf.data import DataConfig

    define_flags(DataConfig)
    listed = " ".join(flags.FLAGS.module_help(sys.argv[0]).split())
    assert "random_resized_crop, or default)" in listed
    assert "data_dir" in listed and "(a text, or none)" in listed
