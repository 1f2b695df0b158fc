-- What is known of traces by their spans and, where they are settled, by their facts.
SELECT
    TraceId, Begin, Finish, Broken, Name, Service,
    Settled != toDateTime64(0, 3, 'UTC'), Failed, InputTokens, OutputTokens, TotalTokens, CachedInputTokens, CostUsd,
    arrayMap(link -> toString(link.Entity), Links), arrayMap(link -> link.Id, Links)
FROM
(
    SELECT
        TraceId,
        toUnixTimestamp64Nano(min(Start)) AS Begin,
        toUnixTimestamp64Nano(max(End)) AS Finish,
        sum(Errors) AS Broken,
        max(Root.Name) AS Name,
        argMax(Root.Service, (Root.Name, Root.Service)) AS Service
    FROM spanhouse.traces
    WHERE TraceId IN (SELECT arrayJoin(arrayMap(t -> toFixedString(unhex(t), 16), {traces:Array(String)})))
    GROUP BY TraceId
) AS known
LEFT JOIN
(
    SELECT TraceId, Settled, Failed, InputTokens, OutputTokens, TotalTokens, CachedInputTokens, CostUsd, Links
    FROM spanhouse.facts FINAL
    WHERE TraceId IN (SELECT arrayJoin(arrayMap(t -> toFixedString(unhex(t), 16), {traces:Array(String)})))
) AS settled USING (TraceId)
