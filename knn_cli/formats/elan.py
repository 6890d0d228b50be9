"""ELAN annotation documents: one tier per speaker, with the recording's path so that ELAN finds it.

EAF 3.0, Max Planck Institute for Psycholinguistics: http://www.mpi.nl/tools/elan/EAFv3.0.xsd
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree

from knn_cli.formats.spans import RoundedSpan, SpanDocument, one_line

_SCHEMA_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
_LINGUISTIC_TYPE = "turn"
# Constraints of dependent tiers in ELAN. The tiers here depend on no other, but a document lists all constraints.
_CONSTRAINTS = {
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
# XML 1.0, production 2: characters that a document may not hold.
_FORBIDDEN_CHARACTERS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_eaf(document: SpanDocument, file: TextIO, *, date: datetime | None = None) -> None:
    """Write turns as an ELAN document, to the millisecond.

    Each speaker has a tier, whose annotations contain the speaker's name. Annotations of a tier cannot overlap: where
    turns of one speaker overlap, the later begins where the earlier ends.

    Parameters
    ----------
    document : SpanDocument
        Without an `audio_path`, ELAN asks for the recording. With a `location`, the path from there is written too.
    file : text file
    date : datetime, optional
        When the document was created; now by default.
    """
    tiers = _tiers(document.rounded())
    root = _root(date or datetime.now(timezone.utc))
    root.append(_header(document, sum(map(len, tiers.values()))))
    times = sorted({time for spans in tiers.values() for span in spans for time in (span.start_ms, span.end_ms)})
    slots = {time: f"ts{number}" for number, time in enumerate(times, start=1)}
    order = ElementTree.SubElement(root, "TIME_ORDER")
    for time, slot in slots.items():
        ElementTree.SubElement(order, "TIME_SLOT", {"TIME_SLOT_ID": slot, "TIME_VALUE": str(time)})
    number = 0
    for name, spans in tiers.items():
        attributes = {"TIER_ID": name, "PARTICIPANT": name, "LINGUISTIC_TYPE_REF": _LINGUISTIC_TYPE}
        tier = ElementTree.SubElement(root, "TIER", attributes)
        for span in spans:
            number += 1
            references = {"TIME_SLOT_REF1": slots[span.start_ms], "TIME_SLOT_REF2": slots[span.end_ms]}
            holder = ElementTree.SubElement(tier, "ANNOTATION")
            attributes = {"ANNOTATION_ID": f"a{number}", **references}
            annotation = ElementTree.SubElement(holder, "ALIGNABLE_ANNOTATION", attributes)
            ElementTree.SubElement(annotation, "ANNOTATION_VALUE").text = name
    attributes = {"LINGUISTIC_TYPE_ID": _LINGUISTIC_TYPE, "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"}
    ElementTree.SubElement(root, "LINGUISTIC_TYPE", attributes)
    for stereotype, description in _CONSTRAINTS.items():
        ElementTree.SubElement(root, "CONSTRAINT", {"STEREOTYPE": stereotype, "DESCRIPTION": description})
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


def _tiers(spans: list[RoundedSpan]) -> dict[str, list[RoundedSpan]]:
    """Spans of each speaker that follow one another, by first appearance; names as one line that XML can hold."""
    tiers: dict[str, list[RoundedSpan]] = {}
    for span in spans:
        tier = tiers.setdefault(one_line(span.label) or "speaker", [])
        start_ms = max(span.start_ms, tier[-1].end_ms) if tier else span.start_ms
        if start_ms < span.end_ms:
            tier.append(span._replace(start_ms=start_ms))
    return tiers


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
