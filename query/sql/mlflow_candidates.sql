-- The traces of some experiments that meet the conditions, in order: those of which MLflow's client spoke, and those that
-- came by OTLP alone and are linked to the experiment.
SELECT TraceId
FROM
(
    SELECT
        TraceId, ExperimentId, toUnixTimestamp64Milli(Requested) AS RequestedMs, DurationMs, State, ClientRequestId,
        Metadata, Tags, Runs, Prompts
    FROM spanhouse.mlflow_traces FINAL
    WHERE Deleted = 0 AND ExperimentId IN {experiments:Array(String)}
    UNION ALL
    SELECT
        TraceId,
        arrayFirst(link -> link.Entity = 'experiment', Links).Id AS ExperimentId,
        toUnixTimestamp64Milli(Start) AS RequestedMs,
        intDiv(DurationNano, 1000000) AS DurationMs,
        multiIf(RootName = '' AND RootService = '', 'IN_PROGRESS', Failed = 1, 'ERROR', 'OK') AS State,
        '' AS ClientRequestId,
        mapFromArrays(
            arrayMap(
                link -> transform(
                    toString(link.Entity), ['run', 'logged_model', 'session', 'user'],
                    ['mlflow.sourceRun', 'mlflow.modelId', 'mlflow.trace.session', 'mlflow.trace.user'], toString(link.Entity)),
                Links),
            arrayMap(link -> link.Id, Links))::Map(LowCardinality(String), String) AS Metadata,
        map('mlflow.traceName', toString(RootName))::Map(LowCardinality(String), String) AS Tags,
        []::Array(String) AS Runs,
        []::Array(String) AS Prompts
    FROM spanhouse.facts FINAL
    WHERE TraceId GLOBAL IN
        (
            SELECT TraceId FROM spanhouse.links FINAL
            WHERE Entity = 'experiment' AND Id IN {experiments:Array(String)} AND Deleted = 0
        )
        AND TraceId NOT IN (SELECT TraceId FROM spanhouse.mlflow_traces)
)
WHERE {conditions}
ORDER BY {order}
LIMIT {limit:UInt64} OFFSET {offset:UInt64}
