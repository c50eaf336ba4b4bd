-- A mark of a removed tombstone names the feed whose transaction it is: one that came with a dump is of another cluster,
-- whose numbers this one may come to later.

-- The default is the feed that is here now: marks of before are its own, but for those of a number it has not come to.
ALTER TABLE pruned_feeds ADD COLUMN feed text NOT NULL DEFAULT syncbeat_feed_identity();
-- The owner has no policy of its own.
ALTER TABLE pruned_feeds NO FORCE ROW LEVEL SECURITY;
DELETE FROM pruned_feeds WHERE xid >= pg_snapshot_xmax(pg_current_snapshot());
ALTER TABLE pruned_feeds FORCE ROW LEVEL SECURITY;

-- Servers of earlier versions raise the number of a mark and do not look whose it is: then it may be anybody's, and the
-- present one is as high as any that is known here.
CREATE FUNCTION syncbeat_own_pruned_feed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.xid := pg_current_xact_id();
    NEW.feed := syncbeat_feed_identity();
    RETURN NEW;
END $$;
CREATE TRIGGER own_pruned_feed BEFORE UPDATE ON pruned_feeds FOR EACH ROW
    WHEN (NEW.feed = OLD.feed AND NEW.feed <> syncbeat_feed_identity())
    EXECUTE FUNCTION syncbeat_own_pruned_feed();
