"""A student of the room, as a program: signs up, starts a server, runs cells, through the same door as a browser."""

import contextlib
import html
import json
import re
import time
import uuid

import httpx
import websocket  # websocket-client, which jupyter_server needs

PASSWORD = "a long enough one"


class Refused(Exception):
    """The room says no: its sentence."""


class Student:
    """One student. `address` is the room's, such as http://127.0.0.1:8000."""

    def __init__(self, address, name, *, code="", password=PASSWORD, verify=True):
        self.address, self.name = address, name.strip().lower()
        self.web = httpx.Client(base_url=address, follow_redirects=True, timeout=200, verify=verify)
        self._sign_in(name, code, password)
        self.token = self._token()

    def _sign_in(self, name, code, password):
        page = self.web.get("/hub/login")
        form = {
            "_xsrf": re.search(r'name="_xsrf" value="([^"]*)"', page.text)[1],
            "username": name,
            "password": password,
            "code": code,
        }
        answer = self.web.post("/hub/login", params={"next": "/hub/home"}, data=form)
        if answer.status_code >= 400:
            found = re.search(r'role="alert">([^<]*)<', answer.text)
            raise Refused(html.unescape(found[1]) if found else f"HTTP {answer.status_code}")

    def _token(self):
        xsrf = re.search(r'xsrf_token: "([^"]*)"', self.web.get("/hub/home").text)[1]
        answer = self.web.post(
            f"/hub/api/users/{self.name}/tokens",
            headers={"X-XSRFToken": xsrf, "Referer": f"{self.address}/hub/home"},
            json={"note": "test"},
        )
        answer.raise_for_status()
        return answer.json()["token"]

    def ask(self, method, path, *, of=None, **more):
        """The answer of a student's server (`of`: another's), with this student's token."""
        headers = {"Authorization": f"token {self.token}"}
        with httpx.Client(base_url=self.address, timeout=200) as plain:
            return plain.request(method, f"/user/{of or self.name}/{path}", headers=headers, **more)

    def hub(self, method, path, **more):
        """The answer of the hub's API."""
        headers = {"Authorization": f"token {self.token}"}
        return httpx.request(method, f"{self.address}/hub/api/{path}", headers=headers, timeout=60, **more)

    def start(self, seconds=180):
        """Start the server. Returns the seconds until it answers."""
        began = time.monotonic()
        self.hub("POST", f"users/{self.name}/server").raise_for_status()
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if self.ask("GET", "api/status").status_code == 200:
                    return time.monotonic() - began
            if time.monotonic() > began + seconds:
                raise TimeoutError(f"the server of {self.name} is not up after {seconds} s")
            time.sleep(0.2)

    def stop(self):
        """Stop the server."""
        self.hub("DELETE", f"users/{self.name}/server")

    def open(self, path="course/notebooks/mine.ipynb", patience=120):
        """A kernel, as a page at that path gets it; `patience` is how many seconds a cell may be silent."""
        body = {"path": path, "name": path, "type": "notebook", "kernel": {"name": "python3"}}
        answer = self.ask("POST", "api/sessions", json=body)
        answer.raise_for_status()
        return Kernel(self, answer.json()["kernel"]["id"], patience)

    def save(self, path, cells):
        """Save a notebook with these code cells, as the page's autosave does. Returns the HTTP status."""
        notebook = {
            "cells": [
                {
                    "cell_type": "code",
                    "id": f"c{n}",
                    "metadata": {},
                    "outputs": [],
                    "execution_count": None,
                    "source": c,
                }
                for n, c in enumerate(cells)
            ],
            "metadata": {},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        return self.ask("PUT", f"api/contents/{path}", json={"type": "notebook", "content": notebook}).status_code

    def sources(self, path):
        """The code of a notebook's cells."""
        answer = self.ask("GET", f"api/contents/{path}")
        answer.raise_for_status()
        return [cell["source"] for cell in answer.json()["content"]["cells"]]


class Kernel:
    """A kernel of a student, and the connection to it."""

    def __init__(self, student, kernel_id, patience):
        self.student, self.id = student, kernel_id
        address = student.address.replace("http", "ws", 1)
        self._socket = websocket.create_connection(
            f"{address}/user/{student.name}/api/kernels/{kernel_id}/channels",
            header=[f"Authorization: token {student.token}"],
            timeout=patience,
        )

    def run(self, code):
        """Run one cell. Returns what it printed or gave, and its error ("" when there was none)."""
        asked = uuid.uuid4().hex
        header = {"msg_id": asked, "username": "", "session": asked, "msg_type": "execute_request", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": True}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        self._socket.send(json.dumps(message | {"buffers": []}))
        said, error, replied, idle = [], "", False, False
        while not (replied and idle):
            frame = self._socket.recv()
            if not isinstance(frame, str):  # a widget's data
                frame = _json_part(frame)
            answer = json.loads(frame)
            kind, content = answer["header"]["msg_type"], answer["content"]
            if kind == "status" and content["execution_state"] in ("restarting", "dead"):
                return "".join(said), "the kernel died"
            if answer["parent_header"].get("msg_id") != asked:
                continue
            if kind == "stream":
                said.append(content["text"])
            elif kind in ("execute_result", "display_data"):
                said.append(content["data"].get("text/plain", ""))
            elif kind == "error":
                error = f"{content['ename']}: {content['evalue']}"
            replied |= kind == "execute_reply"
            idle |= kind == "status" and content["execution_state"] == "idle"
        return "".join(said), error

    def close(self):
        """End the kernel."""
        self._socket.close()
        self.student.ask("DELETE", f"api/kernels/{self.id}")


def _json_part(frame):
    """The JSON of a message that carries buffers: a count and offsets of 4 bytes each come first."""
    count = int.from_bytes(frame[:4], "big")
    offsets = [int.from_bytes(frame[4 * (n + 1) : 4 * (n + 2)], "big") for n in range(count)]
    return frame[offsets[0] : offsets[1] if count > 1 else len(frame)].decode()
