# syntax=docker/dockerfile:1
# For hosts with NVIDIA GPUs: trains and serves. docs/serving.md says how to build and start it.
#
#   docker build -t ochat-train .                          training, and a server whose engine is `transformers` or --backend
#   docker build -t ochat-train:vllm --target vllm .       the same with vLLM in an environment of its own

# Python 3.12 and nothing of CUDA: the wheels of torch bring it, and the driver comes from the host.
# For builds that are the same on every day, name the image by its digest: --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.12.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS ochat
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_CACHE_DIR=/var/cache/pip
# Triton and DeepSpeed's CPU optimizer compile when they are first used.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ gcc git libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --home-dir /home/ochat ochat
WORKDIR /opt/ochat
COPY pyproject.toml constraints.txt README.md LICENSE CHANGELOG.md ./
COPY data_pipeline data_pipeline
COPY ochat_train ochat_train
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/var/cache/pip \
    python -m venv /opt/ochat/.venv \
    && /opt/ochat/.venv/bin/pip install --constraint constraints.txt ".[gpu,adapters,serve,tracking]" \
    && mkdir /work \
    && chown ochat /work
ENV PATH=/opt/ochat/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
# Recipes, data, runs and caches are the host's folders, mounted here.
WORKDIR /work
EXPOSE 18888
# SIGTERM, which is the default of `docker stop`, lets running answers finish.
ENTRYPOINT ["ochat"]
CMD ["--help"]

FROM ochat AS vllm
USER 0
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/var/cache/pip \
    python -m venv /opt/vllm \
    && /opt/vllm/bin/pip install vllm==0.26.0
USER 10001
# `ochat serve EXPORT --vllm-python /opt/vllm/bin/python`

FROM ochat
