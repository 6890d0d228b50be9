"use strict";
// Corrections of turns, without the page: edits as they are saved, what they make of the turns, and the file in which they are saved.
const corrections = (() => {
const EDGE = 10;  // milliseconds that a split leaves on both sides, as edits find turns to 0.01 s
const milliseconds = seconds => Math.round(seconds * 1000);
const byTime = (one, other) => one.start - other.start || one.end - other.end;

// A state is the turns {start, end, speaker, confidence} by start and end, in milliseconds, and the speakers that have
// a turn: a map from label to the number of its colour. States and turns are never changed, but replaced.
function state(turns, speakers) {
  const present = new Set(turns.map(turn => turn.speaker));
  return {turns, speakers: new Map([...speakers].filter(([label]) => present.has(label)))};
}
function place({turns}, {start, end, speaker}) {  // of the first turn that an edit means, -1 if there is none
  const [from, to] = [milliseconds(start), milliseconds(end)];
  return turns.findIndex(turn => turn.start === from && turn.end === to && turn.speaker === speaker);
}
function near({turns}, edit) {  // place of the turn that an edit means, or of what has become of it
  const moved = edit.edit === "move" ? place({turns}, {...edit, start: edit.to_start, end: edit.to_end}) : -1;
  const at = moved < 0 ? place({turns}, edit) : moved;
  return at < 0 ? turns.findLastIndex(turn => turn.start <= milliseconds(edit.start)) : at;
}
function replaced(turns, at, ...others) {
  return [...turns.slice(0, at), ...others, ...turns.slice(at + 1)].sort(byTime);
}
function withSpeaker(speakers, label) {  // in the first colour that is free
  const used = new Set(speakers.values());
  let colour = 0;
  while (used.has(colour)) colour++;
  return speakers.has(label) ? speakers : new Map([...speakers, [label, colour]]);
}
const relabelled = (turns, from, to) => turns.map(turn => turn.speaker === from ? {...turn, speaker: to} : turn);

// What each kind of edit makes of a state; null if it does not fit.
const KINDS = {
  merge({turns, speakers}, {speaker, into}) {
    if (speaker === into || !speakers.has(speaker) || !speakers.has(into)) return null;
    return state(relabelled(turns, speaker, into), speakers);
  },
  rename({turns, speakers}, {speaker, to}) {
    if (!speakers.has(speaker) || speakers.has(to)) return null;
    const renamed = [...speakers].map(([label, colour]) => [label === speaker ? to : label, colour]);
    return state(relabelled(turns, speaker, to), renamed);
  },
  reassign(before, edit) {
    const at = place(before, edit);
    if (at < 0 || edit.to === edit.speaker) return null;
    const turn = {...before.turns[at], speaker: edit.to, confidence: null};  // a person is sure
    return state(replaced(before.turns, at, turn), withSpeaker(before.speakers, edit.to));
  },
  split(before, edit) {
    const at = place(before, edit), cut = milliseconds(edit.at), turn = before.turns[at];
    if (!turn || cut < turn.start + EDGE || cut > turn.end - EDGE) return null;
    return state(replaced(before.turns, at, {...turn, end: cut}, {...turn, start: cut}), before.speakers);
  },
  move(before, edit) {  // the begin and the end of a turn
    const at = place(before, edit), start = milliseconds(edit.to_start), end = milliseconds(edit.to_end);
    const turn = before.turns[at];
    if (!turn || start < 0 || end < start + EDGE || (start === turn.start && end === turn.end)) return null;
    return state(replaced(before.turns, at, {...turn, start, end}), before.speakers);
  },
  delete(before, edit) {
    const at = place(before, edit);
    return at < 0 ? null : state(replaced(before.turns, at), before.speakers);
  },
};
const apply = (before, edit) => Object.hasOwn(KINDS, edit.edit) ? KINDS[edit.edit](before, edit) : null;

// The edits that were made, the first `done` of which hold, and the states between them; later ones were undone.
class History {
  constructor(turns, labels) {
    this.states = [state(turns, labels.map((label, colour) => [label, colour]))];
    this.edits = [];
    this.done = 0;
  }
  get state() { return this.states[this.done]; }
  get applied() { return this.edits.slice(0, this.done); }
  add(edit) {  // whether it fitted
    const after = apply(this.state, edit);
    if (!after) return false;
    this.edits.splice(this.done, Infinity, edit);
    this.states.splice(++this.done, Infinity, after);
    return true;
  }
  restore(edits, done) {  // as far as they fit
    for (const edit of edits) if (!this.add(edit)) break;
    this.done = Math.min(done, this.edits.length);
  }
  newLabel() {  // one that no speaker has or had
    const known = new Set(this.states[0].speakers.keys());
    for (const {to} of this.edits) known.add(to);
    let number = 0, label;
    do label = `SPEAKER_${String(number++).padStart(2, "0")}`; while (known.has(label));
    return label;
  }
}

// An edit of a turn, in seconds
const about = (edit, {start, end, speaker}, more = {}) =>
  ({edit, ...more, start: start / 1000, end: end / 1000, speaker});

// A file of corrections
const json = (recording, edits) => `{"knn": "corrections", "version": 1, "recording": ${JSON.stringify(recording)}, ` +
  `"edits": [${edits.map(edit => "\n" + JSON.stringify(edit)).join(",")}\n]}\n`;

return {History, about, near, json, EDGE};
})();
