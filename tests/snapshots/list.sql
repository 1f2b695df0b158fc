SELECT
    TraceId,
    toUnixTimestamp64Nano(min(Start)) AS First,
    toUnixTimestamp64Nano(max(End)) AS Last,
    sum(Spans),
    sum(Errors) AS Failed,
    sum(Oks) AS Succeeded,
    groupUniqArrayArray(Services),
    max(Root.Name),
    argMax(Root.Service, (Root.Name, Root.Service)),
    max(traces.Weight),
    toUnixTimestamp(max(traces.Received))
FROM spanhouse.traces
WHERE TraceId IN
(
    SELECT TraceId
    FROM spanhouse.traces
    WHERE Start >= fromUnixTimestamp64Nano({since:Int64}, 'UTC')
        AND Start < fromUnixTimestamp64Nano({until:Int64}, 'UTC')
        AND TraceId IN
        (
            SELECT TraceId
            FROM spanhouse.spans
            WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64}, 'UTC') AND ServiceName = {service:String} AND SpanName = {name:String} AND (mapContains(StringAttributes, {key0:String}) AND StringAttributes[{key0:String}] = {value0:String} OR mapContains(IntAttributes, {key0:String}) AND IntAttributes[{key0:String}] = {int0:Int64} OR mapContains(FloatAttributes, {key0:String}) AND FloatAttributes[{key0:String}] = {float0:Float64}) AND (mapContains(StringAttributes, {key1:String}) AND StringAttributes[{key1:String}] = {value1:String} OR mapContains(BoolAttributes, {key1:String}) AND BoolAttributes[{key1:String}] = true OR OriginId GLOBAL IN
            (
                SELECT OriginId FROM spanhouse.origins
                WHERE ResourceAttributes[{key1:String}] IN {tagged1:Array(String)}
            ) OR cityHash64(SpanId, Timestamp, Duration, SpanName) IN
            (
                SELECT SpanKey FROM spanhouse.content
                WHERE Hour >= toStartOfHour(fromUnixTimestamp64Nano({since:Int64}, 'UTC'))
                    AND WholeContent[{key1:String}] || arrayStringConcat(ContentPieces[{key1:String}])
                        = {value1:String}
                SETTINGS max_block_size = 128
            )) AND StatusCode = 2
        )
)
GROUP BY TraceId
HAVING First >= {since:Int64}
    AND First < {until:Int64}
    AND (First, lower(hex(TraceId))) < ({after_start:Int64}, {after_trace:String})
    AND Last - First >= {min_duration:Int64}
    AND Last - First <= {max_duration:Int64}
    AND Failed > 0
ORDER BY First DESC, TraceId DESC
LIMIT {limit:UInt64}
-- service = 'shop'
-- name = 'pay'
-- key0 = 'user.id'
-- value0 = '7'
-- int0 = 7
-- float0 = 7.0
-- key1 = 'input.value'
-- value1 = 'true'
-- tagged1 = ['strue', 'btrue']
-- min_duration = 1
-- max_duration = 2
