"""Help pages are drawn by typer with rich, of which half the time went into parts that they do not show."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

# What `typer.rich_utils` imports for help written in Markdown and for its own tracebacks: ours has neither.
UNUSED = {"rich.markdown": "Markdown", "rich.traceback": "Traceback"}


def import_drawing() -> None:
    """Import what draws help pages and usage errors, with empty classes in the place of what is not used."""
    if "typer.rich_utils" in sys.modules:
        return
    placed = []
    for name, attribute in UNUSED.items():
        if name not in sys.modules:
            module = ModuleType(name)
            setattr(module, attribute, type(attribute, (), {}))
            sys.modules[name] = module
            placed.append(name)
    try:
        import_module("typer.rich_utils")
    finally:
        for name in placed:  # so that whoever needs it later imports it
            del sys.modules[name]
