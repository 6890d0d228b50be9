"""Templates: values are escaped, styles and scripts are not; both come from the package, as in a wheel."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
from jinja2 import UndefinedError

from knn_cli.formats.html_templates import load_asset, load_template

HOSTILE = '</script><img src=x onerror=alert(1)> & "q"'
ASSETS = ("player_corrections.js", "player.js", "player.css")


def render(**values: object) -> str:
    *scripts, style = (load_asset("knn_cli.formats", name) for name in ASSETS)
    context = {"title": HOSTILE, "data": {"kind": "x", "name": HOSTILE}, "sound": ["YQ=="], "scripts": scripts}
    return load_template("knn_cli.formats", "player.html").render({**context, "style": style, **values})


def test_values_are_escaped_and_data_reads_back() -> None:
    page = render()
    assert "<img" not in page and page.count("<h1>&lt;/script&gt;&lt;img src=x") == 1
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None and json.loads(data[1]) == {"kind": "x", "name": HOSTILE}


def test_assets_are_put_in_whole_with_their_digest() -> None:
    page = render()
    for name in ASSETS:
        asset = load_asset("knn_cli.formats", name)
        assert asset.text in page and f"'sha256-{asset.sha256}'" in page
        assert asset.sha256 == base64.b64encode(hashlib.sha256(asset.text.encode()).digest()).decode()


def test_a_missing_value_is_an_error() -> None:
    template = load_template("knn_cli.formats", "player.html")
    with pytest.raises(UndefinedError):
        template.render(title="x")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_values_that_it_does_not_know(value: float) -> None:
    with pytest.raises(ValueError):
        render(data={"kind": "x", "seconds": value})
