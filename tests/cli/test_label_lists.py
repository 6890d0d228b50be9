"""Lists of labels as options."""

import pytest

from knn_cli.cli.label_lists import listed, parse_languages, parse_priors
from knn_cli.core.errors import KnnError


def test_labels_are_tidy() -> None:
    assert listed(" cs, ,caf\u0065\u0301,") == ["cs", "caf\u00e9"]
    assert parse_languages("") is None and parse_languages("cs,sk") == ["cs", "sk"]
    assert parse_priors("cs = 3,caf\u0065\u0301=1") == {"cs": 3.0, "caf\u00e9": 1.0}
    assert parse_priors("") is None


def test_mistakes_are_named() -> None:
    for text, message in (("cs", "'cs' is not"), ("cs=x", "'cs=x' is not"), ("cs=1,cs=2", "two priors")):
        with pytest.raises(KnnError, match=message):
            parse_priors(text)
