-- How many spans of a segment are not in all tables. `sent` has them.
WITH (SELECT (min(Second), max(Second)) FROM sent) AS times
SELECT count()
FROM sent
WHERE (TraceId, SpanKey) NOT IN
    (
        SELECT TraceId, cityHash64(SpanId, Timestamp, Duration, SpanName)
        FROM spanhouse.spans
        WHERE TraceId IN (SELECT TraceId FROM sent)
            AND Timestamp >= toDateTime(times.1, 'UTC') AND Timestamp < toDateTime(times.2, 'UTC') + 1
    )
    OR HasContent AND (TraceId, SpanKey) NOT IN
    (
        SELECT TraceId, SpanKey
        FROM spanhouse.content
        WHERE TraceId IN (SELECT TraceId FROM sent)
            AND Hour >= toStartOfHour(toDateTime(times.1, 'UTC')) AND Hour <= toStartOfHour(toDateTime(times.2, 'UTC'))
    )
    OR TraceId NOT IN (SELECT TraceId FROM spanhouse.traces WHERE TraceId IN (SELECT TraceId FROM sent))
    OR OriginId NOT IN (SELECT OriginId FROM spanhouse.origins WHERE OriginId IN (SELECT OriginId FROM sent))
