"""Notes each request that it sees, by Python's http.server, which takes many things for one."""

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOG = os.open(os.environ["REQUESTS"], os.O_WRONLY | os.O_APPEND)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def parse_request(self):
        understood = super().parse_request()
        if understood:
            os.write(LOG, f"{self.client_address[1]} {self.command} {self.path}\n".encode("latin-1"))
        return understood

    def answer(self):
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_):
        pass


Server(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
