-- The same of payload, under the service, agent and model of its span; under '' where the span is not stored any more.
SELECT
    if(Place > {groups:UInt64}, '…', substring(toString(ServiceName), 1, 128)) AS Service,
    if(Place > {groups:UInt64}, '…', substring(AgentName, 1, 128)) AS Agent,
    if(Place > {groups:UInt64}, '…', substring(ModelName, 1, 128)) AS Model,
    sum(C), sum(CB)
FROM
(
    SELECT *, row_number() OVER (ORDER BY C DESC, ServiceName, AgentName, ModelName) AS Place
    FROM
    (
        SELECT ServiceName, AgentName, ModelName, toInt64(count()) AS C, toInt64(sum(Length)) AS CB
        FROM
        (
            SELECT
                TraceId, SpanKey,
                arraySum(v -> length(v), mapValues(WholeContent))
                    + arraySum(ps -> arraySum(p -> length(p), ps), mapValues(ContentPieces))
                    + arraySum(v -> length(v), mapValues(OtherContent)) AS Length
            FROM spanhouse.content
            WHERE Day = {day:Date}
                AND Hour >= fromUnixTimestamp64Nano({since:Int64}, 'UTC')
                AND Hour <= fromUnixTimestamp64Nano({last:Int64}, 'UTC')
                AND cityHash64(TraceId) % {shares:UInt32} = {share:UInt32}
        ) AS payload
        LEFT ANY JOIN
        (
            SELECT
                TraceId, cityHash64(SpanId, Timestamp, Duration, SpanName) AS SpanKey,
                ServiceName, Canonical['agent_name'] AS AgentName,
                if(Canonical['response_model'] = '', Canonical['request_model'], Canonical['response_model']) AS ModelName
            FROM spanhouse.spans
            WHERE Day = {day:Date}
                AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}, 'UTC')
                AND Timestamp <= fromUnixTimestamp64Nano({last:Int64}, 'UTC')
                AND cityHash64(TraceId) % {shares:UInt32} = {share:UInt32}
        ) AS of_span USING (TraceId, SpanKey)
        GROUP BY ServiceName, AgentName, ModelName
    )
)
GROUP BY Service, Agent, Model
