# Build an image whose entry point is `nrsrd`, for a CPU or for NVIDIA GPUs:
#   docker build --tag nrsrd .
#   docker build --build-arg EXTRAS=cuda13 --tag nrsrd:cuda13 .
# EXTRAS takes more of the package's extras, such as cuda13,search,export. CUDA itself comes with JAX; the machine needs
# NVIDIA's driver and container toolkit. Run:
#   docker run --rm --init --gpus all --volume "$PWD:/work" nrsrd:cuda13 train --config demo:baseline …
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG EXTRAS=""
RUN python -m venv /opt/nrsrd
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY configs configs
COPY nrsrd_jax nrsrd_jax
RUN /opt/nrsrd/bin/pip install --no-cache-dir --constraint constraints.txt ".[tensorboard${EXTRAS:+,$EXTRAS}]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/nrsrd /opt/nrsrd
RUN useradd --create-home --uid 1000 nrsrd && mkdir /work && chown nrsrd /work
ENV PATH=/opt/nrsrd/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
# A build whose command does not start fails here.
RUN nrsrd --help
ENTRYPOINT ["nrsrd"]
CMD ["--help"]
HEALTHCHECK --interval=5m --timeout=1m CMD ["nrsrd", "--help"]
