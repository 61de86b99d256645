"""Rill: Claude's answers as plain text over HTTP, streamed as they come.

Data flows one way, and each room has one job:

    request -> dialects -> Prompt -> upstream -> events -> dialects -> bytes

`prompt` is what is asked, `events` what an answer is made of, `problems` what can go wrong, and `settings` what may be
set. Of a request, `heads` judges the head and `request` reads what is no prompt; `access` and `limits` say who may ask,
and how much. `upstream` (Prompt -> events) lies on `reader` (bytes of the Messages API -> events), `transport` (the
HTTP client under the SDK) and its `pool`. `endings` knows why an answer ended and how its caller learns it; `telemetry`
writes a line and the metrics of each, `refusal_log` a line about what never became one. `server` is the gunicorn
worker, and `client` a caller's connection in it; `terminal` is an answer without a server, and `offline` a model that
needs no key. `page` is what a browser gets at `/`, and `openapi.json` the routes for machines.

The import rule: `prompt`, `events` and `problems` import the standard library only. Every other room may import those
three and `settings`; siblings don't import each other, but that `upstream` reads through `reader` and `transport`,
which has its `pool`, and `server` takes in `heads` and `client`. `app.py` ties the rooms together and is the only
importer of flask; `upstream` is the only importer of anthropic. The contracts in `pyproject.toml` hold it.
"""
