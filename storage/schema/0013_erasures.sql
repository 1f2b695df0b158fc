-- Erasures: what was asked to be removed for good, how far that is, and the certificate at the end. The newest row counts.
--
-- Body   JSON (storage/erasure_notes.py). It never holds whom an erasure is about, only salted hashes.
CREATE TABLE IF NOT EXISTS spanhouse.erasures
(
    Id String,
    Tenant String,
    State LowCardinality(String),
    Begun DateTime64(6, 'UTC'),
    Body String,
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(Updated)
ORDER BY (Tenant, Id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- What an erasure works with: a partition each, which is dropped when it ends, since it says whom it is about.
--
-- Kind    selector: Value is what was asked, as JSON. trace: Key is the id of a trace to remove, found in that Round.
--         candidate, orphan: Key is an origin of those traces, in hex; nobody else uses the second. entity, unlinked: Key is
--         a hash of sort, id and version of what they were linked to; nothing is linked to the second any more. name: the
--         same of a user or session that was asked for. stale: a hash of trace and time of a row of facts that has such a name.
CREATE TABLE IF NOT EXISTS spanhouse.erasing
(
    Erasure String,
    Kind LowCardinality(String),
    Round UInt16,
    Key FixedString(16),
    Value String,
    Written DateTime('UTC') DEFAULT now('UTC')
)
ENGINE = ReplacingMergeTree
PARTITION BY Erasure
ORDER BY (Erasure, Kind, Round, Key)
SETTINGS
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    old_parts_lifetime = 1,
    cleanup_delay_period = 1,
    cleanup_delay_period_random_add = 0,
    max_cleanup_delay_period = 1;
