"""The errors that `helpers` raises on purpose, one class for each kind of problem.

Every message says what is wrong, with the value, and what to do next. A notebook shows only that
message, without a traceback through library code.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

SHOWN_CHARACTERS = 2_000  # of one message
# A user name and password in an address: up to the last @ before the path, or with a / in the password.
_CREDENTIALS = re.compile(r"(?<=://)(?:[^/?#\s]*@|[^/?#\s:]*:(?!\d+[/?#])\S*@)")
_INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")  # control, format (bidirectional marks), private, surrogates, breaks


def printable(text: object, limit: int = SHOWN_CHARACTERS) -> str:
    """A text that is safe to show in a terminal and a notebook, whoever wrote it: a server, a file or a reader.

    Control characters and marks that change the writing direction become escapes, a user name and password in a URL
    are removed, and a text of more than `limit` characters loses its middle.

    >>> printable("\\x1b[31mred, from http://me:secret@host/x")
    '\\\\x1b[31mred, from http://…@host/x'
    """
    text = _CREDENTIALS.sub("…@", _shortened(str(text), 10 * limit))
    text = _shortened(text, limit)
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _INVISIBLE and character not in "\n\t\u200c\u200d"
        else character
        for character in text
    )


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[len(text) - limit // 2 :]}"


@dataclass(frozen=True)
class Setting:
    """A setting that a message recommends: an argument of the public functions, and a value for it.

    >>> print("Use", Setting("do_sample", False))
    Use do_sample=False
    """

    name: str
    value: object

    def __str__(self) -> str:
        return f"{self.name}={json.dumps(self.value) if isinstance(self.value, str) else self.value}"


class HelpersError(Exception):
    """Base class of every error that `helpers` raises on purpose. Its text is `printable`.

    Its message consists of `parts`, strings and `Setting`s, so that a program with other names for the same settings
    can use its own names: `worded(spell)` inserts what `spell` returns for each `Setting`.

    >>> error = HelpersError("For the most likely token use ", Setting("do_sample", False), ".")
    >>> print(error)
    For the most likely token use do_sample=False.
    >>> error.worded({Setting("do_sample", False): "--greedy"}.get)
    'For the most likely token use --greedy.'
    """

    def __init__(self, *parts: object) -> None:
        super().__init__("".join(map(str, parts)))
        self.parts = parts

    def __str__(self) -> str:
        return self.worded(str)

    def worded(self, spell: Callable[[Setting], str | None]) -> str:
        """The message, with `spell(setting)` in place of each setting."""
        return printable("".join(str(spell(part) if isinstance(part, Setting) else part) for part in self.parts))

    def _render_traceback_(self) -> list[str]:
        """IPython calls this instead of printing a traceback."""
        return [f"{type(self).__name__}: {self}"]


class BadInputError(HelpersError, ValueError):
    """An argument has a value that cannot be used: an empty prompt, an unknown setting, a wrong shape."""


class NotANumberError(BadInputError, ArithmeticError):
    """A model's scores are NaN or infinite, so no token can be chosen from them."""


class PictureLeftOutWarning(UserWarning):
    """A chat with a picture is prepared for a model without it, so that the model answers blindly."""


class ModelNotFoundError(HelpersError, LookupError):
    """There is no such catalog name, folder or hub id, or the model has not been fetched yet."""


class DamagedFilesError(HelpersError, OSError):
    """A model's files are incomplete or not what they should be."""


class DoesNotFitError(HelpersError, MemoryError):
    """A model, or a run of it, needs more memory than there is.

    `needed_bytes` and `available_bytes` are None where they are not known; `would_fit` lists settings that need less
    and would fit, such as "attentions=False".
    """

    def __init__(
        self,
        *parts: object,
        needed_bytes: int | None = None,
        available_bytes: int | None = None,
        would_fit: tuple[str, ...] = (),
    ) -> None:
        super().__init__(*parts)
        self.needed_bytes, self.available_bytes, self.would_fit = needed_bytes, available_bytes, would_fit


class DiskFullError(HelpersError, OSError):
    """There is not enough free disk space; `needed_bytes` and `available_bytes` are None where they are not known."""

    def __init__(self, *parts: object, needed_bytes: int | None = None, available_bytes: int | None = None) -> None:
        super().__init__(*parts)
        self.needed_bytes, self.available_bytes = needed_bytes, available_bytes


class HubNotReachableError(HelpersError, ConnectionError):
    """Files have to be downloaded, and the hub or package index that has them cannot be reached."""


class AccessDeniedError(HelpersError, PermissionError):
    """The hub has the model but requires something first: an account, an accepted licence or a token."""


class ServerNotReachableError(HelpersError, ConnectionError):
    """The server that should answer prompts cannot be reached, or does not answer as it should."""


class BadImageError(HelpersError, ValueError):
    """A picture cannot be read or is not a picture."""


class PromptTooLongError(HelpersError, ValueError):
    """Prompt and answer together are longer than the model's context."""


class AnchorNotFoundError(HelpersError, LookupError):
    """A note is pinned to a line of library code that the installed version no longer has."""


class ModelBusyError(HelpersError, RuntimeError):
    """A model is running or being changed in another thread, and did not become free in time."""
