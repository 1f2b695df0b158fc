CREATE TABLE IF NOT EXISTS spanhouse_local.ingest ON CLUSTER 'spans'
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

CREATE OR REPLACE TABLE spanhouse.ingest ON CLUSTER 'spans' AS spanhouse_local.ingest
ENGINE = Distributed('spans', 'spanhouse_local', 'ingest', cityHash64(TraceId));

CREATE TABLE IF NOT EXISTS spanhouse_local.spans ON CLUSTER 'spans'
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
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/spanhouse/spans', '{replica}')
PARTITION BY Day
ORDER BY (Tenant, toStartOfMinute(Timestamp), ServiceName, TraceId)
SETTINGS
    replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 604800,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1,
    vertical_merge_algorithm_min_rows_to_activate = 1,
    vertical_merge_algorithm_min_columns_to_activate = 1;

CREATE OR REPLACE TABLE spanhouse.spans ON CLUSTER 'spans' AS spanhouse_local.spans
ENGINE = Distributed('spans', 'spanhouse_local', 'spans', cityHash64(TraceId));

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse_local.to_spans ON CLUSTER 'spans' TO spanhouse_local.spans AS
SELECT
    Tenant, Day, Timestamp, TraceId, SpanId, ParentSpanId, ServiceName, SpanName, Kind, Duration, StatusCode, StatusMessage,
    TraceState, Flags, StringAttributes, IntAttributes, FloatAttributes, BoolAttributes, OtherAttributes,
    DroppedAttributesCount, EventTimes, EventNames, EventAttributes, EventDroppedAttributesCounts, DroppedEventsCount,
    Links, DroppedLinksCount,
    TimeFlags, StartSent, EndSent, OriginId, Received
FROM spanhouse_local.ingest;

CREATE TABLE IF NOT EXISTS spanhouse_local.origins ON CLUSTER 'spans'
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
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/spanhouse/origins', '{replica}', Received)
ORDER BY (Tenant, OriginId)
SETTINGS
    replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 604800,
    fsync_after_insert = 1,
    fsync_part_directory = 1;

CREATE OR REPLACE TABLE spanhouse.origins ON CLUSTER 'spans' AS spanhouse_local.origins
ENGINE = Distributed('spans', 'spanhouse_local', 'origins');

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse_local.to_origins ON CLUSTER 'spans' TO spanhouse_local.origins AS
SELECT
    Tenant, OriginId, Received, ResourceAttributes, ResourceDroppedAttributesCount, ResourceSchemaUrl,
    ScopeName, ScopeVersion, ScopeAttributes, ScopeDroppedAttributesCount, ScopeSchemaUrl
FROM spanhouse_local.ingest
WHERE OriginFirst
LIMIT 1 BY Tenant, OriginId;

CREATE TABLE IF NOT EXISTS spanhouse_local.content ON CLUSTER 'spans'
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
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/spanhouse/content', '{replica}')
PARTITION BY Day
ORDER BY (Tenant, Hour, TraceId)
SETTINGS
    replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 604800,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1,
    min_parts_to_merge_at_once = 8,
    max_compress_block_size = 4194304,
    min_compress_block_size = 1048576;

CREATE OR REPLACE TABLE spanhouse.content ON CLUSTER 'spans' AS spanhouse_local.content
ENGINE = Distributed('spans', 'spanhouse_local', 'content', cityHash64(TraceId));

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse_local.to_content ON CLUSTER 'spans' TO spanhouse_local.content AS
SELECT Tenant, Day, toStartOfHour(Timestamp) AS Hour, TraceId,
    cityHash64(SpanId, Timestamp, Duration, SpanName) AS SpanKey, Content, OtherContent
FROM spanhouse_local.ingest
WHERE notEmpty(Content) OR notEmpty(OtherContent)
ORDER BY Timestamp;

CREATE TABLE IF NOT EXISTS spanhouse_local.traces ON CLUSTER 'spans'
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
ENGINE = ReplicatedAggregatingMergeTree('/clickhouse/tables/{shard}/spanhouse/traces', '{replica}')
PARTITION BY Day
ORDER BY (Tenant, TraceId)
SETTINGS
    index_granularity = 1024,
    replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 604800,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1;

CREATE OR REPLACE TABLE spanhouse.traces ON CLUSTER 'spans' AS spanhouse_local.traces
ENGINE = Distributed('spans', 'spanhouse_local', 'traces', cityHash64(TraceId));

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse_local.to_traces ON CLUSTER 'spans' TO spanhouse_local.traces AS
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
FROM spanhouse_local.ingest
GROUP BY Tenant, Day, TraceId;

ALTER TABLE spanhouse_local.ingest ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS Canonical Map(LowCardinality(String), String) AFTER Received;

CREATE OR REPLACE TABLE spanhouse.ingest ON CLUSTER 'spans' AS spanhouse_local.ingest
ENGINE = Distributed('spans', 'spanhouse_local', 'ingest', cityHash64(TraceId));

ALTER TABLE spanhouse_local.spans ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS Canonical Map(LowCardinality(String), String) CODEC(ZSTD(3));

CREATE OR REPLACE TABLE spanhouse.spans ON CLUSTER 'spans' AS spanhouse_local.spans
ENGINE = Distributed('spans', 'spanhouse_local', 'spans', cityHash64(TraceId));

ALTER TABLE spanhouse_local.to_spans ON CLUSTER 'spans' MODIFY QUERY
SELECT
    Tenant, Day, Timestamp, TraceId, SpanId, ParentSpanId, ServiceName, SpanName, Kind, Duration, StatusCode, StatusMessage,
    TraceState, Flags, StringAttributes, IntAttributes, FloatAttributes, BoolAttributes, OtherAttributes,
    DroppedAttributesCount, EventTimes, EventNames, EventAttributes, EventDroppedAttributesCounts, DroppedEventsCount,
    Links, DroppedLinksCount,
    TimeFlags, StartSent, EndSent, OriginId, Received, Canonical
FROM spanhouse_local.ingest;

ALTER TABLE spanhouse_local.traces ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS Said SimpleAggregateFunction(max, UInt8) CODEC(ZSTD(1));

CREATE OR REPLACE TABLE spanhouse.traces ON CLUSTER 'spans' AS spanhouse_local.traces
ENGINE = Distributed('spans', 'spanhouse_local', 'traces', cityHash64(TraceId));

ALTER TABLE spanhouse_local.traces ON CLUSTER 'spans'
    ADD COLUMN IF NOT EXISTS Origins SimpleAggregateFunction(groupUniqArrayArray, Array(UInt64)) CODEC(ZSTD(1));

CREATE OR REPLACE TABLE spanhouse.traces ON CLUSTER 'spans' AS spanhouse_local.traces
ENGINE = Distributed('spans', 'spanhouse_local', 'traces', cityHash64(TraceId));

ALTER TABLE spanhouse_local.traces ON CLUSTER 'spans' ADD INDEX IF NOT EXISTS received Received TYPE minmax GRANULARITY 1;

ALTER TABLE spanhouse_local.to_traces ON CLUSTER 'spans' MODIFY QUERY
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
    groupUniqArray(OriginId) AS Origins
FROM spanhouse_local.ingest
GROUP BY Tenant, Day, TraceId;

CREATE TABLE IF NOT EXISTS spanhouse_local.facts ON CLUSTER 'spans'
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(ZSTD(1)),
    Start DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    DurationNano Int64 CODEC(T64, ZSTD(1)),
    RootName LowCardinality(String) CODEC(ZSTD(1)),
    RootService LowCardinality(String) CODEC(ZSTD(1)),
    Spans UInt64 CODEC(T64, ZSTD(1)),
    Errors UInt64 CODEC(T64, ZSTD(1)),
    Failed UInt8 CODEC(ZSTD(1)),
    Truncated UInt8 CODEC(ZSTD(1)),
    InputTokens UInt64 CODEC(T64, ZSTD(1)),
    OutputTokens UInt64 CODEC(T64, ZSTD(1)),
    TotalTokens UInt64 CODEC(T64, ZSTD(1)),
    CachedInputTokens UInt64 CODEC(T64, ZSTD(1)),
    ReasoningTokens UInt64 CODEC(T64, ZSTD(1)),
    CostUsd Float64 CODEC(ZSTD(1)),
    Unpriced UInt32 CODEC(T64, ZSTD(1)),
    Duplicates UInt32 CODEC(T64, ZSTD(1)),
    Models Array(LowCardinality(String)) CODEC(ZSTD(1)),
    ModelCalls Array(UInt32) CODEC(ZSTD(1)),
    Tools Array(LowCardinality(String)) CODEC(ZSTD(1)),
    Links Array(Tuple(Entity LowCardinality(String), Id String, Version String, Provenance LowCardinality(String))) CODEC(ZSTD(1)),
    Agents Array(Tuple(
        Name String, Version String, Provenance LowCardinality(String),
        DurationNano Int64, Spans UInt64, Errors UInt64, Failed UInt8,
        InputTokens UInt64, OutputTokens UInt64, TotalTokens UInt64, CachedInputTokens UInt64, ReasoningTokens UInt64,
        CostUsd Float64, Unpriced UInt32,
        Models Array(LowCardinality(String)), ModelCalls Array(UInt32), Tools Array(LowCardinality(String))
    )) CODEC(ZSTD(1)),
    Settled DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/spanhouse/facts', '{replica}', Settled)
ORDER BY (Tenant, TraceId)
SETTINGS index_granularity = 256, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE OR REPLACE TABLE spanhouse.facts ON CLUSTER 'spans' AS spanhouse_local.facts
ENGINE = Distributed('spans', 'spanhouse_local', 'facts', cityHash64(TraceId));

CREATE TABLE IF NOT EXISTS spanhouse_local.links ON CLUSTER 'spans'
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    Entity LowCardinality(String) CODEC(ZSTD(1)),
    Id String CODEC(ZSTD(1)),
    Version String CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(ZSTD(1)),
    Provenance LowCardinality(String) CODEC(ZSTD(1)),
    Start DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    DurationNano Int64 CODEC(T64, ZSTD(1)),
    Spans UInt64 CODEC(T64, ZSTD(1)),
    Errors UInt64 CODEC(T64, ZSTD(1)),
    Failed UInt8 CODEC(ZSTD(1)),
    InputTokens UInt64 CODEC(T64, ZSTD(1)),
    OutputTokens UInt64 CODEC(T64, ZSTD(1)),
    TotalTokens UInt64 CODEC(T64, ZSTD(1)),
    CachedInputTokens UInt64 CODEC(T64, ZSTD(1)),
    ReasoningTokens UInt64 CODEC(T64, ZSTD(1)),
    CostUsd Float64 CODEC(ZSTD(1)),
    Unpriced UInt32 CODEC(T64, ZSTD(1)),
    Models Array(LowCardinality(String)) CODEC(ZSTD(1)),
    ModelCalls Array(UInt32) CODEC(ZSTD(1)),
    Tools Array(LowCardinality(String)) CODEC(ZSTD(1)),
    Beside Array(Tuple(Entity LowCardinality(String), Id String, Version String)) CODEC(ZSTD(1)),
    Deleted UInt8 CODEC(ZSTD(1)),
    Settled DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/spanhouse/links', '{replica}', Settled, Deleted)
ORDER BY (Tenant, Entity, Id, Version, TraceId)
SETTINGS index_granularity = 1024, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE OR REPLACE TABLE spanhouse.links ON CLUSTER 'spans' AS spanhouse_local.links
ENGINE = Distributed('spans', 'spanhouse_local', 'links', cityHash64(TraceId));

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse_local.to_links ON CLUSTER 'spans' TO spanhouse_local.links AS
SELECT
    Tenant, link.Entity AS Entity, link.Id AS Id, link.Version AS Version, TraceId, link.Provenance AS Provenance, Start,
    DurationNano, Spans, Errors, Failed, InputTokens, OutputTokens, TotalTokens, CachedInputTokens, ReasoningTokens, CostUsd,
    Unpriced, Models, ModelCalls, Tools,
    arrayMap(l -> (l.Entity, l.Id, l.Version), arrayFilter(l -> l.Entity NOT IN ('session', 'user') AND l != link, Links)) AS Beside,
    Settled
FROM spanhouse_local.facts
ARRAY JOIN Links AS link
WHERE link.Entity != 'agent';

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse_local.to_agent_links ON CLUSTER 'spans' TO spanhouse_local.links AS
SELECT
    Tenant, 'agent' AS Entity, agent.Name AS Id, agent.Version AS Version, TraceId, agent.Provenance AS Provenance, Start,
    agent.DurationNano AS DurationNano, agent.Spans AS Spans, agent.Errors AS Errors, agent.Failed AS Failed,
    agent.InputTokens AS InputTokens, agent.OutputTokens AS OutputTokens, agent.TotalTokens AS TotalTokens,
    agent.CachedInputTokens AS CachedInputTokens, agent.ReasoningTokens AS ReasoningTokens, agent.CostUsd AS CostUsd,
    agent.Unpriced AS Unpriced, agent.Models AS Models, agent.ModelCalls AS ModelCalls, agent.Tools AS Tools,
    arrayMap(l -> (l.Entity, l.Id, l.Version), arrayFilter(
        l -> l.Entity NOT IN ('session', 'user') AND (l.Entity, l.Id, l.Version) != ('agent', agent.Name, agent.Version),
        Links)) AS Beside,
    Settled
FROM spanhouse_local.facts
ARRAY JOIN Agents AS agent;

CREATE TABLE IF NOT EXISTS spanhouse_local.seen ON CLUSTER 'spans'
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    Entity LowCardinality(String) CODEC(ZSTD(1)),
    Id String CODEC(ZSTD(1)),
    Version String CODEC(ZSTD(1)),
    First SimpleAggregateFunction(min, DateTime64(9, 'UTC')) CODEC(ZSTD(1)),
    Last SimpleAggregateFunction(max, DateTime64(9, 'UTC')) CODEC(ZSTD(1))
)
ENGINE = ReplicatedAggregatingMergeTree('/clickhouse/tables/{shard}/spanhouse/seen', '{replica}')
ORDER BY (Tenant, Entity, Id, Version)
SETTINGS index_granularity = 1024, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE OR REPLACE TABLE spanhouse.seen ON CLUSTER 'spans' AS spanhouse_local.seen
ENGINE = Distributed('spans', 'spanhouse_local', 'seen');

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse_local.to_seen ON CLUSTER 'spans' TO spanhouse_local.seen AS
SELECT
    Tenant, link.Entity AS Entity, link.Id AS Id, link.Version AS Version, min(Start) AS First, max(Start) AS Last
FROM spanhouse_local.facts
ARRAY JOIN Links AS link
GROUP BY Tenant, Entity, Id, Version;

CREATE TABLE IF NOT EXISTS spanhouse.settling ON CLUSTER 'spans'
(
    Id UInt8,
    Received DateTime('UTC'),
    Touched DateTime64(6, 'UTC'),
    Records DateTime('UTC'),
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/all/spanhouse/settling', '{shard}-{replica}', Updated)
ORDER BY Id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS spanhouse_local.explicit_links ON CLUSTER 'spans'
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(ZSTD(1)),
    Entity LowCardinality(String) CODEC(ZSTD(1)),
    Slot String CODEC(ZSTD(1)),
    Id String CODEC(ZSTD(1)),
    Version String CODEC(ZSTD(1)),
    Source LowCardinality(String) CODEC(ZSTD(1)),
    Deleted UInt8 CODEC(ZSTD(1)),
    Updated DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/spanhouse/explicit_links', '{replica}', Updated)
ORDER BY (Tenant, TraceId, Entity, Slot)
SETTINGS index_granularity = 128, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE OR REPLACE TABLE spanhouse.explicit_links ON CLUSTER 'spans' AS spanhouse_local.explicit_links
ENGINE = Distributed('spans', 'spanhouse_local', 'explicit_links', cityHash64(TraceId));

CREATE TABLE IF NOT EXISTS spanhouse.deployments ON CLUSTER 'spans'
(
    Tenant LowCardinality(String),
    DeploymentId String,
    Service String,
    Environment String,
    ModelName String,
    ModelVersion String,
    Since DateTime64(9, 'UTC'),
    Until DateTime64(9, 'UTC'),
    Deleted UInt8,
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/all/spanhouse/deployments', '{shard}-{replica}', Updated)
ORDER BY (Tenant, DeploymentId)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS spanhouse.entities ON CLUSTER 'spans'
(
    Tenant LowCardinality(String),
    Entity LowCardinality(String),
    Id String,
    Version String,
    Metadata String,
    Deleted UInt8,
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/all/spanhouse/entities', '{shard}-{replica}', Updated)
ORDER BY (Tenant, Entity, Id, Version)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS spanhouse_local.assessments ON CLUSTER 'spans'
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(ZSTD(1)),
    AssessmentId String CODEC(ZSTD(1)),
    SpanId FixedString(8) CODEC(ZSTD(1)),
    Name LowCardinality(String) CODEC(ZSTD(1)),
    Kind LowCardinality(String) CODEC(ZSTD(1)),
    Number Float64 CODEC(ZSTD(1)),
    Text String CODEC(ZSTD(1)),
    Value String CODEC(ZSTD(1)),
    SourceType LowCardinality(String) CODEC(ZSTD(1)),
    SourceId String CODEC(ZSTD(1)),
    Rationale String CODEC(ZSTD(1)),
    Error String CODEC(ZSTD(1)),
    Metadata String CODEC(ZSTD(1)),
    Created DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    Deleted UInt8 CODEC(ZSTD(1)),
    Updated DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/spanhouse/assessments', '{replica}', Updated)
ORDER BY (Tenant, TraceId, AssessmentId)
SETTINGS index_granularity = 1024, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE OR REPLACE TABLE spanhouse.assessments ON CLUSTER 'spans' AS spanhouse_local.assessments
ENGINE = Distributed('spans', 'spanhouse_local', 'assessments', cityHash64(TraceId));

CREATE TABLE IF NOT EXISTS spanhouse_local.records ON CLUSTER 'spans'
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
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/spanhouse/records', '{replica}')
PARTITION BY Day
ORDER BY (Tenant, TraceId, Time)
SETTINGS
    index_granularity = 1024,
    replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 604800,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1,
    min_parts_to_merge_at_once = 8;

CREATE OR REPLACE TABLE spanhouse.records ON CLUSTER 'spans' AS spanhouse_local.records
ENGINE = Distributed('spans', 'spanhouse_local', 'records', cityHash64(TraceId));

CREATE TABLE IF NOT EXISTS spanhouse_local.mlflow_traces ON CLUSTER 'spans'
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
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/spanhouse/mlflow_traces', '{replica}', Updated)
ORDER BY (Tenant, TraceId)
SETTINGS index_granularity = 1024, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE OR REPLACE TABLE spanhouse.mlflow_traces ON CLUSTER 'spans' AS spanhouse_local.mlflow_traces
ENGINE = Distributed('spans', 'spanhouse_local', 'mlflow_traces', cityHash64(TraceId));

CREATE TABLE IF NOT EXISTS spanhouse.implied ON CLUSTER 'spans'
(
    Entity LowCardinality(String),
    Id String,
    Links Array(Tuple(Entity String, Id String, Version String)),
    Tenants Array(String),
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/all/spanhouse/implied', '{shard}-{replica}', Updated)
ORDER BY (Entity, Id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

ALTER TABLE spanhouse_local.traces ON CLUSTER 'spans'
    ADD COLUMN IF NOT EXISTS Loaded SimpleAggregateFunction(max, DateTime('UTC')) DEFAULT Received CODEC(ZSTD(1));

CREATE OR REPLACE TABLE spanhouse.traces ON CLUSTER 'spans' AS spanhouse_local.traces
ENGINE = Distributed('spans', 'spanhouse_local', 'traces', cityHash64(TraceId));

ALTER TABLE spanhouse_local.traces ON CLUSTER 'spans' ADD INDEX IF NOT EXISTS loaded Loaded TYPE minmax GRANULARITY 1;

ALTER TABLE spanhouse_local.traces ON CLUSTER 'spans' MATERIALIZE INDEX loaded;

ALTER TABLE spanhouse_local.to_traces ON CLUSTER 'spans' MODIFY QUERY
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
    now('UTC') AS Loaded
FROM spanhouse_local.ingest
GROUP BY Tenant, Day, TraceId;

ALTER TABLE spanhouse_local.records ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS Loaded DateTime('UTC') DEFAULT Received CODEC(Delta, ZSTD(1));

CREATE OR REPLACE TABLE spanhouse.records ON CLUSTER 'spans' AS spanhouse_local.records
ENGINE = Distributed('spans', 'spanhouse_local', 'records', cityHash64(TraceId));

ALTER TABLE spanhouse_local.records ON CLUSTER 'spans' ADD INDEX IF NOT EXISTS loaded Loaded TYPE minmax GRANULARITY 1;

ALTER TABLE spanhouse_local.records ON CLUSTER 'spans' MATERIALIZE INDEX loaded;

ALTER TABLE spanhouse.settling ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS Loaded DateTime('UTC') DEFAULT Received AFTER Id;

ALTER TABLE spanhouse_local.facts ON CLUSTER 'spans' ADD INDEX IF NOT EXISTS settled Settled TYPE minmax GRANULARITY 1;

ALTER TABLE spanhouse_local.explicit_links ON CLUSTER 'spans' ADD INDEX IF NOT EXISTS updated Updated TYPE minmax GRANULARITY 1;

ALTER TABLE spanhouse_local.assessments ON CLUSTER 'spans' ADD INDEX IF NOT EXISTS updated Updated TYPE minmax GRANULARITY 1;

CREATE TABLE IF NOT EXISTS spanhouse.leases ON CLUSTER 'spans'
(
    Name String,
    Holder String,
    Until DateTime64(3, 'UTC'),
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/all/spanhouse/leases', '{shard}-{replica}', Updated)
ORDER BY Name
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

ALTER TABLE spanhouse_local.spans ON CLUSTER 'spans'
    ADD INDEX IF NOT EXISTS strings mapValues(StringAttributes) TYPE bloom_filter(0.05) GRANULARITY 1;

ALTER TABLE spanhouse_local.spans ON CLUSTER 'spans' MATERIALIZE INDEX strings;

CREATE TABLE IF NOT EXISTS spanhouse_local.volumes ON CLUSTER 'spans'
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    Day Date CODEC(ZSTD(1)),
    Service String CODEC(ZSTD(1)),
    Agent String CODEC(ZSTD(1)),
    Model String CODEC(ZSTD(1)),
    Spans Int64 CODEC(T64, ZSTD(1)),
    SkeletonBytes Int64 CODEC(T64, ZSTD(1)),
    Contents Int64 CODEC(T64, ZSTD(1)),
    ContentBytes Int64 CODEC(T64, ZSTD(1)),
    Records Int64 CODEC(T64, ZSTD(1)),
    RecordSkeletonBytes Int64 CODEC(T64, ZSTD(1)),
    RecordContentBytes Int64 CODEC(T64, ZSTD(1))
)
ENGINE = ReplicatedSummingMergeTree('/clickhouse/tables/{shard}/spanhouse/volumes', '{replica}')
PARTITION BY Day
ORDER BY (Tenant, Service, Agent, Model)
SETTINGS
    index_granularity = 1024,
    replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 604800,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1;

CREATE OR REPLACE TABLE spanhouse.volumes ON CLUSTER 'spans' AS spanhouse_local.volumes
ENGINE = Distributed('spans', 'spanhouse_local', 'volumes', rand());

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse_local.to_volumes ON CLUSTER 'spans' TO spanhouse_local.volumes AS
SELECT
    Tenant, Day,
    substring(ServiceName, 1, 128) AS Service,
    substring(Canonical['agent_name'], 1, 128) AS Agent,
    substring(if(Canonical['response_model'] = '', Canonical['request_model'], Canonical['response_model']), 1, 128) AS Model,
    toInt64(count()) AS Spans,
    toInt64(sum(
        64 + length(SpanName) + length(StatusMessage) + length(TraceState)
        + arraySum(v -> length(v), mapValues(StringAttributes)) + 8 * length(IntAttributes)
        + 8 * length(FloatAttributes) + length(BoolAttributes) + arraySum(v -> length(v), mapValues(OtherAttributes))
        + 8 * length(EventTimes) + arraySum(m -> arraySum(v -> length(v), mapValues(m)), EventAttributes)
        + arraySum(l -> length(l), Links)
    )) AS SkeletonBytes,
    toInt64(countIf(notEmpty(Content) OR notEmpty(OtherContent))) AS Contents,
    toInt64(sum(arraySum(v -> length(v), mapValues(Content)) + arraySum(v -> length(v), mapValues(OtherContent)))) AS ContentBytes
FROM spanhouse_local.ingest
GROUP BY Tenant, Day, Service, Agent, Model
LIMIT 5000 BY Tenant, Day;

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse_local.records_to_volumes ON CLUSTER 'spans' TO spanhouse_local.volumes AS
SELECT
    Tenant, Day, '' AS Service, '' AS Agent, '' AS Model, toInt64(count()) AS Records,
    toInt64(sum(40 + length(SeverityText) + arraySum(v -> length(v), mapValues(Attributes)))) AS RecordSkeletonBytes,
    toInt64(sum(length(Body) + arraySum(v -> length(v), mapValues(Content)))) AS RecordContentBytes
FROM spanhouse_local.records
GROUP BY Tenant, Day;

CREATE TABLE IF NOT EXISTS spanhouse.sizes ON CLUSTER 'spans'
(
    Day Date,
    Bytes UInt64,
    Noted DateTime64(6, 'UTC')
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/all/spanhouse/sizes', '{shard}-{replica}', Noted)
ORDER BY Day
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS spanhouse.erasures ON CLUSTER 'spans'
(
    Id String,
    Tenant String,
    State LowCardinality(String),
    Begun DateTime64(6, 'UTC'),
    Body String,
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/all/spanhouse/erasures', '{shard}-{replica}', Updated)
ORDER BY (Tenant, Id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS spanhouse.erasing ON CLUSTER 'spans'
(
    Erasure String,
    Kind LowCardinality(String),
    Round UInt16,
    Key FixedString(16),
    Value String,
    Written DateTime('UTC') DEFAULT now('UTC')
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/all/spanhouse/erasing', '{shard}-{replica}')
PARTITION BY Erasure
ORDER BY (Erasure, Kind, Round, Key)
SETTINGS
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    old_parts_lifetime = 1,
    cleanup_delay_period = 1,
    cleanup_delay_period_random_add = 0,
    max_cleanup_delay_period = 1;

ALTER TABLE spanhouse_local.ingest ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS Class UInt16;

CREATE OR REPLACE TABLE spanhouse.ingest ON CLUSTER 'spans' AS spanhouse_local.ingest
ENGINE = Distributed('spans', 'spanhouse_local', 'ingest', cityHash64(TraceId));

ALTER TABLE spanhouse_local.spans ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS Class UInt16 CODEC(ZSTD(1));

CREATE OR REPLACE TABLE spanhouse.spans ON CLUSTER 'spans' AS spanhouse_local.spans
ENGINE = Distributed('spans', 'spanhouse_local', 'spans', cityHash64(TraceId));

ALTER TABLE spanhouse_local.content ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS Class UInt16 CODEC(ZSTD(1));

CREATE OR REPLACE TABLE spanhouse.content ON CLUSTER 'spans' AS spanhouse_local.content
ENGINE = Distributed('spans', 'spanhouse_local', 'content', cityHash64(TraceId));

ALTER TABLE spanhouse_local.content ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS SessionKey UInt64 CODEC(ZSTD(1));

CREATE OR REPLACE TABLE spanhouse.content ON CLUSTER 'spans' AS spanhouse_local.content
ENGINE = Distributed('spans', 'spanhouse_local', 'content', cityHash64(TraceId));

ALTER TABLE spanhouse_local.content ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS WholeContent Map(LowCardinality(String), String);

CREATE OR REPLACE TABLE spanhouse.content ON CLUSTER 'spans' AS spanhouse_local.content
ENGINE = Distributed('spans', 'spanhouse_local', 'content', cityHash64(TraceId));

ALTER TABLE spanhouse_local.content ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS ContentPieces Map(LowCardinality(String), Array(LowCardinality(String)));

CREATE OR REPLACE TABLE spanhouse.content ON CLUSTER 'spans' AS spanhouse_local.content
ENGINE = Distributed('spans', 'spanhouse_local', 'content', cityHash64(TraceId));

ALTER TABLE spanhouse_local.content ON CLUSTER 'spans' MODIFY COLUMN Content Map(LowCardinality(String), String)
DEFAULT mapConcat(WholeContent, mapApply((k, ps) -> (k, arrayStringConcat(ps)), ContentPieces));

CREATE TABLE IF NOT EXISTS spanhouse_local.spans_by_class ON CLUSTER 'spans' AS spanhouse_local.spans
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/spanhouse/spans_by_class', '{replica}')
PARTITION BY (Day, Class)
ORDER BY (Tenant, toStartOfMinute(Timestamp), ServiceName, TraceId)
SETTINGS
    replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 604800,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1,
    vertical_merge_algorithm_min_rows_to_activate = 1,
    vertical_merge_algorithm_min_columns_to_activate = 1,
    number_of_free_entries_in_pool_to_execute_mutation = 1;

CREATE OR REPLACE TABLE spanhouse.spans_by_class ON CLUSTER 'spans' AS spanhouse_local.spans_by_class
ENGINE = Distributed('spans', 'spanhouse_local', 'spans_by_class', cityHash64(TraceId));

CREATE TABLE IF NOT EXISTS spanhouse_local.content_by_class ON CLUSTER 'spans'
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    Day Date CODEC(ZSTD(1)),
    Hour DateTime('UTC') CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(ZSTD(1)),
    SpanKey UInt64 CODEC(NONE),
    WholeContent Map(LowCardinality(String), String) CODEC(ZSTD(3)),
    ContentPieces Map(LowCardinality(String), Array(LowCardinality(String))) CODEC(ZSTD(3))
        SETTINGS (min_compress_block_size = 1048576, max_compress_block_size = 4194304),
    Content Map(LowCardinality(String), String)
        ALIAS mapConcat(WholeContent, mapApply((k, ps) -> (k, arrayStringConcat(ps)), ContentPieces)),
    OtherContent Map(LowCardinality(String), String) CODEC(ZSTD(3))
        SETTINGS (min_compress_block_size = 1048576, max_compress_block_size = 4194304),
    Class UInt16 CODEC(ZSTD(1)),
    SessionKey UInt64 CODEC(ZSTD(1)),
    INDEX trace TraceId TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/spanhouse/content_by_class', '{replica}')
PARTITION BY (Day, Class)
ORDER BY (Tenant, toStartOfInterval(Hour, INTERVAL 6 HOUR), SessionKey, TraceId)
SETTINGS
    replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 604800,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1,
    min_parts_to_merge_at_once = 8,
    number_of_free_entries_in_pool_to_execute_mutation = 1;

CREATE OR REPLACE TABLE spanhouse.content_by_class ON CLUSTER 'spans' AS spanhouse_local.content_by_class
ENGINE = Distributed('spans', 'spanhouse_local', 'content_by_class', cityHash64(TraceId));

ALTER TABLE spanhouse_local.to_spans ON CLUSTER 'spans' MODIFY QUERY
SELECT
    Tenant, Day, Timestamp, TraceId, SpanId, ParentSpanId, ServiceName, SpanName, Kind, Duration, StatusCode, StatusMessage,
    TraceState, Flags, StringAttributes, IntAttributes, FloatAttributes, BoolAttributes, OtherAttributes,
    DroppedAttributesCount, EventTimes, EventNames, EventAttributes, EventDroppedAttributesCounts, DroppedEventsCount,
    Links, DroppedLinksCount,
    TimeFlags, StartSent, EndSent, OriginId, Received, Canonical, Class
FROM spanhouse_local.ingest;

ALTER TABLE spanhouse_local.to_content ON CLUSTER 'spans' MODIFY QUERY
SELECT Tenant, Day, toStartOfHour(Timestamp) AS Hour, TraceId,
    cityHash64(SpanId, Timestamp, Duration, SpanName) AS SpanKey,
    if(arraySum(v -> length(v), mapValues(Content)) <= 8192, Content, CAST(map(), 'Map(LowCardinality(String), String)')) AS WholeContent,
    mapApply(
        (k, v) -> (k, if(length(v) <= 4000, [v], arrayFlatten(arrayMap(
            p -> if(length(p) <= 4000, [p], extractAll(p, '\\C{1,1000}')),
            arrayMap(
                ps -> if(position(v, '\0') = 0 AND 128 * length(ps) <= length(v), ps, [v]),
                [splitByChar('\0', replaceAll(replaceAll(replaceAll(v, '}, {', '},\0 {'), '},{', '},\0{'), '},\n', '},\0\n'))]
            )[1]
        )))),
        if(arraySum(v -> length(v), mapValues(Content)) > 8192, Content, CAST(map(), 'Map(LowCardinality(String), String)'))
    ) AS ContentPieces,
    OtherContent, Class,
    cityHash64(
        Canonical['session_id'], Canonical['trace.session_id'], Canonical['baggage.session_id'], Canonical['header.session_id']
    ) AS SessionKey
FROM spanhouse_local.ingest
WHERE notEmpty(Content) OR notEmpty(OtherContent)
ORDER BY Timestamp;

CREATE TABLE IF NOT EXISTS spanhouse.retention ON CLUSTER 'spans'
(
    Version UInt32,
    Since DateTime64(9, 'UTC'),
    Policies String,
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/all/spanhouse/retention', '{shard}-{replica}', Updated)
ORDER BY Version
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS spanhouse.pins ON CLUSTER 'spans'
(
    Tenant LowCardinality(String),
    Entity LowCardinality(String),
    Id String,
    Version String,
    PinnedBy String,
    Comment String,
    Deleted UInt8,
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/all/spanhouse/pins', '{shard}-{replica}', Updated)
ORDER BY (Tenant, Entity, Id, Version)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS spanhouse_local.verdicts ON CLUSTER 'spans'
(
    Tenant LowCardinality(String),
    Day Date,
    TraceId FixedString(16),
    Class UInt16
)
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/spanhouse/verdicts', '{replica}')
PARTITION BY Day
ORDER BY (Class, Tenant, TraceId);

CREATE OR REPLACE TABLE spanhouse.verdicts ON CLUSTER 'spans' AS spanhouse_local.verdicts
ENGINE = Distributed('spans', 'spanhouse_local', 'verdicts', cityHash64(TraceId));

CREATE TABLE IF NOT EXISTS spanhouse_local.inherited ON CLUSTER 'spans'
(
    Tenant LowCardinality(String),
    Day Date,
    TraceId FixedString(16),
    Class UInt16
)
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/spanhouse/inherited', '{replica}')
PARTITION BY Day
ORDER BY (Tenant, TraceId);

CREATE OR REPLACE TABLE spanhouse.inherited ON CLUSTER 'spans' AS spanhouse_local.inherited
ENGINE = Distributed('spans', 'spanhouse_local', 'inherited', cityHash64(TraceId));

CREATE TABLE IF NOT EXISTS spanhouse.expired_days ON CLUSTER 'spans'
(
    Day Date,
    Rules UInt64,
    Pinned UInt8,
    Noted DateTime64(6, 'UTC')
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/all/spanhouse/expired_days', '{shard}-{replica}', Noted)
ORDER BY Day
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

ALTER TABLE spanhouse_local.ingest ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS Weight Float32 DEFAULT 1;

CREATE OR REPLACE TABLE spanhouse.ingest ON CLUSTER 'spans' AS spanhouse_local.ingest
ENGINE = Distributed('spans', 'spanhouse_local', 'ingest', cityHash64(TraceId));

ALTER TABLE spanhouse_local.spans ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS Weight Float32 DEFAULT 1 CODEC(ZSTD(1));

CREATE OR REPLACE TABLE spanhouse.spans ON CLUSTER 'spans' AS spanhouse_local.spans
ENGINE = Distributed('spans', 'spanhouse_local', 'spans', cityHash64(TraceId));

ALTER TABLE spanhouse_local.traces ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS Weight SimpleAggregateFunction(max, Float32) DEFAULT 1 CODEC(ZSTD(1));

CREATE OR REPLACE TABLE spanhouse.traces ON CLUSTER 'spans' AS spanhouse_local.traces
ENGINE = Distributed('spans', 'spanhouse_local', 'traces', cityHash64(TraceId));

ALTER TABLE spanhouse_local.facts ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS Weight Float32 DEFAULT 1 CODEC(ZSTD(1));

CREATE OR REPLACE TABLE spanhouse.facts ON CLUSTER 'spans' AS spanhouse_local.facts
ENGINE = Distributed('spans', 'spanhouse_local', 'facts', cityHash64(TraceId));

ALTER TABLE spanhouse_local.links ON CLUSTER 'spans' ADD COLUMN IF NOT EXISTS Weight Float32 DEFAULT 1 CODEC(ZSTD(1));

CREATE OR REPLACE TABLE spanhouse.links ON CLUSTER 'spans' AS spanhouse_local.links
ENGINE = Distributed('spans', 'spanhouse_local', 'links', cityHash64(TraceId));

ALTER TABLE spanhouse_local.to_spans ON CLUSTER 'spans' MODIFY QUERY
SELECT
    Tenant, Day, Timestamp, TraceId, SpanId, ParentSpanId, ServiceName, SpanName, Kind, Duration, StatusCode, StatusMessage,
    TraceState, Flags, StringAttributes, IntAttributes, FloatAttributes, BoolAttributes, OtherAttributes,
    DroppedAttributesCount, EventTimes, EventNames, EventAttributes, EventDroppedAttributesCounts, DroppedEventsCount,
    Links, DroppedLinksCount,
    TimeFlags, StartSent, EndSent, OriginId, Received, Canonical, Class, Weight
FROM spanhouse_local.ingest;

ALTER TABLE spanhouse_local.to_traces ON CLUSTER 'spans' MODIFY QUERY
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
FROM spanhouse_local.ingest
GROUP BY Tenant, Day, TraceId;

ALTER TABLE spanhouse_local.to_links ON CLUSTER 'spans' MODIFY QUERY
SELECT
    Tenant, link.Entity AS Entity, link.Id AS Id, link.Version AS Version, TraceId, link.Provenance AS Provenance, Start,
    DurationNano, Spans, Errors, Failed, InputTokens, OutputTokens, TotalTokens, CachedInputTokens, ReasoningTokens, CostUsd,
    Unpriced, Models, ModelCalls, Tools,
    arrayMap(l -> (l.Entity, l.Id, l.Version), arrayFilter(l -> l.Entity NOT IN ('session', 'user') AND l != link, Links)) AS Beside,
    Settled, Weight
FROM spanhouse_local.facts
ARRAY JOIN Links AS link
WHERE link.Entity != 'agent';

ALTER TABLE spanhouse_local.to_agent_links ON CLUSTER 'spans' MODIFY QUERY
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
FROM spanhouse_local.facts
ARRAY JOIN Agents AS agent;

CREATE TABLE IF NOT EXISTS spanhouse.sampling ON CLUSTER 'spans'
(
    Version UInt32,
    Rules String,
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/all/spanhouse/sampling', '{shard}-{replica}', Updated)
ORDER BY Version
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS spanhouse_local.surveys ON CLUSTER 'spans'
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
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/spanhouse/surveys', '{replica}')
PARTITION BY toDate(Surveyed)
ORDER BY (Segment, Tenant, TraceId)
TTL toDate(Surveyed) + INTERVAL 2 DAY
SETTINGS ttl_only_drop_parts = 1;

CREATE OR REPLACE TABLE spanhouse.surveys ON CLUSTER 'spans' AS spanhouse_local.surveys
ENGINE = Distributed('spans', 'spanhouse_local', 'surveys', cityHash64(TraceId));

CREATE TABLE IF NOT EXISTS spanhouse_local.places ON CLUSTER 'spans'
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    Day Date CODEC(ZSTD(1)),
    Place UInt32 CODEC(T64, ZSTD(1)),
    Traces UInt64 CODEC(T64, ZSTD(1))
)
ENGINE = ReplicatedSummingMergeTree('/clickhouse/tables/{shard}/spanhouse/places', '{replica}')
PARTITION BY Day
ORDER BY (Tenant, Place)
TTL Day + INTERVAL 3 DAY
SETTINGS ttl_only_drop_parts = 1;

CREATE OR REPLACE TABLE spanhouse.places ON CLUSTER 'spans' AS spanhouse_local.places
ENGINE = Distributed('spans', 'spanhouse_local', 'places');

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse_local.to_places ON CLUSTER 'spans' TO spanhouse_local.places AS
SELECT Tenant, toDate(Surveyed) AS Day, Place, count() AS Traces
FROM spanhouse_local.surveys
ARRAY JOIN Places AS Place
GROUP BY Tenant, Day, Place;

CREATE TABLE IF NOT EXISTS spanhouse_local.decisions ON CLUSTER 'spans'
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(NONE),
    Weight Float32 CODEC(ZSTD(1)),
    Rule LowCardinality(String) CODEC(ZSTD(1)),
    Spans UInt32 CODEC(T64, ZSTD(1)),
    Decided DateTime64(6, 'UTC') DEFAULT now64(6) CODEC(ZSTD(1))
)
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/spanhouse/decisions', '{replica}')
PARTITION BY toDate(Decided)
ORDER BY (Tenant, TraceId)
TTL toDate(Decided) + INTERVAL 3 DAY
SETTINGS
    index_granularity = 256,
    min_compress_block_size = 4096,
    ttl_only_drop_parts = 1,
    fsync_after_insert = 1,
    fsync_part_directory = 1;

CREATE OR REPLACE TABLE spanhouse.decisions ON CLUSTER 'spans' AS spanhouse_local.decisions
ENGINE = Distributed('spans', 'spanhouse_local', 'decisions', cityHash64(TraceId))
