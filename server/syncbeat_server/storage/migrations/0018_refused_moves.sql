-- A move of a registration token that was refused still takes the token from who had it; the audit trail tells it from
-- those that were let through.

-- Servers of before write none: what they refuse they roll back.
ALTER TABLE token_moves ADD COLUMN refused boolean NOT NULL DEFAULT false;
