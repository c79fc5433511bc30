# One image for every part of the local set; docker-compose.yaml names the part each container runs.
# The layout is Astro's (dags, plugins, include, requirements.txt, packages.txt, airflow_settings.yaml). The base is
# plain Python, because the lock pins Airflow itself; both environments are built from it, as `make setup` does.
FROM python:3.11-slim-bookworm

WORKDIR /opt/slipway
COPY packages.txt ./
RUN apt-get update \
    && xargs -a packages.txt apt-get install -y --no-install-recommends make git \
    && rm -rf /var/lib/apt/lists/*

# The locks first: the environments are built again only when these change.
COPY requirements.txt requirements-dev.txt requirements-spark.txt ./
COPY serving/requirements.txt serving/requirements-dev.txt serving/
COPY scripts scripts
RUN UV_NO_CACHE=1 UV_LINK_MODE=copy python scripts/setup.py
# Spark and its jars, 700 MB: only for views that are streamed or ask for it as their engine.
ARG WITH_SPARK=
RUN if [ -n "$WITH_SPARK" ]; then CI=true UV_NO_CACHE=1 UV_LINK_MODE=copy python scripts/setup.py --spark; fi

COPY . .
RUN useradd --create-home slipway && mkdir -p /var/slipway && chown slipway /var/slipway
USER slipway
ENV SLIPWAY_HOME=/var/slipway PATH=/opt/slipway/.venv/bin:$PATH
ENTRYPOINT ["python", "-m", "pipelines.stack.foreground"]
