"""A file server on loopback that can misbehave, and one that has small CIFAR archives."""

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import small_cifar

from experiments.data.archive import Archive
from experiments.data.cifar_builder import Cifar10, Cifar100


class FileServer(ThreadingHTTPServer):
    """Serves one file at every address.

    Attributes:
        body: The file.
        knows_ranges: Whether a part of it may be asked for.
        status: What is answered instead of the file, unless it is 200.
        cut_after: Bytes after which the connection breaks.
        ranges: The range that each request asked for, `None` where it asked for the whole file.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = b""
        self.knows_ranges = True
        self.status = 200
        self.cut_after = None
        self.ranges = []

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        body, status = self.server.body, 200
        if asked and self.server.knows_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(body):
                self.send_error(416)
                return
            body, status = body[start:], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut_after])

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FileServer() as file_server:
        thread = threading.Thread(target=file_server.serve_forever, args=(0.01,))
        thread.start()
        yield file_server
        file_server.shutdown()
        thread.join()


BUILDERS = {"cifar10": Cifar10, "cifar100": Cifar100}


@pytest.fixture(scope="session", params=["cifar10", "cifar100"])
def name(request):
    return request.param


@pytest.fixture(scope="session")
def archive_bytes(name):
    return small_cifar.archive(name)


@pytest.fixture
def served(name, archive_bytes, server, monkeypatch):
    """The server has the small archive, and its checksum is on record."""
    server.body = archive_bytes
    builder = BUILDERS[name]
    url = server.url(builder(data_dir="unused").archive.file_name)
    monkeypatch.setattr(builder, "archive", record(url, archive_bytes))
    return server


def record(url, body):
    return Archive(url, len(body), hashlib.sha256(body).hexdigest())
