-- What is stored of a day, by the class that each trace has by the policies in force (Was) and by others (Will): as ranks
-- in their orders, of which the least of a trace counts. Of some of the traces, and of payload of some hours.
--
-- A trace may go on over midnight: what its spans are in the hour before and after the day counts for its class.
SELECT
    Was, Will, toUInt8(PINNED) AS Pinned, Service, Agent,
    countIf(First), sum(Spans), sum(Skeleton), sum(Content), sum(Records)
FROM
(
    SELECT
        Tenant, TraceId, Service, Agent, Spans, Skeleton, Content, Records,
        min(WasRank) OVER (PARTITION BY Tenant, TraceId) AS Was,
        min(WillRank) OVER (PARTITION BY Tenant, TraceId) AS Will,
        Spans > 0 AND row_number() OVER (PARTITION BY Tenant, TraceId ORDER BY Spans DESC) = 1 AS First
    FROM
    (
        SELECT
            Tenant, TraceId, Service, Agent,
            countIf(Here) AS Spans, sumIf(Length, Here) AS Skeleton, sumIf(Payload, Here) AS Content, toUInt64(0) AS Records,
            min(WasOfSpan) AS WasRank, min(WillOfSpan) AS WillRank
        FROM
        (
            SELECT
                toString(Tenant) AS Tenant, TraceId, cityHash64(SpanId, Timestamp, Duration, SpanName) AS SpanKey,
                Day = {day:Date} AS Here,
                if(has({services:Array(String)}, substring(ServiceName, 1, 128)), substring(ServiceName, 1, 128), '…') AS Service,
                if(has({agents:Array(String)}, substring(Canonical['agent_name'], 1, 128)),
                    substring(Canonical['agent_name'], 1, 128), '…') AS Agent,
                toUInt64(
                    64 + length(SpanName) + length(StatusMessage) + length(TraceState)
                    + arraySum(v -> length(v), mapValues(StringAttributes)) + 8 * length(IntAttributes)
                    + 8 * length(FloatAttributes) + length(BoolAttributes) + arraySum(v -> length(v), mapValues(OtherAttributes))
                    + 8 * length(EventTimes) + arraySum(m -> arraySum(v -> length(v), mapValues(m)), EventAttributes)
                    + arraySum(l -> length(l), Links)
                ) AS Length,
                toUInt32(indexOf({was:Array(UInt16)}, CLASS_WAS)) AS WasOfSpan,
                toUInt32(indexOf({will:Array(UInt16)}, CLASS_WILL)) AS WillOfSpan
            FROM spanhouse.spans
            WHERE Day >= {day:Date} - 1 AND Day <= {day:Date} + 1
                AND Timestamp >= toDateTime({day:Date}, 'UTC') - INTERVAL 1 HOUR
                AND Timestamp < toDateTime({day:Date}, 'UTC') + INTERVAL 25 HOUR
                AND cityHash64(TraceId) % {shares:UInt32} = 0
        ) AS of_span
        LEFT ANY JOIN
        (
            SELECT
                toString(Tenant) AS Tenant, TraceId, SpanKey,
                toUInt64(
                    arraySum(v -> length(v), mapValues(WholeContent))
                    + arraySum(ps -> arraySum(p -> length(p), ps), mapValues(ContentPieces))
                    + arraySum(v -> length(v), mapValues(OtherContent))
                ) AS Payload
            FROM spanhouse.content
            WHERE Day = {day:Date} AND toHour(Hour, 'UTC') % {every:UInt8} = {hour:UInt8}
                AND cityHash64(TraceId) % {shares:UInt32} = 0
        ) AS payload USING (Tenant, TraceId, SpanKey)
        GROUP BY Tenant, TraceId, Service, Agent
        UNION ALL
        SELECT
            toString(Tenant) AS Tenant, TraceId, if(has({services:Array(String)}, ''), '', '…') AS Service,
            if(has({agents:Array(String)}, ''), '', '…') AS Agent,
            toUInt64(0) AS Spans, toUInt64(0) AS Skeleton, toUInt64(0) AS Content,
            intDiv(toUInt64(sum(
                40 + length(SeverityText) + length(Body) + arraySum(v -> length(v), mapValues(Attributes))
                + arraySum(v -> length(v), mapValues(records.Content))
            )), if(TraceId = toFixedString('', 16), {shares:UInt32}, 1)) AS Records,
            toUInt32(length({was:Array(UInt16)})) AS WasRank, toUInt32(length({will:Array(UInt16)})) AS WillRank
        FROM spanhouse.records
        WHERE Day = {day:Date} AND (cityHash64(TraceId) % {shares:UInt32} = 0 OR TraceId = toFixedString('', 16))
        GROUP BY Tenant, TraceId
    )
)
WHERE Spans > 0 OR Records > 0
GROUP BY Was, Will, Pinned, Service, Agent
