-- Log records of spans, where many instrumentations put prompts and answers. They are joined to their span when a trace is
-- read, so it does not matter which of the two comes first. Written by storage/decode_records.py.
--
-- Time        when it happened, or else was observed, or else arrived, in nanoseconds.
-- EventName   the record's, or its attribute event.name.
-- Attributes  each value one letter for its type and its text or wire bytes, as in `spans`; Content are those of them that
--             are payload, and is read only when asked for, like Body.
-- RecordKey   a hash of all that was sent: equal rows are one record that was sent again.
CREATE TABLE IF NOT EXISTS spanhouse.records
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    Day Date CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(ZSTD(1)),
    SpanId FixedString(8) CODEC(ZSTD(1)),
    Time UInt64 CODEC(Delta, ZSTD(1)),
    EventName LowCardinality(String) CODEC(ZSTD(1)),
    SeverityNumber Int32 CODEC(T64, ZSTD(1)),
    SeverityText LowCardinality(String) CODEC(ZSTD(1)),
    Attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    Content Map(LowCardinality(String), String) CODEC(ZSTD(3)),
    Body String CODEC(ZSTD(3)),
    DroppedAttributesCount UInt32 CODEC(T64, ZSTD(1)),
    RecordKey UInt64 CODEC(NONE),
    Received DateTime('UTC') CODEC(Delta, ZSTD(1)),
    INDEX received Received TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY Day
ORDER BY (Tenant, TraceId, Time)
SETTINGS
    index_granularity = 1024,
    non_replicated_deduplication_window = 10000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1,
    min_parts_to_merge_at_once = 8;
