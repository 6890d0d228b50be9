"""The settings of `knn diarize` for `--set`, and the choice of a clustering method with its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from knn_cli.cli.limits import MOST_COUNT, Limits
from knn_cli.cli.settings import setting
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    import typer

    from knn_cli.diarization.options import DiarizationOptions


@dataclass(frozen=True)
class DiarizationSettings:
    """Rarely used settings of `knn diarize`; None leaves each to the method."""

    linkage: Literal["average", "centroid", "ward"] | None = setting(None, "ahc: average, centroid, ward")
    distance_threshold: float | None = setting(None, "ahc, vbx: 0 to 2", Limits(0, 2))
    min_cluster_size: int | None = setting(None, "ahc, hdbscan: embeddings", Limits(1, MOST_COUNT))
    identification_threshold: float | None = setting(None, "cosine", Limits(-1, 1))
    linking_threshold: float | None = setting(None, "cosine", Limits(-1, 1))
    silence_threshold: float | None = setting(None, "dB", Limits(-200, 200))


# Name in `--set` -> name of the parameter of the clustering methods.
CLUSTERING_SETTINGS = {"linkage": "linkage", "distance_threshold": "threshold", "min_cluster_size": "minimum_size"}
_SETTINGS_NEED = {  # settings that have no effect without an option
    "identification_threshold": "speakers",
    "linking_threshold": "link_speakers",
    "silence_threshold": "max_silence",
}


def choose_options(
    clusterer: str | None, preset: str | None, settings: DiarizationSettings, lengths: Mapping[str, float | None]
) -> DiarizationOptions:
    """Options of a preset or of a clustering method with its settings, and the `lengths` in seconds that are given.

    Raises KnnError for a setting that the method does not take.
    """
    from knn_cli.core.registry import CLUSTERERS
    from knn_cli.diarization.options import DiarizationOptions
    from knn_cli.diarization.presets import PRESETS

    given: dict[str, Any] = {name: seconds for name, seconds in lengths.items() if seconds is not None}
    if preset is not None:
        return replace(PRESETS[preset], **given)
    chosen = {name: value for name in CLUSTERING_SETTINGS if (value := getattr(settings, name)) is not None}
    if not chosen:
        return DiarizationOptions(clusterer=clusterer, **given)
    clusterer = clusterer or "vbx"
    takes = {name: {field.name for field in fields(CLUSTERERS.get(name))} for name in CLUSTERERS.names()}  # type: ignore[arg-type]
    for name in chosen:
        if CLUSTERING_SETTINGS[name] not in takes[clusterer]:
            others = " or ".join(
                f"--clusterer {method}" for method in takes if CLUSTERING_SETTINGS[name] in takes[method]
            )
            raise KnnError(f"{name} is not a setting of {clusterer}.", f"Use it with {others}.")
    if not 0 <= chosen.get("distance_threshold", 0) <= 2:
        raise KnnError(
            f"The distance threshold {chosen['distance_threshold']:g} is not a cosine distance.", "Give 0 to 2."
        )
    arguments = {CLUSTERING_SETTINGS[name]: value for name, value in chosen.items()}
    if clusterer == "vbx":
        arguments["starts"] = 0  # one start, at that distance
    return DiarizationOptions(clusterer=clusterer, clusterer_settings=arguments, **given)


def check_settings(ctx: typer.Context, settings: DiarizationSettings) -> None:
    """Raise KnnError for a setting without the option that it belongs to."""
    for name, option in _SETTINGS_NEED.items():
        if getattr(settings, name) is not None and not ctx.params[option]:
            raise KnnError(f"The setting {name} requires --{option.replace('_', '-')}.", "Add it.")
    if ctx.params["preset"] is not None:
        for name in CLUSTERING_SETTINGS:
            if getattr(settings, name) is not None:
                raise KnnError(f"--preset and the setting {name} cannot be combined.", "Choose one of them.")
