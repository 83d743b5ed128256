"""A bucket that exists only as its listing: answers ListObjectsV2 with synthetic keys, page by page, on loopback."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PAGE = 1000
CLASSES = 10
MIX = 0x9E3779B97F4A7C15F39CC0605CEDC835  # odd: ETags differ, and in all digits, as hashes do


def key(number: int, keys: int) -> str:
    """Ascending, 41 characters, the same number in each class."""
    return f"class-{number * CLASSES // keys}/photo-{number:012d}-of-some-length.jpg"


@contextlib.contextmanager
def serving(keys: int) -> Iterator[dict[str, str]]:
    """Serve a bucket `photos` of that many keys; gives the environment that leads to it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            start = int(query.get("continuation-token", ["0"])[0])
            end = min(keys, start + min(PAGE, int(query.get("max-keys", [PAGE])[0])))
            entries = "".join(
                f"<Contents><Key>{key(i, keys)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f'<ETag>"{i * MIX % 2**128:032x}"</ETag><Size>{20_000 + i % 1000}</Size></Contents>'
                for i in range(start, end)
            )
            more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < keys else ""
            body = (
                '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>photos</Name>'
                f"<IsTruncated>{str(end < keys).lower()}</IsTruncated>{more}{entries}</ListBucketResult>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
        }
    finally:
        server.shutdown()
        server.server_close()
