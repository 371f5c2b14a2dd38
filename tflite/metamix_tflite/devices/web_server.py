"""A web server in this process that gives out one page and takes back one report."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
_OTHER = "application/octet-stream"
# With these two a page at localhost or over https may use threads, and has a fine clock.
_ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
_LONGEST_REPORT = 1 << 30  # bytes
_EVERYWHERE = ("", "0.0.0.0", "::")


class PageServer:
    """Serves within a `with` block, in threads of its own.

    Args:
      content: what it gives out by path; index.html at the address itself. Nothing else is read.
      report: the path that the page posts JSON to.
      host: address of this machine.
      port: 0 for a free one.

    Raises:
      OSError: the address is not this machine's, or the port is taken; names both.
    """

    def __init__(self, content: Mapping[str, bytes | Path], report: str, host: str, port: int):
        self._report: list[Any] = []
        self._done = threading.Event()
        handler = _handler(content, report, self._take)
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except (OSError, OverflowError) as error:
            raise OSError(f"--host={host}, --port={port}: no address here: {error}") from error
        self._server.daemon_threads = True
        shown = socket.gethostname() if host in _EVERYWHERE else host
        self.address = f"http://{shown}:{self._server.server_port}/"

    def __enter__(self) -> PageServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self, seconds: float) -> bool:
        """Whether the report has come, for which it waits so long at most."""
        return self._done.wait(seconds)

    def report(self) -> Any:
        """What the page posted, once `wait` is true."""
        return self._report[0]

    def _take(self, report: Any) -> None:
        self._report.append(report)
        self._done.set()


def _handler(
    content: Mapping[str, bytes | Path], report: str, take: Any
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers for one server."""

        def log_message(self, format: str, *args: Any) -> None:
            """Prints nothing."""

        def do_GET(self) -> None:
            """A file of the page."""
            name = self.path.partition("?")[0].removeprefix("/") or "index.html"
            if name not in content:
                self.send_error(404)
                return
            held = content[name]
            body = held if isinstance(held, bytes) else held.read_bytes()
            self.send_response(200)
            kind = _KINDS.get(Path(name).suffix, _OTHER)
            headers = {"Content-Type": kind, "Content-Length": str(len(body)), **_ISOLATION}
            for header, value in headers.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            """The report."""
            length = int(self.headers.get("Content-Length", 0))
            if self.path != f"/{report}" or not 0 < length <= _LONGEST_REPORT:
                self.send_error(400)
                return
            found = json.loads(self.rfile.read(length))
            self.send_response(204)
            self.end_headers()
            take(found)

    return Handler
