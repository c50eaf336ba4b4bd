-- Notifications that come with changes, and wake-ups of several scopes.

ALTER TABLE deliveries
    -- Of one that shows something for changes: {scope: [epoch, sequence]} of all that it tells of. NULL: of its scope.
    ADD COLUMN cursors jsonb;
-- What a push service may still hold for a device. Those of messages have no epoch.
CREATE INDEX deliveries_on_their_way ON deliveries (app_id, user_id, device_id, expires_at)
    WHERE sent_at IS NOT NULL AND epoch IS NOT NULL AND cursors IS NULL;

-- How much of it went, of late, to wake-ups that users brought about: by scope and by user (push/shares.py).
ALTER TABLE wake_budgets ADD COLUMN spent jsonb NOT NULL DEFAULT '{}';

-- Whether what opened a dedupe window ended without having been sent, called back in flight too, or, accepted by a server of
-- before 0019, is to be shown later: it holds off nothing now.
CREATE FUNCTION syncbeat_unsent(app_id text, notification_id uuid, user_id text, device_id text, scope text)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT 1 FROM deliveries o
        WHERE (o.app_id, o.notification_id, o.user_id, o.device_id) = ($1, $2, $3, $4)
          AND (o.scope = $5 OR o.cursors ? $5) AND o.sent_at IS NULL
          AND (o.state IN ('DEAD', 'CANCELLED', 'EXPIRED', 'SUPPRESSED')
               OR o.state = 'SCHEDULED' AND o.due_at > syncbeat_now()))
$$;
