-- How many log records of a segment are not stored. `sent` has them.
SELECT count()
FROM sent
WHERE (TraceId, RecordKey) NOT IN
    (
        SELECT TraceId, RecordKey FROM spanhouse.records WHERE TraceId IN (SELECT TraceId FROM sent)
    )
