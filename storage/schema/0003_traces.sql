-- The summary of a trace: rows of one trace are states that add up, so read them with GROUP BY TraceId. It answers the list
-- of traces, and says where in `spans` a trace lies.
--
-- Root is the name and service of the span without a parent, ('', '') where none has come; of several, the greatest.
CREATE TABLE IF NOT EXISTS spanhouse.traces
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    Day Date CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(ZSTD(1)),
    Start SimpleAggregateFunction(min, DateTime64(9, 'UTC')) CODEC(ZSTD(1)),
    End SimpleAggregateFunction(max, DateTime64(9, 'UTC')) CODEC(ZSTD(1)),
    Spans SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    Errors SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    Oks SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    Services SimpleAggregateFunction(groupUniqArrayArray, Array(String)) CODEC(ZSTD(1)),
    Root SimpleAggregateFunction(max, Tuple(Name String, Service String)) CODEC(ZSTD(1)),
    Received SimpleAggregateFunction(max, DateTime('UTC')) CODEC(ZSTD(1))
)
ENGINE = AggregatingMergeTree
PARTITION BY Day
ORDER BY (Tenant, TraceId)
SETTINGS
    index_granularity = 1024,
    non_replicated_deduplication_window = 10000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse.to_traces TO spanhouse.traces AS
SELECT
    Tenant,
    Day,
    TraceId,
    min(Timestamp) AS Start,
    fromUnixTimestamp64Nano(max(toUnixTimestamp64Nano(Timestamp) + greatest(Duration, 0)), 'UTC') AS End,
    count() AS Spans,
    countIf(StatusCode = 2) AS Errors,
    countIf(StatusCode = 1) AS Oks,
    groupUniqArray(toString(ServiceName)) AS Services,
    maxIf((toString(SpanName), toString(ServiceName)), ParentSpanId = unhex('0000000000000000'))::Tuple(Name String, Service String)
        AS Root,
    max(ingest.Received) AS Received
FROM spanhouse.ingest
GROUP BY Tenant, Day, TraceId;
