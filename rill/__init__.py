"""Rill: Claude's answers as plain text over HTTP, streamed as they arrive.

Data flows one way:

    request -> dialect -> Prompt -> upstream -> events -> dialect -> bytes

The core is `prompt` (what is asked), `events` (what an answer is made of), `problems` (what can go wrong: one table of
name, status and message) and `settings`. `service` is the life of one request: admit, ask, stream, record. Around it:

- `server`: the client's side of HTTP: the gunicorn worker, connections, request heads and bodies, responses
- `admission`: who may ask, from which pages, how often, and how much at once
- `dialects`: one module for each client protocol
- `streaming`: an answer in progress: how it is cancelled, and how its bytes are delivered
- `upstream`: the Messages API's side: the SDK, the SSE decoder, the HTTP transport and its pool
- `telemetry`: logs and metrics
- `offline`: a Messages API that needs no key and no network; `cli`: `flask ask`; `page`: the web page at `/`

The import rule: server > service > {admission, dialects, streaming, upstream, telemetry} > core. A module imports from
its own folder and from the right, never from the left; siblings in braces do not import each other. `app.py`
holds every route with its dialect and guards; with `rill.server.response` it is the only importer of flask, and
`rill.upstream` is the only importer of anthropic. The contracts in `pyproject.toml` enforce this.

A new dialect is a module in `dialects` and a row in `app.py`; a new guard is a module in `admission` and a line in
`Routes.answer`; a new outcome is a problem in `problems` that `streaming` raises.
"""
