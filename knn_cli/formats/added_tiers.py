"""Turns added as tiers to a TextGrid or an ELAN document that somebody has worked on: all that is in it stays.

The new tiers are written into the bytes of the file, between those that are there; only what counts tiers and
annotations changes: `size` of a TextGrid, `lastUsedAnnotationId` of a document.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from knn_cli.core.errors import KnnError
from knn_cli.core.input_files import read_bytes
from knn_cli.core.lfs import check_pointer
from knn_cli.formats import elan, textgrid
from knn_cli.formats.spans import SpanDocument, new_name

SUFFIXES = (".textgrid", ".eaf")
_START_TAG = re.compile(rb"""<[^\s/>"']+(?:\s+[^\s=]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*(/?)>""")
_NUMBERED = re.compile(r"(?:a|ts)(\d+)", re.ASCII)
# The children of a document that may stand before its linguistic types, and before its constraints, in the schema.
_BEFORE_TYPES = ("HEADER", "TIME_ORDER", "TIER", "LINGUISTIC_TYPE")
_BEFORE_CONSTRAINTS = (*_BEFORE_TYPES, "LOCALE", "LANGUAGE", "CONSTRAINT")


def with_added_tiers(path: Path, document: SpanDocument) -> bytes:
    """Return the contents of a TextGrid or an ELAN document with the tiers of a document's turns added.

    Parameters
    ----------
    path : Path
        The file, which is read only.
    document : SpanDocument
        Its tiers get numbers behind their names where the file has such already. What lies outside the time of a
        TextGrid is left out, see `textgrid_end`.

    Raises
    ------
    KnnError
        For a file of another kind or another encoding than programs write, and for one that is damaged.
    """
    raw = read_bytes(path, "a TextGrid or an ELAN document")
    check_pointer(path, raw)
    if path.suffix.lower() == ".eaf":
        return _ElanDocument.parsed(raw, path).with_tiers(document)
    if path.suffix.lower() != ".textgrid":
        raise KnnError(f"{path} is no TextGrid and no ELAN document.", "Tiers are added to .TextGrid and .eaf.")
    text, encoding = _decoded(raw, path)
    grid = _grid(text, path)
    added = _textgrid_tiers(grid, document)
    first, last = grid.size_at
    changed = f"{text[:first]}{grid.size + len(added)}{text[last:]}"
    return ("" if changed.endswith("\n") else grid.line_end).join([changed, "".join(added)]).encode(encoding)


def textgrid_end(path: Path) -> float | None:
    """Return where a TextGrid ends, in seconds; None for another file."""
    if path.suffix.lower() != ".textgrid":
        return None
    return float(_grid(_decoded(read_bytes(path, "a TextGrid"), path)[0], path).times[1])


# ---- TextGrids ----


@dataclass(frozen=True)
class _Grid:
    """What is known of a TextGrid: its times as they are written, its tiers, and where their number stands."""

    times: tuple[str, str]
    size: int
    size_at: tuple[int, int]
    names: list[str]
    long: bool
    line_end: str


def _decoded(raw: bytes, path: Path) -> tuple[str, str]:
    """The text of a file and its encoding, in which the byte order mark is a character of the text."""
    encoding = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}.get(raw[:2], "utf-8")
    try:
        return raw.decode(encoding), encoding
    except UnicodeDecodeError as error:
        raise KnnError(f"{path} is not text in UTF-8 or UTF-16.", "Save it in Praat as text file.") from error


def _grid(text: str, path: Path) -> _Grid:
    damaged = KnnError(f"{path} is not a TextGrid in Praat's text format.", "Save it in Praat as text file.")
    found = [*textgrid.TOKEN.finditer(text)]
    tokens = [match[0] for match in found]
    try:
        if tokens[:2] != ['"ooTextFile"', '"TextGrid"'] or tokens[4] != "<exists>":
            raise damaged
        place, names = 6, []
        for _ in range(size := int(tokens[5])):
            kind, name, _, _, count = tokens[place : place + 5]
            names.append(name[1:-1].replace('""', '"'))
            place += 5 + int(count) * (3 if kind == '"IntervalTier"' else 2)
        if place != len(tokens) or float(tokens[2]) >= float(tokens[3]):
            raise damaged
    except (LookupError, ValueError) as error:
        raise damaged from error
    return _Grid(
        (tokens[2], tokens[3]), size, found[5].span(), names, "item []" in text, "\r\n" if "\r\n" in text else "\n"
    )


def _textgrid_tiers(grid: _Grid, document: SpanDocument) -> list[str]:
    """The new tiers as text, in the format of the file, from its start to its end."""
    start, end = grid.times
    low, high = float(start) * 1000, float(end) * 1000
    made = []
    for number, (name, rows) in enumerate(textgrid.document_tiers(document, grid.names), start=grid.size + 1):
        inside = [(max(first, low), min(last, high), text) for first, last, text in rows if first < high and last > low]
        written = {low: start, high: end}
        intervals = [
            (written.get(first) or textgrid.number(first), written.get(last) or textgrid.number(last), text)
            for first, last, text in textgrid.without_gaps(inside, low, high)
        ]
        tier = textgrid.long_tier if grid.long else textgrid.short_tier
        made.append(tier(number, name, start, end, intervals).replace("\n", grid.line_end))
    return made


# ---- ELAN documents ----


@dataclass
class _ElanDocument:
    """Where the parts of a document are, in bytes, and what they are called."""

    raw: bytes
    path: Path
    ends: dict[str, int] = field(default_factory=dict)  # of the last child of each kind
    order: tuple[int, int, bool] | None = None  # TIME_ORDER: begin, begin of its end, whether it is one empty tag
    slots: list[tuple[int, int]] = field(default_factory=list)  # time in ms and place of those that have one
    last_used: tuple[int, int] | None = None  # of the text of lastUsedAnnotationId
    tiers: list[str] = field(default_factory=list)
    types: dict[str, str | None] = field(default_factory=dict)  # name -> constraint, "-" where it cannot be aligned
    constraints: set[str] = field(default_factory=set)
    number: int = 0  # the largest of all identifiers

    @classmethod
    def parsed(cls, raw: bytes, path: Path) -> _ElanDocument:
        """Find the parts of a document. KnnError for what is none."""
        damaged = KnnError(f"{path} is not an ELAN document.", "Save it in ELAN again.")
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise KnnError(f"{path} is text in UTF-16.", "Save it in ELAN again.")
        found = cls(raw, path)
        parser = expat.ParserCreate()
        open_tags: list[tuple[str, int, dict[str, str]]] = []

        def start(tag: str, attributes: dict[str, str]) -> None:
            if not open_tags and tag != "ANNOTATION_DOCUMENT":
                raise damaged
            open_tags.append((tag, parser.CurrentByteIndex, attributes))

        def end(tag: str) -> None:
            _, begin, attributes = open_tags.pop()
            found._note(tag, attributes, begin, parser.CurrentByteIndex, len(open_tags))

        def refuse(*_: Any) -> None:
            raise KnnError(f"{path} defines entities, which ELAN does not.", "Save it in ELAN again.")

        def declared(version: str, encoding: str | None, standalone: int) -> None:
            if (encoding or "utf-8").lower() != "utf-8":
                raise KnnError(f"{path} is text in {encoding}.", "Save it in ELAN again.")

        parser.StartElementHandler, parser.EndElementHandler = start, end
        parser.StartDoctypeDeclHandler, parser.XmlDeclHandler = refuse, declared
        try:
            parser.Parse(raw, True)
        except expat.ExpatError as error:
            raise KnnError(f"{path} is not an ELAN document: {error}.", "Save it in ELAN again.") from error
        if found.order is None:
            raise damaged
        return found

    def _note(self, tag: str, attributes: dict[str, str], begin: int, end: int, depth: int) -> None:
        """Note an element that ends; `end` is that of an empty tag, or the begin of the closing one."""
        tag_at_begin = _START_TAG.match(self.raw, begin)
        is_closed = tag_at_begin is not None and not tag_at_begin[1]
        if depth == 1:
            self.ends[tag] = self.raw.index(b">", end) + 1 if is_closed else end
        for name in ("ANNOTATION_ID", "TIME_SLOT_ID"):
            if match := _NUMBERED.fullmatch(attributes.get(name, "")):
                self.number = max(self.number, int(match[1]))
        if tag == "TIME_ORDER":
            self.order = (begin, end, not is_closed)
        elif tag == "TIME_SLOT" and attributes.get("TIME_VALUE", "").isdigit():
            self.slots.append((int(attributes["TIME_VALUE"]), begin))
        elif tag == "TIER":
            self.tiers.append(attributes.get("TIER_ID", ""))
        elif tag == "LINGUISTIC_TYPE":
            is_aligned = attributes.get("TIME_ALIGNABLE", "true") == "true"
            self.types[attributes.get("LINGUISTIC_TYPE_ID", "")] = attributes.get(
                "CONSTRAINTS", None if is_aligned else "-"
            )
        elif tag == "CONSTRAINT":
            self.constraints.add(attributes.get("STEREOTYPE", ""))
        elif tag == "PROPERTY" and attributes.get("NAME") == "lastUsedAnnotationId" and is_closed:
            self.last_used = (self.raw.index(b">", begin) + 1, end)

    def with_tiers(self, document: SpanDocument) -> bytes:
        tiers = elan.speaker_tiers(document, self.tiers)
        types: dict[str, str] = {}
        pieces: list[tuple[int, int, list[ElementTree.Element]]] = []  # place, depth, what comes there
        new_types = []
        for kind in dict.fromkeys(tier.kind for tier in tiers):
            alike = (
                name
                for name, constraint in self.types.items()
                if elan.kind_of_type(name) == kind and constraint == elan.DEPENDENT.get(kind)
            )
            if (known := next(alike, None)) is None:
                known = new_name(kind, {*self.types})
                new_types.append(elan.type_element(kind, known))
            types[kind] = known
        made = elan.TierElements(self.number, self.number, types)
        elements = made.add(tiers)
        last = max(self.ends[tag] for tag in _BEFORE_TYPES[:3] if tag in self.ends)
        pieces.append((last, 1, elements))
        pieces.append((max([last, self.ends.get("LINGUISTIC_TYPE", 0)]), 1, new_types))
        needed = {elan.DEPENDENT[tier.kind] for tier in tiers if tier.kind in elan.DEPENDENT} - self.constraints
        behind = max(self.ends[tag] for tag in _BEFORE_CONSTRAINTS if tag in self.ends)
        pieces.append((behind, 1, [elan.constraint_element(name) for name in sorted(needed)]))
        edits = [(place, place, _written(piece, depth)) for place, depth, piece in pieces]
        edits += self._slot_edits(made.times)
        if self.last_used is not None:
            edits.append((*self.last_used, str(made.annotations)))
        return self._edited(edits)

    def _slot_edits(self, times: list[tuple[int, str]]) -> list[tuple[int, int, str]]:
        """New time slots before the first of a later time: their order is that of time."""
        assert self.order is not None
        begin, end, is_empty = self.order
        by_place: dict[int, list[tuple[int, str]]] = {}
        latest = [*(time for time, _ in self.slots)]
        for number in range(1, len(latest)):
            latest[number] = max(latest[number], latest[number - 1])
        for time, slot in sorted(times, key=lambda one: one[0]):
            after = bisect_right(latest, time)
            by_place.setdefault(self.slots[after][1] if after < len(latest) else end, []).append((time, slot))
        if is_empty:
            inside = _written(elan.slot_elements(by_place.get(end, [])), 2)
            return [(begin, end, f"<TIME_ORDER>{inside}\n    </TIME_ORDER>")] if inside else []
        indent = self._indent(self.slots[0][1]) if self.slots else b" " * 8
        edits = []
        for place, found in by_place.items():
            line = place - len(own) if (own := self._indent(place)) is not None else place
            texts = (ElementTree.tostring(one, encoding="unicode") for one in elan.slot_elements(found))
            edits.append((line, line, "".join(f"{(indent or b'').decode()}{text}\n" for text in texts)))
        return edits

    def _indent(self, place: int) -> bytes | None:
        """The white space between the begin of a line and an element, None where something else stands there."""
        found = self.raw[self.raw.rfind(b"\n", 0, place) + 1 : place]
        return None if found.strip() else found

    def _edited(self, edits: list[tuple[int, int, str]]) -> bytes:
        line_end = "\r\n" if b"\r\n" in self.raw else "\n"
        parts, at = [], 0
        for begin, end, text in sorted(edits, key=lambda edit: edit[:2]):
            parts += [self.raw[at:begin], text.replace("\n", line_end).encode()]
            at = end
        return b"".join([*parts, self.raw[at:]])


def _written(elements: list[ElementTree.Element], depth: int) -> str:
    """Elements with a line break and indentation before each."""
    texts = []
    for element in elements:
        ElementTree.indent(element, " " * 4, level=depth)
        texts.append("\n" + " " * 4 * depth + ElementTree.tostring(element, encoding="unicode"))
    return "".join(texts)
