"""Ask Rill with requests: python examples/ask.py 'What is a rill?'

RILL_URL and RILL_TOKEN come from the environment. Exit code: 0 the answer is whole, 1 there is none, 2 it was cut.
"""

import os
import sys

import requests

URL = os.environ.get("RILL_URL", "http://127.0.0.1:8000")
TOKEN = os.environ.get("RILL_TOKEN")
# To connect, and between two pieces; Rill itself ends an answer after two minutes of silence.
SECONDS = (10, 150)

question = sys.argv[1] if len(sys.argv) > 1 else "What is a rill?"
headers = {"Content-Type": "text/plain; charset=utf-8"}
if TOKEN:
    headers["Authorization"] = f"Bearer {TOKEN}"

try:
    answer = requests.post(f"{URL}/stream", question.encode(), headers=headers, stream=True, timeout=SECONDS)
except requests.RequestException as error:
    sys.exit(f"No answer: {error}")
if not answer.ok:
    sys.exit(f"No answer ({answer.status_code}): {answer.text}")

try:
    for piece in answer.iter_content(chunk_size=None, decode_unicode=True):
        print(piece, end="", flush=True)
except requests.RequestException:
    print("\nCut: this is not the whole answer.", file=sys.stderr)
    sys.exit(2)
