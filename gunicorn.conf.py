"""The configuration of gunicorn, each setting with its reason. `gunicorn wsgi:app` reads this file by default."""

import gc
import importlib
import os
import shutil
import socket
import sys

from gevent import monkey
from gunicorn import systemd

from rill.server.open_files import fit_open_files
from rill.settings import BadSettings, read_settings
from rill.telemetry import metrics_files
from rill.upstream.proxy import proxy_of_environment

try:
    _settings = read_settings()
    if not _settings.offline:
        proxy_of_environment(_settings.anthropic_base_url)
except BadSettings as error:
    sys.exit(f"rill: {error}")

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

# Public only if a platform sets PORT.
bind = f"0.0.0.0:{_settings.port}" if _settings.port is not None else "127.0.0.1:8000"
workers = _settings.workers
worker_class = "rill.server.worker.Worker"

# Connections beyond this number would wait without a response, so it exceeds RILL_MAX_STREAMS.
_streams, worker_connections = fit_open_files(_settings.max_streams)

# A burst of new connections waits in the kernel's queue; Linux limits it to net.core.somaxconn.
backlog = 4096

# Seconds between two requests. Heroku's router keeps connections for 90 s; this is longer, so that it never sends a
# request on a connection that is being closed.
keepalive = 95

# Open answers may finish within RILL_SHUTDOWN_GRACE_SECONDS; then they are cancelled, which takes a moment.
graceful_timeout = int(_settings.shutdown_grace_seconds) + 4

# A worker that restarts rejects new clients until its last answer ends, which may take minutes.
max_requests = 0

# Nothing uses gunicorn's control socket.
control_socket_disable = True

# gunicorn's access log contains the query, and so the prompt; the Logger omits it even if a platform switches it on.
accesslog = None
logger_class = "rill.server.worker.Logger"

# No header sets SCRIPT_NAME or the scheme, whatever FORWARDED_ALLOW_IPS says; RILL_TRUSTED_PROXIES counts the hops.
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}

limit_request_line = 8190

# The parser that the tests cover; `auto` would choose another one if it is installed.
http_parser = "python"


def on_starting(server):
    """Exit, before anything listens, if the upstream key would be open to everybody by mistake."""
    public = [str(address) for address in _addresses(server.cfg) if not _is_local(address)]
    if public and not (_settings.offline or _settings.authenticates or _settings.allow_anonymous):
        sys.exit(
            f"rill: will not serve your key to everybody at {public[0]}: set RILL_API_KEYS=name=secret, "
            "or RILL_ALLOW_ANONYMOUS=1 if that is what you want"
        )
    if server.cfg.is_ssl:
        sys.exit(
            "rill: does not speak TLS itself: put a proxy in front (docs/deploy.md), without --certfile and --keyfile"
        )
    if server.cfg.workers > 1 and _settings.resume_seconds and not _settings.redis_url:
        sys.exit(
            "rill: with several workers, RILL_RESUME_SECONDS needs REDIS_URL, because a client may return to any of "
            "them: set REDIS_URL, or WEB_CONCURRENCY=1"
        )
    os.environ.pop(METRICS_DIRECTORY, None)  # It may be inherited, for example from the master that started this one.
    _import_application()


def nworkers_changed(server, new_value, old_value):
    """Warn if several workers replace a single one, whose metrics and recorded answers are not shared."""
    if new_value > 1 and _settings.resume_seconds and not _settings.redis_url:
        server.log.warning("Set REDIS_URL: a worker cannot resume an answer that is in the memory of another one.")
    if old_value == 1 and METRICS_DIRECTORY not in os.environ:
        server.log.warning(
            "Rill started with one worker, so each worker's /metrics counts for that worker alone. "
            "Restart with WEB_CONCURRENCY=%d for the sum of all.",
            new_value,
        )


def pre_fork(server, worker):
    """Choose the slot of the worker's metrics."""
    worker.metrics_slot = metrics_files.find_free_slot({each.metrics_slot for each in server.WORKERS.values()})


def child_exit(server, worker):
    """Subtract the open answers of a worker that has ended."""
    if METRICS_DIRECTORY in os.environ:
        metrics_files.free_slot(os.environ[METRICS_DIRECTORY], worker.metrics_slot)


def when_ready(server):
    """Share the metrics of several workers, and log what a new operator needs to know."""
    if server.cfg.workers > 1:
        try:
            os.environ[METRICS_DIRECTORY] = metrics_files.make_directory()
        except OSError as error:
            server.log.warning("Each worker's /metrics counts for that worker alone: %s", error)
    if _settings.offline:
        server.log.info("Offline: a small model of Rill's own answers. For Claude's answers set ANTHROPIC_API_KEY.")
    if _streams < _settings.max_streams:
        server.log.warning(
            "RILL_MAX_STREAMS=%d does not fit: the hard limit of open files admits %d answers; raise `ulimit -Hn`.",
            _settings.max_streams,
            _streams,
        )


def on_exit(server):
    """Remove the shared metrics."""
    if METRICS_DIRECTORY in os.environ:
        shutil.rmtree(os.environ[METRICS_DIRECTORY], ignore_errors=True)


def pre_request(worker, req):
    """Log nothing: by default gunicorn logs the path at --log-level debug."""


def post_fork(server, worker):
    """Prepare the worker's metrics; do not collect garbage while the worker loads, which leaves almost none."""
    gc.disable()
    if METRICS_DIRECTORY in os.environ:
        try:
            metrics_files.take_slot(os.environ[METRICS_DIRECTORY], worker.metrics_slot)
        except OSError as error:
            server.log.warning("This worker is not counted in /metrics: there is no space for its files: %s", error)


def post_worker_init(worker):
    """Exclude the loaded objects from garbage collection, and collect less often: each pause delays every stream."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 1000)
    gc.enable()


def _import_application():
    """Import the application in the master: a worker then starts within 0.1 s, and shares the memory of the modules.

    The application object, with its pools, locks and connections, is created in each worker (wsgi.py).
    """
    # Without these three the master forks and waits for its workers as usual; each worker patches them too.
    monkey.patch_all(os=False, signal=False, subprocess=False)
    importlib.import_module("app")
    if _settings.accepts_jwts:
        importlib.import_module("rill.admission.jwt")
    gc.collect()
    gc.freeze()


def _addresses(cfg):
    """Yield the addresses that gunicorn will listen on; sockets passed by systemd replace `bind`."""
    handed = systemd.listen_fds(unset_environment=False)
    for address in range(3, 3 + handed) or cfg.address:
        if isinstance(address, int):
            with socket.socket(fileno=os.dup(address)) as listener:
                address = listener.getsockname()
        yield address


def _is_local(address):
    return isinstance(address, str) or address[0] in ("127.0.0.1", "::1", "localhost")
