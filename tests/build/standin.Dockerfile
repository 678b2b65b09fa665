# Stands in for NVIDIA's Triton image where that cannot be had (it is 15 GB, and on a registry of its own): Ubuntu 24.04
# and Python 3.12 like it, with the tritonserver of the wheel laid out as there. For checks of build/Dockerfile only: that
# server (24.10) has remote security holes.
#
#   docker build --tag triton-standin:26.07 --file tests/build/standin.Dockerfile tests/build
#   TRITON_IMAGE=triton-standin:26.07 make up
ARG UBUNTU_IMAGE=ubuntu:24.04
FROM ${UBUNTU_IMAGE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libpython3-dev libstdc++6 python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
# The binaries look for their libraries in ../../../nvidia_pytriton.libs, which from here is the root.
RUN pip3 download --no-cache-dir --no-deps --dest /wheel nvidia-pytriton==0.7.0 \
    && python3 -m zipfile --extract /wheel/*.whl /wheel \
    && install -d /opt/tritonserver/bin /opt/tritonserver/backends/python \
    && install -m 755 /wheel/pytriton/tritonserver/bin/tritonserver /opt/tritonserver/bin/ \
    && install -m 755 /wheel/pytriton/tritonserver/backends/python/* \
        /wheel/pytriton/tritonserver/python_backend_stubs/3.12/triton_python_backend_stub \
        /opt/tritonserver/backends/python/ \
    && mv /wheel/nvidia_pytriton.libs / \
    && rm -rf /wheel
ENV PATH=/opt/tritonserver/bin:$PATH
