"""Rill: Claude's answers as plain text over HTTP, streamed as they arrive.

Data flows one way:

    request -> dialect -> Prompt -> upstream -> events -> dialect -> bytes

The core is `prompt` (a request to the model), `events` (the parts of an answer, and the protocol of a dialect's
encoder), `problems` (what can go wrong: one table of name, status and message), `settings`, and what settings consist
of: `quota` (an amount in a time, such as 60/minute), `credentials` (API keys) and `urls`. `service` is the life of one
request: admit, ask, stream, record. Around it:

- `server`: the client's side of HTTP: the gunicorn worker, connections, request heads and bodies, responses, `/drip`
- `admission`: API keys, JWTs, cross-site checks, rate limit, token budgets, concurrency
- `dialects`: the client protocols: how each reads a request, and its encoder; `__init__` has a row for each
- `streaming`: an answer in progress: `cancellation` (deadlines, disconnects, shutdown), `delivery` (the bytes, the
  outcome, and `PassThrough`, the encoder of a body that is sent whole), and `relay` (the fast path for text); an answer
  that outlives its connection: `recording`, its `reader`s, and where it is found: `replay` (this worker's memory) or
  `replay_redis` (all workers, with `shipping` and `redis_link`)
- `upstream`: the Messages API's side: the SDK, fallbacks, the SSE decoder, the HTTP transport and its pool
- `telemetry`: logs and metrics
- `offline`: a Messages API that needs no key and no network (`offline_json`: what it passes to tools); `cli`:
  `flask ask` and `flask mint`; `page`: the web page

The import rule: server > service > {admission, dialects, streaming, upstream, telemetry} > core. A module imports from
its own folder and from the right, never from the left; siblings in braces do not import each other. `app.py`
holds every route with its dialect and guards; with `rill.server.response` it is the only importer of flask, and
`rill.upstream` is the only importer of anthropic. The contracts in `pyproject.toml` enforce this.

A new dialect is a module in `dialects` and a row in `app.py`; a new guard is a module in `admission` and a line in
`Routes.answer`; a new outcome is a problem in `problems` that `streaming` raises.
"""
