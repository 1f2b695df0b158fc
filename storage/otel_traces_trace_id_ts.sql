-- When a trace began and ended, as the exporter keeps it for finding a trace by its id: in whole seconds, rows of one trace
-- to be added up with min and max.
SELECT
    lower(hex(t.TraceId)) AS TraceId,
    toDateTime(t.Start, 'UTC') AS Start,
    toDateTime(least(t.End, toDateTime64('2106-02-07 06:28:14', 9, 'UTC')), 'UTC') AS End
FROM {traces} AS t
WHERE t.Tenant = {tenant}
