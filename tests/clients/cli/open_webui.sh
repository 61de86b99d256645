#!/bin/sh
# Ask Rill at $1 through Open WebUI, as a check by hand: its packages take 7 GB. Start Rill with `make run` first.
set -eu
rill=${1:-http://127.0.0.1:8000} at=http://127.0.0.1:18081 data=$(mktemp -d)
export OPENAI_API_BASE_URL="$rill/v1" OPENAI_API_KEY=KEY DATA_DIR="$data" WEBUI_SECRET_KEY=any
uvx --python 3.11 open-webui@0.12.4 serve --host 127.0.0.1 --port 18081 >"$data/log" 2>&1 &
trap 'kill $!; rm -rf "$data"' EXIT
until curl -fs "$at/health" >/dev/null; do sleep 1; done
account='{"name": "a", "email": "a@example.com", "password": "a-Password-1"}'
token=$(curl -fsS "$at/api/v1/auths/signup" --json "$account" | python3 -c 'import json, sys; print(json.load(sys.stdin)["token"])')
question='{"model": "claude-sonnet-5-5", "stream": true, "messages": [{"role": "user", "content": "What is a rill?"}]}'
curl -fsS -N "$at/api/chat/completions" -H "Authorization: Bearer $token" --json "$question"
