"""Notes each request that it sees, for gunicorn."""

import os

LOG = os.open(os.environ["REQUESTS"], os.O_WRONLY | os.O_APPEND)


def app(environ, start_response):
    line = f"{environ['REMOTE_PORT']} {environ['REQUEST_METHOD']} {environ['RAW_URI']}\n"
    os.write(LOG, line.encode("latin-1"))
    while environ["wsgi.input"].read(65536):
        pass
    start_response("200 OK", [("Content-Length", "0")])
    return [b""]
