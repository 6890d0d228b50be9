"""Self-contained HTML pages from Jinja2 templates: values are escaped, styles and scripts are inlined."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from knn_cli.core.visible_text import visible_lines

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup


@dataclass(frozen=True)
class InlineAsset:
    """A style sheet or script that is inlined into a page.

    Attributes
    ----------
    text : Markup
        Its source, which the template does not escape.
    sha256 : str
        Base64 digest of the source, by which a content security policy allows it.
    """

    text: Markup
    sha256: str


def load_template(package: str, name: str) -> Template:
    """Return a template of the folder `templates` of a package; every value is escaped unless it is Markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template(name)


def _shown(value: Any) -> Any:
    """A value of a page without hidden characters; Markup as it is."""
    return visible_lines(value) if type(value) is str else value


def load_asset(package: str, name: str) -> InlineAsset:
    """Return a style sheet or script of the folder `templates` of a package."""
    from markupsafe import Markup

    text = (files(package) / "templates" / name).read_text(encoding="utf-8")
    return InlineAsset(Markup(text), base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())
