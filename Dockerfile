# Replays checkpoints and shows runs. In a checkout:
#   docker build -t sparsitywatch .
#   docker run -v "$PWD/runs:/runs" sparsitywatch replay "/runs/bert/checkpoint-*" --logdir /runs/replayed
#   docker run -v "$PWD/runs:/runs" --network host sparsitywatch show /runs    # serves this machine alone
FROM python:3.13-slim
WORKDIR /source
COPY LICENSE README.md pyproject.toml setup.py ./
COPY integrations integrations
COPY sparsitywatch sparsitywatch
RUN pip install --no-cache-dir ".[fast,hub,s3]"
WORKDIR /runs
ENTRYPOINT ["sparsitywatch"]
