"""The proxy that the environment sets for the upstream."""

import os
from urllib.request import getproxies, proxy_bypass

import httpx2

from rill.settings import BadSettings


def proxy_of_environment(base_url: str) -> httpx2.URL | None:
    """Return the http proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY; raise BadSettings for a proxy of another kind.

    Return None without one, or if NO_PROXY excepts the host of the upstream.
    """
    url, proxies = httpx2.URL(base_url), getproxies()
    kind = url.scheme if proxies.get(url.scheme) else "all"
    value = proxies.get(kind)
    if not value or proxy_bypass(url.host):
        return None
    proxy = _parse(value)
    if proxy is None:
        # The value may contain a password.
        raise BadSettings(
            f"{_name_of(kind)}: should be an http proxy, such as http://proxy.example:3128; for a direct connection, "
            f"unset it or set NO_PROXY={url.host}"
        )
    return proxy


def _parse(value: str) -> httpx2.URL | None:
    try:
        proxy = httpx2.URL(value if "://" in value else f"http://{value}")
        proxy.host.encode("idna")  # A name that no resolver accepts would fail with each request.
    except (httpx2.InvalidURL, UnicodeError):
        return None
    port = 80 if proxy.port is None else proxy.port
    # httpx2 quotes what does not fit in a host name.
    return proxy if proxy.scheme == "http" and proxy.host and "%" not in proxy.host and 0 < port < 65536 else None


def _name_of(kind: str) -> str:
    """Return the variable as it is written: urllib accepts any case and prefers the lower one."""
    name = f"{kind}_proxy"
    return next((each for each in (name, *os.environ) if each.lower() == name and os.environ.get(each)), name.upper())
