"""What archives cost, from the measured costs of a second of sound: the tables of docs/scale.md.

    python -m benchmarks.scale_capacity [--price 0.04] [--efficiency 0.9]

Core-hours are those of the processors of the measurements. Days are of cores of which the part `--efficiency` of the
time is of use, as the simulation has it. The price of a core-hour is an assumption, nothing was bought.
"""

from __future__ import annotations

import argparse

HOUR = 3600.0  # seconds
ARCHIVES = {"VoxLingua107": 6628, "a national archive": 100_000, "a million hours": 1_000_000}  # hours
CORES = (16, 200, 1000)
COSTS = {  # processor seconds of a second of sound
    "convert": 0.0037,
    "classify": 0.027,
    "embed": 0.019,
    "diarize": 0.038,
    "embed, WavLM-Base + MHFA": 0.24,
}
ROWS = {"voice": 825, "language": 2106}  # bytes of an embedding with its labels in a store
ROW_SECONDS = (3.0, 10.0)  # of sound of an embedding
SOUND = {"Opus": 3140.0, "FLAC store": 16_800.0, "WAV": 32_000.0}  # bytes of a second, 16 kHz, mono


def core_hours(hours: float, cost: float) -> float:
    """Core-hours for hours of sound."""
    return hours * cost


def days(hours: float, cost: float, cores: int, efficiency: float) -> float:
    """Days in which so many cores do it.

    Examples
    --------
    >>> days(2400, 0.1, 10, 1.0)
    1.0
    """
    return core_hours(hours, cost) / (24 * cores * efficiency)


def row_gigabytes(hours: float, seconds: float, row_bytes: float) -> float:
    """GB of embeddings, one for each so many seconds of sound."""
    return hours * HOUR / seconds * row_bytes / 1e9


def read_megabytes(sound_bytes: float, cost: float, cores: int) -> float:
    """MB a second that so many cores read."""
    return sound_bytes / cost * cores / 1e6


def short(value: float) -> str:
    """A number with two digits that count, with commas from a thousand on."""
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--price", type=float, default=0.04, help="of a core-hour")
    parser.add_argument("--efficiency", type=float, default=0.9)
    options = parser.parse_args()
    print(f"| archive | job | core-hours | {' | '.join(f'days, {cores:,} cores' for cores in CORES)} | price |")
    print("|---|---|--:|" + "--:|" * (len(CORES) + 1))
    for archive, hours in ARCHIVES.items():
        for job, cost in COSTS.items():
            took = " | ".join(short(days(hours, cost, cores, options.efficiency)) for cores in CORES)
            price = short(core_hours(hours, cost) / options.efficiency * options.price)
            print(f"| {archive} | {job} | {short(core_hours(hours, cost))} | {took} | {price} |")
    heads = [f"{name}, each {seconds:g} s" for name in ROWS for seconds in ROW_SECONDS]
    print(f"\n| archive, GB | {' | '.join([*SOUND, *heads])} |\n|---|" + "--:|" * (len(SOUND) + len(heads)))
    for archive, hours in ARCHIVES.items():
        sizes = [hours * HOUR * sound / 1e9 for sound in SOUND.values()]
        sizes += [row_gigabytes(hours, seconds, row) for row in ROWS.values() for seconds in ROW_SECONDS]
        print(f"| {archive} | {' | '.join(map(short, sizes))} |")
    print(f"\n| MB a second, 1,000 cores | {' | '.join(SOUND)} |\n|---|" + "--:|" * len(SOUND))
    for job, cost in COSTS.items():
        print(f"| {job} | {' | '.join(short(read_megabytes(sound, cost, 1000)) for sound in SOUND.values())} |")


if __name__ == "__main__":
    main()
