# knn on a CPU: docker build -t knn . && docker run --rm -v "$PWD:/data" knn diarize meeting.flac -o meeting.rttm
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY knn_cli ./knn_cli
COPY models ./models
RUN pip install --no-cache-dir "torch>=2.11,<2.14" "torchaudio>=2.11,<2.12" \
        --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir . \
    && rm -rf /src

# Recordings are read and results written here, by a user without rights elsewhere.
RUN useradd --create-home knn
USER knn
WORKDIR /data
ENTRYPOINT ["knn"]
CMD ["--help"]
