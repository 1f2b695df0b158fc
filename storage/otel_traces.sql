-- Spans as the OpenTelemetry Collector's ClickHouse exporter writes them, one tenant's. {name} are expressions of
-- storage/views.py.
SELECT
    s.Timestamp AS Timestamp,
    lower(hex(s.TraceId)) AS TraceId,
    lower(hex(s.SpanId)) AS SpanId,
    if(s.ParentSpanId = toFixedString('', 8), '', lower(hex(s.ParentSpanId))) AS ParentSpanId,
    s.TraceState AS TraceState,
    s.SpanName AS SpanName,
    toLowCardinality(transform(
        s.Kind, [0, 1, 2, 3, 4, 5], ['Unspecified', 'Internal', 'Server', 'Client', 'Producer', 'Consumer'], '')) AS SpanKind,
    s.ServiceName AS ServiceName,
    o.ResourceAttributes AS ResourceAttributes,
    o.ScopeName AS ScopeName,
    o.ScopeVersion AS ScopeVersion,
    {attributes} AS SpanAttributes,
    toUInt64(greatest(s.Duration, 0)) AS Duration,
    toLowCardinality(transform(s.StatusCode, [0, 1, 2], ['Unset', 'Ok', 'Error'], '')) AS StatusCode,
    s.StatusMessage AS StatusMessage,
    arrayMap(t -> fromUnixTimestamp64Nano(toInt64(least(t, 9223372036854775807)), 'UTC'), s.EventTimes) AS `Events.Timestamp`,
    s.EventNames AS `Events.Name`,
    arrayMap(a -> {event_attributes}, s.EventAttributes) AS `Events.Attributes`,
    {link_trace_ids} AS `Links.TraceId`,
    {link_span_ids} AS `Links.SpanId`,
    {link_trace_states} AS `Links.TraceState`,
    {link_attributes} AS `Links.Attributes`
FROM {spans} AS s
ANY LEFT JOIN
(
    SELECT OriginId, {resource_attributes} AS ResourceAttributes, ScopeName, ScopeVersion
    FROM {origins}
    WHERE Tenant = {tenant}
) AS o ON o.OriginId = s.OriginId
{content}
WHERE s.Tenant = {tenant}
