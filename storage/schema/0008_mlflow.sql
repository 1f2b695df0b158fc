-- What MLflow's client said of a trace beside its spans, and cannot be said in OTLP: its TraceInfo. The newest row of a
-- trace counts; a change writes the row anew (storage/mlflow_traces.py).
--
-- Announced   1: by the client, at the end of the trace. 0: the trace came by OTLP alone, and somebody set a tag or a link
--             on it or hid it through MLflow's API; the rest of the row is how the trace looked then.
-- DurationMs  -1 where nobody said it; so has '' in texts no meaning of its own.
-- Runs        runs that the trace was linked to after the fact; the run that made it is in Metadata (mlflow.sourceRun).
-- Prompts     name/version of each prompt that was linked after the fact.
-- Deleted     1: hidden from MLflow's API. The spans stay.
CREATE TABLE IF NOT EXISTS spanhouse.mlflow_traces
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(ZSTD(1)),
    ExperimentId LowCardinality(String) CODEC(ZSTD(1)),
    Requested DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    DurationMs Int64 CODEC(T64, ZSTD(1)),
    State LowCardinality(String) CODEC(ZSTD(1)),
    ClientRequestId String CODEC(ZSTD(1)),
    RequestPreview String CODEC(ZSTD(3)),
    ResponsePreview String CODEC(ZSTD(3)),
    Metadata Map(LowCardinality(String), String) CODEC(ZSTD(3)),
    Tags Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    Runs Array(String) CODEC(ZSTD(1)),
    Prompts Array(String) CODEC(ZSTD(1)),
    Announced UInt8 CODEC(ZSTD(1)),
    Deleted UInt8 CODEC(ZSTD(1)),
    Updated DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(Updated)
ORDER BY (Tenant, TraceId)
SETTINGS index_granularity = 1024, fsync_after_insert = 1, fsync_part_directory = 1;
