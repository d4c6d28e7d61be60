"""Damage to files: bytes that flip, go or come, and JSON values that lie."""

import json

# Written into the JSON text as they stand: no Python value makes `json` write them.
RAW = {
    "long integer": "7" * 5000,
    "large integer": "7" * 400,
    "nested lists": "[" * 100_000 + "]" * 100_000,
    "half nested lists": "[" * 150 + "]" * 150,
    "almost too nested lists": "[" * 900 + "]" * 900,
    "nested objects": '{"layers":' * 900 + "1" + "}" * 900,
    "one name twice": '{"a": 1, "a": 2}',
    "list without an end": "[1, 2",
}
VALUES = [
    *(None, True, False, 0, -1, 2.5, 2**70, 1e308),
    *(float("nan"), float("inf"), -float("inf")),
    *("", " ", "../../x", "/etc/passwd", "~nobody/x", "a\0b", "x" * 100_000, "\ud800"),
    *([], {}, [[]], [None], ["a", "a"], [{}], {"": {}}, {"a": {"a": {"a": []}}}),
    *({"weight_bits": 3}, {"a": "../../x"}, [2, 3, "4"], [1e400], list(range(3000))),
    *([f"@{name}" for name in RAW]),
]


def damage(content, random):
    """Returns bytes with one to four places changed.

    Args:
        content: a whole file.
        random: a `random.Random`.
    """
    for _ in range(random.choice([1, 1, 2, 4])):
        content = random.choice(DAMAGES)(content, random)
    return content


def _span(content, random):
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + int(2 ** random.uniform(0, 9)))


def _flip(content, random):
    place = random.randrange(max(len(content), 1))
    bit = bytes(b ^ 1 << random.randrange(8) for b in content[place : place + 1])
    return content[:place] + bit + content[place + 1 :]


def _delete(content, random):
    start, end = _span(content, random)
    return content[:start] + content[end:]


def _insert(content, random):
    start, _ = _span(content, random)
    new = random.choice([random.randbytes(9), b"\xff" * 8, b"\0" * 8, b"]", b'"', b"{"])
    return content[:start] + new + content[start:]


def _overwrite(content, random):
    start, end = _span(content, random)
    length = min(end - start, random.choice([1, 2, 4, 8]))
    new = random.choice([random.randbytes(length), b"\xff" * length, b"\x7f" * length])
    return content[:start] + new + content[start + length :]


def _truncate(content, random):
    return content[: _span(content, random)[0]]


def _duplicate(content, random):
    start, end = _span(content, random)
    return content[:end] + content[start:end] + content[end:]


DAMAGES = [_flip, _delete, _insert, _overwrite, _truncate, _duplicate]


def splice(text, random):
    """Returns JSON with one or two values, or names, replaced by hostile ones.

    Args:
        text: JSON.
        random: a `random.Random`.
    """
    value = json.loads(text)
    for _ in range(random.choice([1, 1, 2])):
        value = _replaced(value, random)
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(f'"@{name}"', raw)
    return text


def _replaced(value, random):
    if not value or not isinstance(value, (dict, list)) or random.random() < 0.1:
        return random.choice(VALUES)
    if isinstance(value, list):
        place = random.randrange(len(value))
        new = _replaced(value[place], random)
        return [*value[:place], new, *value[place + 1 :]]
    items = dict(value)
    place = random.choice(list(items))
    kind = random.random()
    if kind < 0.7:
        items[place] = _replaced(items[place], random)
    elif kind < 0.8:
        del items[place]
    else:
        names = [each for each in VALUES if isinstance(each, str) and each[:1] != "@"]
        items[random.choice(names)] = items[place]
    return items
