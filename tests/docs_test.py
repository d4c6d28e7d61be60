"""The pages of docs/ name tests that exist."""

import re

import pytest

NAMED = re.compile(r"`([\w/]+_test\.py)?((?:::\w+)*)`")


def named_tests(text):
    """(file, name) of each test a page names; `::name` is of the file before it."""
    file = None
    for match in NAMED.finditer(text):
        file = match[1] or file
        if match[1] or match[2]:
            yield file, ""
        yield from ((file, name) for name in match[2].split("::") if name)


@pytest.mark.parametrize("page", ["tried.md"])
def test_tests_that_a_page_names_exist(repo_root, page):
    text = (repo_root / "docs" / page).read_text(encoding="utf-8")
    named = list(named_tests(text))
    assert len(named) > 50
    for file, name in named:
        source = (repo_root / "tests" / file).read_text(encoding="utf-8")
        assert not name or re.search(rf"(def|class) {name}\b", source), (file, name)
