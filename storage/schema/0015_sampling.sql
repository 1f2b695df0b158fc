-- Sampling (storage/sampling.py): of some traces only a share is kept, and one that is kept stands for several.
--
-- Weight     how many traces as this one came, itself included: 1 where all were kept. Of a trace in `traces`, `facts` and
--            `links`, the greatest of its spans.
ALTER TABLE spanhouse.ingest ADD COLUMN IF NOT EXISTS Weight Float32 DEFAULT 1;
ALTER TABLE spanhouse.spans ADD COLUMN IF NOT EXISTS Weight Float32 DEFAULT 1 CODEC(ZSTD(1));
ALTER TABLE spanhouse.traces ADD COLUMN IF NOT EXISTS Weight SimpleAggregateFunction(max, Float32) DEFAULT 1 CODEC(ZSTD(1));
ALTER TABLE spanhouse.facts ADD COLUMN IF NOT EXISTS Weight Float32 DEFAULT 1 CODEC(ZSTD(1));
ALTER TABLE spanhouse.links ADD COLUMN IF NOT EXISTS Weight Float32 DEFAULT 1 CODEC(ZSTD(1));
ALTER TABLE spanhouse.to_spans MODIFY QUERY
SELECT
    Tenant, Day, Timestamp, TraceId, SpanId, ParentSpanId, ServiceName, SpanName, Kind, Duration, StatusCode, StatusMessage,
    TraceState, Flags, StringAttributes, IntAttributes, FloatAttributes, BoolAttributes, OtherAttributes,
    DroppedAttributesCount, EventTimes, EventNames, EventAttributes, EventDroppedAttributesCounts, DroppedEventsCount,
    Links, DroppedLinksCount,
    TimeFlags, StartSent, EndSent, OriginId, Received, Canonical, Class, Weight
FROM spanhouse.ingest;
ALTER TABLE spanhouse.to_traces MODIFY QUERY
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
    max(ingest.Received) AS Received,
    max(toUInt8(
        notEmpty(Canonical)
        OR arrayExists(k -> k IN (
            'annotations.0.annotation.name', 'evaluations.0.evaluation.name', 'trace.annotations.0.annotation.name',
            'trace.evaluations.0.evaluation.name', 'session.annotations.0.annotation.name',
            'session.evaluations.0.evaluation.name', 'braintrust.scores', 'gen_ai.evaluation.name', 'gen_ai.guardrail.status'
        ), mapKeys(StringAttributes))
        OR mapContains(BoolAttributes, 'gen_ai.guardrail.triggered')
        OR arrayExists(e -> e IN ('gen_ai.evaluation.result', 'guard.evaluation', 'langwatch.evaluation.custom'), EventNames)
    )) AS Said,
    groupUniqArray(OriginId) AS Origins,
    now('UTC') AS Loaded,
    max(ingest.Weight) AS Weight
FROM spanhouse.ingest
GROUP BY Tenant, Day, TraceId;
ALTER TABLE spanhouse.to_links MODIFY QUERY
SELECT
    Tenant, link.Entity AS Entity, link.Id AS Id, link.Version AS Version, TraceId, link.Provenance AS Provenance, Start,
    DurationNano, Spans, Errors, Failed, InputTokens, OutputTokens, TotalTokens, CachedInputTokens, ReasoningTokens, CostUsd,
    Unpriced, Models, ModelCalls, Tools,
    arrayMap(l -> (l.Entity, l.Id, l.Version), arrayFilter(l -> l.Entity NOT IN ('session', 'user') AND l != link, Links)) AS Beside,
    Settled, Weight
FROM spanhouse.facts
ARRAY JOIN Links AS link
WHERE link.Entity != 'agent';
ALTER TABLE spanhouse.to_agent_links MODIFY QUERY
SELECT
    Tenant, 'agent' AS Entity, agent.Name AS Id, agent.Version AS Version, TraceId, agent.Provenance AS Provenance, Start,
    agent.DurationNano AS DurationNano, agent.Spans AS Spans, agent.Errors AS Errors, agent.Failed AS Failed,
    agent.InputTokens AS InputTokens, agent.OutputTokens AS OutputTokens, agent.TotalTokens AS TotalTokens,
    agent.CachedInputTokens AS CachedInputTokens, agent.ReasoningTokens AS ReasoningTokens, agent.CostUsd AS CostUsd,
    agent.Unpriced AS Unpriced, agent.Models AS Models, agent.ModelCalls AS ModelCalls, agent.Tools AS Tools,
    arrayMap(l -> (l.Entity, l.Id, l.Version), arrayFilter(
        l -> l.Entity NOT IN ('session', 'user') AND (l.Entity, l.Id, l.Version) != ('agent', agent.Name, agent.Version),
        Links)) AS Beside,
    Settled, Weight
FROM spanhouse.facts
ARRAY JOIN Agents AS agent;

-- Versions of the rules, as JSON. The newest row of a version counts.
CREATE TABLE IF NOT EXISTS spanhouse.sampling
(
    Version UInt32,
    Rules String,
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(Updated)
ORDER BY Version
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- What the spans of a segment say of their traces, a row a trace, written before the segment is loaded. Rows may repeat.
--
-- Segment    its token; tokens of the log sort by time.
-- Version    of the rules. Matched: bit n is set if a span matches rule n of them. Failed: a span has the status ERROR.
-- Start, End nanoseconds since 1970. Spans: of this segment.
-- Places     which operations and versions the spans name, as numbers below 2^17 that two of them may share.
CREATE TABLE IF NOT EXISTS spanhouse.surveys
(
    Segment String CODEC(ZSTD(1)),
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(NONE),
    Version UInt32 CODEC(ZSTD(1)),
    Matched UInt64 CODEC(T64, ZSTD(1)),
    Notable UInt8 CODEC(ZSTD(1)),
    Start Int64 CODEC(ZSTD(1)),
    End Int64 CODEC(ZSTD(1)),
    Spans UInt32 CODEC(T64, ZSTD(1)),
    Places Array(UInt32) CODEC(ZSTD(1)),
    Surveyed DateTime('UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toDate(Surveyed)
ORDER BY (Segment, Tenant, TraceId)
TTL toDate(Surveyed) + INTERVAL 2 DAY
SETTINGS ttl_only_drop_parts = 1;

-- How many traces of a day named a place, roughly: one that lies in two segments counts twice.
CREATE TABLE IF NOT EXISTS spanhouse.places
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    Day Date CODEC(ZSTD(1)),
    Place UInt32 CODEC(T64, ZSTD(1)),
    Traces UInt64 CODEC(T64, ZSTD(1))
)
ENGINE = SummingMergeTree
PARTITION BY Day
ORDER BY (Tenant, Place)
TTL Day + INTERVAL 3 DAY
SETTINGS ttl_only_drop_parts = 1;
CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse.to_places TO spanhouse.places AS
SELECT Tenant, toDate(Surveyed) AS Day, Place, count() AS Traces
FROM spanhouse.surveys
ARRAY JOIN Places AS Place
GROUP BY Tenant, Day, Place;

-- Which traces are kept, decided once a trace, so that its late spans follow. Of several rows the earliest counts.
--
-- Weight     0: the trace is left out. Rule: the name of the rule that said so. Spans: those there were by then.
CREATE TABLE IF NOT EXISTS spanhouse.decisions
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(NONE),
    Weight Float32 CODEC(ZSTD(1)),
    Rule LowCardinality(String) CODEC(ZSTD(1)),
    Spans UInt32 CODEC(T64, ZSTD(1)),
    Decided DateTime64(6, 'UTC') DEFAULT now64(6) CODEC(ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toDate(Decided)
ORDER BY (Tenant, TraceId)
TTL toDate(Decided) + INTERVAL 3 DAY
SETTINGS
    index_granularity = 256,
    min_compress_block_size = 4096,
    ttl_only_drop_parts = 1,
    fsync_after_insert = 1,
    fsync_part_directory = 1;
