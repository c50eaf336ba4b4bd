-- Notifications that come with changes, and wake-ups of several scopes.

ALTER TABLE deliveries
    -- Of one that shows something for changes: {scope: [epoch, sequence]} of all that it tells of. NULL: of its scope.
    ADD COLUMN cursors jsonb;
-- What a push service may still hold for a device. Those of messages have no epoch.
CREATE INDEX deliveries_on_their_way ON deliveries (app_id, user_id, device_id, expires_at)
    WHERE sent_at IS NOT NULL AND epoch IS NOT NULL AND cursors IS NULL;

-- How much of it went, of late, to wake-ups that users brought about: by scope and by user (push/shares.py).
ALTER TABLE wake_budgets ADD COLUMN spent jsonb NOT NULL DEFAULT '{}';
