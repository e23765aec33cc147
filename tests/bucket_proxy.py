"""A proxy before an emulator of a bucket: counts the requests, and answers with errors when told to."""

import contextlib
import dataclasses
import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP_HEADERS = {"connection", "transfer-encoding", "expect", "keep-alive"}
_ERRORS = {
    401: b'{"error": {"code": 401, "message": "Request had expired authentication credentials."}}',
    403: b'{"error": {"code": 403, "message": "The account does not have storage.objects.create access."}}',
    429: b'{"error": {"code": 429, "message": "The object exceeded the rate limit."}}',
    503: b'{"error": {"code": 503, "message": "Backend Error"}}',
}


@dataclasses.dataclass
class Proxy:
    """What the proxy saw, and what it does.

    Attributes:
        url: where it listens.
        counts: requests by method.
        status: the error with which it answers; 0: none.
        until: when it stops doing so, by `time.monotonic`.
        only: answer with the error only to requests whose path contains this.
        refused: the number of requests that it answered so.
    """

    url: str = ""
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    status: int = 0
    until: float = 0.0
    only: str = ""
    refused: int = 0

    def refuse(self, status: int, seconds: float, only: str = "") -> None:
        """Answers with an error for some seconds."""
        self.status, self.until, self.only, self.refused = status, time.monotonic() + seconds, only, 0


@contextlib.contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """Yields a proxy that listens and forwards to the URL `target`."""
    seen, local = Proxy(), threading.local()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _answer(self, status, headers, body):
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in _HOP_HEADERS | {"content-length"}:
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            else:
                self.send_header("Content-Length", dict((n.lower(), v) for n, v in headers).get("content-length", "0"))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _forward(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.counts[self.command] += 1
            if time.monotonic() < seen.until and seen.only in self.path:
                seen.refused += 1
                error = _ERRORS[seen.status]
                self._answer(seen.status, [("Content-Type", "application/json")], error)
                return
            if not hasattr(local, "connection"):
                local.connection = http.client.HTTPConnection(urlsplit(target).netloc, timeout=60)
            headers = {n: v for n, v in self.headers.items() if n.lower() not in _HOP_HEADERS}
            local.connection.request(self.command, self.path, body or None, headers)
            answer = local.connection.getresponse()
            self._answer(answer.status, answer.getheaders(), answer.read())

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _forward

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    seen.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
