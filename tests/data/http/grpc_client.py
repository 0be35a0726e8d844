"""Calls of gRPC, one after the other and at once, of which some are denied; says what became of them."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

TOLD = {}
with (
    grpc.insecure_channel(sys.argv[1]) as channel,
    grpc.insecure_channel(sys.argv[1], [("grpc.use_local_subchannel_pool", 1)]) as other,
):
    add, drop = (channel.unary_unary(f"/shop.Cart/{name}") for name in ("Add", "Drop"))
    kept = other.unary_unary("/shop.Cart/Get")

    def ask(call, text, **metadata):
        return call(text, timeout=10, wait_for_ready=True, metadata=list(metadata.items()))

    TOLD["kept"] = ask(kept, b"1").decode()
    TOLD["in a row"] = all(ask(add, b"%d" % n, number=str(n) * 20) == b"%d" % n for n in range(200))
    with ThreadPoolExecutor(20) as pool:
        texts = [b"y" * n for n in range(400)]
        TOLD["at once"] = list(pool.map(lambda text: ask(add, text), texts)) == texts
    TOLD["large"] = len(ask(add, b"z" * 3_000_000))
    TOLD["with its header"] = ask(drop, b"3", **{"x-tenant": "blue"}).decode()
    try:
        drop(b"4", timeout=10)
    except grpc.RpcError as error:
        TOLD["denied"] = error.code().name
    deadline = time.monotonic() + 10
    while "afterwards" not in TOLD:  # calls that begin before the end of the connection is seen have it too
        try:
            TOLD["afterwards"] = ask(add, b"5").decode()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
    TOLD["unharmed"] = ask(kept, b"6").decode()
print(json.dumps(TOLD))
