"""One HTML page of an evaluation that needs nothing beside it: no request of any kind, readable without scripts."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from knn_cli.core.tables import CellValue, Table, finite_or_none
from knn_cli.evaluation.open_set import UNKNOWN
from knn_cli.evaluation.results import Evaluation, MetricValue
from knn_cli.formats.drawing import Plot, svg_element
from knn_cli.reports.tables import (
    FIGURES,
    Error,
    Named,
    class_table,
    counted,
    open_set_table,
    prior_words,
    unlike,
)

GENERATOR = "knn evaluation report"
Clip = Callable[[str, float, float], bytes | None]  # recording, start, end in seconds -> a FLAC or WAV file

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #5a5a5a; --line: #ccc; --tint: #f2f5f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181b; --soft: #a8adb3; --line: #45494e; --tint: #22262b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, "DejaVu Sans", Verdana, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
p, ul { margin: .5rem 0; } .soft, figcaption, td small { color: var(--soft); font-size: .875rem; }
a { color: inherit; } nav a { margin-right: .9rem; white-space: nowrap; }
pre { white-space: pre-wrap; background: var(--tint); padding: .7rem .9rem; border-radius: 4px; font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .875rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { text-align: right; padding: .28rem .45rem; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal; white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; }
.text { text-align: left; overflow-wrap: break-word; white-space: normal; }
.wide { margin-top: 1rem; } td small { display: block; }
thead th { border-bottom: 2px solid var(--line); } tbody tr:hover { background: var(--tint); }
th button { font: inherit; font-weight: bold; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; text-decoration: underline dotted; text-underline-offset: 3px; }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
.wide { overflow-x: auto; } figure { margin: 1rem 0 1.6rem; }
figure > div { background: #fff; border-radius: 4px; padding: .4rem; }
figure svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
audio { width: 13rem; height: 2.2rem; vertical-align: middle; } summary { cursor: pointer; font-weight: bold; }
@media print { body { max-width: none; } figure, tr { break-inside: avoid; } nav, audio { display: none; } }
"""

_SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
  const column = head.cellIndex, text = head.classList.contains("text");
  const down = head.getAttribute("aria-sort") === (text ? "ascending" : null) ||
    (!text && head.getAttribute("aria-sort") !== "descending");
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return (text ? x.localeCompare(y) : x - y) * (down ? -1 : 1);
  };
  body.append(...[...body.rows].sort(compare));
});
"""


def page(
    models: Sequence[Named],
    plots: Sequence[Plot],
    *,
    errors: Sequence[Error] = (),
    clip: Clip | None = None,
    cards: Mapping[str, str] | None = None,
    command: str = "",
    version: str = "",
    date: str = "",
    title: str = "",
    most_clips: int = 12,
    most_seconds: float = 10.0,
) -> str:
    """The whole page. Every label, name and text given is shown as it is, never read as HTML.

    plots : in the order to be shown; those named map-... come after the errors
    clip  : gives the sound of the worst errors, or None where there is none; asked for `most_clips` rows at most,
            and `most_seconds` of each at most
    cards : heading -> text, as a model's README
    """
    heading = title or "Evaluation of " + " and ".join(one.name for one in models)
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; media-src data:"
    )
    parts = [
        ("headline", "Headline", _headline(models)),
        ("left-out", "What was left out", _left_out(models)),
        ("figures", "Figures", _figures([one for one in plots if not one.name.startswith("map-")])),
        ("unknown", "Labels outside the model", _open_set(models)),
        ("labels", "Every label", _classes(models)),
        ("errors", "Worst errors", _errors(errors, clip, len(models) > 1, most_clips, most_seconds)),
        ("map", "Map of the embeddings", _figures([one for one in plots if one.name.startswith("map-")])),
        ("cards", "Cards", _cards(cards or {})),
        ("made", "How this was made", _made(command, version, date)),
    ]
    shown = [part for part in parts if part[2]]
    links = " ".join(f'<a href="#{name}">{escape(words)}</a>' for name, words, _ in shown)
    sections = "\n".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(words)}</h2>\n{content}\n</section>'
        for name, words, content in shown
    )
    counts = "; ".join(f"{one.name}: {one.counts}" for one in models)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="{GENERATOR}">
<link rel="icon" href="data:,">
<title>{escape(heading)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{escape(heading)}</h1>
<p class="soft">{escape(counts)}{escape(f" · {date}" if date else "")}</p>
<nav aria-label="Sections">{links}</nav></header>
<main>
{sections}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _headline(models: Sequence[Named]) -> str:
    heads = "".join(f'<th scope="col">{escape(one.name)}</th>' for one in models)
    rows = []
    for name, (title, share, words) in FIGURES.items():
        found = [one.evaluation.metrics.get(name) for one in models]
        if any(found):
            cells = "".join(f"<td>{_number(one, share)}</td>" for one in found)
            rows.append(f'<tr><th scope="row" class="text">{title}</th>{cells}<td class="text">{words}</td></tr>')
    notes = [f"<strong>{escape(words)}</strong>"] if (words := unlike(models)) else []
    notes += [escape(words) for one in models if (words := prior_words(one))]
    note = "".join(f"<p>{words}</p>\n" for words in notes)
    return f"""{note}<table><caption>In brackets: 95 % interval by bootstrap over recordings</caption>
<thead><tr><th scope="col" class="text">Figure</th>{heads}<th scope="col" class="text">What it is</th></tr></thead>
<tbody>{"".join(rows)}</tbody></table>"""


def _number(figure: MetricValue | None, share: bool) -> str:
    if figure is None or math.isnan(figure.value):
        return "–"
    value = _shown(figure.value, share)
    if math.isnan(figure.low):
        return value
    low, high = (_shown(end, share).removesuffix("\u00a0%") for end in (figure.low, figure.high))
    return f"{value}<small>[{low}, {high}]</small>"


def _shown(value: CellValue, share: bool = False) -> str:
    if (value := finite_or_none(value)) is None:
        return "–"
    if isinstance(value, float):
        return f"{100 * value:.1f}\u00a0%" if share else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else escape(value)


def _left_out(models: Sequence[Named]) -> str:
    lines = []
    for one in models:
        found = one.evaluation
        strangers = ", ".join(f"{label} ({rows:,})" for label, rows in found.out_of_set.items())
        said = [
            f"{counted(len(found.absent), 'label')} of the model without a test row, so in no mean: "
            f"{', '.join(found.absent)}."
            if found.absent
            else "Every label of the model occurs.",
            f"{counted(sum(found.out_of_set.values()), 'row')} of labels that the model does not know: {strangers}; "
            "only the figures of labels outside the model count them."
            if found.out_of_set
            else "No row has a label that the model does not know.",
            f"{counted(found.unlabelled, 'row')} without a label." if found.unlabelled else "Every row has a label.",
        ]
        if found.single_recording:
            said.append(f"Intervals are too narrow for labels with one recording: {', '.join(found.single_recording)}.")
        lines.append(f"<li><strong>{escape(one.name)}</strong>: {escape(' '.join(said))}</li>")
    return f"<ul>{''.join(lines)}</ul>"


def _figures(plots: Sequence[Plot]) -> str:
    made = []
    for one in plots:
        links = [f'<a href="figures/{one.name}.{kind}">{kind.upper()}</a>' for kind in ("svg", "png", "pdf")]
        links += [f'<a href="data/{one.name}.{kind}">{kind.upper()}</a>' for kind in ("tsv", "json")]
        made.append(
            f'<figure id="figure-{one.name}"><div role="img" aria-label="{escape(f"{one.title}. {one.alt}")}">'
            f"{svg_element(one)}</div><figcaption>{escape(one.alt)} Beside this page: {', '.join(links)}</figcaption>"
            "</figure>"
        )
    return "\n".join(made)


def _open_set(models: Sequence[Named]) -> str:
    judged = [(one.name, one.evaluation.open_set) for one in models if one.evaluation.open_set]
    if not judged:
        return ""
    rows = "".join(
        f'<tr><th scope="row" class="text">{escape(name)}</th><td>{_shown(found.threshold)}</td>'
        f"<td>{_number(found.false_reject, True)}</td><td>{found.known:,}</td>"
        f"<td>{_number(found.false_accept, True)}</td><td>{found.unknown:,}</td><td>{_shown(found.eer, True)}</td></tr>"
        for name, found in judged
    )
    heads = ("Known, called unknown", "of rows", "Unknown, taken for known", "of rows", "Equal error")
    cells = "".join(f'<th scope="col">{head}</th>' for head in ("Threshold / nats", *heads))
    shares = {"accepted"}
    said = {_rejects(one.evaluation): None for one in models if one.evaluation.open_set}
    return f"""<table><caption>{". ".join(said)}.</caption>
<thead><tr><th scope="col" class="text">Model</th>{cells}</tr></thead><tbody>{rows}</tbody></table>
{_sortable(open_set_table(models), "Rows of each label outside the model", shares)}"""


def _rejects(found: Evaluation) -> str:
    """What calls a row unknown."""
    label = UNKNOWN in found.table.labels
    if found.open_set is not None and not math.isnan(found.open_set.threshold):
        words = "A row is called unknown below the threshold on its largest detection log-likelihood ratio"
        return words + (f", or where the label {UNKNOWN} is the likeliest" if label else "")
    if label:
        return f"No threshold: a row is called unknown where the label {UNKNOWN} is the likeliest"
    return "No threshold: no row is called unknown"


def _classes(models: Sequence[Named]) -> str:
    shares = {"precision", "recall", "recall low", "recall high", "F1", "EER"}
    grouped = [Named(one.name, one.evaluation.groups) for one in models if one.evaluation.groups]
    words = "Recall low and high: 95 % interval. Cdet: detection cost at β = 1 and 9. Click a heading to sort."
    made = [_sortable(class_table(models), f"Labels. {words}", shares, alone=len(models) == 1)]
    if grouped:
        made.append(_sortable(class_table(grouped), "Groups of labels", shares, alone=len(models) == 1))
    return "\n<p></p>\n".join(made)


def _sortable(table: Table, caption: str, shares: set[str], alone: bool = False) -> str:
    """`alone`: leave out the column that names the model, as there is one only."""
    columns = [place for place, name in enumerate(table.columns) if not (alone and name == "model")]
    texts = {"label", "model"}
    heads = "".join(
        f'<th scope="col"{_text(name in texts)}><button type="button">{escape(name)}</button></th>'
        for name in (table.columns[place] for place in columns)
    )
    rows = []
    for row in table.rows:
        cells = []
        for place in columns:
            name, value = table.columns[place], finite_or_none(row[place])
            key = "" if value is None else escape(str(value))
            tag = 'th scope="row"' if name == "label" else "td"
            cells.append(
                f'<{tag}{_text(name in texts)} data-value="{key}">{_shown(value, name in shares)}</{tag.split()[0]}>'
            )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"""<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}"><table class="sortable">
<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>
{"".join(rows)}
</tbody></table></div>"""


def _text(yes: bool) -> str:
    return ' class="text"' if yes else ""


def _errors(errors: Sequence[Error], clip: Clip | None, several: bool, most: int, seconds: float) -> str:
    if not errors:
        return "<p>No row has a wrong label.</p>"
    rows, played = [], 0
    for one in errors:
        start = 0.0 if math.isnan(one.start) else one.start
        end = start + seconds if math.isnan(one.end) else min(one.end, start + seconds)
        sound = clip(one.name, start, end) if clip and played < most else None
        played += sound is not None
        span = "" if math.isnan(one.start + one.end) else f"{one.start:.1f} to {one.end:.1f} s"
        words = escape(f"{one.name} from {start:.1f} s: is {one.truth}, called {one.said}")
        player = (
            f'<audio controls preload="metadata" aria-label="{words}" src="{_sound(sound)}"></audio>' if sound else ""
        )
        model = f'<td class="text">{escape(one.model)}</td>' if several else ""
        rows.append(
            f'<tr>{model}<td class="text">{escape(one.name)}<small>{span}</small></td>'
            f'<td class="text">{escape(one.truth)}</td><td class="text">{escape(one.said)}</td>'
            f"<td>{100 * one.posterior:.1f} %</td><td>{one.log_ratio:.2f}</td><td>{player}</td></tr>"
        )
    names = (["Model"] if several else []) + ["Recording", "Is", "Called"]
    heads = "".join(f'<th scope="col" class="text">{name}</th>' for name in names)
    numbers = ("Probability", "Log ratio / nats", "Sound")
    heads += "".join(f'<th scope="col">{name}</th>' for name in numbers)
    words = (
        f"Rows that were called wrong with most certainty, one of a recording; sound: the first {seconds:g} s at most."
    )
    words += " Log ratio: probability of what it was called over that of what it is."
    return f"""<table><caption>{words}</caption><thead><tr>{heads}</tr></thead>
<tbody>{"".join(rows)}</tbody></table>"""


def _sound(data: bytes) -> str:
    kinds = {b"fLaC": "audio/flac", b"RIFF": "audio/wav"}
    if data[:4] not in kinds:
        raise ValueError("a clip is a FLAC or WAV file")
    return f"data:{kinds[data[:4]]};base64,{base64.b64encode(data).decode()}"


def _cards(cards: Mapping[str, str]) -> str:
    return "\n".join(
        f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>" for name, text in cards.items()
    )


def _made(command: str, version: str, date: str) -> str:
    words = " · ".join(part for part in (f"knn {version}" if version else "", date) if part)
    shown = f"<pre><code>{escape(command)}</code></pre>" if command else ""
    return f"""{shown}<p class="soft">{escape(words)}</p>
<p class="soft">Cavg, Cprimary: NIST 2022 Language Recognition Evaluation Plan, section 3. Detection
log-likelihood ratios and Cllr: N. Brummer and D. van Leeuwen, Odyssey 2006.</p>"""
