-- How many spans of traces are stored, retransmits counted again.
SELECT TraceId, sum(Spans)
FROM spanhouse.traces
WHERE TraceId IN (SELECT arrayJoin(arrayMap(t -> toFixedString(unhex(t), 16), {traces:Array(String)})))
GROUP BY TraceId
