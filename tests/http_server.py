"""A loopback HTTP server for tests: it answers as it is told, and misbehaves on request."""

import hashlib
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Request:
    """What a client asked; header names are in lower case, `path` keeps its query."""

    method: str
    path: str
    headers: dict


@dataclass(frozen=True)
class Reply:
    """What to send. `promise` is the Content-Length, when it shall not be the body's (None: no header).

    `cut_after` and `stall_after` are numbers of body bytes after which the connection is closed, or
    left open without another byte until the test is over.
    """

    status: int = 200
    body: bytes = b""
    headers: dict = field(default_factory=dict)
    promise: int | str | None = "true length"
    cut_after: int | None = None
    stall_after: int | None = None


@dataclass
class Server:
    """`url` has no slash at the end; `requests` is everything that was asked, in order."""

    url: str
    requests: list

    def paths(self, method="GET"):
        return [request.path for request in self.requests if request.method == method]


@contextmanager
def serve(answer):
    """Run a server in a thread that sends `answer(request)`, a Reply, to each request."""
    requests, over = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def _respond(self):
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers)
            requests.append(request)
            self._send(answer(request))

        do_GET = do_HEAD = do_POST = _respond

        def _send(self, reply):
            self.close_connection = True
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.promise is not None:
                length = len(reply.body) if reply.promise == "true length" else reply.promise
                self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command == "HEAD":
                return
            stops = [stop for stop in (reply.cut_after, reply.stall_after) if stop is not None]
            try:
                self.wfile.write(reply.body[: min(stops)] if stops else reply.body)
                self.wfile.flush()
            except ConnectionError:
                return  # a client that gives up in the middle is a client's right
            if reply.stall_after is not None:
                over.wait(60)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_port}", requests)
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def file_reply(request, body, etag=None):
    """Return what a correct file server sends, Range and If-Range included (RFC 9110, 13.1.5 and 14)."""
    etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"' if etag is None else etag
    whole = Reply(body=body, headers={"ETag": etag, "Accept-Ranges": "bytes"})
    asked = request.headers.get("range")
    if asked is None or request.headers.get("if-range", etag) != etag:
        return whole
    start = int(asked.removeprefix("bytes=").split("-")[0])
    if start >= len(body):
        return Reply(416, headers={"Content-Range": f"bytes */{len(body)}"})
    extent = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
    return replace(whole, status=206, body=body[start:], headers=whole.headers | extent)
