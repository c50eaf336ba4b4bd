-- Registration tokens that the provider calls malformed. For servers of before they are DEAD as those that it forgot; only a
-- state that was set at this very moment is INVALID, so that whatever else such a server makes of the row ends it.
ALTER TABLE devices ADD COLUMN token_invalid_at timestamptz;
