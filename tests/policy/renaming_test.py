import pytest

from gmpq_tf.bits import PolicyError
from gmpq_tf.policy.renaming import check_same_names, new_names, shorten

NAMES = ["stem", "block_conv", "head"]


def refusal(names, wanted):
    with pytest.raises(PolicyError) as caught:
        check_same_names("net", names, wanted)
    return str(caught.value)


def test_same_names_in_any_order_pass():
    check_same_names("net", NAMES, NAMES[::-1])


def test_says_how_many_match_and_the_nearest_name():
    text = refusal(NAMES, ["stem", "block_conf", "head"])
    assert "2 layers match the model's 3" in text
    assert "unknown=['block_conv'], missing=['block_conf']" in text
    assert "Did you mean 'block_conf'?" in text


def test_a_policy_for_another_network_matches_nothing():
    text = refusal(NAMES, [f"conv2d_{i}" for i in range(9)])
    assert "0 layers match the model's 9" in text and "and 4 more" in text


@pytest.mark.parametrize(
    ("names", "wanted", "remedy"),
    [
        (NAMES, [f"net_{n}" for n in NAMES], "policy.rename('net_') (--rename_layers="),
        (NAMES, ["stem", "net_block_conv", "net_head"], "policy.rename({old: new})"),
        ([f"net_{n}" for n in NAMES], NAMES, "removeprefix('net_')"),
        (NAMES, ["stem", "other", "head"], "policy.rename({old: new})"),
    ],
)
def test_offers_the_renaming_that_helps(names, wanted, remedy):
    assert remedy in refusal(names, wanted)


def test_offers_no_renaming_where_layers_are_missing():
    for names, wanted in ((NAMES, NAMES[:2]), (NAMES[:2], NAMES)):
        text = refusal(names, wanted)
        assert "rename" not in text and "Use the model it was searched on" in text


def test_a_prefix_goes_before_every_name():
    expected = {"stem": "x_stem", "block_conv": "x_block_conv", "head": "x_head"}
    assert new_names(NAMES, "x_") == expected


def test_a_mapping_leaves_other_names_and_may_swap():
    swapped = {"stem": "head", "head": "stem"}
    assert new_names(NAMES, swapped) == {**swapped, "block_conv": "block_conv"}
    assert list(new_names(NAMES, swapped)) == NAMES
    assert new_names(NAMES, {}) == dict(zip(NAMES, NAMES, strict=True))


@pytest.mark.parametrize(
    ("renaming", "message"),
    [
        ({"steam": "conv1"}, "Did you mean 'stem'"),
        ({"stem": "head"}, "'stem' and 'head' -> 'head'"),
        ({"stem": "x", "head": "x"}, "'stem' and 'head' -> 'x'"),
        ({"stem": ""}, "must be text"),
        ({"stem": 3}, "must be text"),
        ({3: "stem"}, "Received: 3"),
        ("", "Received: ''"),
        (["stem"], "a prefix or by a mapping"),
        (None, "a prefix or by a mapping"),
    ],
)
def test_rejects_other_renamings(renaming, message):
    with pytest.raises(PolicyError, match=message):
        new_names(NAMES, renaming)


def test_shorten():
    assert shorten(["a", "b"]) == "['a', 'b']"
    assert shorten(list("abc"), limit=1) == "['a'] and 2 more"
