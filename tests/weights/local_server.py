"""A server of files and a Hub of repositories on this machine, so that no test needs a network."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """What the Hub holds under one id.

    Attributes:
        files: name -> content.
        error: the Hub's code for what is refused, "GatedRepo" of the files, "RepoNotFound" of all.
        announced: name -> content that the Hub says a file has, where it sends another.
        cut: names of files that break off half-way.
    """

    files: dict[str, bytes]
    error: str = ""
    announced: dict[str, bytes] = field(default_factory=dict)
    cut: tuple[str, ...] = ()


@dataclass
class Server:
    """What is served, and what was asked for.

    Attributes:
        url: of the server.
        files: path -> content.
        cut: paths whose answer breaks off half-way.
        pages: paths that are web pages.
        repositories: id -> what the Hub holds.
        asked: "METHOD path" of every request.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    pages: set[str] = field(default_factory=set)
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Server]:
    """Serve on a free port until the block ends."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            return

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = self.path.partition("?")[0]
            server.asked.append(f"{self.command} {path}")
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/[^/]+)?", path):
                self._describe(match[1], match[2] or "")
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self._hub_file(match[1], match[2])
            elif path in server.files:
                kind = "text/html" if path in server.pages else "application/octet-stream"
                self._send(server.files[path], {"Content-Type": kind}, cut=path in server.cut)
            else:
                self.send_error(404)

        def _send(self, content: bytes, headers: dict[str, str], status: int = 200, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[: len(content) // 2] if cut else content)

        def _refuse(self, code: str) -> None:
            status = {"GatedRepo": 403, "RepoNotFound": 401, "RevisionNotFound": 404}[code]
            self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status)

        def _describe(self, name: str, rest: str) -> None:
            repository = server.repositories.get(name)
            if repository is None or repository.error == "RepoNotFound":
                return self._refuse("RepoNotFound")
            if rest.startswith("/revision/") and rest not in ("/revision/main", "/revision/v1"):
                return self._refuse("RevisionNotFound")
            if not rest.startswith("/tree/"):
                return self._send(json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode(), {})
            rows = []
            for path, content in repository.files.items():
                content = repository.announced.get(path, content)
                row = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                if not path.endswith(".json"):
                    row["lfs"] = {"size": len(content), "oid": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
                rows.append(row)
            return self._send(json.dumps(rows).encode(), {"Content-Type": "application/json"})

        def _hub_file(self, name: str, path: str) -> None:
            repository = server.repositories[name]
            if repository.error:
                return self._refuse(repository.error)
            content = repository.files[path]
            said = repository.announced.get(path, content)
            hashed = hashlib.sha1 if path.endswith(".json") else hashlib.sha256
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashed(said).hexdigest()}"'}
            return self._send(content, headers, cut=path in repository.cut)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        server.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            running.shutdown()
            thread.join()
