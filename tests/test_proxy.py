"""A proxy of the environment: which one is used for the upstream, and which settings stop the start."""

import pytest
from server import Rill, StartFailed, rill_env
from test_terminal import run
from upstream import Upstream

from rill.settings import BadSettings
from rill.upstream.proxy import proxy_of_environment

NAMES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]
API = "https://api.anthropic.com"
OTHER_KINDS = ["https://p:1", "socks5://p:1", "socks5h://p:1", "socks4://p:1"]
NOT_URLS = [
    "http://",
    "http://:1",
    "http://p:port",
    "http://p:99999",
    "http://p:0",
    "p:port",
    "http://[p",
    "http://p a:1",
    "http://a..b:1",
]
SECRET = "petrichor"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("env", "url", "proxy"),
    [
        ({}, API, None),
        ({"HTTPS_PROXY": "http://p:1"}, API, "http://p:1"),
        ({"https_proxy": "http://p:1"}, API, "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "http://relay", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://relay", "http://p:1"),
        ({"HTTP_PROXY": "http://p:1"}, API, None),
        ({"ALL_PROXY": "p:1"}, API, "http://p:1"),
        ({"ALL_PROXY": "http://a:1", "HTTPS_PROXY": "http://b:1"}, "https://relay", "http://b:1"),
        ({"ALL_PROXY": "socks5://a:1", "HTTPS_PROXY": "http://b:1"}, "https://relay", "http://b:1"),
        ({"HTTPS_PROXY": ""}, API, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "anthropic.com"}, API, None),
        ({"HTTPS_PROXY": "socks5://p:1", "NO_PROXY": "anthropic.com"}, API, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example.com, other"}, "https://example.org", "http://p:1"),
    ],
)
def test_the_environment_names_the_proxy(
    environment: pytest.MonkeyPatch, env: dict[str, str], url: str, proxy: str | None
) -> None:
    for name, value in env.items():
        environment.setenv(name, value)
    found = proxy_of_environment(url)
    assert (found and str(found)) == proxy


@pytest.mark.parametrize("value", [*OTHER_KINDS, *NOT_URLS])
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "All_Proxy"])
def test_a_proxy_of_another_kind_is_rejected_by_the_name_of_its_variable(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(name, value)
    with pytest.raises(BadSettings, match=rf"^{name}: should be an http proxy, .*NO_PROXY=api\.anthropic\.com$"):
        proxy_of_environment(API)


@pytest.mark.parametrize("proxy", [f"socks5://user:{SECRET}@127.0.0.1:9", f"https://user:{SECRET}@127.0.0.1:9"])
@pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["one worker", "two workers"])
def test_a_proxy_of_another_kind_stops_the_start(upstream: Upstream, proxy: str, arguments: tuple[str, ...]) -> None:
    with pytest.raises(StartFailed) as rejected, Rill({**rill_env(upstream), "ALL_PROXY": proxy}, arguments):
        pass
    assert rejected.value.exit_code == 1
    assert_one_line(rejected.value.output)


def test_a_proxy_of_another_kind_stops_the_command(upstream: Upstream) -> None:
    code, written, errors = run(upstream, "hi", ALL_PROXY=f"socks5://user:{SECRET}@127.0.0.1:9")
    assert (code, written) == (1, "")
    assert_one_line(errors)
    assert upstream.requests == []


def assert_one_line(output: str) -> None:
    assert len(output.splitlines()) == 1, output
    assert output.startswith("rill: ALL_PROXY: should be an http proxy")
    assert SECRET not in output


def test_the_offline_model_needs_no_proxy(upstream: Upstream) -> None:
    with Rill({"RILL_OFFLINE": "1", "ALL_PROXY": "socks5://127.0.0.1:9"}) as offline:
        assert upstream.requests == []
        with offline.ask("GET", "/stream?q=tokens%3D1") as asked:
            assert asked.status == 200
