"""An identity provider for tests: it signs tokens, and serves its public keys on a real socket."""

import json
import ssl
import threading
import time
from collections.abc import Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE, ISSUER = "rill", "https://id.example"


def claims_of(subject: str = "alice", **changes: Any) -> dict[str, Any]:
    """Return valid claims with these changes; None removes one."""
    now = int(time.time())
    known = {"sub": subject, "aud": AUDIENCE, "iss": ISSUER, "iat": now, "exp": now + 600}
    return {name: value for name, value in {**known, **changes}.items() if value is not None}


@cache
def make_key(algorithm: str = "ES256", name: str = "") -> Any:
    """Return a private key for an algorithm; another name gives another key."""
    if algorithm.startswith(("RS", "PS")):
        return rsa.generate_private_key(65537, 2048)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    curves: dict[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    return ec.generate_private_key(curves[algorithm])


def jwk_of(key: Any, kid: str | None = None, **members: Any) -> dict[str, Any]:
    """Return the public part of a private key as a JSON Web Key."""
    maker = (
        RSAAlgorithm
        if isinstance(key, rsa.RSAPrivateKey)
        else OKPAlgorithm
        if isinstance(key, ed25519.Ed25519PrivateKey)
        else ECAlgorithm
    )
    jwk: dict[str, Any] = json.loads(maker.to_jwk(key.public_key()))
    jwk.pop("key_ops", None)
    return {**jwk, **({"kid": kid} if kid else {}), "use": "sig", **members}


def sign(key: Any, claims: Mapping[str, Any] | None = None, algorithm: str = "ES256", **header: Any) -> str:
    """Return a token; None as a value of the header removes the field."""
    return jwt.encode(dict(claims or claims_of()), key, algorithm, {"kid": "first", **header})


class IdentityProvider:
    """Serves `jwks` at `url`; `status`, `headers` and `body`, if set, replace what it responds."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.key = make_key()
        self.jwks: dict[str, Any] = {"keys": [jwk_of(self.key, "first")]}
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: bytes | None = None
        self.paths: list[str] = []
        self.seconds = 0.0  # before it responds
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.paths.append(self.path)
                time.sleep(provider.seconds)  # pacing: a slow provider
                body = json.dumps(provider.jwks).encode() if provider.body is None else provider.body
                self.send_response(provider.status)
                for name, value in {"Content-Length": str(len(body)), **provider.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *arguments: object) -> None:
                pass  # The client may close a response that is too long.

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/jwks"

    def __enter__(self) -> "IdentityProvider":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
