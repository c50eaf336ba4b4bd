-- Tombstones are removed some time after their deletion (sync/pruning.py).

-- The highest sequence of a tombstone that was removed: to whoever knows less of the feed, deletions are not told any more.
ALTER TABLE scopes ADD COLUMN pruned bigint NOT NULL DEFAULT 0;
CREATE INDEX changes_tombstones ON changes (changed_at) WHERE deleted;
