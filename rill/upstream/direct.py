"""The SDK's client with a short way from `messages.stream` to the connection."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import anthropic
import httpx2

from rill.upstream.transport import GeventTransport, header_line


class DirectClient(anthropic.Anthropic):
    """The official client, which writes its requests from prepared parts.

    The SDK makes each request from pydantic models, a URL, headers and timeouts of its own, for 0.45 ms of CPU; this
    takes 0.03. What a request contains and which errors it raises is still the SDK's. It makes no attempt again and
    knows no tracing.
    """

    def __init__(self, transport: GeventTransport, timeout: httpx2.Timeout, **options: Any) -> None:
        super().__init__(timeout=timeout, max_retries=0, **options)
        self._gevent_transport = transport
        self._timeouts = {name: seconds or 0.0 for name, seconds in timeout.as_dict().items()}
        host = {"Host": self.base_url.netloc.decode("ascii"), "X-Stainless-Retry-Count": "0"}
        self._lines = _lines_of({**host, **self.default_headers})

    @property
    def user_agent(self) -> str:
        """Return the SDK's user agent, which it would derive from the name of this class."""
        return f"Anthropic/Python {anthropic.__version__}"

    def post(  # type: ignore[override]
        self,
        path: str,
        *,
        cast_to: Any,
        body: Mapping[str, Any],
        options: Mapping[str, Any],
        stream_cls: Any,
        **unused: Any,
    ) -> Any:
        """Send one request and return the stream of its response; raise anthropic.APIError."""
        fields = {name: value for name, value in body.items() if not isinstance(value, anthropic.Omit)}
        fields.update(options.get("extra_json", {}))
        content = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        lines = {
            **self._lines,
            **_lines_of(options["headers"]),
            "content-length": b"content-length: %d\r\n" % len(content),
        }
        target = self.base_url.raw_path.rstrip(b"/") + path.encode("ascii")
        if query := options.get("params"):
            target += b"?" + urlencode(query).encode("ascii")
        response = self._send(target, b"".join(lines.values()), content)
        if not response.is_success:
            raise _status_error(response)
        return stream_cls(cast_to=cast_to, response=response, client=self)

    def _send(self, target: bytes, head: bytes, content: bytes) -> httpx2.Response:
        try:
            return self._gevent_transport.send(b"POST", target, head, content, self._timeouts)
        except httpx2.TimeoutException as error:
            raise anthropic.APITimeoutError(request=httpx2.Request("POST", self.base_url)) from error
        except httpx2.TransportError as error:
            raise anthropic.APIConnectionError(request=httpx2.Request("POST", self.base_url)) from error


def _lines_of(headers: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the line of each header by its name in lower case, without those that the SDK omits."""
    return {name.lower(): header_line(name, value) for name, value in headers.items() if isinstance(value, str)}


def _status_error(response: httpx2.Response) -> anthropic.APIStatusError:
    """Read the body of a rejection and return its error; raise httpx2.TransportError."""
    response.request = httpx2.Request("POST", "")
    response.read()
    try:
        body = response.json()
    except ValueError:
        body = None
    return anthropic.APIStatusError(str(response.status_code), response=response, body=body)
