"use strict";
{
const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const turns = data.turns.map(([start, end, speaker, confidence], place) => ({start, end, speaker, confidence, place}));
const names = [...data.speakers];  // as edited; turns keep the index of their original speaker
const audio = $("audio"), scroller = $("scroller"), canvas = $("canvas"), overview = $("overview");
const peaks = Int8Array.from(atob(data.peaks), letter => letter.charCodeAt(0));
const WAVE_HEIGHT = 96, AXIS_HEIGHT = 22, TRACK_HEIGHT = 26, ROW_HEIGHT = 34;  // pixels
const TRACKS_TOP = WAVE_HEIGHT + AXIS_HEIGHT, MAX_ZOOM = 400;  // pixels; pixels per second
const media = matchMedia("(prefers-color-scheme: dark)");
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
  const turn = step > 0 ? turns.find(turn => turn.start > now + 1)
    : turns.filter(turn => turn.start < now - (audio.paused ? 1 : 1000)).pop();
  if (turn) go(turn.start / 1000, !audio.paused);
}

// ---------------------------------------------------------------- names
// Speakers with the same name count as one speaker, with the track and the colour of the first of them.
const first = speaker => names.indexOf(names[speaker]);
let tracks = [], trackOf = [], colours = [];
function regroup() {
  tracks = names.map((_, speaker) => speaker).filter(speaker => first(speaker) === speaker);
  trackOf = names.map((_, speaker) => tracks.indexOf(first(speaker)));
  colours = names.map((_, speaker) => data.colours[first(speaker) % data.colours.length]);
}
function speakingTime() {  // seconds per track; overlapping turns of one speaker are counted once
  const total = tracks.map(() => 0), until = tracks.map(() => 0);
  for (const {start, end, speaker} of turns) {
    const track = trackOf[speaker];
    total[track] += Math.max(0, end - Math.max(start, until[track]));
    until[track] = Math.max(end, until[track]);
  }
  return total.map(milliseconds => milliseconds / 1000);
}
const swatch = speaker => {
  const square = make("span", {className: "swatch"});
  square.style.background = colours[speaker];
  return square;
};
function drawNames() {
  const total = speakingTime(), all = total.reduce((sum, seconds) => sum + seconds, 0) || 1;
  $("names").replaceChildren(...tracks.map(speaker => {
    const row = make("div", {title: names[speaker]}, swatch(speaker), make("span", {textContent: names[speaker]}));
    row.style.height = TRACK_HEIGHT + "px";
    return row;
  }));
  [...$("speakers").children].forEach((row, speaker) => {
    const track = trackOf[speaker], isFirst = tracks[track] === speaker, share = total[track] / all;
    row.querySelector(".swatch").style.background = colours[speaker];
    const length = total[track] < 60 ? total[track].toFixed(1) + " s" : clock(total[track], 0);
    row.querySelector(".share").textContent = isFirst ? `${length} · ${(100 * share).toFixed(1)} %` : "counted above";
    const bar = row.querySelector("i");
    bar.style.width = isFirst ? 100 * share + "%" : "0";
    bar.style.background = colours[speaker];
  });
  const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  $("about").textContent = [clock(data.seconds, 0), count(tracks.length, "speaker"), count(turns.length, "turn")]
    .join(" · ");
}
function rename(speaker, text) {
  const name = text.trim();
  if (name) names[speaker] = name;
  regroup();
  resize();
  drawNames();
  drawRows(true);
}
names.forEach((name, speaker) => {
  const input = make("input", {value: name, spellcheck: false, autocomplete: "off"});
  input.setAttribute("aria-label", `Name of ${name}`);
  input.addEventListener("input", () => rename(speaker, input.value));
  input.addEventListener("change", () => { input.value = names[speaker]; });
  input.addEventListener("keydown", event => { if (event.key === "Enter") input.blur(); });
  const track = make("span", {className: "track"}, make("i"));
  $("speakers").append(make("li", {}, make("span", {className: "swatch"}), input,
    make("span", {className: "share soft"}), track));
});
$("hint").textContent = [names.length > 1 ? "Speakers with the same name are merged." : "",
  turns.some(turn => turn.confidence !== null) ? "The paler a turn, the less certain its speaker." : ""].join(" ");

// ---------------------------------------------------------------- RTTM, as knn writes it
const word = text => text.split(/[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/)
  .filter(Boolean).join("_") || "<NA>";
const fixed = milliseconds => `${Math.floor(milliseconds / 1000)}.${String(milliseconds % 1000).padStart(3, "0")}`;
const line = ({start, end, speaker}) =>
  `SPEAKER ${data.file} 1 ${fixed(start)} ${fixed(end - start)} <NA> <NA> ${word(names[speaker])} <NA> <NA>\n`;
$("save").addEventListener("click", () => {
  const address = URL.createObjectURL(new Blob(turns.map(line), {type: "text/plain"}));
  make("a", {href: address, download: `${data.file}.rttm`}).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
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
  const pen = canvas.getContext("2d"), wide = width(), high = parseFloat(canvas.style.height);
  const left = scroller.scrollLeft;
  const begin = left / zoom, end = (left + wide) / zoom, x = seconds => seconds * zoom - left;
  pen.clearRect(0, 0, wide, high);
  // Lines between tracks and at times
  pen.fillStyle = colour("--line");
  tracks.forEach((_, track) => pen.fillRect(0, TRACKS_TOP + track * TRACK_HEIGHT, wide, 1));
  const step = STEPS.find(step => step * zoom >= 72) || STEPS[STEPS.length - 1];
  const digits = step >= 1 ? 0 : step >= .1 ? 1 : 2;
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  for (let number = Math.ceil(begin / step); number * step <= end; number++) {
    const at = Math.round(x(number * step)), text = clock(number * step, digits);
    const half = pen.measureText(text).width / 2;
    pen.fillStyle = colour("--line");
    pen.fillRect(at, TRACKS_TOP, 1, high);
    pen.fillStyle = colour("--soft");
    if (number * step <= data.seconds)
      pen.fillText(text, clamp(at - half, 2, wide - 2 * half - 2), WAVE_HEIGHT + AXIS_HEIGHT / 2);
  }
  // Turns, and the speaker of each column of the waveform
  const columnSpeaker = new Int16Array(wide).fill(-1);
  const seen = turns.filter(turn => turn.end >= begin * 1000 && turn.start <= end * 1000);
  for (const turn of seen) {
    const from = x(turn.start / 1000), to = Math.max(from + 1.5, x(turn.end / 1000));
    columnSpeaker.fill(turn.speaker, Math.max(0, Math.round(from)), Math.max(0, Math.round(to)));
    pen.globalAlpha = opacity(turn);
    pen.fillStyle = colours[turn.speaker];
    pen.beginPath();
    const top = TRACKS_TOP + trackOf[turn.speaker] * TRACK_HEIGHT + 5;
    pen.roundRect(from, top, to - from, TRACK_HEIGHT - 9, Math.min(4, (to - from) / 3));
    pen.fill();
  }
  pen.globalAlpha = 1;
  const middle = WAVE_HEIGHT / 2, tall = (WAVE_HEIGHT - 10) / 254, bins = peaks.length / 2;
  const wave = colour("--wave");
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
    const style = columnSpeaker[column] < 0 ? wave : colours[columnSpeaker[column]];
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
    pen.fillStyle = colours[turn.speaker];
    const length = Math.max(1, (turn.end - turn.start) / 1000 * per);
    pen.fillRect(turn.start / 1000 * per, 4 + trackOf[turn.speaker] * high, length, Math.max(1, high - .5));
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
  const turn = track < 0 ? null : turns.filter(({start, end, speaker}) => trackOf[speaker] === track &&
    start - slack <= time * 1000 && time * 1000 <= end + slack).pop();
  return {time, turn};
}
const confidencePercent = turn => turn.confidence === null ? "" : `${Math.round(100 * turn.confidence)} %`;
scroller.addEventListener("click", event => {
  const {time, turn} = under(event);
  go(turn ? turn.start / 1000 : time);
});
scroller.addEventListener("pointermove", event => {
  const {time, turn} = under(event), tip = $("tip");
  tip.textContent = turn ? `${names[turn.speaker]} · ${clock(turn.start / 1000)} – ${clock(turn.end / 1000)}` +
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
let shown = "";
function drawRows(anew = false) {
  const from = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 4);
  const to = Math.min(turns.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + 4);
  if (!anew && shown === `${from}-${to}`) return;
  shown = `${from}-${to}`;
  const focus = document.activeElement, held = focus && rows.contains(focus) ? focus.dataset.turn : null;
  rows.replaceChildren(...turns.slice(from, to).map(turn => {
    const cell = (className, textContent) => make("span", {className, textContent});
    const row = make("button", {type: "button"}, swatch(turn.speaker),
      cell("soft", `${clock(turn.start / 1000)} – ${clock(turn.end / 1000)}`), cell("name", names[turn.speaker]),
      cell("number", ((turn.end - turn.start) / 1000).toFixed(1) + " s"), cell("number", confidencePercent(turn)));
    row.firstChild.style.opacity = opacity(turn);
    row.style.top = turn.place * ROW_HEIGHT + "px";
    row.dataset.turn = turn.place;
    if (turn.confidence !== null) row.lastChild.title = "Confidence";
    row.addEventListener("click", () => go(turn.start / 1000));
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
  }
}
list.addEventListener("scroll", () => drawRows());
rows.style.height = turns.length * ROW_HEIGHT + "px";
if (!turns.length) list.replaceChildren(make("p", {className: "soft empty", textContent: "No speech was found."}));

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
  const tag = event.target.tagName;
  if (event.ctrlKey || event.metaKey || event.altKey || tag === "SELECT" ||
    (tag === "INPUT" && event.target.type !== "checkbox")) return;
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
  };
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
});
rows.addEventListener("keyup", event => {  // Enter plays the turn that has the focus, the space bar pauses as anywhere
  if (event.key === " ") event.preventDefault();
});
addEventListener("resize", () => { resize(); drawRows(true); });
media.addEventListener("change", draw);

regroup();
scroller.setAttribute("aria-valuemax", data.seconds);
load();
resize();
drawNames();
drawRows(true);
tick();
}
