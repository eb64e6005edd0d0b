# docker build -t kserve-wasm:0.1.0 .
# docker build -t kserve-wasm:0.1.0-cuda --build-arg EXTRA=cuda .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
# KServe pins a psutil that has wheels for x86-64 alone.
# hadolint ignore=DL3008
RUN [ "$(uname -m)" = x86_64 ] || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev; }
RUN pip install --no-cache-dir uv==0.13.8 && uv venv /opt/venv
WORKDIR /src
# Dependencies change less often than the code: a layer of their own. The lock's hashes are checked.
# Bytecode is made here, because nothing can write it under a read-only root.
COPY pyproject.toml requirements.lock ./
ARG EXTRA=
RUN uv pip install --no-cache --compile-bytecode --python /opt/venv --constraints requirements.lock \
    --requirements pyproject.toml ${EXTRA:+--extra ${EXTRA}}
COPY . .
RUN uv pip install --no-cache --compile-bytecode --python /opt/venv --no-deps .

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="kserve-wasm" \
      org.opencontainers.image.description="The KServe runtime for WebAssembly models" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/venv /opt/venv
# /tmp is all that may be written, so HOME is there; the driver's compute libraries come in only when asked for.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A number, which runAsNonRoot can check; group 0 is what OpenShift gives to the user that it makes up.
USER 1010:0
EXPOSE 8080 8081
ENTRYPOINT ["python", "-m", "kserve_wasm"]
