-- When the value of a key, or its deletion, was made at its source, so that an earlier write never overtakes a later one
-- (sync/feed/source_order.py). NULL: it came without a source time, and was made when it was published (`changed_at`).
-- Without a default, so that no row is rewritten.
ALTER TABLE changes ADD COLUMN source_time timestamptz;
