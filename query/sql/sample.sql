-- The newest traces of one version or run, newest first.
SELECT
    TraceId, toUnixTimestamp64Nano(Start), DurationNano, Failed, InputTokens, OutputTokens, TotalTokens, CostUsd,
    Unpriced, Tools, Weight
FROM spanhouse.links FINAL
WHERE Entity = {entity:String} AND Id = {id:String} AND Version = {version:String} AND Deleted = 0
    AND Start >= fromUnixTimestamp64Nano({since:Int64}) AND Start < fromUnixTimestamp64Nano({until:Int64})
ORDER BY Start DESC, TraceId
LIMIT {limit:UInt64}
