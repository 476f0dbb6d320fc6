# The image of a Ray cluster on Kubernetes (kubernetes/rayjob.yaml), for nodes with a GPU and without: PyTorch brings its
# own CUDA libraries, the driver is that of the node.
#
#     docker build --tag registry.example.com/ghn:0.1.0 .
#     docker push registry.example.com/ghn:0.1.0
#
# What is built is the folder as it is, with .git, so that a run knows its commit, and with your params.yaml
# (`ghn preset cifar10` comes first). The versions of Python packages are those of constraints.txt. A tag can be moved to
# another image; for a base that stays the same to the last byte, pin its digest:
#
#     docker buildx imagetools inspect rayproject/ray:2.60.0-py311    # FROM rayproject/ray:2.60.0-py311@sha256:…

# The image of cluster.yaml's head, with the Ray of constraints.txt (a test compares them): Python 3.11, git, user `ray` (1000).
FROM rayproject/ray:2.60.0-py311

LABEL org.opencontainers.image.title="ghn" \
      org.opencontainers.image.description="Graph hypernetworks: the pipeline on a Ray cluster" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"

# Triton compiles the launchers of its kernels with gcc, which only Ray's images with CUDA have. apt offers the newest
# version and no other, so it is not pinned. Without /etc/sudoers, user `ray` cannot become root.
USER 0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev \
    && rm -rf /var/lib/apt/lists/* /etc/sudoers \
    && install --directory --owner=1000 --group=100 /opt/requirements /home/ray/repository
USER 1000:100

# A GPU for computing; which GPUs a container sees, Kubernetes says.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_USAGE_STATS_ENABLED=0

# The dependencies alone, in a layer that a change of code does not make again: the project without a module. The files
# that pyproject.toml names are empty here.
WORKDIR /opt/requirements
COPY --chown=1000:100 constraints.txt pyproject.toml ./
RUN touch LICENSE README.md \
    && python -m pip install --no-cache-dir -c constraints.txt ".[pipeline]"

# Editable, as on the nodes of cluster.yaml: the code that runs is the code whose hashes DVC notes.
WORKDIR /home/ray/repository
COPY --chown=1000:100 . .
RUN python -m pip install --no-cache-dir --no-deps -e . \
    && git config --global --add safe.directory /home/ray/repository
