"""Settings that `knn tune` chooses among, the grid of them that it tries, and the file that it writes.

The file is TOML with a line for each setting that is not the default, and `knn diarize --preset FILE` takes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from knn_cli.cli.diarization_settings import CLUSTERING_SETTINGS, DiarizationSettings, choose_options
from knn_cli.cli.limits import MOST_COUNT, MOST_SECONDS, Limits
from knn_cli.cli.settings import read_settings, setting
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from knn_cli.diarization.options import DiarizationOptions
    from knn_cli.diarization.segmentation import Segmenter
    from knn_cli.embedding.embedder import Embedder

_LENGTHS = ("min_turn", "max_gap", "margin")
_SECONDS = Limits(0, MOST_SECONDS)
MOST_SETTINGS = 10_000
SILERO = "silero"


@dataclass(frozen=True)
class TunableSettings:
    """Settings of a diarization that are chosen together; None leaves each to the default.

    `preset` and `segmentation` change the windows, so each value of them takes an analysis of its own.
    """

    clusterer: Literal["ahc", "spectral", "vbx", "hdbscan"] | None = setting(None, "ahc, spectral, vbx, hdbscan")
    linkage: Literal["average", "centroid", "ward"] | None = setting(None, "ahc: average, centroid, ward")
    distance_threshold: float | None = setting(None, "ahc, vbx: 0 to 2", Limits(0, 2))
    min_cluster_size: int | None = setting(None, "ahc, hdbscan: embeddings", Limits(1, MOST_COUNT))
    min_turn: float | None = setting(None, "s", _SECONDS)
    max_gap: float | None = setting(None, "s", _SECONDS)
    margin: float | None = setting(None, "s", _SECONDS)
    preset: Literal["pyannote-3.1", "pyannote-community-1"] | None = setting(None, "other windows: pyannote-3.1, ...")
    segmentation: str | None = setting(None, "other windows: a network, silero")

    @property
    def values(self) -> dict[str, Any]:
        """The settings that are not the default."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    @property
    def name(self) -> str:
        """The settings as NAME=VALUE, with spaces between."""
        return " ".join(f"{name}={value}" for name, value in self.values.items()) or "(default)"

    @property
    def options(self) -> DiarizationOptions:
        """The same as options of the diarizer. KnnError for settings that cannot be combined."""
        if self.preset is not None:
            for name in ("clusterer", *CLUSTERING_SETTINGS):
                if getattr(self, name) is not None:
                    raise KnnError(f"The settings preset and {name} cannot be combined.", "Choose one of them.")
        lengths = {name: getattr(self, name) for name in _LENGTHS}
        settings = DiarizationSettings(**{name: getattr(self, name) for name in CLUSTERING_SETTINGS})
        options = choose_options(self.clusterer, self.preset, settings, lengths)
        if self.segmentation == SILERO:
            return replace(options, vad=SILERO)
        return replace(options, segmentation=self.segmentation)


def _rows(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination of the values of settings."""
    return [dict(zip(values, row, strict=True)) for row in product(*values.values())]


# What is tried unless `--grid` says something else: each clustering with each pair of a margin and a pause. They need
# no other windows than the default.
_CLUSTERINGS: tuple[dict[str, Any], ...] = (
    {},
    *_rows(clusterer=["spectral"]),
    *_rows(clusterer=["vbx"], distance_threshold=[0.5, 0.6, 0.7, 0.8]),
    *_rows(clusterer=["ahc"], linkage=["average"], distance_threshold=[0.6, 0.65, 0.7, 0.75, 0.8]),
    *_rows(clusterer=["ahc"], linkage=["centroid"], distance_threshold=[0.2, 0.25, 0.3, 0.35]),
)
_TURNS = _rows(max_gap=[None, 0.2, 0.8], margin=[None, 0.0, 0.1, 0.3])


def default_grid(with_plda: bool) -> list[TunableSettings]:
    """The settings that are tried where none are asked for, the default first; vbx where the model has a PLDA."""
    clusterings = [each for each in _CLUSTERINGS if with_plda or each.get("clusterer") != "vbx"]
    return [TunableSettings(**each, **turns) for each in clusterings for turns in _TURNS]


def read_grid(pairs: Iterable[str]) -> list[TunableSettings]:
    """Every combination of the values in NAME=V1,V2,... pairs, after the default.

    A combination with a setting that its clustering method does not take is left out.

    Raises
    ------
    KnnError
        For a name or a value that there is not, a name given twice, settings that no combination takes, and for more
        than MOST_SETTINGS combinations.
    """
    values: dict[str, list[Any]] = {}
    count = 1
    for pair in pairs:
        name, _, texts = pair.partition("=")
        name = name.strip().replace("-", "_")
        if name in values:
            raise KnnError(f"The grid gives {name} twice.", "Give all of its values at once, with commas between.")
        read = [read_settings(TunableSettings, [f"{name}={text}"]) for text in texts.split(",")]
        values[name] = list(dict.fromkeys(getattr(one, name) for one in read))
        count *= len(values[name])
        if count > MOST_SETTINGS:
            raise KnnError(f"The grid asks for more than {MOST_SETTINGS} settings.", "Give fewer values.")
    grid, reason = [TunableSettings()], None
    for row in _rows(**values):
        settings = TunableSettings(**row)
        try:
            _ = settings.options
        except KnnError as error:
            reason = error
            continue
        grid.append(settings)
    if reason is not None and len(grid) == 1:
        raise reason
    return list(dict.fromkeys(grid))


def read_file(path: Path) -> TunableSettings:
    """Read a file of settings. KnnError where it cannot be read, is not TOML, or has what is no such setting."""
    from knn_cli.core.toml_files import read_toml

    table = read_toml(path, "file of settings", "`knn tune` writes such files; see docs/tuning.md.")
    for name, value in table.items():
        if isinstance(value, (dict, list, bool)) or not isinstance(value, (str, int, float)):
            raise KnnError(f"{name} in {path} is no setting.", "Settings are texts and numbers.")
    try:
        return read_settings(TunableSettings, [f"{name}={value}" for name, value in table.items()])
    except KnnError as error:
        raise KnnError(f"{path}: {error.message}", error.hint) from error


def file_text(settings: TunableSettings, comments: Iterable[str]) -> str:
    """The text of a file of settings, with comments before them."""
    lines = [f"# {comment}" for comment in comments]
    values = settings.values
    if (network := values.get("segmentation")) and Path(network).exists():
        values["segmentation"] = str(Path(network).resolve())  # the file is used in other folders too
    lines += [f"{name} = {_toml(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def chosen_options(
    clusterer: str | None,
    preset: str | None,
    settings: DiarizationSettings,
    lengths: Mapping[str, float | None],
    segmentation: str | None,
) -> DiarizationOptions:
    """Options of a preset, a file of settings or a clustering method, with the lengths and the network that are given.

    Raises KnnError for a preset that there is not, and as `choose_options` and `read_file`.
    """
    if preset is None:
        options = choose_options(clusterer, None, settings, lengths)
    else:
        given: dict[str, Any] = {name: value for name, value in lengths.items() if value is not None}
        chosen = _preset(preset)
        segmentation = segmentation or chosen.segmentation
        options = replace(chosen, **given).options
    network = None if segmentation == SILERO else segmentation
    return replace(options, vad="ours" if network == segmentation else SILERO, segmentation=network)


def _preset(preset: str) -> TunableSettings:
    """The settings of a preset, or of a file."""
    from knn_cli.diarization.presets import PRESETS

    if preset in PRESETS:
        return TunableSettings(preset=preset)  # type: ignore[arg-type]
    if not (path := Path(preset)).exists():
        raise KnnError(
            f"There is no preset {preset!r}.", f"There are {', '.join(PRESETS)}, or name a file of settings."
        )
    return read_file(path)


def check_kept(preset: str | None, options: DiarizationOptions, kept: Path) -> None:
    """Raise KnnError where a file of settings asks for a segmentation network beside a kept analysis."""
    if preset is not None and (options.vad == SILERO or options.segmentation is not None):
        raise KnnError(f"The segmentation in {preset} needs the sound, not {kept}.", "Diarize the sound itself.")


def segmenter_of(options: DiarizationOptions, embedder: Embedder) -> Segmenter | None:
    """The segmentation network of options, loaded; None for silero-vad."""
    from knn_cli.diarization.segmentation import Segmenter

    if options.vad == SILERO:
        return None
    network = options.segmentation
    return network if isinstance(network, Segmenter) else Segmenter(network, embedder=embedder)
