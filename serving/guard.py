"""What stands between a socket and the application: who may ask, how much, and what is written down about it.

An ASGI middleware (https://asgi.readthedocs.io). A request is refused by its headers alone where they are enough, its
body is read here with a limit, and only then handed on. A page of another site can make a browser send requests to
this machine; three things keep it from learning or doing anything: it cannot send JSON without asking first (CORS,
which is never granted), it cannot read answers, and a name of its own that it points at 127.0.0.1 (DNS rebinding)
is not among the Host names that are answered.
"""

import asyncio
import hmac
import logging
import time
import traceback

from starlette.responses import JSONResponse

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
OPEN_PATHS = ("/", "/api/health", "/api/health/ready")  # by GET without a token: the page asks for it
BODY_SECONDS = 30  # for a whole request to arrive
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
BROKEN = "something went wrong here; the log says where"
log = logging.getLogger("bareqa.requests")


class Refused(Exception):
    """A request that gets no answer but a status and a sentence."""

    def __init__(self, status, sentence, headers=None):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


def refusal(path, status, sentence, headers=None):
    """The response that says so, in the form that clients of `path` expect."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": sentence, "type": kind, "param": None, "code": None} if path.startswith("/v1/") else sentence
    return JSONResponse({"error": error}, status, headers)


def host_of(header):
    """The name in a Host header, in lower case and without a port."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdigit() else header).lower()


class Guard:
    """Lets a request through to `app`, or refuses it.

    hosts: names beside those of loopback. token: what clients must send, or None. max_bytes: of a body. max_open:
    requests at a time, whose bodies are all in memory. seen(route, status, seconds) is told of each request.
    """

    def __init__(self, app, *, hosts=(), token=None, max_bytes, max_open, seen=None):
        self.app, self.max_bytes, self.max_open = app, max_bytes, max_open
        self.hosts = {*LOOPBACK, *(name.lower() for name in hosts)}
        self.token = None if token is None else token.encode()
        self.seen = seen or (lambda *_: None)
        self.open = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), None

        async def sending(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = message | {"headers": [*message["headers"], *HEADERS]}
            await send(message)

        self.open += 1
        try:
            body = await self.admit(scope, receive)
            await self.app(scope, replay(body, receive), sending)
        except Refused as error:
            await refusal(scope["path"], error.status, error.sentence, error.headers)(scope, receive, sending)
        except asyncio.CancelledError:  # the server stops, and this took longer than it waits
            if status is None:
                closing = refusal(scope["path"], 503, "the server is shutting down", {"retry-after": "1"})
                await closing(scope, receive, sending)
        except Exception as error:
            # the message of an exception may hold what a user wrote: only where it was raised is written down
            places = "; ".join(f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__))
            log.error("%s at %s", type(error).__name__, places)
            if status is None:
                await refusal(scope["path"], 500, BROKEN)(scope, receive, sending)
        finally:
            self.open -= 1
            route = getattr(scope.get("route"), "path", "(no route)")
            seconds = time.perf_counter() - began
            self.seen(route, status, seconds)
            log.info("%s %s %s %.0f ms", scope["method"], route, status, 1000 * seconds)

    async def admit(self, scope, receive):
        """The body of a request that may be answered; Refused for any other."""
        headers = {name: value for name, value in scope["headers"]}
        self.check_host([value for name, value in scope["headers"] if name == b"host"])
        self.check_token(scope, headers.get(b"authorization", b""))
        if scope["method"] != "POST":
            return b""
        kind, _, charset = headers.get(b"content-type", b"").lower().replace(b" ", b"").partition(b";charset=")
        if kind.split(b";")[0] != b"application/json" or charset.split(b";")[0].strip(b'"') not in (b"", b"utf-8"):
            raise Refused(415, "send JSON in UTF-8, with the header Content-Type: application/json")
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise Refused(415, "send the body as it is, without a Content-Encoding")
        if self.open > self.max_open:
            raise Refused(503, "too many requests at a time; try again later", {"retry-after": "1"})
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > self.max_bytes:
            raise self.too_long()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self.read(receive)
        except TimeoutError:
            raise Refused(408, f"the request did not arrive within {BODY_SECONDS} seconds") from None

    def check_host(self, hosts):
        if len(hosts) != 1 or host_of(hosts[0].decode("latin-1")) not in self.hosts:
            raise Refused(403, "this server does not go by that name; start it with --allow-host NAME for others")

    def check_token(self, scope, header):
        if self.token is None or scope["method"] in ("GET", "HEAD") and scope["path"] in OPEN_PATHS:
            return
        scheme, _, given = header.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token):
            raise Refused(401, "send the server's token: Authorization: Bearer TOKEN", {"www-authenticate": "Bearer"})

    def too_long(self):
        return Refused(413, f"requests may have {self.max_bytes:,} bytes, and this one has more")

    async def read(self, receive):
        """The whole body; Refused as soon as it grows too long, whatever its header promised."""
        chunks, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the client left in the middle of its request")
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise self.too_long()
            chunks.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(chunks)


def replay(body, receive):
    """An ASGI receive that gives `body` in one piece, and afterwards what really comes."""
    given = False

    async def receiving():
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving
