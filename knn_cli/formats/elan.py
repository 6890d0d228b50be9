"""ELAN annotation documents: one tier per speaker, with the recording's path so that ELAN finds it.

EAF 3.0, Max Planck Institute for Psycholinguistics: http://www.mpi.nl/tools/elan/EAFv3.0.xsd
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree

from knn_cli.formats.spans import RoundedSpan, SpanDocument, new_name, one_line
from knn_cli.formats.transcripts import spoken_rows

_SCHEMA_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
# Kinds of tiers: turns, empty annotations for what is said in them, and what speech recognition heard.
TURN, TRANSCRIPTION, UTTERANCE, WORD = "turn", "transcription", "utterance", "word"
DEPENDENT = {TRANSCRIPTION: "Symbolic_Association"}  # constraints of kinds that depend on the turns
# Constraints of dependent tiers in ELAN, all of which a document lists.
CONSTRAINTS = {
    "Time_Subdivision": "parts of the annotation above, in time and without gaps",
    "Symbolic_Subdivision": "parts of the annotation above, in order",
    "Symbolic_Association": "one annotation for the one above",
    "Included_In": "annotations within the time of the one above, with gaps",
}
_MIME_TYPES = {
    ".wav": "audio/x-wav",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
}  # as ELAN itself writes them
_NUMBER = re.compile(r" \(\d+\)$")
# XML 1.0, production 2: characters that a document may not hold.
_FORBIDDEN_CHARACTERS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class ElanTier:
    """A tier of an ELAN document.

    Attributes
    ----------
    name : str
        On one line; no other tier of the document has it.
    participant : str
        Who speaks, or what is said of whom.
    kind : str
        Its linguistic type: "turn", "transcription", "utterance" or "word".
    annotations : sequence of (int, int, str)
        Start and end in milliseconds, and text; none overlaps another.
    parent : str or None
        Name of the tier each of whose annotations has one here.
    """

    name: str
    participant: str
    kind: str
    annotations: Sequence[tuple[int, int, str]]
    parent: str | None = None


def speaker_tiers(document: SpanDocument, taken: Collection[str] = ()) -> list[ElanTier]:
    """Return the tiers of speaker turns: of each speaker, the turns and what is said in them.

    Parameters
    ----------
    document : SpanDocument
        With `transcript`, each speaker has a tier of utterances, and one of words where they have times; with
        `template`, a tier with an empty annotation for each turn.
    taken : collection of str
        Names of other tiers of the file.
    """
    names = {*taken}
    tiers = []
    for speaker, spans in _spans_of_speakers(document.rounded()).items():
        name = new_name(speaker, names)
        turns = [(span.start_ms, span.end_ms, speaker) for span in spans]
        tiers.append(ElanTier(name, speaker, TURN, turns))
        if document.template and document.transcript is None:
            empty = [(start, end, "") for start, end, _ in turns]
            tiers.append(ElanTier(new_name(f"{name} transcription", names), speaker, TRANSCRIPTION, empty, name))
    for speaker, layers in spoken_rows(document.transcript or ()).items():
        for suffix, kind, parts in zip(("transcription", "words"), (UTTERANCE, WORD), layers, strict=True):
            if parts:
                name = new_name(f"{one_line(speaker)} {suffix}".strip(), names)
                rows = [(start, end, one_line(text)) for start, end, text in parts]
                tiers.append(ElanTier(name, one_line(speaker), kind, rows))
    return tiers


class TierElements:
    """Makes the XML of tiers, with numbers for annotations and time slots that the document does not have yet.

    Parameters
    ----------
    annotations, slots : int
        The last numbers that are taken.
    types : mapping of str to str
        Name of the document's linguistic type for a kind of tier, where it is another.
    """

    def __init__(self, annotations: int = 0, slots: int = 0, types: Mapping[str, str] | None = None) -> None:
        self.annotations = annotations
        self._slots, self._types = slots, types or {}
        self.times: list[tuple[int, str]] = []  # (milliseconds, slot), each of one annotation
        self._numbers: dict[str, list[str]] = {}  # tier -> identifiers of its annotations

    def add(self, tiers: Iterable[ElanTier]) -> list[ElementTree.Element]:
        """Return the elements of tiers, parents before their children; their time slots are in `times`."""
        return [self._tier(tier) for tier in tiers]

    def _tier(self, tier: ElanTier) -> ElementTree.Element:
        attributes = {"TIER_ID": tier.name, "PARTICIPANT": tier.participant}
        attributes["LINGUISTIC_TYPE_REF"] = self._types.get(tier.kind, tier.kind)
        if tier.parent is not None:
            attributes["PARENT_REF"] = tier.parent
        element = ElementTree.Element("TIER", attributes)
        numbers = self._numbers[tier.name] = []
        for place, (start, end, text) in enumerate(tier.annotations):
            self.annotations += 1
            numbers.append(f"a{self.annotations}")
            holder = ElementTree.SubElement(element, "ANNOTATION")
            if tier.parent is None:
                slots = {"TIME_SLOT_REF1": self._slot(start), "TIME_SLOT_REF2": self._slot(end)}
                attributes = {"ANNOTATION_ID": numbers[-1], **slots}
                annotation = ElementTree.SubElement(holder, "ALIGNABLE_ANNOTATION", attributes)
            else:
                above = self._numbers[tier.parent][place]
                attributes = {"ANNOTATION_ID": numbers[-1], "ANNOTATION_REF": above}
                annotation = ElementTree.SubElement(holder, "REF_ANNOTATION", attributes)
            ElementTree.SubElement(annotation, "ANNOTATION_VALUE").text = text
        return element

    def _slot(self, time: int) -> str:
        self._slots += 1
        self.times.append((time, f"ts{self._slots}"))
        return f"ts{self._slots}"


def slot_elements(times: Iterable[tuple[int, str]]) -> list[ElementTree.Element]:
    """Return the time slots of a document, in the order in which they are given."""
    return [ElementTree.Element("TIME_SLOT", {"TIME_SLOT_ID": slot, "TIME_VALUE": str(time)}) for time, slot in times]


def kind_of_type(name: str | None) -> str:
    """Return the kind of tier of a linguistic type of ours, whose name may have a number: "turn (2)"."""
    return _NUMBER.sub("", name or "")


def type_element(kind: str, name: str | None = None) -> ElementTree.Element:
    """Return the linguistic type of a kind of tier, by its own or another name."""
    attributes = {"LINGUISTIC_TYPE_ID": name or kind, "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"}
    if kind in DEPENDENT:
        attributes |= {"TIME_ALIGNABLE": "false", "CONSTRAINTS": DEPENDENT[kind]}
    return ElementTree.Element("LINGUISTIC_TYPE", attributes)


def constraint_element(name: str) -> ElementTree.Element:
    """Return a constraint of dependent tiers, one of CONSTRAINTS."""
    return ElementTree.Element("CONSTRAINT", {"STEREOTYPE": name, "DESCRIPTION": CONSTRAINTS[name]})


def write_eaf(document: SpanDocument, file: TextIO, *, date: datetime | None = None) -> None:
    """Write turns as an ELAN document, to the millisecond.

    Each speaker has a tier, whose annotations contain the speaker's name. Annotations of a tier cannot overlap: where
    turns of one speaker overlap, the later begins where the earlier ends. Each annotation has its own time slots, so
    that moving one moves no other.

    Parameters
    ----------
    document : SpanDocument
        Without an `audio_path`, ELAN asks for the recording. With a `location`, the path from there is written too. For
        further tiers see `speaker_tiers`.
    file : text file
    date : datetime, optional
        When the document was created; now by default.
    """
    tiers = speaker_tiers(document)
    elements = TierElements()
    made = elements.add(tiers)
    root = _root(date or datetime.now(timezone.utc))
    root.append(_header(document, elements.annotations))
    ElementTree.SubElement(root, "TIME_ORDER").extend(slot_elements(sorted(elements.times, key=lambda one: one[0])))
    root.extend(made)
    root.extend(type_element(kind) for kind in dict.fromkeys([TURN, *(tier.kind for tier in tiers)]))
    root.extend(map(constraint_element, CONSTRAINTS))
    ElementTree.register_namespace("xsi", _SCHEMA_INSTANCE)
    ElementTree.indent(root)
    file.write('<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n")


def _root(date: datetime) -> ElementTree.Element:
    return ElementTree.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "knn",
            "DATE": date.isoformat(timespec="seconds"),
            "FORMAT": "3.0",
            "VERSION": "3.0",
            f"{{{_SCHEMA_INSTANCE}}}noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
        },
    )


def _header(document: SpanDocument, annotations: int) -> ElementTree.Element:
    header = ElementTree.Element("HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    if document.audio_path is not None and document.audio_stays:
        media = _media_descriptor(document.audio_path, document.location)
        if not any(map(_FORBIDDEN_CHARACTERS.search, media.values())):  # else ELAN asks for the recording
            ElementTree.SubElement(header, "MEDIA_DESCRIPTOR", media)
    ElementTree.SubElement(header, "PROPERTY", {"NAME": "lastUsedAnnotationId"}).text = str(annotations)
    return header


def _spans_of_speakers(spans: Iterable[RoundedSpan]) -> dict[str, list[RoundedSpan]]:
    """Spans of each speaker that follow one another, by first appearance."""
    found: dict[str, list[RoundedSpan]] = {}
    for span in spans:
        tier = found.setdefault(one_line(span.label) or "speaker", [])
        start_ms = max(span.start_ms, tier[-1].end_ms) if tier else span.start_ms
        if start_ms < span.end_ms:
            tier.append(span._replace(start_ms=start_ms))
    return found


def media_name(document: SpanDocument) -> tuple[str, str]:
    """Return name and media type of the recording, ("", "unknown") where it does not stay or XML cannot hold it."""
    name = "" if document.audio_path is None or not document.audio_stays else document.audio_path.name
    if not name or _FORBIDDEN_CHARACTERS.search(name):
        return "", "unknown"
    return name, _MIME_TYPES.get(Path(name).suffix.lower(), "unknown")


def _media_descriptor(audio_path: Path, location: Path | None) -> dict[str, str]:
    """Addresses of the recording; ELAN reads them as plain paths, without %-escapes."""
    resolved = audio_path.resolve()
    attributes = {
        "MEDIA_URL": f"file:///{resolved.as_posix().lstrip('/')}",
        "MIME_TYPE": _MIME_TYPES.get(audio_path.suffix.lower(), "unknown"),
    }
    if location is not None:
        with suppress(ValueError):  # on another drive
            relative = Path(os.path.relpath(resolved, location.resolve().parent)).as_posix()
            attributes["RELATIVE_MEDIA_URL"] = relative if relative.startswith("../") else f"./{relative}"
    return attributes
