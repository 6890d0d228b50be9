"use strict";
{
const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const history = new corrections.History(data.turns.map(([start, end, speaker, confidence]) =>
  ({start, end, speaker: data.speakers[speaker], confidence})), data.speakers);
let turns = [], tracks = [];  // as corrected: the turns by time, and the label of each track
let chosen = -1;  // place of the turn that is corrected
const audio = $("audio"), scroller = $("scroller"), canvas = $("canvas"), overview = $("overview");
const peaks = Int8Array.from(atob(data.peaks), letter => letter.charCodeAt(0));
const WAVE_HEIGHT = 96, AXIS_HEIGHT = 22, BAR_HEIGHT = 17, EDGE_WIDTH = 6;  // pixels
const TRACKS_TOP = WAVE_HEIGHT + AXIS_HEIGHT, MAX_ZOOM = 400;  // pixels; pixels per second
const media = matchMedia("(prefers-color-scheme: dark)"), narrow = matchMedia("(max-width: 48rem)");
// Where the window is narrow, names stand above the turns of their track, and a row of the list has two lines.
let TRACK_HEIGHT = 26, BAR_TOP = 5, ROW_HEIGHT = 34;
function measure() { [TRACK_HEIGHT, BAR_TOP, ROW_HEIGHT] = narrow.matches ? [42, 22, 54] : [26, 5, 34]; }
measure();
let zoom = 1, touched = false;  // pixels per second; whether the user has zoomed

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const clock = (seconds, digits = 1) => {
  const unit = 10 ** digits, all = Math.round(seconds * unit);
  const whole = Math.floor(all / unit), rest = digits ? "." + String(all % unit).padStart(digits, "0") : "";
  const two = number => String(number).padStart(2, "0");
  const minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
  return (hours ? `${hours}:${two(minutes % 60)}` : minutes) + `:${two(whole % 60)}${rest}`;
};

// ---------------------------------------------------------------- the sound
function load() {
  if (!data.kind) { audio.src = data.href; return; }
  const text = $("sound").textContent, parts = [], step = 1 << 20;  // a multiple of four letters, three bytes
  for (let at = 0; at < text.length; at += step)
    parts.push(Uint8Array.from(atob(text.slice(at, at + step)), letter => letter.charCodeAt(0)));
  $("sound").textContent = "";
  audio.src = URL.createObjectURL(new Blob(parts, {type: data.kind}));
}
audio.addEventListener("error", () => { $("trouble").hidden = false; });
$("choose").addEventListener("change", event => {
  const [file] = event.target.files;
  if (file) { audio.src = URL.createObjectURL(file); $("trouble").hidden = true; }
});

function go(seconds, play = true) {
  audio.currentTime = clamp(seconds, 0, data.seconds);
  if (play && audio.paused) toggle();
  tick();
}
function toggle() {
  if (!audio.paused) audio.pause();
  else audio.play().catch(() => {});  // the element reports the error
}
function goToTurn(step) {  // the turn before or after
  const now = audio.currentTime * 1000;
  const place = step > 0 ? turns.findIndex(turn => turn.start > now + 1)
    : turns.findLastIndex(turn => turn.start < now - (audio.paused ? 1 : 1000));
  if (place < 0) return;
  choose(place);
  go(turns[place].start / 1000, !audio.paused);
}

// ---------------------------------------------------------------- speakers
let trackOf = new Map();
const colourOf = label => data.colours[history.state.speakers.get(label) % data.colours.length];
function speakingTime() {  // seconds per track; overlapping turns of one speaker are counted once
  const total = tracks.map(() => 0), until = tracks.map(() => 0);
  for (const {start, end, speaker} of turns) {
    const track = trackOf.get(speaker);
    total[track] += Math.max(0, end - Math.max(start, until[track]));
    until[track] = Math.max(end, until[track]);
  }
  return total.map(milliseconds => milliseconds / 1000);
}
const swatch = label => {
  const square = make("span", {className: "swatch"});
  square.style.background = colourOf(label);
  return square;
};
function speakerRow(track) {  // a row of the list, for whichever speaker has this track
  const input = make("input", {spellcheck: false, autocomplete: "off"});
  input.addEventListener("change", () => { rename(tracks[track], input.value); input.value = tracks[track]; });
  input.addEventListener("keydown", event => {
    if (event.key === "Escape") input.value = tracks[track];
    if (event.key === "Enter" || event.key === "Escape") input.blur();
  });
  return make("li", {}, make("span", {className: "soft", textContent: track + 1}),
    make("span", {className: "swatch"}), input, make("span", {className: "share soft"}),
    make("span", {className: "track"}, make("i")));
}
const options = (chosenTrack, ...more) => [...tracks.map((label, track) =>
  make("option", {value: track, textContent: label, selected: track === chosenTrack})), ...more];
function drawNames() {
  const total = speakingTime(), all = total.reduce((sum, seconds) => sum + seconds, 0) || 1;
  $("names").replaceChildren(...tracks.map(label => {
    const row = make("div", {title: label}, swatch(label), make("span", {textContent: label}));
    row.style.height = TRACK_HEIGHT + "px";
    return row;
  }));
  const speakers = $("speakers");
  while (speakers.children.length > tracks.length) speakers.lastChild.remove();
  while (speakers.children.length < tracks.length) speakers.append(speakerRow(speakers.children.length));
  tracks.forEach((label, track) => {
    const row = speakers.children[track], share = total[track] / all, input = row.querySelector("input");
    input.value = label;
    input.setAttribute("aria-label", `Name of ${label}`);
    row.querySelector(".swatch").style.background = colourOf(label);
    const length = total[track] < 60 ? total[track].toFixed(1) + " s" : clock(total[track], 0);
    row.querySelector(".share").textContent = `${length} · ${(100 * share).toFixed(1)} %`;
    const bar = row.querySelector("i");
    bar.style.width = 100 * share + "%";
    bar.style.background = colourOf(label);
  });
  $("merging").hidden = tracks.length < 2;
  $("merge-from").replaceChildren(...options(tracks.length - 1));
  $("merge-into").replaceChildren(...options(0));
  $("hint").textContent = [tracks.length > 1 ? "A speaker who gets the name of another is merged into them." : "",
    turns.some(turn => turn.confidence !== null) ? "The paler a turn, the less certain its speaker." : ""].join(" ");
  $("about").textContent = [clock(data.seconds, 0), count(tracks.length, "speaker"), count(turns.length, "turn")]
    .join(" · ");
}
const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

// ---------------------------------------------------------------- corrections
const KEY = `knn-corrections:${data.key}`;
let saved = "[]";  // the edits that were saved last
const unsaved = () => JSON.stringify(history.applied) !== saved;
const say = text => { $("message").textContent = text; };
const span = turn => `${clock(turn.start / 1000)} – ${clock(turn.end / 1000)}`;

function choose(place) {
  chosen = place;
  const turn = turns[place];
  $("chosen").textContent = turn ? span(turn) : "No turn is chosen.";
  for (const name of ["speaker", "remove", "begin", "end"]) $(name).disabled = !turn;
  $("speaker").replaceChildren(...options(turn ? trackOf.get(turn.speaker) : -1,
    make("option", {value: "new", textContent: "New speaker", selected: false})));
  if (!turn) $("speaker").selectedIndex = -1;
  mark();
  draw();
}
function update(place) {  // all that is seen, after the history went on or back
  turns = history.state.turns;
  tracks = [...history.state.speakers.keys()];
  trackOf = new Map(tracks.map((label, track) => [label, track]));
  latest = -1;
  $("undo").disabled = $("undo-all").disabled = !history.done;
  $("redo").disabled = history.done === history.edits.length;
  resize();
  drawNames();
  rows.style.height = turns.length * ROW_HEIGHT + "px";
  $("none").hidden = turns.length > 0;
  drawRows(true);
  choose(Math.min(place, turns.length - 1));
}
function keep() {
  let text = unsaved() ? "The corrections are not saved as a file yet; this browser keeps them for this page." : "";
  try {
    if (history.edits.length) {
      const {edits, done} = history;
      localStorage.setItem(KEY, JSON.stringify({edits, done, saved: !unsaved()}));
    } else localStorage.removeItem(KEY);
  } catch {
    if (unsaved()) text = "This browser cannot keep the corrections: save them before you leave the page.";
  }
  $("kept").textContent = text;
}
function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    if (!kept) return;
    history.restore(kept.edits, kept.done);
    if (kept.saved) saved = JSON.stringify(history.applied);
  } catch { return; }  // nothing is kept, or nothing that can be read
  if (history.done) say(`The page is as it was left, with ${count(history.done, "correction")}.`);
}
function correct(edit, text, place = chosen) {
  if (!history.add(edit)) return false;
  update(place);
  keep();
  say(text);
  return true;
}
function move(done, text) {
  if (done < 0 || done > history.edits.length || done === history.done) return;
  const edit = history.edits[Math.min(done, history.done)];  // that is undone or redone, the first of several
  history.done = done;
  update(edit.start === undefined ? chosen : corrections.near(history.state, edit));
  keep();
  say(`${text} ${count(history.done, "correction")} of ${history.edits.length} in place.`);
}
const undo = () => move(history.done - 1, "Undone.");
const redo = () => move(history.done + 1, "Redone.");
function merge(speaker, into) {
  if (speaker === into) say("Choose two speakers.");
  else correct({edit: "merge", speaker, into}, `${speaker} is merged into ${into}.`);
}
function rename(speaker, text) {
  const name = new TextDecoder().decode(new TextEncoder().encode(text.trim()));  // half characters are replaced
  if (name === speaker || !files.words(name).length) return;
  if (tracks.includes(name)) merge(speaker, name);
  else correct({edit: "rename", speaker, to: name}, `${speaker} is ${name} now.`);
}
function reassign(to) {
  const turn = turns[chosen];
  if (!turn) say("Choose a turn first.");
  else if (to !== undefined && to !== turn.speaker)
    correct(corrections.about("reassign", turn, {to}), `The turn at ${clock(turn.start / 1000)} is of ${to} now.`);
}
function split() {  // the chosen turn where the cursor is in it, or else the last one there that began
  const now = Math.round(audio.currentTime * 1000), edge = corrections.EDGE;
  const around = turn => turn && turn.start + edge <= now && now <= turn.end - edge;
  const turn = around(turns[chosen]) ? turns[chosen] : turns.findLast(around);
  if (!turn) say("There is no turn around the cursor.");
  else if (correct(corrections.about("split", turn, {at: now / 1000}), `The turn is split at ${clock(now / 1000)}.`))
    choose(turns.findIndex(({start, end, speaker}) => start === now && end === turn.end && speaker === turn.speaker));
}
function moveTo(start, end, turn = turns[chosen]) {  // milliseconds
  if (!turn) { say("Choose a turn first."); return; }
  const last = Math.round(data.seconds * 1000), edge = corrections.EDGE;
  const to_start = start === turn.start ? start : clamp(start, 0, end - edge);
  const to_end = end === turn.end ? end : clamp(end, to_start + edge, last);
  const edit = corrections.about("move", turn, {to_start: to_start / 1000, to_end: to_end / 1000});
  if (correct(edit, `The turn is from ${clock(to_start / 1000, 2)} to ${clock(to_end / 1000, 2)} now.`))
    choose(corrections.near(history.state, edit));
}
function moveEdge(atEnd) {  // of the chosen turn, to the cursor
  const turn = turns[chosen], now = Math.round(audio.currentTime * 1000);
  if (!turn) say("Choose a turn first.");
  else if (atEnd ? now < turn.start + corrections.EDGE : now > turn.end - corrections.EDGE)
    say(atEnd ? "The cursor is before the turn." : "The cursor is behind the turn.");
  else moveTo(atEnd ? turn.start : now, atEnd ? now : turn.end);
}
function remove() {
  const turn = turns[chosen];
  if (turn) correct(corrections.about("delete", turn), `The turn at ${clock(turn.start / 1000)} is deleted.`);
  else say("Choose a turn first.");
}
function save(text, name, type) {
  const address = URL.createObjectURL(new Blob([text], {type}));
  make("a", {href: address, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  saved = JSON.stringify(history.applied);
  keep();
  say(`${name} is saved.`);
}
$("undo").addEventListener("click", undo);
$("redo").addEventListener("click", redo);
$("undo-all").addEventListener("click", () => move(0, "All undone."));
$("speaker").addEventListener("change", event => {
  reassign(event.target.value === "new" ? history.newLabel() : tracks[event.target.value]);
});
$("split").addEventListener("click", split);
$("begin").addEventListener("click", () => moveEdge(false));
$("end").addEventListener("click", () => moveEdge(true));
$("remove").addEventListener("click", remove);
$("merge").addEventListener("click", () => merge(tracks[$("merge-from").value], tracks[$("merge-into").value]));
$("save").addEventListener("click", () => save(files.rttm(data.file, turns), `${data.file}.rttm`, "text/plain"));
$("save-textgrid").addEventListener("click", () =>
  save(files.textgrid(turns, data.seconds), `${data.file}.TextGrid`, "text/plain"));
$("save-eaf").addEventListener("click", () => {
  const now = new Date().toISOString().replace(/\.\d+Z$/, "+00:00");
  save(files.eaf(turns, data.media, now), `${data.file}.eaf`, "application/xml");
});
$("save-corrections").addEventListener("click", () =>
  save(corrections.json(data.recording, history.applied), `${data.file}.corrections.json`, "application/json"));
addEventListener("beforeunload", event => {
  if (unsaved()) { event.preventDefault(); event.returnValue = true; }  // the second for browsers before 2024
});

// ---------------------------------------------------------------- the timeline
const width = () => scroller.clientWidth;
const minZoom = () => width() / Math.max(data.seconds, 0.01);
function resize() {
  if (!touched) zoom = minZoom();
  zoom = clamp(zoom, minZoom(), Math.max(MAX_ZOOM, minZoom()));
  const height = TRACKS_TOP + tracks.length * TRACK_HEIGHT + 4;
  $("wide").style.width = Math.max(width(), data.seconds * zoom) + "px";
  $("wide").style.height = height + "px";
  fit(canvas, width(), height);
  overview.hidden = zoom <= minZoom() * 1.001;
  fit(overview, overview.clientWidth, 26);
  draw();
}
function fit(element, wide, high) {
  const ratio = devicePixelRatio || 1;
  element.width = Math.round(wide * ratio);
  element.height = Math.round(high * ratio);
  if (element === canvas) { element.style.width = wide + "px"; element.style.height = high + "px"; }
  element.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
}
function scale(factor, at = width() / 2) {  // keeps the time at this pixel in place
  const time = (scroller.scrollLeft + at) / zoom;
  touched = true;
  zoom = clamp(zoom * factor, minZoom(), Math.max(MAX_ZOOM, minZoom()));
  if (zoom === minZoom()) touched = false;
  resize();
  scroller.scrollLeft = time * zoom - at;
  draw();
}
const STEPS = [.05, .1, .2, .5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
let asked = false;
function draw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; paint(); paintOverview(); });
}
function paint() {
  const wide = width(), left = scroller.scrollLeft;
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, wide, parseFloat(canvas.style.height));
  paintTimeline(pen, {wide, high: parseFloat(canvas.style.height), left, zoom, ink: colour, seen: turns.map(shown)});
}
const shown = turn => drag && turn === drag.turn ? {...turn, start: drag.start, end: drag.end, chosen: true}
  : turn === turns[chosen] ? {...turn, chosen: true} : turn;
function paintTimeline(pen, {wide, high, left, zoom, ink, seen}) {  // what lies between two times, `left` in pixels
  const begin = left / zoom, end = (left + wide) / zoom, x = seconds => seconds * zoom - left;
  // Lines between tracks and at times
  pen.fillStyle = ink("--line");
  tracks.forEach((_, track) => pen.fillRect(0, TRACKS_TOP + track * TRACK_HEIGHT, wide, 1));
  const step = STEPS.find(step => step * zoom >= 72) || STEPS[STEPS.length - 1];
  const digits = step >= 1 ? 0 : step >= .1 ? 1 : 2;
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  for (let number = Math.ceil(begin / step); number * step <= end; number++) {
    const at = Math.round(x(number * step)), text = clock(number * step, digits);
    const half = pen.measureText(text).width / 2;
    pen.fillStyle = ink("--line");
    pen.fillRect(at, TRACKS_TOP, 1, high);
    pen.fillStyle = ink("--soft");
    if (number * step <= data.seconds)
      pen.fillText(text, clamp(at - half, 2, wide - 2 * half - 2), WAVE_HEIGHT + AXIS_HEIGHT / 2);
  }
  // Turns, and the speaker of each column of the waveform
  const columnTrack = new Int16Array(wide).fill(-1), trackColours = tracks.map(colourOf);
  for (const turn of seen) {
    if (turn.end < begin * 1000 || turn.start > end * 1000) continue;
    const from = x(turn.start / 1000), to = Math.max(from + 1.5, x(turn.end / 1000));
    columnTrack.fill(trackOf.get(turn.speaker), Math.max(0, Math.round(from)), Math.max(0, Math.round(to)));
    pen.globalAlpha = opacity(turn);
    pen.fillStyle = colourOf(turn.speaker);
    pen.beginPath();
    const top = TRACKS_TOP + trackOf.get(turn.speaker) * TRACK_HEIGHT + BAR_TOP;
    pen.roundRect(from, top, to - from, BAR_HEIGHT, Math.min(4, (to - from) / 3));
    pen.fill();
    if (turn.chosen) {
      pen.globalAlpha = 1;
      pen.strokeStyle = ink("--ink");
      pen.lineWidth = 2;
      pen.stroke();
    }
  }
  pen.globalAlpha = 1;
  const middle = WAVE_HEIGHT / 2, tall = (WAVE_HEIGHT - 10) / 254, bins = peaks.length / 2;
  const wave = ink("--wave");
  let last = null;
  for (let column = 0; column < wide; column++) {
    const low = Math.floor((begin + column / zoom) / data.bin);
    if (low >= bins) break;
    const high = Math.max(low + 1, Math.min(bins, Math.floor((begin + (column + 1) / zoom) / data.bin)));
    let bottom = 127, top = -127;
    for (let bin = low; bin < high; bin++) {
      bottom = Math.min(bottom, peaks[2 * bin]);
      top = Math.max(top, peaks[2 * bin + 1]);
    }
    const style = columnTrack[column] < 0 ? wave : trackColours[columnTrack[column]];
    if (style !== last) pen.fillStyle = last = style;
    pen.fillRect(column, middle - top * tall, 1, Math.max(1, (top - bottom) * tall));
  }
}
const opacity = turn => turn.confidence === null ? .9 : .25 + .75 * clamp(turn.confidence, 0, 1);
function paintOverview() {
  const pen = overview.getContext("2d"), wide = overview.clientWidth, per = wide / Math.max(data.seconds, .01);
  const high = 18 / Math.max(1, tracks.length);
  pen.clearRect(0, 0, wide, 26);
  for (const turn of turns) {
    pen.fillStyle = colourOf(turn.speaker);
    const length = Math.max(1, (turn.end - turn.start) / 1000 * per);
    pen.fillRect(turn.start / 1000 * per, 4 + trackOf.get(turn.speaker) * high, length, Math.max(1, high - .5));
  }
  pen.strokeStyle = colour("--ink");
  pen.lineWidth = 1.5;
  pen.strokeRect(scroller.scrollLeft / zoom * per + 1, 1, Math.max(4, width() / zoom * per - 2), 24);
  pen.fillStyle = colour("--head");
  pen.fillRect(audio.currentTime * per - 1, 0, 2, 26);
}
function under(event) {  // the time below the pointer, and the turn
  const box = canvas.getBoundingClientRect(), y = event.clientY - box.top;
  const time = (scroller.scrollLeft + event.clientX - box.left) / zoom;
  const track = Math.floor((y - TRACKS_TOP) / TRACK_HEIGHT);
  const slack = 2 / zoom * 1000;
  const place = turns.findLastIndex(({start, end, speaker}) => trackOf.get(speaker) === track &&
    start - slack <= time * 1000 && time * 1000 <= end + slack);
  return {time, place, turn: turns[place]};
}
// The edges of the chosen turn can be dragged; a finger scrolls instead.
let drag = null;  // the turn, the edge and where it is now, in milliseconds
function edgeUnder(event) {  // "start" or "end", where the pointer is at that edge of the chosen turn
  const turn = turns[chosen];
  if (!turn || event.pointerType === "touch") return null;
  const box = canvas.getBoundingClientRect(), y = event.clientY - box.top;
  if (Math.floor((y - TRACKS_TOP) / TRACK_HEIGHT) !== trackOf.get(turn.speaker)) return null;
  const at = scroller.scrollLeft + event.clientX - box.left;
  const [from, to] = [turn.start / 1000 * zoom, turn.end / 1000 * zoom];
  const inside = Math.min(EDGE_WIDTH, (to - from) / 3);
  if (from - EDGE_WIDTH <= at && at <= from + inside) return "start";
  return to - inside <= at && at <= to + EDGE_WIDTH ? "end" : null;
}
scroller.addEventListener("pointerdown", event => {
  const edge = event.button === 0 && edgeUnder(event);
  if (!edge) return;
  event.preventDefault();
  const {start, end} = turns[chosen];
  drag = {turn: turns[chosen], edge, start, end, from: event.clientX};
  scroller.setPointerCapture(event.pointerId);
});
function dragTo(event) {
  const by = Math.round((event.clientX - drag.from) / zoom * 1000), {turn, edge} = drag;
  if (edge === "start") drag.start = clamp(turn.start + by, 0, turn.end - corrections.EDGE);
  else drag.end = clamp(turn.end + by, turn.start + corrections.EDGE, Math.round(data.seconds * 1000));
  $("chosen").textContent = span(drag);
  draw();
}
let dropped = false;  // whether the click that comes is the end of a drag
scroller.addEventListener("pointerup", () => {
  if (!drag) return;
  const {turn, start, end} = drag;
  drag = null;
  dropped = true;
  setTimeout(() => { dropped = false; });
  moveTo(start, end, turn);
  choose(chosen);
});
function drop() {  // without a change
  drag = null;
  choose(chosen);
}
scroller.addEventListener("pointercancel", () => { if (drag) drop(); });
const confidencePercent = turn => turn.confidence === null ? "" : `${Math.round(100 * turn.confidence)} %`;
scroller.addEventListener("click", event => {
  if (dropped) return;
  const {time, place, turn} = under(event);
  if (turn) choose(place);
  go(turn ? turn.start / 1000 : time);
});
scroller.addEventListener("pointermove", event => {
  if (drag) { dragTo(event); return; }
  scroller.style.cursor = edgeUnder(event) ? "ew-resize" : "";
  const {time, turn} = under(event), tip = $("tip");
  tip.textContent = turn ? `${turn.speaker} · ${span(turn)}` +
    (turn.confidence === null ? "" : ` · confidence ${confidencePercent(turn)}`) : clock(clamp(time, 0, data.seconds));
  tip.hidden = false;
  tip.style.left = clamp(event.clientX + 12, 0, innerWidth - tip.offsetWidth - 4) + "px";
  tip.style.top = clamp(event.clientY + 16, 0, innerHeight - tip.offsetHeight - 4) + "px";
});
scroller.addEventListener("pointerleave", () => { $("tip").hidden = true; });
scroller.addEventListener("scroll", draw);
scroller.addEventListener("wheel", event => {
  if (!event.ctrlKey && !event.altKey) return;
  event.preventDefault();
  scale(event.deltaY < 0 ? 1.25 : .8, event.clientX - scroller.getBoundingClientRect().left);
}, {passive: false});
overview.addEventListener("click", event => {
  const time = event.offsetX / overview.clientWidth * data.seconds;
  scroller.scrollLeft = time * zoom - width() / 2;
  go(time, false);
});

// ---------------------------------------------------------------- the list, of which only what is seen is made
const list = $("list"), rows = $("rows");
let listed = "";
function drawRows(anew = false) {
  const from = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 4);
  const to = Math.min(turns.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + 4);
  if (!anew && listed === `${from}-${to}`) return;
  listed = `${from}-${to}`;
  const focus = document.activeElement, held = focus && rows.contains(focus) ? focus.dataset.turn : null;
  rows.replaceChildren(...turns.slice(from, to).map((turn, index) => {
    const place = from + index;
    const cell = (className, textContent) => make("span", {className, textContent});
    const row = make("button", {type: "button"}, swatch(turn.speaker),
      cell("soft", span(turn)), cell("name", turn.speaker),
      cell("number", ((turn.end - turn.start) / 1000).toFixed(1) + " s"), cell("number", confidencePercent(turn)));
    row.firstChild.style.opacity = opacity(turn);
    row.style.top = place * ROW_HEIGHT + "px";
    row.dataset.turn = place;
    if (turn.confidence !== null) row.lastChild.title = "Confidence";
    row.addEventListener("click", () => { choose(place); go(turn.start / 1000); });
    return row;
  }));
  if (held !== null) rows.querySelector(`[data-turn="${held}"]`)?.focus({preventScroll: true});
  mark();
}
function mark() {
  const now = audio.currentTime * 1000;
  for (const row of rows.children) {
    const {start, end} = turns[row.dataset.turn];
    if (start <= now && now < end) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
    row.setAttribute("aria-pressed", Number(row.dataset.turn) === chosen);
  }
}
list.addEventListener("scroll", () => drawRows());
list.replaceChildren(rows, make("p", {className: "soft empty", id: "none",
  textContent: data.turns.length ? "All turns are deleted." : "No speech was found."}));

// ---------------------------------------------------------------- time passes
let latest = -1;
function tick() {
  const now = audio.currentTime, at = now * zoom;
  $("head").style.transform = `translateX(${at}px)`;
  $("clock").textContent = `${clock(now)} / ${clock(data.seconds)}`;
  scroller.setAttribute("aria-valuenow", now.toFixed(1));
  scroller.setAttribute("aria-valuetext", clock(now));
  mark();
  if (!audio.paused && $("follow").checked) {
    const left = scroller.scrollLeft, wide = width();
    if (at < left || at > left + .92 * wide) scroller.scrollLeft = at - .1 * wide;
    const current = turns.findLastIndex(turn => turn.start <= now * 1000);
    if (current !== latest && current >= 0) {
      latest = current;
      const top = current * ROW_HEIGHT;
      if (top < list.scrollTop || top > list.scrollTop + list.clientHeight - 2 * ROW_HEIGHT)
        list.scrollTop = top - list.clientHeight / 3;
    }
  }
  if (!overview.hidden) paintOverview();
}
function run() {
  tick();
  if (!audio.paused) requestAnimationFrame(run);
}
audio.addEventListener("play", () => { $("play").textContent = "Pause"; run(); });
audio.addEventListener("pause", () => { $("play").textContent = "Play"; tick(); });
for (const event of ["seeked", "timeupdate"]) audio.addEventListener(event, tick);
$("play").addEventListener("click", toggle);
$("speed").addEventListener("change", event => {
  audio.playbackRate = audio.defaultPlaybackRate = Number(event.target.value);
});
$("in").addEventListener("click", () => scale(1.6));
$("out").addEventListener("click", () => scale(1 / 1.6));
$("whole").addEventListener("click", () => { touched = false; resize(); });
document.addEventListener("keydown", event => {
  const tag = event.target.tagName, typing = tag === "INPUT" && event.target.type !== "checkbox";
  if ((event.ctrlKey || event.metaKey) && !event.altKey && !typing) {
    const step = {z: event.shiftKey ? redo : undo, y: redo}[event.key.toLowerCase()];
    if (step) { event.preventDefault(); step(); }
  }
  if (event.ctrlKey || event.metaKey || event.altKey || tag === "SELECT" || typing) return;
  if (event.key === " " && (tag === "INPUT" || (tag === "BUTTON" && !event.target.dataset.turn))) return;
  const keys = {
    " ": toggle,
    ArrowLeft: () => go(audio.currentTime - 5, false),
    ArrowRight: () => go(audio.currentTime + 5, false),
    "[": () => goToTurn(-1),
    "]": () => goToTurn(1),
    "+": () => scale(1.6),
    "=": () => scale(1.6),
    "-": () => scale(1 / 1.6),
    n: () => reassign(history.newLabel()),
    s: split,
    b: () => moveEdge(false),
    e: () => moveEdge(true),
    Delete: remove,
    Backspace: remove,
  };
  if (drag && event.key === "Escape") drop();
  for (let number = 1; number <= 9; number++) keys[number] = () => reassign(tracks[number - 1]);
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
});
rows.addEventListener("keyup", event => {  // Enter plays the turn that has the focus, the space bar pauses as anywhere
  if (event.key === " ") event.preventDefault();
});
addEventListener("resize", () => { resize(); drawRows(true); });
narrow.addEventListener("change", () => { measure(); update(chosen); });

// ---------------------------------------------------------------- on paper: the whole timeline, then all that is read
const PAPER = {wide: 1500, names: 190};  // pixels of the picture, which the page shrinks to its width
const ON_PAPER = {"--line": "#dcdfe3", "--soft": "#50565d", "--wave": "#9aa2ab", "--ink": "#1c1f23"};
function timelinePicture() {
  const kept = [TRACK_HEIGHT, BAR_TOP];
  [TRACK_HEIGHT, BAR_TOP] = [26, 5];
  const high = TRACKS_TOP + tracks.length * TRACK_HEIGHT + 4, wide = PAPER.wide - PAPER.names;
  const picture = make("canvas", {width: 2 * PAPER.wide, height: 2 * high}), pen = picture.getContext("2d");
  pen.scale(2, 2);
  pen.font = "14px system-ui, sans-serif";
  pen.textBaseline = "middle";
  pen.fillStyle = ON_PAPER["--ink"];
  tracks.forEach((label, track) =>
    pen.fillText(label, 0, TRACKS_TOP + (track + .5) * TRACK_HEIGHT, PAPER.names - 12));
  pen.translate(PAPER.names, 0);
  const scale = wide / Math.max(data.seconds, .01), ink = name => ON_PAPER[name];
  paintTimeline(pen, {wide, high, left: 0, zoom: scale, ink, seen: turns});
  [TRACK_HEIGHT, BAR_TOP] = kept;
  return make("img", {src: picture.toDataURL(), alt: "Who speaks when"});
}
function table(heads, lines) {
  const row = (tag, cells) => make("tr", {}, ...cells.map(one =>
    make(tag, {}, ...(one instanceof Node ? [one] : [String(one)]))));
  return make("table", {}, make("thead", {}, row("th", heads)),
    make("tbody", {}, ...lines.map(cells => row("td", cells))));
}
const named = label => make("span", {className: "named"}, swatch(label), label);
function toPaper() {
  const total = speakingTime(), all = total.reduce((sum, seconds) => sum + seconds, 0) || 1;
  const certain = turns.some(turn => turn.confidence !== null);
  $("paper").replaceChildren(timelinePicture(),
    make("h2", {textContent: "Speakers"}),
    table(["Speaker", "Time", "Share"], tracks.map((label, track) =>
      [named(label), clock(total[track]), `${(100 * total[track] / all).toFixed(1)} %`])),
    make("h2", {textContent: "Turns"}),
    table(["", "From", "To", "Speaker", "Seconds", ...(certain ? ["Confidence"] : [])], turns.map((turn, place) =>
      [place + 1, clock(turn.start / 1000), clock(turn.end / 1000), named(turn.speaker),
        ((turn.end - turn.start) / 1000).toFixed(1), ...(certain ? [confidencePercent(turn)] : [])])));
}
addEventListener("beforeprint", toPaper);
addEventListener("afterprint", () => $("paper").replaceChildren());
media.addEventListener("change", draw);

scroller.setAttribute("aria-valuemax", data.seconds);
load();
restore();
update(-1);
keep();
tick();
}
