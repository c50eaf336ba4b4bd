-- The W3C traceparents by which traces go through the queue: of the call that accepted a notification, and of the last
-- attempt to send a delivery. NULL where its process exported no traces. No secret and no user is in one.
--
-- NOT VALID: it holds for all that is written from now on, and what is there is NULL, for which no row has to be read.
ALTER TABLE notifications
    ADD COLUMN traceparent text COLLATE "C",
    ADD CONSTRAINT notifications_traceparent CHECK (octet_length(traceparent) = 55) NOT VALID;
ALTER TABLE deliveries
    ADD COLUMN traceparent text COLLATE "C",
    ADD CONSTRAINT deliveries_traceparent CHECK (octet_length(traceparent) = 55) NOT VALID;
