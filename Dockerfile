FROM python:3.11-slim
# PyPI's torch for Linux brings gigabytes of CUDA; compose.gpu.yml empties this.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /srv
COPY pyproject.toml constraints.txt README.md ./
COPY app app
COPY worker worker
COPY migrations migrations
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[postgres]' \
    && rm -rf app worker migrations \
    && mkdir data logs && chmod 777 data logs
# Any user may run it: what libraries ask of a user's account is said here.
ENV HOME=/tmp USER=saimp
USER 1000:1000
EXPOSE 8000
CMD ["saimp", "up", "--host", "0.0.0.0"]
