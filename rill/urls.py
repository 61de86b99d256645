"""Which URLs settings may name."""

from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

REDIS_OPTIONS = {"db", "ssl_cert_reqs", "ssl_ca_certs", "ssl_check_hostname"}


def is_http_url(value: str) -> bool:
    """Return whether this is an http or https URL, without a password, whose host can exist."""
    try:
        url = urlsplit(value)
        host = url.hostname or ""
        host.encode("idna")  # A host that cannot be resolved would make each request fail.
        if host.replace(".", "").isdigit():
            ip_address(host)
        return url.scheme in ("http", "https") and bool(host) and url.port != 0 and "@" not in url.netloc
    except ValueError:
        return False


def is_on_loopback(url: str) -> bool:
    """Return whether the host of a URL is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_redis_url(value: str) -> bool:
    """Return whether this is the URL of a Redis, with known options only."""
    try:
        url = urlsplit(value)
        location = url.path if url.scheme == "redis+unix" else url.hostname and url.port != 0
        known = parse_qs(url.query, keep_blank_values=True).keys() <= REDIS_OPTIONS
    except ValueError:  # An invalid port; the message would repeat it, and it may be part of a password.
        return False
    return url.scheme in ("redis", "rediss", "redis+unix") and bool(location) and known
