-- Traces that changed between two times and whose facts are older than the change: what the settling missed, because a
-- node showed it late or because the process that was to settle it ended. Tenant and trace id.
SELECT Tenant, TraceId
FROM
(
    SELECT toString(Tenant) AS Tenant, TraceId, max(Changed) AS Last
    FROM
    (
        SELECT Tenant, TraceId, toDateTime64(max(traces.Loaded), 3, 'UTC') AS Changed
        FROM spanhouse.traces
        WHERE Loaded >= toDateTime({since}, 'UTC') AND Loaded < toDateTime({until}, 'UTC')
        GROUP BY Tenant, TraceId
        HAVING max(Said)
        UNION ALL
        SELECT Tenant, TraceId, toDateTime64(max(Updated), 3, 'UTC') AS Changed
        FROM spanhouse.explicit_links
        WHERE Updated >= toDateTime({since}, 'UTC') AND Updated < toDateTime({until}, 'UTC')
        GROUP BY Tenant, TraceId
        UNION ALL
        SELECT Tenant, TraceId, toDateTime64(max(Updated), 3, 'UTC') AS Changed
        FROM spanhouse.assessments
        WHERE Updated >= toDateTime({since}, 'UTC') AND Updated < toDateTime({until}, 'UTC')
        GROUP BY Tenant, TraceId
    )
    GROUP BY Tenant, TraceId
) AS changed
LEFT JOIN
(
    SELECT toString(Tenant) AS Tenant, TraceId, max(Settled) AS Settled
    FROM spanhouse.facts
    WHERE Settled >= toDateTime({since}, 'UTC')
    GROUP BY Tenant, TraceId
) AS settled USING (Tenant, TraceId)
WHERE Settled < Last
LIMIT {limit}
SETTINGS max_memory_usage = 536870912, log_queries = 0
