-- What is kept how long (storage/retention.py). Class is the number of the policy that a span was loaded by: 0 for what was
-- stored before there were policies. Days and classes are partitions, so that what expires is dropped and not rewritten.
--
-- A partition key cannot be altered: the tables below take the place of those they are made after, and their rows
-- (storage/partitioning.py).
ALTER TABLE spanhouse.ingest ADD COLUMN IF NOT EXISTS Class UInt16;
ALTER TABLE spanhouse.spans ADD COLUMN IF NOT EXISTS Class UInt16 CODEC(ZSTD(1));
ALTER TABLE spanhouse.content ADD COLUMN IF NOT EXISTS Class UInt16 CODEC(ZSTD(1));
ALTER TABLE spanhouse.content ADD COLUMN IF NOT EXISTS SessionKey UInt64 CODEC(ZSTD(1));
-- WholeContent    payload of a span that has up to 8192 bytes of it.
-- ContentPieces   that of other spans, in pieces that are stored once (below).
-- Content         both together; what was stored before is there alone until its rows are copied.
ALTER TABLE spanhouse.content ADD COLUMN IF NOT EXISTS WholeContent Map(LowCardinality(String), String);
ALTER TABLE spanhouse.content ADD COLUMN IF NOT EXISTS ContentPieces Map(LowCardinality(String), Array(LowCardinality(String)));
ALTER TABLE spanhouse.content MODIFY COLUMN Content Map(LowCardinality(String), String)
DEFAULT mapConcat(WholeContent, mapApply((k, ps) -> (k, arrayStringConcat(ps)), ContentPieces));

CREATE TABLE IF NOT EXISTS spanhouse.spans_by_class AS spanhouse.spans
ENGINE = MergeTree
PARTITION BY (Day, Class)
ORDER BY (Tenant, toStartOfMinute(Timestamp), ServiceName, TraceId)
SETTINGS
    non_replicated_deduplication_window = 10000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1,
    vertical_merge_algorithm_min_rows_to_activate = 1,
    vertical_merge_algorithm_min_columns_to_activate = 1,
    number_of_free_entries_in_pool_to_execute_mutation = 1;

-- An agent sends its whole conversation again at every turn. Values of more than 4000 bytes are cut between the objects of a
-- JSON list, which are messages mostly, if these have 128 bytes and more, and what is still longer than 4000 is cut every 1000:
-- what is appended to leaves the pieces before as they are. A piece is in the dictionary of its column once for some thousand rows,
-- and rows refer to it. So a conversation has to lie together: its session comes before its traces, within six hours. Spans
-- that say no session lie by trace. 8192 pieces are the most of a dictionary, which a read takes whole
-- (docs/decisions/0010-repetition.md).
--
-- Content is for the programs of before: 24.10 takes mapKeys, mapValues and length of it for columns, which are empty.
CREATE TABLE IF NOT EXISTS spanhouse.content_by_class
(
    Tenant LowCardinality(String) CODEC(ZSTD(1)),
    Day Date CODEC(ZSTD(1)),
    Hour DateTime('UTC') CODEC(ZSTD(1)),
    TraceId FixedString(16) CODEC(ZSTD(1)),
    SpanKey UInt64 CODEC(NONE),
    WholeContent Map(LowCardinality(String), String) CODEC(ZSTD(3)),
    ContentPieces Map(LowCardinality(String), Array(LowCardinality(String))) CODEC(ZSTD(3))
        SETTINGS (min_compress_block_size = 1048576, max_compress_block_size = 4194304),
    Content Map(LowCardinality(String), String)
        ALIAS mapConcat(WholeContent, mapApply((k, ps) -> (k, arrayStringConcat(ps)), ContentPieces)),
    OtherContent Map(LowCardinality(String), String) CODEC(ZSTD(3))
        SETTINGS (min_compress_block_size = 1048576, max_compress_block_size = 4194304),
    Class UInt16 CODEC(ZSTD(1)),
    SessionKey UInt64 CODEC(ZSTD(1)),
    INDEX trace TraceId TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY (Day, Class)
ORDER BY (Tenant, toStartOfInterval(Hour, INTERVAL 6 HOUR), SessionKey, TraceId)
SETTINGS
    non_replicated_deduplication_window = 10000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_level_for_wide_part = 1,
    min_parts_to_merge_at_once = 8,
    number_of_free_entries_in_pool_to_execute_mutation = 1;

ALTER TABLE spanhouse.to_spans MODIFY QUERY
SELECT
    Tenant, Day, Timestamp, TraceId, SpanId, ParentSpanId, ServiceName, SpanName, Kind, Duration, StatusCode, StatusMessage,
    TraceState, Flags, StringAttributes, IntAttributes, FloatAttributes, BoolAttributes, OtherAttributes,
    DroppedAttributesCount, EventTimes, EventNames, EventAttributes, EventDroppedAttributesCounts, DroppedEventsCount,
    Links, DroppedLinksCount,
    TimeFlags, StartSent, EndSent, OriginId, Received, Canonical, Class
FROM spanhouse.ingest;
ALTER TABLE spanhouse.to_content MODIFY QUERY
SELECT Tenant, Day, toStartOfHour(Timestamp) AS Hour, TraceId,
    cityHash64(SpanId, Timestamp, Duration, SpanName) AS SpanKey,
    if(arraySum(v -> length(v), mapValues(Content)) <= 8192, Content, CAST(map(), 'Map(LowCardinality(String), String)')) AS WholeContent,
    mapApply(
        (k, v) -> (k, if(length(v) <= 4000, [v], arrayFlatten(arrayMap(
            p -> if(length(p) <= 4000, [p], extractAll(p, '\\C{1,1000}')),
            arrayMap(
                ps -> if(position(v, '\0') = 0 AND 128 * length(ps) <= length(v), ps, [v]),
                [splitByChar('\0', replaceAll(replaceAll(replaceAll(v, '}, {', '},\0 {'), '},{', '},\0{'), '},\n', '},\0\n'))]
            )[1]
        )))),
        if(arraySum(v -> length(v), mapValues(Content)) > 8192, Content, CAST(map(), 'Map(LowCardinality(String), String)'))
    ) AS ContentPieces,
    OtherContent, Class,
    cityHash64(
        Canonical['session_id'], Canonical['trace.session_id'], Canonical['baggage.session_id'], Canonical['header.session_id']
    ) AS SessionKey
FROM spanhouse.ingest
WHERE notEmpty(Content) OR notEmpty(OtherContent)
ORDER BY Timestamp;

-- Versions of the policies, as JSON. The newest row of a version counts.
CREATE TABLE IF NOT EXISTS spanhouse.retention
(
    Version UInt32,
    Since DateTime64(9, 'UTC'),
    Policies String,
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(Updated)
ORDER BY Version
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- What is kept whatever the policies say: traces (Id in hex), or all traces that belong to an entity (`links`).
CREATE TABLE IF NOT EXISTS spanhouse.pins
(
    Tenant LowCardinality(String),
    Entity LowCardinality(String),
    Id String,
    Version String,
    PinnedBy String,
    Comment String,
    Deleted UInt8,
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(Updated)
ORDER BY (Tenant, Entity, Id, Version)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Which class counts for each trace of a day, while the day expires (storage/verdicts.py).
CREATE TABLE IF NOT EXISTS spanhouse.verdicts
(
    Tenant LowCardinality(String),
    Day Date,
    TraceId FixedString(16),
    Class UInt16
)
ENGINE = MergeTree
PARTITION BY Day
ORDER BY (Class, Tenant, TraceId);

-- What the spans of a day that are gone had to say of traces whose other spans lie on the day before or after it.
CREATE TABLE IF NOT EXISTS spanhouse.inherited
(
    Tenant LowCardinality(String),
    Day Date,
    TraceId FixedString(16),
    Class UInt16
)
ENGINE = MergeTree
PARTITION BY Day
ORDER BY (Tenant, TraceId);

-- By which policies a day was last gone through (storage/expiry.py), and whether pins kept anything of it: when these
-- come to something else, it is again.
CREATE TABLE IF NOT EXISTS spanhouse.expired_days
(
    Day Date,
    Rules UInt64,
    Pinned UInt8,
    Noted DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(Noted)
ORDER BY Day
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
