-- A store may have several collectors and several processes that read it. What arrived at a collector long ago may be
-- loaded now: the settling looks for new rows by when they were loaded.
--
-- Loaded     of a row of `traces`, when the server stored it; of a record, when its collector sent it. What was stored
--            before this column was loaded as it was received.
ALTER TABLE spanhouse.traces
    ADD COLUMN IF NOT EXISTS Loaded SimpleAggregateFunction(max, DateTime('UTC')) DEFAULT Received CODEC(ZSTD(1));
ALTER TABLE spanhouse.traces ADD INDEX IF NOT EXISTS loaded Loaded TYPE minmax GRANULARITY 1;
ALTER TABLE spanhouse.traces MATERIALIZE INDEX loaded;
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
    now('UTC') AS Loaded
FROM spanhouse.ingest
GROUP BY Tenant, Day, TraceId;
ALTER TABLE spanhouse.records ADD COLUMN IF NOT EXISTS Loaded DateTime('UTC') DEFAULT Received CODEC(Delta, ZSTD(1));
ALTER TABLE spanhouse.records ADD INDEX IF NOT EXISTS loaded Loaded TYPE minmax GRANULARITY 1;
ALTER TABLE spanhouse.records MATERIALIZE INDEX loaded;

-- How far the settling is, by that time.
ALTER TABLE spanhouse.settling ADD COLUMN IF NOT EXISTS Loaded DateTime('UTC') DEFAULT Received AFTER Id;

-- What changed lately, for what another process may have missed.
ALTER TABLE spanhouse.facts ADD INDEX IF NOT EXISTS settled Settled TYPE minmax GRANULARITY 1;
ALTER TABLE spanhouse.explicit_links ADD INDEX IF NOT EXISTS updated Updated TYPE minmax GRANULARITY 1;
ALTER TABLE spanhouse.assessments ADD INDEX IF NOT EXISTS updated Updated TYPE minmax GRANULARITY 1;

-- Who does what only one of several processes does, and until when, unless it says so again.
CREATE TABLE IF NOT EXISTS spanhouse.leases
(
    Name String,
    Holder String,
    Until DateTime64(3, 'UTC'),
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(Updated)
ORDER BY Name
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
