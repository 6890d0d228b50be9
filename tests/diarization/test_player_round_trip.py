"""The corrections of the player, made again by the program: the same turns, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from knn_cli.core.values import Diarization, Turn, sort_turns
from knn_cli.diarization import corrections
from tests.helpers.browser import BINARY, Browser
from tests.helpers.player_pages import NEEDS_BROWSER, clicks, rttm_of, write_page

# Edits of all kinds, also some that do not fit, with times that are often those of other turns.
SCRIPT = """(() => {
  let seed = SEED;
  const next = below => { seed = (seed * 48271) % 2147483647; return seed % below; };
  const pick = values => values[next(values.length)];
  const page = JSON.parse(document.getElementById("data").textContent);
  const turns = page.turns.map(([start, end, speaker]) => ({start, end, speaker: page.speakers[speaker]}));
  const history = new corrections.History(turns, page.speakers);
  for (let step = 0; step < 80; step++) {
    const {turns, speakers} = history.state, turn = pick(turns), other = pick(turns), labels = [...speakers.keys()];
    const label = pick(["Eva \\"Zoë\\" <b>", "💬", "S 1", history.newLabel(), ...labels]);
    const at = Math.min(Math.max(pick([other.start, other.end, turn.start + next(900)]), turn.start), turn.end) / 1000;
    history.add(pick([
      {edit: "merge", speaker: pick(labels), into: pick(labels)},
      {edit: "rename", speaker: pick(labels), to: label},
      corrections.about("reassign", turn, {to: label}),
      corrections.about("reassign", turn, {to: label}),
      corrections.about("split", turn, {at}),
      corrections.about("split", turn, {at}),
      corrections.about("split", turn, {at}),
      corrections.about("move", turn, {to_start: Math.max(0, turn.start + next(200) - 100) / 1000,
        to_end: Math.max(0, turn.end + next(200) - 100) / 1000}),
      corrections.about("delete", turn)]));
    if (next(4) === 0) history.done = Math.max(0, history.done - next(4));
  }
  return [corrections.json(page.recording, history.applied), files.rttm(page.file, history.state.turns)];
})()"""


@pytest.mark.skipif(BINARY is None, reason=NEEDS_BROWSER)
def test_the_program_makes_the_same_corrections(tmp_path: Path) -> None:
    sound = clicks(tmp_path / "a b.wav", 2.0)
    kinds = set()
    with Browser() as browser:
        for seed in (1, 2, 33, 100):
            rng = np.random.default_rng(seed)
            starts = rng.integers(0, 12, 20) * 0.04  # frames, so many turns begin or end together
            ends = starts + rng.integers(1, 12, 20) * 0.04
            labels = [f"SPEAKER_{label:02d}" for label in rng.integers(0, 5, 20)]
            turns = sort_turns(map(Turn, starts.tolist(), ends.tolist(), labels))
            diarization = Diarization(turns, name="a b", seconds=2.0)
            write_page(diarization, tmp_path / "page.html", sound)
            browser.open(tmp_path / "page.html")
            edits, rttm = browser.evaluate(SCRIPT.replace("SEED", str(seed)))
            (tmp_path / "corrections.json").write_text(edits, encoding="utf-8")
            name, read = corrections.read(tmp_path / "corrections.json")
            assert name == "a b" and len(read) == len(json.loads(edits)["edits"])
            kinds |= {type(edit) for edit in read}
            corrected = corrections.apply(diarization, read).turns
            assert rttm_of([(turn.start, turn.end, turn.speaker) for turn in corrected], "a b") == rttm, seed
    assert len(kinds) == 6
