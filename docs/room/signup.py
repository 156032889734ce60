"""How students come in: the code that the teacher shows, a name and a password of their own.

The code is asked for once, when a name is new. From then on the name belongs to whoever knows its password, so that
knowing the code opens nobody else's work.
"""

import asyncio
import hashlib
import hmac
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

import accounts
from jupyterhub.auth import Authenticator
from tornado import web
from traitlets import Integer, Unicode

TEACHER = "teacher"
SHORTEST_PASSWORD = 8
WAIT = 0.5  # seconds that each wrong attempt takes, one after the other: a code of three words holds for months
FORM = (Path(__file__).parent / "signup.html").read_text(encoding="utf-8")


class SignUp(Authenticator):
    """Lets in whoever has the code and a free name, and later whoever has the name's password."""

    code = Unicode(help="What the teacher shows to the class.").tag(config=True)
    teachers_password = Unicode(help="The password of the name `teacher`.").tag(config=True)
    most = Integer(20, help="How many students may sign up.").tag(config=True)
    file = Unicode(help="Where names and hashed passwords are kept.").tag(config=True)
    homes = Unicode(help="The folder of the students' home folders.").tag(config=True)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.allow_all = True
        self._refusing, self._making = asyncio.Lock(), asyncio.Lock()

    def get_custom_html(self, base_url: str) -> str:
        """The form of the sign-in page."""
        return FORM

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str:
        """The student's name. Raises `web.HTTPError` (403) with a sentence for the form when it may not come in."""
        name, password = data.get("username", "").strip().lower(), data.get("password", "")
        known = self._known()
        if name == TEACHER:
            right = hmac.compare_digest(password.encode(), self.teachers_password.encode())
            if not right:
                await self._refuse("This is not the teacher's password.")
        elif name in known:
            salt = bytes.fromhex(known[name]["salt"])
            given = await asyncio.to_thread(_hashed, password, salt)
            if not hmac.compare_digest(given, known[name]["hash"]):
                await self._refuse("This name is taken, and this is not its password. Ask your teacher for help.")
        else:
            if not hmac.compare_digest(_words(data.get("code", "")), _words(self.code)):
                await self._refuse(
                    "This is not the code of this room, and your name is new to it. Check the code, or the name if you "
                    "have signed up before."
                )
            if len(password) < SHORTEST_PASSWORD:
                await self._refuse(f"Choose a password of at least {SHORTEST_PASSWORD} characters.")
            if len(known) >= self.most:
                await self._refuse(f"The room is full: {self.most} students have signed up. Tell your teacher.")
            await self._account(name)
            salt = secrets.token_bytes(16)
            self._add(name, {"salt": salt.hex(), "hash": await asyncio.to_thread(_hashed, password, salt)})
            return name
        await self._account(name)
        return name

    async def _account(self, name: str) -> None:
        """The Unix user of this name. One is made at a time, since the system locks its list of users."""
        try:
            async with self._making:
                await asyncio.to_thread(accounts.create, name, Path(self.homes))
        except ValueError as error:
            await self._refuse(str(error))

    async def _refuse(self, sentence: str) -> None:
        async with self._refusing:
            await asyncio.sleep(WAIT)
        raise web.HTTPError(403, sentence)

    def _known(self) -> dict[str, dict[str, str]]:
        file = Path(self.file)
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def _add(self, name: str, entry: dict[str, str]) -> None:
        """Keep a new name, unless someone else has taken it a moment ago."""
        known = self._known()
        if name in known:
            raise web.HTTPError(403, "Someone has just taken this name. Choose another.")
        new = Path(f"{self.file}.new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as target:
            json.dump(known | {name: entry}, target)
            target.flush()
            os.fsync(target.fileno())
        new.replace(self.file)


def _words(code: str) -> bytes:
    """A code's words, however they are separated and written: phones like to begin with a capital."""
    return ("-".join(re.findall(r"\w+", code.lower())) or code).encode()


def _hashed(password: str, salt: bytes) -> str:
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1).hex()
