"""A Hub on 127.0.0.1 that speaks as much of the real one's API as a download takes, and can be told to misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["LARGE", "Hub", "Once", "Repo", "Request", "serve_hub"]

LARGE = (".safetensors", ".bin")
"""Suffixes of what the Hub keeps in large file storage, behind a redirect to another host."""
_MISSING = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}


@dataclass
class Repo:
    """A repository: its files by commit, and the commit of each branch and tag."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    token: str | None = None
    """The token that may read it; None: everyone."""
    gated: bool = False

    def commit_of(self, revision: str) -> str | None:
        """The commit that a revision means."""
        return self.refs.get(revision, revision if revision in self.commits else None)


class Once(dict[str, int]):
    """From the second request for a file on, nothing of it comes."""

    def get(self, name: str, default: int | None = None) -> int | None:  # type: ignore[override]
        """The bytes to send before the connection is cut."""
        found = super().get(name, default)
        if name in self:
            self[name] = 0
        return found


@dataclass(frozen=True)
class Request:
    """What was asked."""

    method: str
    path: str
    host: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """The server: its repositories, what it was asked, and how it misbehaves."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    drop_after: dict[str, int] = field(default_factory=dict)
    """File name to the bytes after which its connection is cut, each time that it is sent."""
    lie: dict[str, bytes] = field(default_factory=dict)
    """File name to the bytes that are sent in its place."""
    ignore_ranges: bool = False
    busy: list[int] = field(default_factory=list)
    """Statuses with which the next requests are answered."""
    down: bool = False
    port: int = 0

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> str:
        """The other host, behind which large files are."""
        return f"http://localhost:{self.port}"

    def add(self, repo_id: str, folder: Path, **options: Any) -> Repo:
        """A repository with the files of a folder at `main`."""
        files = {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}
        commit = commit_hash(files)
        self.repos[repo_id] = Repo({commit: files}, {"main": commit}, **options)
        return self.repos[repo_id]

    def asked(self, name: str, method: str = "GET") -> list[Request]:
        """The requests for a file's bytes, or for what is known of it."""
        return [each for each in self.requests if each.path.endswith(name) and each.method == method]


def commit_hash(files: dict[str, bytes]) -> str:
    return hashlib.sha1(json.dumps({name: sha256(data) for name, data in files.items()}).encode()).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A Hub for as long as the block lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, headers = url.path, self.headers
        if "/resolve/" not in path and not path.startswith(("/storage/", "/api/models/")):
            self._send(404, b"", {})  # what the library asks on its own account
            return
        asked = Request(self.command, unquote(path), headers["Host"], headers["Range"], headers["Authorization"])
        self.hub.requests.append(asked)
        if self.hub.down:
            self.close_connection = True
            return
        if self.hub.busy:
            self._send(self.hub.busy.pop(0), b"busy", {"Retry-After": "0"})
        elif path.startswith("/storage/"):
            self._storage(*unquote(path).removeprefix("/storage/").split("/", 1))
        elif path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/"), parse_qs(url.query))
        else:
            self._resolve(path.removeprefix("/"))

    def _repo(self, repo_id: str) -> Repo | None:
        repo = self.hub.repos.get(repo_id)
        allowed = repo and (repo.token is None or self.headers["Authorization"] == f"Bearer {repo.token}")
        if repo and (allowed or (repo.gated and not self.path.startswith("/api/"))):
            if allowed:
                return repo
            self._send(403 if self.headers["Authorization"] else 401, b"", {"X-Error-Code": "GatedRepo"})
        elif self.headers["Authorization"] == "Bearer wrong":
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        else:
            self._send(404 if self.headers["Authorization"] else 401, b"", _MISSING)
        return None

    def _info(self, path: str, query: dict[str, list[str]]) -> None:
        repo_id, _, rest = path.partition("/revision/")
        repo = self._repo(repo_id)
        if repo is None:
            return
        commit = repo.commit_of(unquote(rest) or "main")
        if commit is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        blobs = query.get("blobs") is not None
        siblings = [_sibling(name, data, blobs=blobs) for name, data in repo.commits[commit].items()]
        body = {"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings, "private": False, "tags": []}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, path: str) -> None:
        repo_id, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        repo = self._repo(repo_id)
        if repo is None:
            return
        name, commit = unquote(name), repo.commit_of(unquote(revision))
        if commit is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif name not in repo.commits[commit]:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            self._file(name, repo.commits[commit][name], {"X-Repo-Commit": commit})

    def _file(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        if not name.endswith(LARGE):
            self._send(200, data, headers | {"ETag": f'"{blob_id(data)}"'})
            return
        location = f"{self.hub.storage}/storage/{sha256(data)}/{name}"
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{sha256(data)}"'}
        self._send(302, b"", headers | linked | {"Location": location})

    def _storage(self, digest: str, name: str) -> None:
        files = [
            data for repo in self.hub.repos.values() for commit in repo.commits.values() for data in commit.values()
        ]
        data = self.hub.lie.get(name) or next(each for each in files if sha256(each) == digest)
        wanted = None if self.hub.ignore_ranges else self.headers["Range"]
        begin, _, end = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(begin) : int(end) + 1 if end else None]
        headers = {"Content-Range": f"bytes {begin}-{int(begin) + len(part) - 1}/{len(data)}"} if wanted else {}
        self._send(206 if wanted else 200, part, headers, cut=self.hub.drop_after.get(name))

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None and cut < len(body):
            self.wfile.flush()
            self.close_connection = True


def _sibling(name: str, data: bytes, *, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    large = {"lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 134}} if name.endswith(LARGE) else {}
    return {"rfilename": name, "size": len(data), "blobId": blob_id(data)} | large
