"""A stand-in of the hub: the part of its HTTP interface that uploads and downloads use, on a folder.

A repository is a folder of branches, each a folder of files, beside a file that says whether it is private.
"""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import CommitOperationAdd

from lightpeft.checkpoint import push

TOKEN = "hf_stand_in"
LARGE = (".safetensors",)


class Hub:
    """What the stand-in holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []

    def branch(self, repo: str, revision: str = "main") -> Path:
        return self.folder / "repos" / repo / revision

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """What lies in a branch, by name."""
        top = self.branch(repo, revision)
        return {
            path.relative_to(top).as_posix(): path.read_bytes() for path in top.rglob("*") if path.is_file()
        }

    def is_private(self, repo: str) -> bool:
        return (self.folder / "repos" / repo / "private").exists()

    def create(self, repo: str, *, private: bool = False) -> bool:
        """Whether it was not there."""
        if self.branch(repo).is_dir():
            return False
        self.branch(repo).mkdir(parents=True)
        if private:
            (self.folder / "repos" / repo / "private").touch()
        return True

    def blob(self, oid: str) -> Path:
        (self.folder / "blobs").mkdir(exist_ok=True)
        return self.folder / "blobs" / oid

    def sha(self, repo: str, revision: str) -> str:
        """A commit: of what is in the branch now."""
        digest = hashlib.sha1(repr(sorted(self.files(repo, revision).items())).encode())
        return digest.hexdigest()

    def resolve(self, repo: str, revision: str) -> str | None:
        """The branch that a name or commit means."""
        top = self.folder / "repos" / repo
        if (top / revision).is_dir():
            return revision
        names = [path.name for path in top.iterdir() if path.is_dir()] if top.is_dir() else []
        return next((name for name in names if self.sha(repo, name) == revision), None)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, value: Any = None, headers: dict[str, str] | None = None) -> None:
        content = (
            value if isinstance(value, bytes) else json.dumps(value if value is not None else {}).encode()
        )
        self.send_response(status)
        for name, one in (headers or {}).items():
            self.send_header(name, one)
        if headers is None or "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self) -> None:
        path, body = unquote(urlparse(self.path).path), self._body()
        self.hub.requests.append(f"POST {path}")
        if not self._is_known():
            self._refuse(401, "", "Invalid username or password.")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+)/branch/(.+)", path):
            new = self.hub.branch(*found.groups())
            if new.is_dir():
                self._refuse(409, "", "Reference already exists")
            else:
                shutil.copytree(self.hub.branch(found[1]), new)
                self._send(200)
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            names = [one["path"] for one in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
            files = [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]
            self._send(200, {"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif found := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            self._commit(*found.groups(), body)
        else:
            self._refuse(404, "", f"no POST {path}")

    def _create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        is_new = self.hub.create(repo, private=wanted.get("visibility") == "private")
        address = f"http://{self.headers['Host']}/{repo}"
        self._send(200 if is_new else 409, {"url": address, "name": repo, "id": repo})

    def _batch(self, wanted: dict[str, Any]) -> None:
        host = self.headers["Host"]
        objects = [
            {**one, "actions": {"upload": {"href": f"http://{host}/blobs/{one['oid']}"}}}
            for one in wanted["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, revision: str, body: bytes) -> None:
        target = self.hub.branch(repo, revision)
        if not target.is_dir():
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                with (target.parent / "messages").open("a") as messages:
                    messages.write(value["summary"] + "\n")
                continue
            path = target / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            else:
                assert line["key"] == "lfsFile", line["key"]
                shutil.copyfile(self.hub.blob(value["oid"]), path)
        oid = self.hub.sha(repo, revision)
        address = f"http://{self.headers['Host']}/{repo}/commit/{oid}"
        self._send(200, {"commitUrl": address, "commitOid": oid, "success": True})

    def do_PUT(self) -> None:
        path, body = urlparse(self.path).path, self._body()
        self.hub.requests.append(f"PUT {path}")
        assert hashlib.sha256(body).hexdigest() == path.rpartition("/")[2]
        self.hub.blob(path.rpartition("/")[2]).write_bytes(body)
        self._send(200)

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = info or tree or file
        if found is None:
            self._refuse(404, "", f"no GET {path}")
            return
        repo, wanted = found[1], found[2] or "main"
        revision = self.hub.resolve(repo, wanted)
        if not self.hub.branch(repo).is_dir() or (self.hub.is_private(repo) and not self._is_known()):
            self._refuse(404 if self._is_known() else 401, "RepoNotFound", "Repository not found")
        elif revision is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {wanted}")
        elif info:
            self._send(200, self._info(repo, revision))
        elif tree:
            self._send(200, [_entry(name, one) for name, one in self.hub.files(repo, revision).items()])
        else:
            self._file(repo, revision, found[3])

    def do_HEAD(self) -> None:
        self.do_GET()

    def _info(self, repo: str, revision: str) -> dict[str, Any]:
        names = [{"rfilename": name} for name in sorted(self.hub.files(repo, revision))]
        sha = self.hub.sha(repo, revision)
        return {"id": repo, "sha": sha, "private": self.hub.is_private(repo), "siblings": names, "tags": []}

    def _file(self, repo: str, revision: str, name: str) -> None:
        path = self.hub.branch(repo, revision) / name
        if not path.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        content = path.read_bytes()
        headers = {
            "X-Repo-Commit": self.hub.sha(repo, revision),
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Content-Length": str(len(content)),
        }
        self._send(200, content, headers)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    digest = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": digest}


@contextmanager
def served(folder: Path) -> Iterator[tuple[Hub, dict[str, str]]]:
    """A stand-in, and the environment of a process that takes it for the hub."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_CACHE": str(folder / "home" / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    try:
        yield hub, environment
    finally:
        server.shutdown()
        server.server_close()


def received(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Where all that is sent in this process comes to lie, without any hub."""
    target = folder / "received"

    class Api:
        def __init__(self, **_: Any) -> None:
            pass

        def create_repo(self, name: str, **_: Any) -> SimpleNamespace:
            return SimpleNamespace(repo_id=name)

        def create_commit(self, _: str, operations: list[CommitOperationAdd], **__: Any) -> SimpleNamespace:
            target.mkdir()
            for one in operations:
                with one.as_file() as content:
                    (target / one.path_in_repo).write_bytes(content.read())
            return SimpleNamespace(commit_url="http://hub/commit", pr_url=None)

    monkeypatch.setattr(push.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(push, "get_token", lambda: TOKEN)
    monkeypatch.setattr(push, "HfApi", Api)
    monkeypatch.setattr(push, "hf_hub_download", _nothing)
    return target


def _nothing(*_: Any, **__: Any) -> str:
    raise ConnectionError("no hub")
