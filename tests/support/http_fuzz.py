"""Requests of HTTP that nobody has thought of, and what h11, which shares nothing with us, sees in bytes."""

from __future__ import annotations

import h11
from hypothesis import strategies as st

from k8sdatapath.errors import RegexError
from k8sdatapath.model.regex import Regex
from tests.support.http_exchanges import WHOLE

__all__ = ["ALPHABETS", "built", "damaged", "requests_of"]

#: What the parts of rules are put together from.
ALPHABETS = {
    "method": st.sampled_from(["A", "AB|B", "B*", "[AB]+"]),
    "path": st.text("ab/.*|+?[]()", max_size=5)
    .filter(lambda text: _is_regex(f"/{text}"))
    .map(lambda text: f"/{text}"),
    "host": st.sampled_from(["a", "a*b?", "b"]),
}

#: What requests are put together from, well or badly.
PIECES = (
    *(
        b"GET ",
        b"POST ",
        b"PUT",
        b"get ",
        b" ",
        b"/public",
        b"/charge",
        b"/admin",
        b"/",
        b"?a",
        b"#",
        b"%2e",
        b"//",
    ),
    *(
        b" HTTP/1.1",
        b" HTTP/1.0",
        b" HTTP/1.1\r\nHost: a\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"\t",
        b";",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length",
        b": ",
        b":",
        b"5",
        b"+5",
        b"hello",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: ", b"gzip, ", b"chunked", b"Host: b\r\n"),
    *(
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\n",
        b"a;b\r\n",
        b"X: y\r\n",
        b"X : y\r\n",
        b"\xff",
        b"Expect: 100-continue\r\n",
    ),
)


def _is_regex(text: str) -> bool:
    try:
        Regex(text)
    except RegexError:
        return False
    return True


#: Pieces in any order.
built = st.lists(st.sampled_from(PIECES), max_size=14).map(b"".join)
small = [each.data for each in WHOLE if len(each.data) < 400]


@st.composite
def damaged(draw):
    """An exchange of the corpus with something changed, and perhaps another one behind it."""
    data = draw(st.sampled_from(small))
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(begin + 4, len(data))))
        instead = draw(st.one_of(st.binary(max_size=3), st.sampled_from(PIECES)))
        data = data[:begin] + instead + data[end:]
    return data + draw(st.sampled_from([b"", *small]))


def requests_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Method and target of each that h11 sees."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    found = []
    while True:
        try:
            event = server.next_event()
        except h11.RemoteProtocolError:
            return found
        if event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
            return found
        if isinstance(event, h11.Request):
            found.append((event.method, event.target))
        elif isinstance(event, h11.EndOfMessage):
            server.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            server.send(h11.EndOfMessage())
            if server.our_state is not h11.DONE:
                return found
            server.start_next_cycle()
