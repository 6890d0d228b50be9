"use strict";
// Files of turns as knn writes them: RTTM, TextGrid and EAF. Turns are {start, end, speaker}, in milliseconds, by time.
const files = (() => {
// White space is what Python takes for it; hidden characters become escapes, as in `core.visible_text`.
const SPACE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/;
const HIDDEN = new RegExp("[\\0-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff" +
  "\\ufff9-\\ufffb\\ufffe\\uffff]", "g");
const words = text => text.split(SPACE).filter(Boolean);
const visible = text => text.replace(HIDDEN, letter => {
  const code = letter.charCodeAt(0);
  return code < 256 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u" + code.toString(16).padStart(4, "0");
});
const line = text => visible(words(text).join(" "));
const fixed = time => `${Math.floor(time / 1000)}.${String(time % 1000).padStart(3, "0")}`;
const seconds = time => fixed(time).replace(/\.?0+$/, "");

const rttm = (file, turns) => turns.map(({start, end, speaker}) => `SPEAKER ${file} 1 ${fixed(start)} ` +
  `${fixed(end - start)} <NA> <NA> ${visible(words(speaker.normalize("NFC")).join("_")) || "<NA>"} <NA> <NA>\n`).join("");

function grouped(turns, key) {  // turns by their speaker, in the order in which speakers first appear
  const found = new Map();
  for (const turn of turns) found.set(key(turn), [...(found.get(key(turn)) || []), turn]);
  return found;
}

// A tier for each speaker, without gaps; a turn that overlaps another of its tier goes to an additional one.
function textgrid(turns, length) {
  const end = Math.max(1, Math.ceil(length * 1000 - 1e-6), ...turns.map(turn => turn.end));
  const names = new Set(), tiers = [];
  for (const [speaker, own] of grouped(turns, turn => turn.speaker || "speakers")) {
    const layers = [];
    for (const turn of own) {
      const free = layers.find(layer => layer[layer.length - 1].end <= turn.start);
      if (free) free.push(turn);
      else layers.push([turn]);
    }
    layers.forEach((layer, at) => {
      const base = at ? `${speaker} (${at + 1})` : speaker;
      let name = base;
      for (let number = 2; names.has(name); number++) name = `${base} (${number})`;
      names.add(name);
      tiers.push([name, layer]);
    });
  }
  if (!tiers.length) tiers.push(["speakers", []]);
  const quoted = text => `"${line(text).replaceAll('"', '""')}"`;
  const lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 ", `xmax = ${seconds(end)} `,
    "tiers? <exists> ", `size = ${tiers.length} `, "item []: "];
  tiers.forEach(([name, layer], at) => {
    const intervals = [];
    let covered = 0;
    for (const {start, end: last, speaker} of layer) {
      if (start > covered) intervals.push([covered, start, ""]);
      intervals.push([start, last, speaker]);
      covered = last;
    }
    if (covered < end) intervals.push([covered, end, ""]);
    lines.push(`    item [${at + 1}]:`, '        class = "IntervalTier" ', `        name = ${quoted(name)} `,
      "        xmin = 0 ", `        xmax = ${seconds(end)} `, `        intervals: size = ${intervals.length} `);
    intervals.forEach(([start, last, text], row) => lines.push(`        intervals [${row + 1}]:`,
      `            xmin = ${seconds(start)} `, `            xmax = ${seconds(last)} `,
      `            text = ${quoted(text)} `));
  });
  return lines.join("\n") + "\n";
}

// ELAN: a tier for each speaker, whose annotations follow one another, each with time slots of its own.
const CONSTRAINTS = {
  Time_Subdivision: "parts of the annotation above, in time and without gaps",
  Symbolic_Subdivision: "parts of the annotation above, in order",
  Symbolic_Association: "one annotation for the one above",
  Included_In: "annotations within the time of the one above, with gaps",
};
const escaped = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const attributes = values => Object.entries(values).map(([name, value]) =>
  ` ${name}="${escaped(String(value)).replaceAll('"', "&quot;")}"`).join("");
const tag = (name, values) => `<${name}${attributes(values)} />`;
function eaf(turns, [media, type], date) {  // the recording is looked for beside the document
  const tiers = [...grouped(turns, turn => line(turn.speaker) || "speaker")].map(([name, own]) => {
    const rows = [];
    for (const {start, end} of own) {
      const begin = Math.max(start, rows.length ? rows[rows.length - 1].end : 0);
      if (begin < end) rows.push({start: begin, end});
    }
    return [name, rows];
  });
  const slots = [];
  const slot = time => { slots.push([time, `ts${slots.length + 1}`]); return `ts${slots.length}`; };
  let count = 0;
  const body = tiers.flatMap(([name, rows]) => {
    const about = {TIER_ID: name, PARTICIPANT: name, LINGUISTIC_TYPE_REF: "turn"};
    if (!rows.length) return ["  " + tag("TIER", about)];
    return [`  <TIER${attributes(about)}>`, ...rows.flatMap(({start, end}) => ["    <ANNOTATION>",
      `      <ALIGNABLE_ANNOTATION${attributes({ANNOTATION_ID: `a${++count}`, TIME_SLOT_REF1: slot(start),
        TIME_SLOT_REF2: slot(end)})}>`, `        <ANNOTATION_VALUE>${escaped(name)}</ANNOTATION_VALUE>`,
      "      </ALIGNABLE_ANNOTATION>", "    </ANNOTATION>"]), "  </TIER>"];
  });
  slots.sort((one, other) => one[0] - other[0]);
  const order = slots.map(([time, name]) => "    " + tag("TIME_SLOT", {TIME_SLOT_ID: name, TIME_VALUE: time}));
  const where = {MEDIA_URL: `file:///${media}`, MIME_TYPE: type, RELATIVE_MEDIA_URL: `./${media}`};
  return ['<?xml version="1.0" encoding="UTF-8"?>',
    '<ANNOTATION_DOCUMENT xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"' +
      attributes({AUTHOR: "knn", DATE: date, FORMAT: "3.0", VERSION: "3.0"}) +
      ' xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">',
    '  <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">',
    ...(media ? ["    " + tag("MEDIA_DESCRIPTOR", where)] : []),
    `    <PROPERTY NAME="lastUsedAnnotationId">${count}</PROPERTY>`, "  </HEADER>",
    ...(order.length ? ["  <TIME_ORDER>", ...order, "  </TIME_ORDER>"] : ["  <TIME_ORDER />"]), ...body,
    "  " + tag("LINGUISTIC_TYPE", {LINGUISTIC_TYPE_ID: "turn", TIME_ALIGNABLE: "true", GRAPHIC_REFERENCES: "false"}),
    ...Object.entries(CONSTRAINTS).map(([name, text]) =>
      "  " + tag("CONSTRAINT", {STEREOTYPE: name, DESCRIPTION: text})),
    "</ANNOTATION_DOCUMENT>"].join("\n") + "\n";
}

return {words, rttm, textgrid, eaf};
})();
