"""Reads XML from untrusted files: elements and texts only, no entity definitions."""

import dataclasses
from pathlib import Path
from typing import Any
from xml.parsers import expat

from gmpq_tf.data.errors import DataError
from gmpq_tf.files import MAX_TEXT_BYTES

MAX_DEPTH = 20
MAX_ELEMENTS = 100_000


@dataclasses.dataclass
class Element:
    """An element of an XML file.

    Args:
        tag: its name.
        text: the text directly in it.
        elements: its child elements, in order.
    """

    tag: str
    text: str = ""
    elements: list["Element"] = dataclasses.field(default_factory=list)

    def children(self, tag: str) -> list["Element"]:
        """Returns the child elements with that name."""
        return [each for each in self.elements if each.tag == tag]

    def child(self, tag: str) -> "Element | None":
        """Returns the first child element with that name, or None."""
        return next(iter(self.children(tag)), None)


def read_xml(path: Path) -> Element:
    """Reads an XML file of at most 10 MB without a document type.

    Entity definitions are refused, not expanded: they can turn a few bytes into
    gigabytes, or read other files.

    Args:
        path: the file.

    Raises:
        DataError: the file cannot be read, or is not XML of that kind.
    """
    try:
        if not path.is_file():  # Reading a pipe would block.
            raise FileNotFoundError("no such file")
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise _wrong(path, str(error)[:100]) from error
    if len(content) > MAX_TEXT_BYTES:
        raise _wrong(path, f"more than {MAX_TEXT_BYTES} bytes")
    try:
        return _Reader().read(content)
    except (expat.ExpatError, _RefusedError, ValueError, LookupError) as error:
        raise _wrong(path, str(error)[:100]) from error


def _wrong(path: Path, why: str) -> DataError:
    return DataError(
        f"An annotation must be a whole XML file of at most {MAX_TEXT_BYTES} bytes, "
        f"without a document type and entities. Received: {path} ({why}). Write the "
        "annotation again."
    )


class _RefusedError(Exception):
    """The XML is well formed, but has something that annotations do not need."""


class _Reader:
    """Builds the tree of elements from the events of the expat parser."""

    def __init__(self) -> None:
        self.open: list[Element] = []
        self.root: Element | None = None
        self.count = 0

    def read(self, content: bytes) -> Element:
        parser = expat.ParserCreate()
        parser.buffer_text, parser.buffer_size = True, 1 << 20
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        parser.ExternalEntityRefHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.Parse(content, True)
        assert self.root is not None  # expat raises if there is no element
        return self.root

    def _refuse(self, *_: Any) -> Any:
        raise _RefusedError("it has a document type or entities")

    def _start(self, tag: str, _: Any) -> None:
        self.count += 1
        if self.count > MAX_ELEMENTS or len(self.open) >= MAX_DEPTH:
            raise _RefusedError(
                f"more than {MAX_ELEMENTS} elements, or nested deeper than {MAX_DEPTH}"
            )
        element = Element(tag)
        if self.open:
            self.open[-1].elements.append(element)
        else:
            self.root = element
        self.open.append(element)

    def _end(self, _: str) -> None:
        self.open.pop()

    def _text(self, text: str) -> None:
        self.open[-1].text += text
