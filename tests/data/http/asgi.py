"""Notes each request that it sees, for uvicorn."""

import os

LOG = os.open(os.environ["REQUESTS"], os.O_WRONLY | os.O_APPEND)


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    line = f"{scope['client'][1]} {scope['method']} ".encode() + scope["raw_path"] + query + b"\n"
    os.write(LOG, line)
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})
