#!/bin/sh
# Ask Rill with curl: examples/ask.sh 'What is a rill?'
# RILL_URL and RILL_TOKEN come from the environment. Exit code: 0 the answer is whole, 1 there is none, 2 it was cut.

question=${1:-What is a rill?}

# The token goes through stdin: every user of this machine can read a command line.
{ [ -z "${RILL_TOKEN:-}" ] || printf 'Authorization: Bearer %s\n' "$RILL_TOKEN"; } |
    curl --silent --show-error --no-buffer --fail-with-body \
        --header @- --header 'Content-Type: text/plain; charset=utf-8' --data-raw "$question" \
        "${RILL_URL:-http://127.0.0.1:8000}/stream"

case $? in
    0) exit 0 ;;
    18 | 56 | 92)
        echo 'Cut: this is not the whole answer.' >&2
        exit 2
        ;;
    *) exit 1 ;;
esac
