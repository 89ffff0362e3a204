"""A web server on loopback that hands out a few files and remembers what it was asked."""

from __future__ import annotations

import http.server
import threading
from typing import Any


class FileServer:
    """Use as a context manager; `url` has no slash at its end."""

    def __init__(self, files: dict[str, bytes], status: int = 404) -> None:
        """Args: files: content by path; status: of everything else."""
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                content = files.get(self.path)
                self.send_response(200 if content is not None else status)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_: Any) -> None:
                pass

        self.asked = asked
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
