# syntax=docker/dockerfile:1
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# The packages first: they change less often than the code. The environment that is shipped has no pip in it.
COPY requirements/server.txt requirements/build.txt requirements/
RUN python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --quiet --require-hashes --requirement requirements/server.txt \
 && pip install --quiet --require-hashes --requirement requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY clients/python clients/python
RUN pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir /opt/wheels . \
 && pip --python /opt/venv/bin/python install --quiet --no-deps --no-index /opt/wheels/*.whl

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="syncbeat" \
      org.opencontainers.image.description="When to sync, how to wake, who is calling: a gRPC service for mobile backends" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/venv /opt/venv
# The user has a number and no name, so that Kubernetes can check that it is not root; nothing is written at run time.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/venv
USER 10001:10001
EXPOSE 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["syncbeat-server", "healthcheck"]
ENTRYPOINT ["syncbeat-server"]
CMD ["serve"]
