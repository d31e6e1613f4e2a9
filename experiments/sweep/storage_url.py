"""The URL of a sweep's storage: what kinds there are, and that nobody sees its password."""

import re
from pathlib import Path
from urllib.parse import quote, quote_plus

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from experiments.errors import StorageError

HIDDEN = "***"

_WANTED = "storage must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
_DRIVERS = {
    "sqlite": {"sqlite", "sqlite+pysqlite"},
    "postgresql": {"postgresql", "postgresql+psycopg"},
}
# Settings of libpq's that may stand behind the question mark.
_SECRET = re.compile(r"pass|secret|token|key", re.IGNORECASE)
_MAYBE_SECRET = re.compile(r"@|pass|secret|token|key", re.IGNORECASE)
# A path may have some of these signs, and is used as it is typed.
_LIKE_A_URL = re.compile(r"://|postgres[^:@/]*[:/]", re.IGNORECASE)
_IN_ARGUMENT = re.compile(
    r"((?:://|postgres[^:@/]*[:/]/*)[^:@/]*:).*(@)", re.IGNORECASE | re.DOTALL
)
_IN_QUERY = re.compile(r"([?&][^=&]*(?:pass|secret|token|key)[^=&]*=)[^&]*", re.IGNORECASE)


def parse_storage_url(url: str) -> URL:
    """Read a URL, and look at the kind of database.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://USER:PASSWORD@HOST/DATABASE``.

    Returns:
        Its parts.

    Raises:
        StorageError: If it is none, or of a database that workers can not share.
    """
    # What can not be read may have its password anywhere.
    shown = "what was given, which is not shown here" if _MAYBE_SECRET.search(url) else repr(url)
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise StorageError(f"{_WANTED}, not {shown}") from error
    if not url.isprintable():
        raise StorageError(f"{_WANTED}, not {shown}: it has unprintable characters")
    signs = url.partition("?")[0].count("@")
    if backend != "sqlite" and signs > (parsed.username is not None):
        raise StorageError(
            f"{_WANTED}, in which @ stands once; in a user's name or a password it is written %40"
        )
    if backend not in _DRIVERS or (
        backend == "sqlite" and parsed.database in {None, "", ":memory:"}
    ):
        raise StorageError(f"{_WANTED}, not {without_password(parsed)}")
    if parsed.drivername not in _DRIVERS[backend]:
        raise StorageError(
            f"{_WANTED}, without the name of a driver, not {without_password(parsed)}"
        )
    return parsed


def sqlite_url(path: Path) -> str:
    """Write the URL of a database in a file, whatever characters its name has.

    Args:
        path: The file.

    Returns:
        The URL.
    """
    return f"sqlite:///{quote(str(path), errors='surrogateescape')}"


def without_password(url: URL) -> str:
    """Write down a URL for a message.

    Args:
        url: The parts of it.

    Returns:
        The URL, passwords replaced by `HIDDEN`, those among the settings at its end too.
    """
    hidden = {name: HIDDEN for name in url.query if _SECRET.search(name)}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def hide_password(text: str, url: URL) -> str:
    """Take the passwords of a URL out of a message of another program's.

    Args:
        text: The message.
        url: The parts of the URL.

    Returns:
        The message, with `HIDDEN` in place of each password, however it is written.
    """
    values = [value for name, value in url.query.items() if _SECRET.search(name)]
    secrets = [str(url.password or "")]
    for value in values:
        secrets += [value] if isinstance(value, str) else value
    written = {form(secret) for secret in secrets for form in (str, quote, quote_plus, repr)}
    # The longest first: one may be a part of another.
    for secret in sorted(filter(None, written - {"''"}), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def hide_in_argument(argument: str) -> str:
    """Take a password out of an argument of the command line, which may be misspelt.

    Args:
        argument: What was typed.

    Returns:
        The argument; if it looks like a URL with a password, with `HIDDEN` in its place.
    """
    if not _LIKE_A_URL.search(argument):
        return argument
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_ARGUMENT.sub(rf"\1{HIDDEN}\2", argument))
