"""Ask Rill with the standard library: python examples/ask.py 'What is a rill?'

ASK_URL and ASK_API_KEY come from the environment. Exit code: 0 complete, 1 no answer, 2 truncated.
"""

import codecs
import os
import sys
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

URL = os.environ.get("ASK_URL", "http://127.0.0.1:8000")
API_KEY = os.environ.get("ASK_API_KEY")
# Seconds between two reads; Rill ends an answer after two minutes without content.
TIMEOUT = 150

prompt = sys.argv[1] if len(sys.argv) > 1 else "What is a rill?"
request = Request(f"{URL}/stream", prompt.encode(), {"Content-Type": "text/plain; charset=utf-8"})
if API_KEY:
    request.add_header("Authorization", f"Bearer {API_KEY}")

try:
    response = urlopen(request, timeout=TIMEOUT)
except HTTPError as error:
    sys.exit(f"No answer ({error.code}): {error.read().decode()}")
except OSError as error:
    sys.exit(f"No answer: {error}")

# A read may end within a character.
decoder = codecs.getincrementaldecoder("utf-8")()
try:
    while data := response.read1(65536):
        print(decoder.decode(data), end="", flush=True)
except (HTTPException, OSError):
    print("\nTruncated: the answer is incomplete.", file=sys.stderr)
    sys.exit(2)
