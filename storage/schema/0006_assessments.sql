-- Feedback, expectations and scores, of people, code or judges, on a trace or (SpanId) one of its spans. The newest row of
-- an assessment counts; one that was removed stays as a row with Deleted = 1, so that what a span says does not come back.
--
-- SpanId     zeros where the whole trace is meant.
-- Number     the value as a number: true is 1, false is 0, NaN where it is none.
-- Text       what is counted and compared as a word: the label beside a value, a value that is a text of 250 characters at
--            most, or true or false; '' for all else.
-- Value      the value as JSON.
-- Error      why there is no value, as JSON; '' for none. Metadata is a JSON object.
CREATE TABLE IF NOT EXISTS spanhouse.assessments
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(ZSTD(1)),
    AssessmentId String CODEC(ZSTD(1)),
    SpanId FixedString(8) CODEC(ZSTD(1)),
    Name LowCardinality(String) CODEC(ZSTD(1)),
    Kind LowCardinality(String) CODEC(ZSTD(1)),
    Number Float64 CODEC(ZSTD(1)),
    Text String CODEC(ZSTD(1)),
    Value String CODEC(ZSTD(1)),
    SourceType LowCardinality(String) CODEC(ZSTD(1)),
    SourceId String CODEC(ZSTD(1)),
    Rationale String CODEC(ZSTD(1)),
    Error String CODEC(ZSTD(1)),
    Metadata String CODEC(ZSTD(1)),
    Created DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    Deleted UInt8 CODEC(ZSTD(1)),
    Updated DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(Updated)
ORDER BY (Tenant, TraceId, AssessmentId)
SETTINGS index_granularity = 1024, fsync_after_insert = 1, fsync_part_directory = 1;
