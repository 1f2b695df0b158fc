-- What is stored of whom: rows are sums, of a tenant's spans and log records of a day, by service, agent and model. Views
-- add what is loaded; what is taken away, or was stored before this table, is added or taken off by storage/recounting.py,
-- in rows that may be negative. Rows that come to nothing go when they are merged.
--
-- Day             as in `spans`.
-- Service         '' for log records, whose rows do not say it. Agent, Model: what the span itself says in canonical
--                 words, '' for nothing; the model that answered, or else the one that was asked for.
-- Contents        rows of `content`.
-- SkeletonBytes, ContentBytes, RecordSkeletonBytes, RecordContentBytes
--                 the lengths of what is stored, before compression (docs/storage.md says of what).
--
-- Names do not make this table large: of a name the first 128 bytes count, a load leaves out what it has more than 5,000
-- groups of in a tenant's day, and of a day's groups the smallest become one, named `…`. What was left out is counted
-- later. Ranking its groups in the view would cost every load.
CREATE TABLE IF NOT EXISTS spanhouse.volumes
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
ENGINE = SummingMergeTree
PARTITION BY Day
ORDER BY (Tenant, Service, Agent, Model)
SETTINGS
    index_granularity = 1024,
    non_replicated_deduplication_window = 10000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse.to_volumes TO spanhouse.volumes AS
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
FROM spanhouse.ingest
GROUP BY Tenant, Day, Service, Agent, Model
LIMIT 5000 BY Tenant, Day;

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse.records_to_volumes TO spanhouse.volumes AS
SELECT
    Tenant, Day, '' AS Service, '' AS Agent, '' AS Model, toInt64(count()) AS Records,
    toInt64(sum(40 + length(SeverityText) + arraySum(v -> length(v), mapValues(Attributes)))) AS RecordSkeletonBytes,
    toInt64(sum(length(Body) + arraySum(v -> length(v), mapValues(Content)))) AS RecordContentBytes
FROM spanhouse.records
GROUP BY Tenant, Day;

-- What all tables and their copies took on disk, as it was last noted on a day: what grows, and how fast.
CREATE TABLE IF NOT EXISTS spanhouse.sizes
(
    Day Date,
    Bytes UInt64,
    Noted DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(Noted)
ORDER BY Day
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
