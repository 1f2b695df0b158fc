-- Which granules have a text among the attributes of their spans: a list by attribute reads no others. One byte a span; a
-- text index takes forty (docs/decisions/0009-attribute-index.md).
ALTER TABLE spanhouse.spans
    ADD INDEX IF NOT EXISTS strings mapValues(StringAttributes) TYPE bloom_filter(0.05) GRANULARITY 1;
ALTER TABLE spanhouse.spans MATERIALIZE INDEX strings;
