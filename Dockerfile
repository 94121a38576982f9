# The scripts with everything that they need, as requirements.lock has it.
#
#   docker build --tag ratio .                                        # for CPUs
#   docker build --tag ratio:cuda --build-arg ACCELERATOR=cuda13 .    # for NVIDIA GPUs, with a driver of version 580 or newer
#   docker run --rm --volume "$PWD/runs:/ratio/runs" ratio algos/dqn.py --env-id Breakout-MinAtar
#   docker run --rm --gpus all --volume "$PWD/runs:/ratio/runs" ratio:cuda algos/dqn.py --env-id Breakout-MinAtar
#
# The folder of the runs must be writable for user 1000, as which the container works; --user "$(id -u)" makes it yours.
FROM python:3.11-slim-bookworm

# cpu, or an extra of jax with its CUDA libraries (cuda13), which brings them along: the image needs no CUDA of its own.
ARG ACCELERATOR=cpu

# git is for the commit in run.json; make and the rest of the repository work in here, too.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /ratio
COPY requirements.lock .
RUN pip install --no-cache-dir --requirement requirements.lock \
    && if [ "$ACCELERATOR" != cpu ]; then \
        pip install --no-cache-dir "jax[$ACCELERATOR]==$(sed -n 's/^jax==//p' requirements.lock)"; \
    fi

RUN useradd --uid 1000 --create-home ratio && mkdir runs && chown ratio . runs
COPY --chown=ratio . .
USER ratio
ENV MPLCONFIGDIR=/tmp/matplotlib

ENTRYPOINT ["python"]
CMD ["algos/sac.py", "--help"]
