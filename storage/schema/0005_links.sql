-- What a trace comes to, and what it belongs to. Rows of `facts` are written by storage/settling.py, a trace at a time,
-- after its spans are stored and again whenever they, its links, its assessments or the prices change: the newest row of
-- a key counts. The views below fan a row out to `links` and `seen`. Why not states that add up:
-- docs/decisions/0005-settled-facts.md.

-- What the settling finds changed traces by. Said: a span of the trace says something in canonical words,
-- or carries scores (storage/scores.py has the names). Origins: who
-- wrote its spans, since a resource may say what the trace belongs to.
ALTER TABLE spanhouse.traces ADD COLUMN IF NOT EXISTS Said SimpleAggregateFunction(max, UInt8) CODEC(ZSTD(1));
ALTER TABLE spanhouse.traces
    ADD COLUMN IF NOT EXISTS Origins SimpleAggregateFunction(groupUniqArrayArray, Array(UInt64)) CODEC(ZSTD(1));
ALTER TABLE spanhouse.traces ADD INDEX IF NOT EXISTS received Received TYPE minmax GRANULARITY 1;
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
    groupUniqArray(OriginId) AS Origins
FROM spanhouse.ingest
GROUP BY Tenant, Day, TraceId;

-- One row a trace that an agent made or that is linked to something.
--
-- Failed     1 if the root has the status ERROR or, without a root, any span has.
-- Truncated  1 if the trace has more spans than the settling reads: all but Start, DurationNano and Spans is of the first.
-- Tokens     each token once: a span that repeats its children's usage, and the second record of one call, are left out.
-- CostUsd    0 where nothing is known.
-- Unpriced   counted model calls with tokens whose price nobody knows: CostUsd lacks theirs.
-- Duplicates second records of a call, left out.
-- Models     models that answered, by name, and in ModelCalls the counted calls of each.
-- Tools      names of the tools in the order in which they were called, repetitions kept, 100 at most.
-- Links      what the trace belongs to.
-- Agents     of each agent among Links, the spans it owns: those whose nearest span that names an agent, itself or above,
--            names this one. Its DurationNano is the sum over the topmost of them, and it failed if one of those did.
CREATE TABLE IF NOT EXISTS spanhouse.facts
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
ENGINE = ReplacingMergeTree(Settled)
ORDER BY (Tenant, TraceId)
SETTINGS index_granularity = 256, fsync_after_insert = 1, fsync_part_directory = 1;

-- One row a trace and entity it belongs to, with the trace's facts, so that the page of an entity reads its own rows only.
--
-- Entity     run, experiment, model, logged_model, session, agent, prompt, user.
-- Version    of a model, prompt or agent; '' for all else and where nobody said it.
-- Provenance where the link comes from: api, span, trace, resource, header, baggage, deployment.
-- Beside     what else the trace belongs to, sessions and users aside.
-- The row of an agent has the facts of the spans it owns, every other row those of the whole trace.
CREATE TABLE IF NOT EXISTS spanhouse.links
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
ENGINE = ReplacingMergeTree(Settled, Deleted)
ORDER BY (Tenant, Entity, Id, Version, TraceId)
SETTINGS index_granularity = 1024, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse.to_links TO spanhouse.links AS
SELECT
    Tenant, link.Entity AS Entity, link.Id AS Id, link.Version AS Version, TraceId, link.Provenance AS Provenance, Start,
    DurationNano, Spans, Errors, Failed, InputTokens, OutputTokens, TotalTokens, CachedInputTokens, ReasoningTokens, CostUsd,
    Unpriced, Models, ModelCalls, Tools,
    arrayMap(l -> (l.Entity, l.Id, l.Version), arrayFilter(l -> l.Entity NOT IN ('session', 'user') AND l != link, Links)) AS Beside,
    Settled
FROM spanhouse.facts
ARRAY JOIN Links AS link
WHERE link.Entity != 'agent';

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse.to_agent_links TO spanhouse.links AS
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
FROM spanhouse.facts
ARRAY JOIN Agents AS agent;

-- When an entity was seen, for lists of entities. What lost its last trace stays here and is left out by the reader.
CREATE TABLE IF NOT EXISTS spanhouse.seen
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    Entity LowCardinality(String) CODEC(ZSTD(1)),
    Id String CODEC(ZSTD(1)),
    Version String CODEC(ZSTD(1)),
    First SimpleAggregateFunction(min, DateTime64(9, 'UTC')) CODEC(ZSTD(1)),
    Last SimpleAggregateFunction(max, DateTime64(9, 'UTC')) CODEC(ZSTD(1))
)
ENGINE = AggregatingMergeTree
ORDER BY (Tenant, Entity, Id, Version)
SETTINGS index_granularity = 1024, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS spanhouse.to_seen TO spanhouse.seen AS
SELECT
    Tenant, link.Entity AS Entity, link.Id AS Id, link.Version AS Version, min(Start) AS First, max(Start) AS Last
FROM spanhouse.facts
ARRAY JOIN Links AS link
GROUP BY Tenant, Entity, Id, Version;

-- How far the settling is: one row. Received: traces that arrived before are settled. Touched: so are traces whose links or
-- assessments were changed before. Records: the scores in log records that arrived before are kept.
CREATE TABLE IF NOT EXISTS spanhouse.settling
(
    Id UInt8,
    Received DateTime('UTC'),
    Touched DateTime64(6, 'UTC'),
    Records DateTime('UTC'),
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(Updated)
ORDER BY Id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Links that somebody made by API, or MLflow's client through /mlflow.
--
-- Slot       a trace has one link a slot: '' of an entity of which it has one; the prompt's name, or the run's id where
--            MLflow linked it, since of those a trace may have several.
CREATE TABLE IF NOT EXISTS spanhouse.explicit_links
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
ENGINE = ReplacingMergeTree(Updated)
ORDER BY (Tenant, TraceId, Entity, Slot)
SETTINGS index_granularity = 128, fsync_after_insert = 1, fsync_part_directory = 1;

-- Service S ran model M version V from T1 until T2, exclusive; 2262-04-11 (2^63 - 1 ns) where it still runs. Environment '' is any.
CREATE TABLE IF NOT EXISTS spanhouse.deployments
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
ENGINE = ReplacingMergeTree(Updated)
ORDER BY (Tenant, DeploymentId)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- What somebody said about a run or a model version, as JSON: name, status, tags, metrics, parameters, URL.
CREATE TABLE IF NOT EXISTS spanhouse.entities
(
    Tenant LowCardinality(String),
    Entity LowCardinality(String),
    Id String,
    Version String,
    Metadata String,
    Deleted UInt8,
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(Updated)
ORDER BY (Tenant, Entity, Id, Version)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
