"""A server of gRPC that answers every call with what it was sent, and says which calls it saw."""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        print(details.method, flush=True)
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request)


server = grpc.server(ThreadPoolExecutor(4), handlers=[Echo()])
server.add_insecure_port(sys.argv[1])
server.start()
print("up", flush=True)
server.wait_for_termination()
