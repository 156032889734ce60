"""A model hub on 127.0.0.1 that speaks the part of both hubs' APIs that their clients use, with faults on demand."""

import contextlib
import hashlib
import http.server
import json
import threading
import time
from urllib.parse import parse_qs, unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `files` (name -> bytes) as the model `repo`; `requests` records (method, kind, name, range).

    Faults: `cut[name]` = bytes after which the connection drops, once; `wrong[name]` = how many times other
    bytes of the same size are sent; `status` = {"list" or "file" or a name: (code, headers)}, each used as
    often as the list of them is long, the last one for ever; `hangs` = "all", "list" or "file"; `extra` =
    more entries of the list.
    """

    def __init__(self, repo, files):
        self.repo, self.files = repo, dict(files)
        self.cut, self.wrong, self.status, self.extra, self.hangs = {}, {}, {}, [], None
        self.gated, self.requests, self.delay = False, [], 0.0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def downloads(self, name=None):
        """The GET requests for that file (or for any), as their Range headers."""
        return [r[3] for r in self.requests if r[0] == "GET" and r[1] == "file" and name in (None, r[2])]

    @contextlib.contextmanager
    def running(self):
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.released = threading.Event()
        thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self.server.shutdown()
            self.server.server_close()
            thread.join()

    def next_status(self, *keys):
        with self.lock:
            for key in keys:
                answers = self.status.get(key)
                if answers:
                    return answers.pop(0) if len(answers) > 1 or answers[0] == (200, {}) else answers[0]
        return (200, {})


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub, url = self.hub, urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        kind, name = self.kind(path, query)
        with hub.lock:
            hub.requests.append((self.command, kind, name, self.headers.get("Range")))
        if hub.hangs in ("all", kind):
            hub.released.wait(30)
            self.close_connection = True
            return
        if kind == "root":
            return self.send(b"a hub")
        if kind == "unknown":
            return self.send(b"{}", 404)
        code, headers = hub.next_status(kind, name)
        if code != 200:
            return self.send(json.dumps({"Code": code, "Message": "no", "error": "no"}).encode(), code, headers)
        if kind == "list":
            return self.send(json.dumps(self.listing(path)).encode(), 200, {"Content-Type": "application/json"})
        self.send_file(name)

    def kind(self, path, query):
        """What is asked for: root, list, file (with its name), or unknown."""
        repo = self.hub.repo
        if path == "/":
            return "root", None
        if path in (f"/api/models/{repo}", f"/api/v1/models/{repo}/repo/files") or path.startswith(
            (f"/api/models/{repo}/tree/", f"/api/models/{repo}/revision/")
        ):
            return "list", None
        if path == f"/api/v1/models/{repo}/repo":
            return "file", query.get("FilePath", [""])[0]
        for prefix in (f"/{repo}/resolve/{REVISION}/", f"/{repo}/resolve/main/"):
            if path.startswith(prefix):
                return "file", path.removeprefix(prefix)
        if path.startswith("/api/") and "/models/" in path:
            return "list" if path.endswith("/files") else "unknown", "other repository"
        return "unknown", None

    def listing(self, path):
        hub = self.hub
        known = [(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in hub.files.items()]
        if path.startswith("/api/v1/"):
            entries = [{"Path": n, "Name": n, "Size": s, "Sha256": h, "Type": "blob"} for n, s, h in known]
            entries += [{"Path": e, "Name": e, "Size": 5, "Sha256": "0" * 64, "Type": t} for e, t in hub.extra]
            return {"Code": 200, "Success": True, "Data": {"Files": entries}}
        if "/tree/" in path:
            entries = [self.tree_entry(*file) for file in known]
            return entries + [{"type": "file", "path": e, "size": 5, "oid": "0" * 40} for e, _ in hub.extra]
        siblings = []
        for name, size, digest in known:
            lfs = {"size": size, "sha256": digest, "pointerSize": 130}
            oid = git_sha1(hub.files[name])
            siblings.append({"rfilename": name, "size": size, "blobId": oid} | ({"lfs": lfs} if is_lfs(name) else {}))
        siblings += [{"rfilename": e, "size": 5, "blobId": "0" * 40} for e, _ in hub.extra]
        return {"id": hub.repo, "sha": REVISION, "gated": hub.gated, "siblings": siblings, "private": False}

    def tree_entry(self, name, size, digest):
        entry = {"type": "file", "path": name, "size": size, "oid": git_sha1(self.hub.files[name])}
        return entry | ({"lfs": {"oid": digest, "size": size, "pointerSize": 130}} if is_lfs(name) else {})

    def send_file(self, name):
        hub = self.hub
        data = hub.files.get(name)
        if data is None:
            return self.send(b"gone", 404, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(data).hexdigest() if is_lfs(name) else git_sha1(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        if self.command == "GET":
            with hub.lock:
                if hub.wrong.get(name, 0) > 0:
                    hub.wrong[name] -= 1
                    data = bytes([data[0] ^ 1]) + data[1:]
        start, code = 0, 200
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            start = int(asked[6:].split("-")[0])
            code = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        with hub.lock:
            cut = hub.cut.pop(name, None) if self.command == "GET" else None
        self.send(data[start:], code, headers, cut=cut)

    def send(self, body, code=200, headers=None, cut=None):
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(OSError):
            if self.hub.delay:
                time.sleep(self.hub.delay)
            self.wfile.write(body[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True


def is_lfs(name):
    """Hubs keep large files aside; their checksum is a SHA-256, that of the others git's own."""
    return name.endswith((".safetensors", ".model", ".bin"))


def git_sha1(data):
    """A file's id in git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
