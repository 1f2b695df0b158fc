-- The payload: prompts, answers, tool arguments and results. Sorted by trace within the hour, so that a conversation sent
-- again turn after turn lies next to itself and compresses; ZSTD(3) because it is nine tenths of what an agent sends
-- (122 instead of 137 bytes a span for a tenth more CPU, docs/decisions/0002-schema.md).
--
-- A merge writes the payload anew and is the dearest of all, so eight parts at least are merged at once. What that costs a
-- read, more parts to look into, the index takes back: a part without the trace is left alone.
--
-- SpanKey names the span of `spans` that a row belongs to: a hash of its id, time and name rather than the id, at the
-- same eight bytes, so that two spans sent under one id keep what is theirs.
CREATE TABLE IF NOT EXISTS spanhouse.content
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    Day Date CODEC(ZSTD(1)),
    Hour DateTime('UTC') CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(ZSTD(1)),
    SpanKey UInt64 CODEC(NONE),
    Content Map(LowCardinality(String), String) CODEC(ZSTD(3)),
    OtherContent Map(LowCardinality(String), String) CODEC(ZSTD(3)),
    INDEX trace TraceId TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY Day
ORDER BY (Tenant, Hour, TraceId)
SETTINGS
    non_replicated_deduplication_window = 10000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1,
    min_parts_to_merge_at_once = 8,
    max_compress_block_size = 4194304,
    min_compress_block_size = 1048576;

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse.to_content TO spanhouse.content AS
SELECT Tenant, Day, toStartOfHour(Timestamp) AS Hour, TraceId,
    cityHash64(SpanId, Timestamp, Duration, SpanName) AS SpanKey, Content, OtherContent
FROM spanhouse.ingest
WHERE notEmpty(Content) OR notEmpty(OtherContent)
ORDER BY Timestamp;
