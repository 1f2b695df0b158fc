-- Which of these traces have assessments.
SELECT DISTINCT TraceId
FROM spanhouse.assessments
WHERE TraceId IN (SELECT arrayJoin(arrayMap(t -> toFixedString(unhex(t), 16), {traces:Array(String)})))
