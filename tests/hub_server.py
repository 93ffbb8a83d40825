"""A Hugging Face hub on this machine that keeps what is uploaded to it, commit by commit."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_a_test"


def serve(server):
    """Answer in a thread until `server.shutdown()`, which waits for the next poll."""
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()


class HubServer(ThreadingHTTPServer):
    """Repositories with their commits, each a dict of files; the newest commit is the last one.

    Attributes
    ----------
    commits : dict
        For each repository its commits: pairs of a name of 40 hex digits and a dict of files.
    branches : dict
        Commits by repository and name, besides "main".
    asked : list of str
        Methods and paths of all requests.
    refuses : str or None
        Requests whose path contains this fail.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits, self.branches, self.uploaded = {}, {}, {}
        self.asked, self.refuses = [], None

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name, files):
        """Add a commit that replaces all files, and return its name."""
        digest = hashlib.sha1(repr((name, len(self.commits[name]), sorted(files))).encode())
        self.commits[name].append((digest.hexdigest(), dict(files)))
        return digest.hexdigest()

    def files(self, name, revision="main"):
        """Return name and files of a commit, or None."""
        commits = self.commits.get(name, [])
        revision = self.branches.get((name, revision), revision)
        if revision == "main":
            return commits[-1] if commits else None
        return next((commit for commit in commits if commit[0] == revision), None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.handle_request()

    def do_GET(self):
        self.handle_request()

    def do_POST(self):
        self.handle_request()

    def do_PUT(self):
        self.handle_request()

    def handle_request(self):
        hub = self.server
        path = self.path.split("?")[0]
        hub.asked.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if hub.refuses is not None and hub.refuses in path:
            return self.answer(500, {"error": "the disk is full"})
        # Large files go to an address that was handed out with a permission in it.
        writes = self.command == "POST" and path != "/api/validate-yaml"
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        for pattern, method in self.ROUTES.items():
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                return method(self, **match.groupdict())
        return self.answer(404, {"error": f"no such page: {path}"})

    def create(self):
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.commits:
            return self.answer(409, {"error": "exists", "url": f"{self.server.address}/{name}"})
        self.server.commits[name] = []
        self.server.commit(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.answer(200, {"url": f"{self.server.address}/{name}"})

    def validate(self):
        content = json.loads(self.body)["content"]
        valid = content.startswith("---\n") and "\n---\n" in content
        return self.answer(200 if valid else 400, {"errors": [], "warnings": []})

    def tree(self, name, revision):
        found = self.server.files(name, revision)
        if found is None:
            return self.answer(404, {"error": "no such repository"}, "RepoNotFound")
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in found[1].items()
        ]
        return self.answer(200, entries)

    def preupload(self, name, revision):
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(self.body)["files"]
        ]
        return self.answer(200, {"files": modes, "commitOid": self.server.files(name)[0]})

    def batch(self, name):
        address = self.server.address
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{address}/lfs/{wanted['oid']}"}}}
            for wanted in json.loads(self.body)["objects"]
        ]
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.uploaded[oid] = self.body
        return self.answer(200, {})

    def add_commit(self, name, revision):
        _, files = self.server.files(name, revision)
        files = dict(files)
        for line in self.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        commit = self.server.commit(name, files)
        url = f"{self.server.address}/{name}/commit/{commit}"
        return self.answer(200, {"commitOid": commit, "commitUrl": url})

    def resolve(self, name, revision, file):
        found = self.server.files(name, revision)
        if found is None:
            error = "RevisionNotFound" if name in self.server.commits else "RepoNotFound"
            return self.answer(404, {"error": error}, error)
        commit, files = found
        if file not in files:
            return self.answer(404, {"error": file}, "EntryNotFound", commit=commit)
        return self.answer(200, files[file], commit=commit)

    ROUTES = {  # noqa: RUF012
        "POST /api/repos/create": create,
        "POST /api/validate-yaml": validate,
        "GET /api/models/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)": tree,
        "POST /api/models/(?P<name>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)": preupload,
        "POST /api/models/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)": add_commit,
        r"POST /(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch": batch,
        "PUT /lfs/(?P<oid>[0-9a-f]{64})": put,
        "(?:HEAD|GET) /(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^/]+)": resolve,
    }

    def answer(self, status, content, error=None, commit=None):
        plain = not isinstance(content, bytes)
        data = json.dumps(content).encode() if plain else content
        self.send_response(status)
        if plain:
            self.send_header("Content-Type", "application/json")
        if error is not None:
            self.send_header("X-Error-Code", error)
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", hashlib.sha256(data).hexdigest())
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass
