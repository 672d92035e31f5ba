"""A small hub on loopback: what the datasets library asks of the Hugging Face hub's API, and the ways in which a hub refuses."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

CHUNK = 1 << 16  # bytes written at once: what a reader leaves unread is not counted as served
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    """A data set: its files, and the status and error code that it refuses with."""

    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 0
    code: str = ""
    after: int | None = None  # refused is a request for data after so many; None: every request of any kind
    given: int = 0

    def refuses(self, path: str) -> bool:
        if not self.status or self.after is None:
            return bool(self.status)
        if not path.endswith((".jsonl", ".parquet")):
            return False
        self.given += 1
        return self.given > self.after


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    range: str
    status: int
    sent: int  # bytes of the body that went out


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repos: dict[str, Repo]
    seen: list[Asked]

    def do_GET(self) -> None:
        self._answer(*self._found())

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self._answer(404, b"", {})

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _found(self) -> tuple[int, bytes, dict[str, str]]:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        made = re.fullmatch(r"/(api/)?datasets/([\w.-]+/[\w.-]+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?", path)
        repo = self.repos.get(made[2]) if made else None
        if made is None or repo is None:
            # without a token the hub does not tell whether a data set is missing or private
            return 401, b"", {"X-Error-Message": "Invalid username or password."}
        if repo.refuses(path):
            return repo.status, b"", {"X-Error-Code": repo.code} if repo.code else {}
        if made[4] not in (None, "main", COMMIT):
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        if not made[1]:
            return self._file(repo, made[5] or "")
        if made[3] == "tree":
            return self._tree(repo, made[5] or "", "recursive=true" in self.path.lower())
        said = {"id": made[2], "sha": COMMIT, "private": False, "siblings": [{"rfilename": f} for f in repo.files]}
        return 200, json.dumps(said).encode(), {"Content-Type": "application/json"}

    def _tree(self, repo: Repo, folder: str, recursive: bool) -> tuple[int, bytes, dict[str, str]]:
        within = f"{folder}/" if folder else ""
        listed: dict[str, dict[str, Any]] = {}
        for path, raw in repo.files.items():
            if not path.startswith(within):
                continue
            parts = path[len(within) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                name = within + "/".join(parts[:depth])
                listed[name] = {"type": "directory", "path": name, "oid": _oid(name.encode()), "size": 0}
            if recursive or len(parts) == 1:
                listed[path] = {"type": "file", "path": path, "oid": _oid(raw), "size": len(raw)}
        if not listed:
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        return 200, json.dumps(list(listed.values())).encode(), {"Content-Type": "application/json"}

    def _file(self, repo: Repo, path: str) -> tuple[int, bytes, dict[str, str]]:
        raw = repo.files.get(path)
        if raw is None:
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
        headers = {"ETag": f'"{_oid(raw)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        if not wanted:
            return 200, raw, headers
        start, end = int(wanted[1]), min(int(wanted[2] or len(raw)) + 1, len(raw))
        if start >= len(raw):
            return 416, b"", headers
        return 206, raw[start:end], headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(raw)}"}

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            for start in range(0, len(body) if self.command != "HEAD" else 0, CHUNK):
                sent += self.wfile.write(body[start : start + CHUNK])
        self.seen.append(Asked(self.command, self.path, self.headers.get("range") or "", status, sent))


def _oid(raw: bytes) -> str:
    return hashlib.sha1(raw, usedforsecurity=False).hexdigest()


@dataclass
class Hub:
    address: str
    repos: dict[str, Repo]
    seen: list[Asked]

    def of(self, name: str, file: str = "") -> list[Asked]:
        """What was asked of a data set, or of one file of it."""
        return [a for a in self.seen if f"/{name}/" in f"{a.path.partition('?')[0]}/" and a.path.endswith(file)]


@contextlib.contextmanager
def running(repos: dict[str, Repo]) -> Iterator[Hub]:
    """The hub with these data sets, on a port of its own."""
    seen: list[Asked] = []
    handler = type("Told", (Handler,), {"repos": repos, "seen": seen})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_address[1]}", repos, seen)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
