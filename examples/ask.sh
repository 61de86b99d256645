#!/bin/sh
# Ask Rill with curl: examples/ask.sh 'What is a rill?'
# ASK_URL and ASK_API_KEY come from the environment. Exit code: 0 complete, 1 no answer, 2 truncated.

prompt=${1:-What is a rill?}

# The key goes through stdin, because every user of this machine can read a command line.
{ [ -z "${ASK_API_KEY:-}" ] || printf 'Authorization: Bearer %s\n' "$ASK_API_KEY"; } |
    curl --silent --show-error --no-buffer --fail-with-body \
        --header @- --header 'Content-Type: text/plain; charset=utf-8' --data-raw "$prompt" \
        "${ASK_URL:-http://127.0.0.1:8000}/stream"

case $? in
    0) exit 0 ;;
    18 | 56 | 92)
        echo 'Truncated: the answer is incomplete.' >&2
        exit 2
        ;;
    *) exit 1 ;;
esac
