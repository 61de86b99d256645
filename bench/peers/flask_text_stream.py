"""Flask over the SDK's text_stream, as its documentation suggests; served by one gunicorn gevent worker."""

from anthropic import Anthropic
from flask import Flask, Response, request

app = Flask(__name__)
client = Anthropic()


@app.get("/stream")
def stream() -> Response:
    prompt = request.args["q"]

    def generate():
        with client.messages.stream(
            model="bench", max_tokens=4096, messages=[{"role": "user", "content": prompt}]
        ) as answer:
            yield from answer.text_stream

    return Response(generate(), mimetype="text/plain")
