"""A bucket of S3 in memory, on a server of this process, for tests of galleries in object storage."""

import functools
import hashlib
import http.server
import re
import threading
import urllib.parse
from collections.abc import Callable
from xml.sax.saxutils import escape, unescape

DATE = "Sat, 28 Nov 2026 12:00:00 GMT"


class Bucket(http.server.ThreadingHTTPServer):
    """Serve the requests that LanceDB sends for small tables. `objects` has the content of each key.

    `before_write` is called before each request that changes the bucket, and gets its number, from 1 on. If it raises
    ConnectionError, the request changes nothing and gets no answer.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Request)
        self.objects: dict[str, bytes] = {}
        self.writes = 0
        self.lock = threading.Lock()
        self.before_write: Callable[[int], None] = lambda number: None

    def handle_error(self, *_: object) -> None:
        """Print nothing. The client of a failed request was killed."""

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables with which LanceDB finds this server."""
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
        return keys | {"AWS_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "AWS_ALLOW_HTTP": "true"}


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def log_message(self, *_: object) -> None:
        pass

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed:
            path, _, query = self.path.partition("?")
            self.key = urllib.parse.unquote(path).lstrip("/").partition("/")[2]
            self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return parsed

    def answer(self, status: int, body: bytes = b"", content: bytes | None = None, **headers: str) -> None:
        """Answer with a body, or for a HEAD request only with its length."""
        self.send_response(status)
        if content is not None:
            headers |= {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Last-Modified": DATE}
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def write(self, change: Callable[[], object]) -> None:
        with self.server.lock:
            self.server.writes += 1
            self.server.before_write(self.server.writes)
            change()

    def do_GET(self) -> None:
        if "list-type" in self.query:
            return self.answer(200, self.listing())
        content = self.server.objects.get(self.key)
        if content is None:
            return self.answer(404)
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not span:
            return self.answer(200, content, content)
        start = int(span[1]) if span[1] else max(len(content) - int(span[2]), 0)
        end = min(int(span[2]) + 1, len(content)) if span[1] and span[2] else len(content)
        place = f"bytes {start}-{end - 1}/{len(content)}"
        return self.answer(206, content[start:end], content, Content_Range=place)

    do_HEAD = do_GET

    def listing(self) -> bytes:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        found, folders = [], set()
        for key in sorted(self.server.objects):
            if key.startswith(prefix) and key > self.query.get("start-after", ""):
                inside, slash, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
                folders |= {prefix + inside + slash} if slash else set()
                found += [] if slash else [key]
        keys = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.server.objects[key])}</Size>"
            "<LastModified>2026-11-28T12:00:00.000Z</LastModified></Contents>"
            for key in found
        )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{keys}{common}</ListBucketResult>".encode()

    def do_PUT(self) -> None:
        """Write an object. With If-None-Match, refuse to replace one."""
        refused = []

        def change() -> None:
            if self.headers.get("If-None-Match") and self.key in self.server.objects:
                refused.append(self.key)
            else:
                self.server.objects[self.key] = self.body

        self.write(change)
        self.answer(412) if refused else self.answer(200, content=self.body)

    def do_POST(self) -> None:
        """Delete several objects."""
        keys = re.findall(r"<Key>.*?</Key>", self.body.decode())
        for key in keys:
            self.write(functools.partial(self.server.objects.pop, unescape(key[5:-6]), None))
        deleted = "".join(f"<Deleted>{key}</Deleted>" for key in keys)
        return self.answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
