"""Which files CreateVideo may take."""

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec

from keek_server.errors import InvalidArgumentError, SetupError

_LOCAL = ("", "file", "local")
_WEB = ("http", "https")
_UNQUOTED_TIMES = 8


def check_prefixes(prefixes: Iterable[str]) -> None:
    """Looks whether files can be read that lie under the prefixes.

    Raises:
        SetupError: When fsspec does not know one, or lacks a library for it.
    """
    for prefix in prefixes:
        try:
            fsspec.get_filesystem_class(urlsplit(prefix).scheme or "file")
        except (ImportError, ValueError) as error:
            raise SetupError(f"cannot take videos from {prefix}: {error} (KEEK_VIDEO_SOURCES)") from error


def is_web(url: str) -> bool:
    """Whether a web server has it."""
    return urlsplit(url).scheme in _WEB


def check_source(url: str, prefixes: Iterable[str], own: Iterable[str]) -> str:
    """What a caller named, made plain: without `..` and symbolic links. Asks the local disk.

    Args:
        url: A path or a URL.
        prefixes: Under one of them it must lie.
        own: Folders of the server's own files, which it removes: one that another video names, too, must
            not be among them.

    Raises:
        InvalidArgumentError: When it is not allowed.
    """
    plain = _plain(url)
    if not any(_lies_under(plain, _plain(prefix)) for prefix in prefixes):
        raise _refused("lies under no prefix that this server allows")
    if any(_lies_under(plain, _plain(folder)) for folder in own):
        raise _refused("lies where the server keeps its own files")
    return plain


def _plain(url: str) -> str:
    """A URL without relative parts; of a local file, with the real path."""
    # For fsspec, `::` begins the URL of another storage.
    if "::" in url:
        raise _refused("must not be a chain of URLs")
    if not url.isprintable():
        raise _refused("has characters that cannot be shown")
    parts = urlsplit(url)
    if parts.scheme in _LOCAL:
        return f"file://{_real_path(url.removeprefix(f'{parts.scheme}://'))}"
    # Only the web knows a query, where `/` may well be encoded; for others it is part of the path.
    path = parts.path if is_web(url) else url.partition("://")[2]
    unquoted = _unquoted(path)
    if "\\" in unquoted or unquoted.count("/") != path.count("/"):
        raise _refused("has encoded separators")
    if any(segment in (".", "..") for segment in unquoted.split("/")):
        raise _refused("has relative parts")
    return url


def _real_path(path: str) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:  # the latter for links that form a circle
        raise _refused("is no path") from error


def _unquoted(path: str) -> str:
    """Unquoted until nothing changes: who serves the file may do so more than once."""
    for _ in range(_UNQUOTED_TIMES):
        plain = unquote(path)
        if plain == path:
            return plain
        path = plain
    raise _refused("is encoded too often")


def _lies_under(url: str, prefix: str) -> bool:
    return url == prefix or url.startswith(prefix.rstrip("/") + "/")


def _refused(description: str) -> InvalidArgumentError:
    return InvalidArgumentError.of("source_url", description)
