# Spanhouse as an image: every role of it, `spanhouse` is the entry point. docs/docker.md says how to run it.
#
# It runs as user 10001, on a root file system that may be read-only: it writes to /data, and to /tmp, which may be a tmpfs.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv --without-pip /opt/spanhouse
COPY requirements.lock ./
RUN pip --python /opt/spanhouse/bin/python install --require-hashes --only-binary :all: -r requirements.lock
COPY . ./
RUN pip --python /opt/spanhouse/bin/python install --no-deps .

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 spanhouse \
    && useradd --uid 10001 --gid spanhouse --no-create-home --home-dir /tmp --shell /usr/sbin/nologin spanhouse \
    && install -d -o spanhouse -g spanhouse /data
COPY --from=build /opt/spanhouse /opt/spanhouse
ENV PATH=/opt/spanhouse/bin:$PATH PYTHONDONTWRITEBYTECODE=1 SPANHOUSE_DATA_DIR=/data SPANHOUSE_HOST=0.0.0.0
USER 10001:10001
WORKDIR /data
EXPOSE 4317 4318 4320
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('SPANHOUSE_HTTP_PORT', '4320') + '/readyz', timeout=4)"]
ENTRYPOINT ["spanhouse"]
CMD ["serve"]
