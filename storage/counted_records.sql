-- The same of log records, as the view `records_to_volumes` adds them up.
SELECT
    toInt64(count()),
    toInt64(sum(40 + length(SeverityText) + arraySum(v -> length(v), mapValues(Attributes)))),
    toInt64(sum(length(Body) + arraySum(v -> length(v), mapValues(Content))))
FROM spanhouse.records
WHERE Day = {day:Date} AND cityHash64(TraceId) % {shares:UInt32} = {share:UInt32}
