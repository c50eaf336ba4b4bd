-- What becomes of a push between its acceptance and its end: called back in flight, replaced by a later one, resolved when due.

ALTER TABLE deliveries
    -- Set in flight by whoever cancels it: unless its attempt succeeds it ends CANCELLED, with this for its reason.
    ADD COLUMN called_back text,
    -- Of the notification, and when that was due: later ones of a key and device replace earlier ones.
    ADD COLUMN collapse_key text NOT NULL DEFAULT '',
    ADD COLUMN collapse_order timestamptz;
UPDATE deliveries d SET collapse_key = n.collapse_key, collapse_order = n.due_at
FROM notifications n
WHERE (n.app_id, n.notification_id) = (d.app_id, d.notification_id) AND n.collapse_key <> ''
  AND d.state IN ('PENDING', 'HELD', 'SCHEDULED', 'IN_FLIGHT');
CREATE INDEX deliveries_handed_over
    ON deliveries (app_id, user_id, device_id, collapse_key, collapse_order, notification_id)
    WHERE collapse_key <> '' AND (ambiguous OR state IN ('SENT', 'RECEIVED', 'OPENED'));
CREATE INDEX deliveries_being_sent ON deliveries (app_id, user_id, device_id, collapse_key)
    WHERE collapse_key <> '' AND state = 'IN_FLIGHT';

ALTER TABLE expansions
    -- What is scheduled is expanded when it is due. Servers of before expand at once, into deliveries that wait.
    ADD COLUMN due_at timestamptz NOT NULL DEFAULT syncbeat_now(),
    -- It was cancelled: the deliveries that are still to be written are CANCELLED from the start.
    ADD COLUMN called_off boolean NOT NULL DEFAULT false;
DROP INDEX expansions_by_age;
CREATE INDEX expansions_due ON expansions (due_at);
-- Who is erased is taken out of what is to be expanded.
CREATE INDEX expansions_by_target ON expansions USING gin (targets jsonb_path_ops);

-- What a template came to when its notification was accepted, as {locale: [title, body]}: for when it fits no more.
ALTER TABLE notifications ADD COLUMN texts jsonb;
