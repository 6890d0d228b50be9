"""URLs as paths: what a user names by `s3://`, `gs://` or `https://` goes through the program as files do.

A `UrlPath` has the name, the suffix and the folders of a path, and shows neither credentials nor a query, which may
hold a signature. `core.url_reading` reads what is there; nothing else looks at a URL.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

__all__ = ["UrlPath", "as_source", "is_url", "shown"]

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/.*", re.IGNORECASE | re.DOTALL)  # one letter is a drive
_START = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)", re.IGNORECASE)
WEB_SCHEMES = ("http", "https")
_WITH_CONTAINERS = ("abfs", "abfss")  # what stands before @ is no user

if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # only these can be inherited from before Python 3.12


class UrlPath(_Path):
    """The path of a URL; `of` makes it.

    Two are equal if they show the same and have the same query.

    Attributes
    ----------
    url : str
        The URL with its credentials and query.

    Examples
    --------
    >>> from knn_cli.core.urls import UrlPath
    >>> path = UrlPath.of("https://eva:secret@example.org/cs/My%20talk.wav?signature=1")
    >>> str(path), path.name, path.parent.name
    ('https://example.org/cs/My talk.wav', 'My talk.wav', 'cs')
    """

    _url = ""

    @classmethod
    def of(cls, url: str) -> UrlPath:
        """The path of a URL."""
        path = cls(shown(url))
        path._url = url
        return path

    @property
    def url(self) -> str:
        """The URL with its credentials and query."""
        return self._url or str(self)

    @property
    def scheme(self) -> str:
        """What stands before the colon, in lower case."""
        return self.url.partition(":")[0].lower()

    @property
    def _query(self) -> str:
        return urlsplit(self._url).query if self.scheme in WEB_SCHEMES else ""

    def __str__(self) -> str:
        text = super().__str__().replace("\\", "/")
        return _START.sub(r"\1:///" if text.startswith("file:") else r"\1://", text, count=1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UrlPath) and (str(self), self._query) == (str(other), other._query)

    def __hash__(self) -> int:
        return hash((str(self), self._query))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (UrlPath.of, (self._url,)) if self._url else (UrlPath, (str(self),))

    def absolute(self) -> UrlPath:
        """The path itself."""
        return self

    def resolve(self, strict: bool = False) -> UrlPath:
        """The path itself."""
        return self


def is_url(text: str) -> bool:
    """Whether a text that names a source is a URL; one whose slashes have become one, as in paths, is too."""
    return _URL.fullmatch(text) is not None


def as_source(path: Path) -> Path:
    """A path as users name sources: the path of the URL where it is one, else what it is."""
    text = path.as_posix()
    if isinstance(path, UrlPath) or not is_url(text):
        return path
    return UrlPath.of(_START.sub(r"\1:///" if text.startswith("file:") else r"\1://", text, count=1))


def shown(url: str) -> str:
    """A URL as messages and outputs have it: without user and password, and without the query of a web address.

    Examples
    --------
    >>> from knn_cli.core.urls import shown
    >>> shown("https://eva:secret@example.org/a.wav?X-Amz-Signature=1"), shown("s3://bucket/a.wav")
    ('https://example.org/a.wav', 's3://bucket/a.wav')
    """
    scheme, _, rest = url.partition(":")
    authority, slash, path = rest.lstrip("/").partition("/")
    if scheme.lower() == "file":
        return f"file:///{rest.lstrip('/')}"
    if scheme.lower() not in _WITH_CONTAINERS:
        authority = authority.rpartition("@")[2]
    if scheme.lower() in WEB_SCHEMES:
        authority, path = authority.partition("?")[0], unquote(re.split("[?#]", path, maxsplit=1)[0])
    return f"{scheme}://{authority}{slash}{path}"
