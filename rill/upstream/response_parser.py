"""The HTTP parser of one response: geventhttpclient's, in C."""

from geventhttpclient._parser import HTTPParseError, HTTPResponseParser


class ResponseParser(HTTPResponseParser):
    """The parser of one response, which skips the interim ones (1xx) before it; C calls the methods `_on_...`.

    `body` holds the bytes of the body that were not taken yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self._headers: list[tuple[str, str | None]] = []
        self.body = bytearray()
        self.has_begun = False
        self.has_headers = False
        self.is_chunked = False
        self.is_complete = False

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode("latin-1"), (value or "").encode("latin-1")) for name, value in self._headers]

    def is_reusable(self) -> bool:
        """Return whether the connection may carry another response."""
        return self.is_complete and not self.parser_failed() and self.should_keep_alive()

    def _on_message_begin(self) -> None:
        if self.is_complete:
            raise HTTPParseError("Bytes came behind the response.")
        self.has_begun = True
        self._headers.clear()

    def _on_status(self, reason: str) -> None:
        pass

    def _on_header_field(self, part: str) -> None:
        # A name or a value comes in parts if it is split between two reads.
        name = ""
        if self._headers and self._headers[-1][1] is None:
            name, _ = self._headers.pop()
        self._headers.append((name + part, None))

    def _on_header_value(self, part: str) -> None:
        name, value = self._headers.pop()
        self._headers.append((name, (value or "") + part))

    def _on_headers_complete(self) -> None:
        self.has_headers = self.get_code() >= 200
        self.is_chunked = any(name.lower() == "transfer-encoding" for name, _ in self._headers)

    def _on_body(self, data: bytearray) -> None:
        self.body += data

    def _on_message_complete(self) -> None:
        self.is_complete = self.get_code() >= 200
