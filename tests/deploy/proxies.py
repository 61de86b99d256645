"""Real proxies in front of the real server, as child processes whose files are all in one temporary folder."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from conversation import Conversation, request_bytes
from server import ROOT, Rill

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
CADDY = shutil.which("caddy")
START_SECONDS = 60
NGINX_CONF = (ROOT / "deploy" / "nginx.conf").read_text("utf-8")
CADDYFILE = (ROOT / "deploy" / "Caddyfile").read_text("utf-8")

# Changes of deploy/nginx.conf: HTTP/1.0 to Rill, as in old nginx; buffering despite X-Accel-Buffering; both.
HTTP_1_0 = {"proxy_http_version 1.1;": "", 'proxy_set_header Connection "";': ""}
BUFFER = {"proxy_buffering off;": "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"}
BUFFERING = {**HTTP_1_0, **BUFFER}

# The configuration around a server block, as in /etc/nginx/nginx.conf.
NGINX_MAIN = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    gzip on;
    {site}
}}
"""
CADDY_MAIN = """
{{
    admin off
    auto_https off
}}
{site}
"""


class Proxy:
    """A proxy in front of a server, running during the context, with the same methods as the server."""

    def __init__(self, service: Rill, command: list[str], site: str) -> None:
        self._service = service
        self._command = command
        self._site = site
        self.port = 0

    def __enter__(self) -> "Proxy":
        self.folder = Path(tempfile.mkdtemp(prefix="proxy-"))
        for _ in range(4):
            if self._start():
                return self
            self._kill()
        output = self.output()
        shutil.rmtree(self.folder)
        raise AssertionError(f"the proxy did not start:\n{output}")

    def __exit__(self, *exc_info: object) -> None:
        self._kill()
        shutil.rmtree(self.folder)

    @property
    def url(self) -> str:
        """Return the proxy's URL, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Conversation:
        """Send a request on a new connection, and return the connection before reading the response."""
        return Conversation(self.port, request_bytes(method, path, headers, body))

    def output(self) -> str:
        """Return the proxy's output so far."""
        return (self.folder / "output").read_text("utf-8", "replace")

    def connections(self) -> set[int]:
        """Return the local ports of the open connections to the server."""
        held = psutil.Process(self._process.pid).net_connections("tcp")
        return {
            each.laddr.port
            for each in held
            if each.raddr and each.raddr.port == self._service.port and each.status == psutil.CONN_ESTABLISHED
        }

    def temporary_files(self) -> list[str]:
        """Return the deleted files that the proxy holds open, in which it buffers what does not fit into memory."""
        held = [os.readlink(each) for each in Path(f"/proc/{self._process.pid}/fd").iterdir()]
        return [path for path in held if path.startswith(str(self.folder)) and path.endswith("(deleted)")]

    def _start(self) -> bool:
        """Start on a port that was just free, and return whether it still was."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        (self.folder / "conf").write_text(self.configure(), "utf-8")
        self._output = (self.folder / "output").open("wb")
        command = [part.replace("FOLDER", str(self.folder)) for part in self._command]
        env = {"HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        self._process = subprocess.Popen(command, env=env, stdout=self._output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self._process.poll() is None
            time.sleep(0.02)
        return False

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()

    def configure(self) -> str:
        """Return the complete configuration for this port and this server."""
        raise NotImplementedError


class Nginx(Proxy):
    """nginx with deploy/nginx.conf; `changes` replaces lines, each of which must exist."""

    def __init__(self, service: Rill, changes: Mapping[str, str] | None = None) -> None:
        assert NGINX
        site = replace_lines(NGINX_CONF, changes or {})
        super().__init__(service, [NGINX, "-p", "FOLDER", "-c", "FOLDER/conf", "-e", "stderr"], site)

    def configure(self) -> str:
        changes = {
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{self._service.port};",
            "listen 80;": f"listen 127.0.0.1:{self.port};",
            "error_log /var/log/nginx/rill.log crit;": f"error_log {self.folder}/rill.log crit;",
        }
        return NGINX_MAIN.format(folder=self.folder, site=replace_lines(self._site, changes))


class Caddy(Proxy):
    """Caddy with deploy/Caddyfile; `directive` is added to its site, `option` to its reverse_proxy."""

    def __init__(self, service: Rill, directive: str = "", option: str = "") -> None:
        assert CADDY
        super().__init__(service, [CADDY, "run", "--config", "FOLDER/conf", "--adapter", "caddyfile"], CADDYFILE)
        self._directive = directive
        self._option = option

    def configure(self) -> str:
        changes = {
            "rill.example.com {": f"http://127.0.0.1:{self.port} {{\nbind 127.0.0.1\n{self._directive}",
            "reverse_proxy 127.0.0.1:8000 {": f"reverse_proxy 127.0.0.1:{self._service.port} {{\n{self._option}",
        }
        return CADDY_MAIN.format(site=replace_lines(self._site, changes))


def replace_lines(text: str, changes: Mapping[str, str]) -> str:
    """Return the text with these lines replaced, whatever their indentation."""
    lines = text.splitlines()
    stripped = [line.strip() for line in lines]
    for line, replacement in changes.items():
        assert stripped.count(line) == 1, f"{stripped.count(line)} lines are {line!r}"
        lines[stripped.index(line)] = replacement
    return "\n".join(lines)


def caddy_version() -> tuple[int, ...]:
    """Return the version of the installed Caddy, (0,) if there is none."""
    if not CADDY:
        return (0,)
    output = subprocess.run([CADDY, "version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", output)
    return tuple(map(int, found.groups())) if found else (0,)
