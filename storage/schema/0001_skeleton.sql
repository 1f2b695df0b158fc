-- One row a span comes out of the decoding statement (storage/decode.py) and goes into `ingest`, which stores nothing:
-- the views below fan it out, so that a segment is decoded once.
CREATE TABLE IF NOT EXISTS spanhouse.ingest
(
    Tenant LowCardinality(String),
    Day Date,
    Timestamp DateTime64(9, 'UTC'),
    TraceId FixedString(16),
    SpanId FixedString(8),
    ParentSpanId FixedString(8),
    ServiceName LowCardinality(String),
    SpanName LowCardinality(String),
    Kind Int32,
    Duration Int64,
    StatusCode Int32,
    StatusMessage String,
    TraceState String,
    Flags UInt32,
    StringAttributes Map(LowCardinality(String), String),
    IntAttributes Map(LowCardinality(String), Int64),
    FloatAttributes Map(LowCardinality(String), Float64),
    BoolAttributes Map(LowCardinality(String), Bool),
    OtherAttributes Map(LowCardinality(String), String),
    DroppedAttributesCount UInt32,
    EventTimes Array(UInt64),
    EventNames Array(LowCardinality(String)),
    EventAttributes Array(Map(LowCardinality(String), String)),
    EventDroppedAttributesCounts Array(UInt32),
    DroppedEventsCount UInt32,
    Links Array(String),
    DroppedLinksCount UInt32,
    TimeFlags UInt8,
    StartSent UInt64,
    EndSent UInt64,
    OriginId UInt64,
    Received DateTime('UTC'),
    Content Map(LowCardinality(String), String),
    OtherContent Map(LowCardinality(String), String),
    OriginFirst UInt8,
    ResourceAttributes Map(LowCardinality(String), String),
    ResourceDroppedAttributesCount UInt32,
    ResourceSchemaUrl String,
    ScopeName String,
    ScopeVersion String,
    ScopeAttributes Map(LowCardinality(String), String),
    ScopeDroppedAttributesCount UInt32,
    ScopeSchemaUrl String
)
ENGINE = Null;

-- The skeleton: names, times, ids, links, short attributes.
--
-- Day        the day of Timestamp, or 1970-01-01 where that is more than 45 days from the day of arrival: wrong clocks and
--            old imports share one partition, and one load never makes more than 92 of them.
-- Timestamp  the start, clamped to what DateTime holds (1970 to 2106), because the sort key rounds to DateTime.
-- Duration   end minus start in nanoseconds, negative where the sender said so.
-- TimeFlags  1: Timestamp is not the start that was sent (StartSent is); 2: Timestamp + Duration is not the end that was
--            sent (EndSent is); 4: the end lies before the start; 8: no end was sent.
-- Links      each in the wire bytes of OTLP's Span.Link: nobody asks the store about links, and what is not taken apart
--            costs a load no columns.
-- OtherAttributes, and the attributes of events, resources and scopes: a value is one letter for its type and its
--            text or wire bytes: s string, i int, d double, b bool, a ArrayValue, m KeyValueList, y bytes, e empty.
--
-- Merges are vertical from the first row on: measured, they cost a third of horizontal ones with maps as wide as these.
-- A first part is compact: one file to write and to fsync (docs/decisions/0002-schema.md).
CREATE TABLE IF NOT EXISTS spanhouse.spans
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    Day Date CODEC(ZSTD(1)),
    Timestamp DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    TraceId FixedString(16) CODEC(ZSTD(1)),
    SpanId FixedString(8) CODEC(NONE),
    ParentSpanId FixedString(8) CODEC(ZSTD(1)),
    ServiceName LowCardinality(String) CODEC(ZSTD(1)),
    SpanName LowCardinality(String) CODEC(ZSTD(1)),
    Kind Int32 CODEC(T64, ZSTD(1)),
    Duration Int64 CODEC(T64, ZSTD(1)),
    StatusCode Int32 CODEC(T64, ZSTD(1)),
    StatusMessage String CODEC(ZSTD(1)),
    TraceState String CODEC(ZSTD(1)),
    Flags UInt32 CODEC(T64, ZSTD(1)),
    StringAttributes Map(LowCardinality(String), String) CODEC(ZSTD(3)),
    IntAttributes Map(LowCardinality(String), Int64) CODEC(ZSTD(1)),
    FloatAttributes Map(LowCardinality(String), Float64) CODEC(ZSTD(1)),
    BoolAttributes Map(LowCardinality(String), Bool) CODEC(ZSTD(1)),
    OtherAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    DroppedAttributesCount UInt32 CODEC(T64, ZSTD(1)),
    EventTimes Array(UInt64) CODEC(ZSTD(1)),
    EventNames Array(LowCardinality(String)) CODEC(ZSTD(1)),
    EventAttributes Array(Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    EventDroppedAttributesCounts Array(UInt32) CODEC(ZSTD(1)),
    DroppedEventsCount UInt32 CODEC(T64, ZSTD(1)),
    Links Array(String) CODEC(ZSTD(1)),
    DroppedLinksCount UInt32 CODEC(T64, ZSTD(1)),
    TimeFlags UInt8 CODEC(ZSTD(1)),
    StartSent UInt64 CODEC(ZSTD(1)),
    EndSent UInt64 CODEC(ZSTD(1)),
    OriginId UInt64 CODEC(ZSTD(1)),
    Received DateTime('UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY Day
ORDER BY (Tenant, toStartOfMinute(Timestamp), ServiceName, TraceId)
SETTINGS
    non_replicated_deduplication_window = 10000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1,
    vertical_merge_algorithm_min_rows_to_activate = 1,
    vertical_merge_algorithm_min_columns_to_activate = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse.to_spans TO spanhouse.spans AS
SELECT
    Tenant, Day, Timestamp, TraceId, SpanId, ParentSpanId, ServiceName, SpanName, Kind, Duration, StatusCode, StatusMessage,
    TraceState, Flags, StringAttributes, IntAttributes, FloatAttributes, BoolAttributes, OtherAttributes,
    DroppedAttributesCount, EventTimes, EventNames, EventAttributes, EventDroppedAttributesCounts, DroppedEventsCount,
    Links, DroppedLinksCount,
    TimeFlags, StartSent, EndSent, OriginId, Received
FROM spanhouse.ingest;

-- An origin is a resource and a scope: who wrote a span. It is stored once a load, not once a span; the hash of its
-- content is its id.
CREATE TABLE IF NOT EXISTS spanhouse.origins
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    OriginId UInt64 CODEC(ZSTD(1)),
    Received DateTime('UTC') CODEC(Delta, ZSTD(1)),
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ResourceDroppedAttributesCount UInt32 CODEC(ZSTD(1)),
    ResourceSchemaUrl String CODEC(ZSTD(1)),
    ScopeName String CODEC(ZSTD(1)),
    ScopeVersion String CODEC(ZSTD(1)),
    ScopeAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeDroppedAttributesCount UInt32 CODEC(ZSTD(1)),
    ScopeSchemaUrl String CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(Received)
ORDER BY (Tenant, OriginId)
SETTINGS
    non_replicated_deduplication_window = 10000,
    fsync_after_insert = 1,
    fsync_part_directory = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse.to_origins TO spanhouse.origins AS
SELECT
    Tenant, OriginId, Received, ResourceAttributes, ResourceDroppedAttributesCount, ResourceSchemaUrl,
    ScopeName, ScopeVersion, ScopeAttributes, ScopeDroppedAttributesCount, ScopeSchemaUrl
FROM spanhouse.ingest
WHERE OriginFirst
LIMIT 1 BY Tenant, OriginId;
