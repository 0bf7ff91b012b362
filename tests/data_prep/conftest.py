"""A small data set, and a web server on this machine that offers it."""

import contextlib
import gzip
import http.server
import socket
import threading
from dataclasses import dataclass, field

import pytest

from tests.data_prep.small_set import SmallSet, small_content


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch):
    """No test may ask the network: looking up any other name is an error."""
    look_up = socket.getaddrinfo

    def local(host, *arguments, **named):
        assert host in ("127.0.0.1", "localhost"), f"a test asked the network for {host}"
        return look_up(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def small_set():
    return SmallSet(small_content())


@dataclass
class Web:
    """What the server offers and what it was asked for.

    ``cut`` names paths of which only half is sent; at a path in ``held`` the server sends half,
    sets ``asked`` and waits for ``go_on`` before it sends the rest.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    asked: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def offer(self, folder, content):
        """Offer packed files below ``folder``; returns the address of the folder."""
        for name, values in content.items():
            self.files[f"/{folder}/{name}.gz"] = gzip.compress(values)
        return f"{self.url}/{folder}/"


@pytest.fixture
def web():
    offered = Web()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            offered.requests.append(self.path)
            content = offered.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            half = len(content) // 2
            self.wfile.write(content[:half])
            if self.path in offered.cut:
                return
            if self.path in offered.held:
                self.wfile.flush()
                offered.asked.set()
                offered.go_on.wait(60)
            with contextlib.suppress(OSError):  # the one who asked may have been killed
                self.wfile.write(content[half:])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    offered.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield offered
    offered.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()
