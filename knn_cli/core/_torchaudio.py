"""The one import of torchaudio.

torchaudio 2.11 links its compiled extension against CUDA, so that beside a CPU build of torch a plain
`import torchaudio` fails with OSError. Everything we use of it is Python; where the extension does not load, a
stand-in that says "no extension" takes its place, and the Python parts work as they are.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_EXTENSION = "torchaudio._extension"


def load_torchaudio() -> ModuleType:
    """The torchaudio package, with or without its compiled extension. Imports torch: call it late."""
    try:
        return import_module("torchaudio")
    except OSError:
        for name in [name for name in sys.modules if name == "torchaudio" or name.startswith("torchaudio.")]:
            del sys.modules[name]
        sys.modules[_EXTENSION] = _stand_in()
        return import_module("torchaudio")


def _stand_in() -> ModuleType:
    def fail_if_no_align(function: Any) -> Any:
        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError("torchaudio's forced alignment needs its compiled extension")

        return refuse

    module = ModuleType(_EXTENSION)
    vars(module).update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        fail_if_no_align=fail_if_no_align,
        _check_cuda_version=lambda: None,
    )
    return module
