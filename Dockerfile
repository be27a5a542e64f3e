# The server in a container: `docker compose up`, or
#   docker build -t streamcell .
#   docker run -p 127.0.0.1:50051:50051 -p 127.0.0.1:9090:9090 -e STREAMCELL_INSECURE=true streamcell
# Inside, the server listens on every address, so it starts with TLS (STREAMCELL_TLS_CERT and STREAMCELL_TLS_KEY), or
# with STREAMCELL_INSECURE=true, which says that only those who are trusted can reach it. Neither asks callers who
# they are: STREAMCELL_TOKENS does, among others (docs/running.md).
#
# torch comes from the default package index, whose Linux build brings CUDA (some GB). For a smaller image
# without it, name the index of PyTorch's CPU builds (see PyTorch's installation page):
#   docker build --build-arg TORCH_INDEX_URL=... -t streamcell .
# For the very image of Python that you looked at, name it by its digest: `make pin-images` finds it, Compose
# takes it from there, and docker build by
#   docker build --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:... -t streamcell .

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/streamcell
ENV PATH="/opt/streamcell/bin:$PATH"
COPY requirements.lock ./
# torch last and alone: together with others, pip may pick another build of it. What it needs is there by then, each
# file of a hash in the lock; torch itself has none, as its builds are different files of one version.
# (hadolint takes the option with the index for a package without a version.)
# hadolint ignore=DL3013
RUN pip install --require-hashes -r requirements.lock \
    && pip install torch==2.13.0 ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
COPY pyproject.toml README.md ./
COPY client client
COPY service service
RUN pip install --no-deps --no-build-isolation ./client .

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Streamcell" \
      org.opencontainers.image.description="Serves predictions of recurrent models over live gRPC streams"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin streamcell \
    && install -d -o streamcell /data
COPY --from=build /opt/streamcell /opt/streamcell
COPY model/artifacts /models
COPY deploy/healthcheck.py /opt/streamcell/healthcheck.py
ENV PATH="/opt/streamcell/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    STREAMCELL_LISTEN=0.0.0.0:50051 \
    STREAMCELL_METRICS_LISTEN=0.0.0.0:9090 \
    STREAMCELL_MODELS=/models \
    STREAMCELL_STORE=sqlite:/data/sessions.db
VOLUME /data
WORKDIR /tmp
USER 10001
EXPOSE 50051 9090
# The server is process 1 and handles SIGTERM itself: it drains. A second one ends it at once.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "/opt/streamcell/healthcheck.py", "127.0.0.1:50051"]
ENTRYPOINT ["python", "-m", "service"]
