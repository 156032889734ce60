"""A small server on 127.0.0.1 that speaks the completions API, answers at once, and fails when told to."""

import itertools
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeServer(ThreadingHTTPServer):
    """`reply(ids)` gives (text, output ids, finish_reason); `requests` are the bodies that came, in order.

    `faults` are taken one per completion request, None for none: a tuple (status, headers, message), or a
    function that is given the handler and answers, or does not, in its own way.
    """

    daemon_threads = True

    def __init__(self, reply, models=("tiny",), owner="fake", key=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.models, self.owner, self.key = reply, models, owner, key
        self.requests, self.faults, self.headers = [], [], []
        self.root = "/models/one"  # where the served models say that they are from
        self.models_fault = None  # in place of the list of models, as long as it is there
        self.gone = threading.Event()  # ends whatever a fault is still doing
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """A client that hung up, or a fault that cut the connection: nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status, value, headers=()):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, message, headers=()):
        self.answer(status, {"error": {"message": message, "code": status}}, headers)

    def do_GET(self):
        self.server.headers.append(dict(self.headers))
        if self.server.models_fault:
            return self.server.models_fault(self)
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self.refuse(401, "Incorrect API key provided.")
        if self.path != "/v1/models":
            return self.answer(404, b"<html>nothing here</html>")
        models = [{"id": name, "owned_by": self.server.owner, "root": self.server.root} for name in self.server.models]
        return self.answer(200, {"object": "list", "data": models})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            fault = self.server.faults.pop(0) if self.server.faults else None
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            self.complete(body, fault)
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def complete(self, body, fault):
        if callable(fault):
            return fault(self)
        if fault:
            status, headers, message = fault
            return self.refuse(status, message, headers)
        if body["model"] not in self.server.models:
            return self.refuse(404, f"The model `{body['model']}` does not exist.")
        text, ids, finish = self.server.reply(body["prompt"])
        choice = {"index": 0, "text": text, "finish_reason": finish}
        if body.get("return_token_ids"):
            choice["token_ids"] = ids
        return self.answer(200, {"object": "text_completion", "model": body["model"], "choices": [choice]})


@contextmanager
def serving(reply, **settings):
    """A `FakeServer` that runs for as long as the block."""
    server = FakeServer(reply, **settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.gone.set()
        server.shutdown()
        server.server_close()
        thread.join()


def cut(handler):
    """A fault: half of an answer, then the connection is closed."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"te')
    handler.close_connection = True


def hang(seconds):
    """A fault: no answer for so long, or until the server is gone; then the connection is closed."""

    def wait(handler):
        handler.server.gone.wait(seconds)
        handler.close_connection = True

    return wait


def raw(*pieces, every=0.02):
    """A fault: these bytes as they are, the last of them again and again, with a pause of `every` seconds."""

    def send(handler):
        handler.close_connection = True
        for piece in itertools.chain(pieces[:-1], itertools.repeat(pieces[-1])):
            handler.wfile.write(piece)
            if every and handler.server.gone.wait(every):
                return

    return send


def endless(status=200, headers=(), piece=b" " * 2**16, every=0.0):
    """A fault: a reply whose body never ends."""

    def send(handler):
        handler.send_response(status)
        for name, text in dict(headers).items():
            handler.send_header(name, text)
        handler.end_headers()
        raw(piece, every=every)(handler)

    return send
