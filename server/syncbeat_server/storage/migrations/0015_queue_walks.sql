-- Indexes by which the queue is walked from where the last claim ended, and by which old rows are found.

-- With the id, so that of deliveries that are due at one moment those are passed over that went already.
DROP INDEX deliveries_due;
CREATE INDEX deliveries_due ON deliveries (app_id, priority, due_at, delivery_id)
    WHERE state IN ('PENDING', 'HELD', 'SCHEDULED');

-- By the end of the longest life, which never moves: refreshing a session touches no index.
CREATE INDEX sessions_by_end ON sessions (expires_at);
CREATE INDEX token_removals_oldest ON token_removals (removed_at);
