-- What a tenant's spans of a day come to, by service, agent and model, as the view `to_volumes` adds them up
-- (schema/0012_volumes.sql). Of a part of them: some hours, and of those some traces.
SELECT
    if(Place > {groups:UInt64}, '…', substring(toString(ServiceName), 1, 128)) AS Service,
    if(Place > {groups:UInt64}, '…', substring(AgentName, 1, 128)) AS Agent,
    if(Place > {groups:UInt64}, '…', substring(ModelName, 1, 128)) AS Model,
    sum(S), sum(SB)
FROM
(
    SELECT *, row_number() OVER (ORDER BY S DESC, ServiceName, AgentName, ModelName) AS Place
    FROM
    (
        SELECT
            ServiceName, Canonical['agent_name'] AS AgentName,
            if(Canonical['response_model'] = '', Canonical['request_model'], Canonical['response_model']) AS ModelName,
            toInt64(count()) AS S,
            toInt64(sum(
                64 + length(SpanName) + length(StatusMessage) + length(TraceState)
                + arraySum(v -> length(v), mapValues(StringAttributes)) + 8 * length(IntAttributes)
                + 8 * length(FloatAttributes) + length(BoolAttributes) + arraySum(v -> length(v), mapValues(OtherAttributes))
                + 8 * length(EventTimes) + arraySum(m -> arraySum(v -> length(v), mapValues(m)), EventAttributes)
                + arraySum(l -> length(l), Links)
            )) AS SB
        FROM spanhouse.spans
        WHERE Day = {day:Date}
            AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}, 'UTC')
            AND Timestamp <= fromUnixTimestamp64Nano({last:Int64}, 'UTC')
            AND cityHash64(TraceId) % {shares:UInt32} = {share:UInt32}
        GROUP BY ServiceName, AgentName, ModelName
    )
)
GROUP BY Service, Agent, Model
