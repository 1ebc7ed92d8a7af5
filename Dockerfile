FROM python:3.11-slim
WORKDIR /srv
COPY pyproject.toml constraints.txt README.md ./
COPY app app
COPY worker worker
COPY migrations migrations
RUN pip install --no-cache-dir -c constraints.txt '.[postgres]'
RUN useradd --system saimp && mkdir data logs && chown saimp data logs
USER saimp
EXPOSE 8000
CMD ["saimp", "up", "--host", "0.0.0.0"]
