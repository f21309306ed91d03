# A search server over an index:
#   docker build -t fourm-lite .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/photos.idx:/data/index" \
#     -v /path/to/photos:/path/to/photos:ro -e FOURM_LITE_TOKEN=... fourm-lite
# The index is written to while it is read (locks on versions); the photos are only read, and lie
# where they lay when they were indexed. tests/serve/test_dockerfile.py runs these steps without Docker.
FROM python:3.11-slim

WORKDIR /app
COPY pyproject.toml setup.py README.md LICENSE /app/
COPY fourm_lite /app/fourm_lite
COPY generation /app/generation
COPY tokenizers /app/tokenizers

RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu ".[serve]"
RUN useradd --create-home --uid 10001 search

USER search
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz')"]
ENTRYPOINT ["fourm-lite", "serve"]
CMD ["/data/index", "--host", "0.0.0.0"]
