"""HTML pages that stand alone, from Jinja2 templates: values are escaped, styles and scripts are put into the page."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup


@dataclass(frozen=True)
class InlineAsset:
    """A style sheet or a script to be put into a page.

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
    """A template of the folder `templates` of a package, with every value escaped unless it is Markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template(name)


def load_asset(package: str, name: str) -> InlineAsset:
    """A style sheet or script of the folder `templates` of a package."""
    from markupsafe import Markup

    text = (files(package) / "templates" / name).read_text(encoding="utf-8")
    return InlineAsset(Markup(text), base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())
