"""On what a measurement was made."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib import metadata
from pathlib import Path

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
PACKAGES = ("torch", "transformers", "scikit-learn", "h5py", "distributed", "onnxruntime")
CPU_INFO = Path("/proc/cpuinfo")  # Linux only


def processor() -> str:
    """The processor's model, and which of the features it has that products of matrices use."""
    fields = {}
    if CPU_INFO.exists():
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    model = fields.get("model name") or platform.processor() or platform.machine()
    known = fields.get("flags", "").split()
    return " ".join([model, *(f"+{name}" for name in FEATURES if name in known)])


def is_quiet(load: float) -> bool:
    """Whether the processes that ran in the last minute, on average, left the processors to a measurement."""
    return load < 0.5


def describe() -> dict[str, str | float | int]:
    """Date, processor, load and versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": date.today().isoformat(),
        "processor": processor(),
        "processors": os.cpu_count() or 1,
        "system": platform.system(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **versions,
    }
