# docker build -t rill . && docker run -p 8000:8000 -e ANTHROPIC_API_KEY -e RILL_API_KEYS=alice=... rill

FROM python:3.11-slim AS build
COPY requirements.txt .
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --only-binary=:all: --require-hashes -r requirements.txt

FROM python:3.11-slim
COPY --from=build /venv /venv
WORKDIR /app
COPY app.py wsgi.py gunicorn.conf.py ./
COPY rill rill
ENV PATH=/venv/bin:$PATH PORT=8000
# nobody, as a number: so Kubernetes sees that it is not root.
USER 65534:65534
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import os, http.client as h; c = h.HTTPConnection('127.0.0.1', os.environ['PORT'], timeout=5); c.request('GET', '/healthz'); exit(c.getresponse().status != 200)"]
# As a list, so that SIGTERM reaches gunicorn. `docker stop` waits for 10 s unless it is told -t 30.
CMD ["gunicorn", "wsgi:app"]
