"""What can go wrong for a reader, by name.

Every message says what is wrong, with the value, and what to do next. In a notebook these errors
show as that one sentence, without a traceback through library code.
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
    """A text that is safe to show on a terminal and in a notebook, whoever wrote it: a server, a file, a reader.

    Control characters and marks that turn the direction of writing come out as escapes, a user name and password in
    an address are left out, and of a long text the middle is.

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
    """A setting that a message advises: an argument of the public functions, and the value to give it.

    >>> print("Use", Setting("do_sample", False))
    Use do_sample=False
    """

    name: str
    value: object

    def __str__(self) -> str:
        return f"{self.name}={json.dumps(self.value) if isinstance(self.value, str) else self.value}"


class HelpersError(Exception):
    """Base class of every error that `helpers` raises on purpose. Its text is `printable`.

    It is made of the `parts` of its message, texts and `Setting`s, so that a program with other names for the same
    settings can write them in its own way: `worded(spell)` takes what `spell` gives for each of them.

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
        """The message, with `spell(setting)` for each setting in it."""
        return printable("".join(str(spell(part) if isinstance(part, Setting) else part) for part in self.parts))

    def _render_traceback_(self) -> list[str]:
        """IPython calls this instead of printing a traceback."""
        return [f"{type(self).__name__}: {self}"]


class BadInputError(HelpersError, ValueError):
    """An argument has a value that cannot work: an empty prompt, an unknown setting, a wrong shape."""


class NotANumberError(BadInputError, ArithmeticError):
    """A model's scores are NaN or infinite, so no token can be chosen by them."""


class ModelNotFoundError(HelpersError, LookupError):
    """No such catalog name, folder or hub id, or the model has not been fetched yet."""


class DamagedFilesError(HelpersError, OSError):
    """A model's files are incomplete or not what they should be."""


class DoesNotFitError(HelpersError, MemoryError):
    """A model, or a run of it, needs more memory than there is.

    `needed_bytes` and `available_bytes` are the two sides, None where they are not known; `would_fit` are ways to
    ask for less that do fit, such as "attentions=False".
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
    """Not enough free disk space for what is to be written: `needed_bytes` (None: not known), `available_bytes`."""

    def __init__(self, *parts: object, needed_bytes: int | None = None, available_bytes: int | None = None) -> None:
        super().__init__(*parts)
        self.needed_bytes, self.available_bytes = needed_bytes, available_bytes


class HubNotReachableError(HelpersError, ConnectionError):
    """Files have to be fetched and the place that holds them cannot be reached."""


class AccessDeniedError(HelpersError, PermissionError):
    """The hub has the model and asks who you are first: an account, an accepted licence, a token."""


class ServerNotReachableError(HelpersError, ConnectionError):
    """The server that is to answer prompts cannot be reached, or does not answer as it should."""


class BadImageError(HelpersError, ValueError):
    """A picture cannot be read or is not a picture."""


class PromptTooLongError(HelpersError, ValueError):
    """Prompt and answer together are longer than the model's context."""


class AnchorNotFoundError(HelpersError, LookupError):
    """A note is pinned to a line of library code that the installed version no longer has."""


class ModelBusyError(HelpersError, RuntimeError):
    """A model is running or being changed in another thread, and did not get free in time."""
