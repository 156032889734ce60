"""Where is everyone: the teacher sees which exercises are solved, of those students who said yes.

`check` writes what a student has solved into a file in the student's home folder. This service reads that file, as the
student and no longer than it takes, when the student has agreed on its page. It keeps nothing but who agreed.
"""

import contextlib
import html
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accounts
from jupyterhub.services.auth import HubOAuthCallbackHandler, HubOAuthenticated
from signup import TEACHER
from tornado import ioloop, web

PREFIX = os.environ["JUPYTERHUB_SERVICE_PREFIX"]
AGREED = Path(os.environ["ROOM_STATE"]) / "agreed.json"
FILE = ".inside-language-models/progress.json"
LARGEST = 100_000  # bytes: with every exercise solved it has about 3,000
EXERCISE = re.compile(r"(\d\d)\.(\d{1,2})")
NOTEBOOKS = [f"{number:02}" for number in range(12)]
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Where is everyone</title>{more}
<style>body {{ font: 16px/1.5 sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }}
table {{ border-collapse: collapse }} th, td {{ border: 1px solid #767676; padding: .3rem .6rem; text-align: left }}
@media (prefers-color-scheme: dark) {{ body {{ background: #111; color: #eee }} a {{ color: #8cf }} }}</style>
<h1>Where is everyone</h1>{body}</html>"""


class Where(HubOAuthenticated, web.RequestHandler):
    """The teacher's table, or a student's own page."""

    @web.authenticated
    def get(self) -> None:
        """The page for whoever asks."""
        name = self.get_current_user()["name"]
        if name == TEACHER:
            self.finish(PAGE.format(more='<meta http-equiv="refresh" content="15">', body=table()))
        else:
            self.finish(PAGE.format(more="", body=students_page(name, self.xsrf_form_html())))

    @web.authenticated
    def post(self) -> None:
        """A student says yes, or no more."""
        agree(self.get_current_user()["name"], self.get_body_argument("share", "") == "yes")
        self.redirect(PREFIX)


def students_page(name: str, xsrf: bytes | str) -> str:
    """What a student is asked."""
    shares = name in agreed()
    xsrf = xsrf.decode() if isinstance(xsrf, bytes) else xsrf
    now = f"Your teacher {'sees' if shares else 'does not see'} which exercises you have solved."
    button = "Stop showing them" if shares else "Show my teacher which exercises I have solved"
    return (
        f"<p>{now} Only their numbers are shown, such as 03.2. Your answers, your notebooks and your attempts are not. "
        f'You can change your mind at any time.</p><form method="post">{xsrf}'
        f'<button name="share" value="{"no" if shares else "yes"}">{button}</button></form>'
        '<p><a href="/">Back to the course</a></p>'
    )


def table() -> str:
    """A row for each student who agreed, a column for each notebook."""
    students = {name: user for name, user in sorted(accounts.everyone().items()) if name != TEACHER}
    shown = [name for name in students if name in agreed()]
    head = "".join(f'<th scope="col">{number}</th>' for number in NOTEBOOKS)
    rows = ""
    for name in shown:
        done = solved(students[name])
        cells = "".join(f"<td>{' '.join(done.get(number, []))}</td>" for number in NOTEBOOKS)
        rows += f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>'
    return (
        f"<p>{len(shown)} of {len(students)} students show which exercises they have solved. A cell lists the numbers "
        "of the solved exercises of that notebook. The page asks again every 15 seconds.</p>"
        f'<table><thead><tr><th scope="col">student</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "<p>Students agree on this same page. From JupyterLab they get here by <i>File</i>, <i>Hub Control Panel</i>, "
        "<i>Services</i>.</p>"
    )


def solved(user: Any) -> dict[str, list[str]]:
    """Notebook -> numbers of solved exercises, from the student's own file; empty where that makes no sense."""
    content = read_as(user, Path(user.pw_dir) / FILE)
    names = content.get("solved", {}) if isinstance(content, dict) else {}
    found: dict[str, list[str]] = {}
    for match in map(EXERCISE.fullmatch, sorted(names) if isinstance(names, dict) else []):
        if match:
            found.setdefault(match[1], []).append(match[2])
    return found


def read_as(user: Any, path: Path) -> Any:
    """A JSON file, opened with the rights of that user: a link leads nowhere that the user could not go anyway."""
    try:
        with acting_as(user):
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, encoding="utf-8") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            return json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return None


@contextlib.contextmanager
def acting_as(user: Any) -> Iterator[None]:
    """This process has that user's rights for a moment. It has one thread, so nothing else happens meanwhile."""
    before = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups([user.pw_gid])
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])
        os.setgroups(before[2])


def agreed() -> set[str]:
    """The names of those who agreed."""
    return set(json.loads(AGREED.read_text(encoding="utf-8"))) if AGREED.exists() else set()


def agree(name: str, yes: bool) -> None:
    """Remember a yes, or forget it."""
    names = agreed() | {name} if yes else agreed() - {name}
    new = AGREED.with_suffix(".new")
    new.write_text(json.dumps(sorted(names)), encoding="utf-8")
    new.replace(AGREED)


def main() -> None:
    """Serve until the room closes."""
    application = web.Application(
        [(PREFIX, Where), (f"{PREFIX}oauth_callback", HubOAuthCallbackHandler)],
        cookie_secret=os.urandom(32),
        xsrf_cookies=True,
    )
    application.listen(int(os.environ["ROOM_WHERE_PORT"]), address="127.0.0.1")
    ioloop.IOLoop.current().start()


if __name__ == "__main__":
    main()
