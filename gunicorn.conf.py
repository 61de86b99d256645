"""How gunicorn serves Rill: each setting with its reason. `gunicorn wsgi:app` reads this file by itself."""

import atexit
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

try:
    _settings = read_settings()
except BadSettings as error:
    sys.exit(f"rill: {error}")

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

# Everybody's only where a platform asks for it.
bind = f"0.0.0.0:{_settings.port}" if _settings.port is not None else "127.0.0.1:8000"
workers = _settings.workers
worker_class = "rill.server.worker.Worker"

# A connection over this waits unanswered, so admission (RILL_MAX_STREAMS) must come first.
_streams, worker_connections = fit_open_files(_settings.max_streams)

# A burst of clients waits in the kernel's queue rather than being turned away; Linux caps it at net.core.somaxconn.
backlog = 4096

# Between two requests. Heroku's router keeps its connections for 90 s: longer, so that it never sends a request into a
# connection that is being closed.
keepalive = 95

# Answers in flight have RILL_SHUTDOWN_GRACE_SECONDS; then they are ended, which takes a moment.
graceful_timeout = int(_settings.shutdown_grace_seconds) + 4

# A long answer would hold back the restart of its worker, and so every new client.
max_requests = 0

# Nothing here speaks to gunicorn's control socket.
control_socket_disable = True

# gunicorn's own access log writes the query, and so the prompt; a platform that forces it on meets our Logger.
accesslog = None
logger_class = "rill.server.worker.Logger"

# No header sets SCRIPT_NAME or the scheme, whatever FORWARDED_ALLOW_IPS says; RILL_TRUSTED_PROXIES counts the hops.
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}

limit_request_line = 8190

# The strict parser that the tests know; `auto` would take another one as soon as it is installed.
http_parser = "python"


def on_starting(server):
    """Refuses to give a real key to everybody by accident; told before anything listens."""
    public = [str(address) for address in _addresses(server.cfg) if not _is_local(address)]
    if public and not (_settings.offline or _settings.api_keys or _settings.allow_anonymous):
        sys.exit(
            f"rill: will not serve your key to everybody at {public[0]}: set RILL_API_KEYS=name=secret, "
            "or RILL_ALLOW_ANONYMOUS=1 if that is what you want"
        )
    if server.cfg.is_ssl:
        sys.exit(
            "rill: does not speak TLS itself: put a proxy in front (docs/deploy.md), without --certfile and --keyfile"
        )
    os.environ.pop(METRICS_DIRECTORY, None)  # That of a master which started this one, or of somebody else's.
    if server.cfg.workers > 1:
        _share_metrics(server)
    _import_application()


def nworkers_changed(server, new_value, old_value):
    """Warn when several workers take the place of one, which shares no metrics."""
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
    """Take a worker that is gone out of the count of open answers."""
    if METRICS_DIRECTORY in os.environ:
        metrics_files.free_slot(os.environ[METRICS_DIRECTORY], worker.metrics_slot)


def when_ready(server):
    """Says what a newcomer would wonder about."""
    if _settings.offline:
        server.log.info("Offline: a small model of Rill's own answers. For Claude's answers set ANTHROPIC_API_KEY.")

    if _streams < _settings.max_streams:
        server.log.warning(
            "RILL_MAX_STREAMS=%d does not fit: the hard limit of open files admits %d answers; raise `ulimit -Hn`.",
            _settings.max_streams,
            _streams,
        )


def pre_request(worker, req):
    """Says nothing: gunicorn's own tells the path at --log-level debug."""


def post_fork(server, worker):
    """Prepare the worker's metrics; loading leaves next to no garbage, and looking for it would take a fifth of it."""
    gc.disable()
    if METRICS_DIRECTORY in os.environ:
        try:
            metrics_files.take_slot(os.environ[METRICS_DIRECTORY], worker.metrics_slot)
        except OSError as error:
            server.log.warning("This worker is missing in /metrics, whose files have no space: %s", error)


def post_worker_init(worker):
    """Hides what was loaded from the collector, and lets it look less often: a pause is felt by every stream."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 1000)
    gc.enable()


def _share_metrics(server):
    """Make the directory by which the workers share their metrics; prometheus_client finds it by this variable."""
    try:
        os.environ[METRICS_DIRECTORY] = directory = metrics_files.make_directory()
    except OSError as error:
        server.log.warning("Each worker's /metrics counts for that worker alone: %s", error)
    else:
        atexit.register(_remove_at_exit_of, os.getpid(), directory)


def _remove_at_exit_of(pid, directory):
    """Removes the workers' numbers when the master ends, also if it never came to serve; workers inherit the call."""
    if os.getpid() == pid:
        shutil.rmtree(directory, ignore_errors=True)


def _import_application():
    """Import what each worker needs, once: a worker then starts within 0.1 s, and shares the memory of the modules.

    The application itself, with its pools, locks and connections, is made in each worker (wsgi.py).
    """
    # The master goes on to fork and to wait for its workers by itself; each worker patches these as well.
    monkey.patch_all(os=False, signal=False, subprocess=False)
    importlib.import_module("app")
    gc.collect()
    gc.freeze()


def _addresses(cfg):
    """Where gunicorn will listen: sockets that systemd hands down take the place of what is bound to."""
    handed = systemd.listen_fds(unset_environment=False)
    for address in range(3, 3 + handed) or cfg.address:
        if isinstance(address, int):
            with socket.socket(fileno=os.dup(address)) as listener:
                address = listener.getsockname()
        yield address


def _is_local(address):
    return isinstance(address, str) or address[0] in ("127.0.0.1", "::1", "localhost")
