"""ELAN's annotation files: a tier a speaker, the recording named so that ELAN finds it.

EAF 3.0, Max Planck Institute for Psycholinguistics: http://www.mpi.nl/tools/elan/EAFv3.0.xsd
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, TextIO
from xml.etree import ElementTree as Xml

from knn_cli.formats.turns import Turn, turns_of

if TYPE_CHECKING:
    from knn_cli.core.values import Diarization

_SCHEMA_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
_TYPE = "turn"
# The kinds of tiers below other tiers that ELAN knows. Ours are below none, but a document lists them all.
_CONSTRAINTS = {
    "Time_Subdivision": "parts of the annotation above, in time and without gaps",
    "Symbolic_Subdivision": "parts of the annotation above, in order",
    "Symbolic_Association": "one annotation for the one above",
    "Included_In": "annotations within the time of the one above, with gaps",
}
_MEDIA = {
    ".wav": "audio/x-wav",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
}  # ELAN's own words
# XML 1.0, production 2: what a document may hold.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_eaf(
    diarization: Diarization,
    file: TextIO,
    *,
    audio_path: str | Path | None = None,
    beside: str | Path | None = None,
    date: datetime | None = None,
) -> None:
    """Write turns as an ELAN document, to the millisecond.

    audio_path : the recording; without one ELAN asks for it
    beside     : the path that the document will have, so that it can name the recording from there as well
    date       : when it was made; now, if None

    Each speaker has a tier whose annotations hold its name. Tiers cannot hold two annotations at once: where turns of
    one speaker overlap, the later one begins where the earlier one ends.
    """
    made = (date or datetime.now(timezone.utc)).isoformat(timespec="seconds")
    root = Xml.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "knn",
            "DATE": made,
            "FORMAT": "3.0",
            "VERSION": "3.0",
            f"{{{_SCHEMA_INSTANCE}}}noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
        },
    )
    header = Xml.SubElement(root, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    if audio_path is not None:
        Xml.SubElement(header, "MEDIA_DESCRIPTOR", _media(Path(audio_path), beside))
    tiers = _tiers(turns_of(diarization))
    last = sum(map(len, tiers.values()))
    Xml.SubElement(header, "PROPERTY", {"NAME": "lastUsedAnnotationId"}).text = str(last)
    order = Xml.SubElement(root, "TIME_ORDER")
    times = sorted({time for turns in tiers.values() for turn in turns for time in (turn.start, turn.end)})
    slots = {time: f"ts{number}" for number, time in enumerate(times, start=1)}
    for time, slot in slots.items():
        Xml.SubElement(order, "TIME_SLOT", {"TIME_SLOT_ID": slot, "TIME_VALUE": str(time)})
    number = 0
    for name, turns in tiers.items():
        about = {"TIER_ID": name, "PARTICIPANT": name, "LINGUISTIC_TYPE_REF": _TYPE}
        tier = Xml.SubElement(root, "TIER", about)
        for turn in turns:
            number += 1
            spans = {"TIME_SLOT_REF1": slots[turn.start], "TIME_SLOT_REF2": slots[turn.end]}
            holder = Xml.SubElement(tier, "ANNOTATION")
            one = Xml.SubElement(holder, "ALIGNABLE_ANNOTATION", {"ANNOTATION_ID": f"a{number}", **spans})
            Xml.SubElement(one, "ANNOTATION_VALUE").text = name
    about = {"LINGUISTIC_TYPE_ID": _TYPE, "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"}
    Xml.SubElement(root, "LINGUISTIC_TYPE", about)
    for stereotype, description in _CONSTRAINTS.items():
        Xml.SubElement(root, "CONSTRAINT", {"STEREOTYPE": stereotype, "DESCRIPTION": description})
    Xml.register_namespace("xsi", _SCHEMA_INSTANCE)
    Xml.indent(root)
    file.write('<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n")


def _tiers(turns: list[Turn]) -> dict[str, list[Turn]]:
    """Turns of each speaker that follow one another, by first appearance; names as one line that XML can hold."""
    tiers: dict[str, list[Turn]] = {}
    for turn in turns:
        own = tiers.setdefault(" ".join(_FORBIDDEN.sub("�", turn.speaker).split()) or "speaker", [])
        start = max(turn.start, own[-1].end) if own else turn.start
        if start < turn.end:
            own.append(turn._replace(start=start))
    return tiers


def _media(path: Path, beside: str | Path | None) -> dict[str, str]:
    """Where the recording is. ELAN takes these addresses for paths as they are, without any %-escapes."""
    whole = path.resolve()
    found = {
        "MEDIA_URL": f"file:///{whole.as_posix().lstrip('/')}",
        "MIME_TYPE": _MEDIA.get(path.suffix.lower(), "unknown"),
    }
    if beside is not None:
        with suppress(ValueError):  # on another drive
            relative = Path(os.path.relpath(whole, Path(beside).resolve().parent)).as_posix()
            found["RELATIVE_MEDIA_URL"] = relative if relative.startswith("../") else f"./{relative}"
    return found
