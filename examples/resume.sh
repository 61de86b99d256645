#!/bin/sh
# Save one answer, whatever the network does: examples/resume.sh 'What is a rill?' answer.txt
# The server needs RILL_RESUME_SECONDS=60 or more. A file that exists is continued, so remove an older answer first.
# ASK_URL and ASK_API_KEY come from the environment. Exit code: 0 complete, 1 no answer, or it cannot be continued.

prompt=${1:-What is a rill?}
file=${2:-answer.txt}
lost=0

# The key goes through stdin, because every user of this machine can read a command line.
until { [ -z "${ASK_API_KEY:-}" ] || printf 'Authorization: Bearer %s\n' "$ASK_API_KEY"; } |
    curl --silent --show-error --fail --retry 5 --continue-at - --output "$file" --header @- \
        --get --data-urlencode "q=$prompt" --data resume=60 "${ASK_URL:-http://127.0.0.1:8000}/stream"; do
    # 22: the server rejects the request. An answer that the model itself truncated never becomes complete.
    [ $? -ne 22 ] && [ $((lost += 1)) -lt 60 ] || exit 1
    sleep 1
done
