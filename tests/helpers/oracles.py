"""Other programs that tests and benchmarks compare with, imported where their compiled parts do not load.

torchaudio 2.11 links its extension against CUDA, so that beside a CPU build of torch `import torchaudio` fails with
OSError, and so do parts of transformers, which import it where it is installed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def load_torchaudio() -> ModuleType:
    """torchaudio with its Python parts; a stand-in takes the place of an extension that does not load."""
    try:
        return import_module("torchaudio")
    except OSError:
        for name in [name for name in sys.modules if name == "torchaudio" or name.startswith("torchaudio.")]:
            del sys.modules[name]
        extension = ModuleType("torchaudio._extension")
        vars(extension).update(
            _IS_TORCHAUDIO_EXT_AVAILABLE=False,
            _IS_ALIGN_AVAILABLE=False,
            fail_if_no_align=lambda function: function,
            _check_cuda_version=lambda: None,
        )
        sys.modules["torchaudio._extension"] = extension
        return import_module("torchaudio")


def load_transformers() -> Any:
    """transformers, which is told that torchaudio is not installed. ImportError where transformers is not."""
    transformers = import_module("transformers")
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "transformers" and "is_torchaudio_available" in vars(module):
            module.is_torchaudio_available = lambda: False  # type: ignore[attr-defined]
    return transformers
