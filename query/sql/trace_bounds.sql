-- Where in `spans` a trace lies.
SELECT toUnixTimestamp64Nano(min(Start)), toUnixTimestamp64Nano(max(End))
FROM spanhouse.traces
WHERE TraceId = toFixedString(unhex({trace_id:String}), 16)
GROUP BY TraceId
