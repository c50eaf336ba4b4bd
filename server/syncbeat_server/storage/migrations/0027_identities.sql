-- The subjects of token issuers under which a user is known: one person keeps devices, cursors and dedupe windows while moving
-- from one issuer to another. Users who came in under their own subject have no row until one is needed (ADR 195).

CREATE TABLE user_identities (
    app_id       text COLLATE "C" NOT NULL,
    issuer       text COLLATE "C" NOT NULL CHECK (octet_length(issuer) BETWEEN 1 AND 512),
    subject      text COLLATE "C" NOT NULL CHECK (octet_length(subject) BETWEEN 1 AND 128),
    user_id      text COLLATE "C" NOT NULL CHECK (octet_length(user_id) BETWEEN 1 AND 128),
    linked_by    text COLLATE "C" NOT NULL
                 CHECK (linked_by IN ('FIRST_SIGN_IN', 'IMPORT', 'HOME', 'LINK_TOKEN', 'VERIFIED_EMAIL')),
    -- The id (`jti`) of the link token that was spent.
    link_id      text COLLATE "C" CHECK (octet_length(link_id) BETWEEN 1 AND 64),
    -- A digest of the e-mail address that the issuer has verified: only where another issuer may join by it.
    email_digest bytea CHECK (octet_length(email_digest) = 32),
    linked_at    timestamptz NOT NULL,
    PRIMARY KEY (app_id, issuer, subject)
);
-- A person has one subject at an issuer.
CREATE UNIQUE INDEX user_identities_by_user ON user_identities (app_id, user_id, issuer);
-- A link token is spent once.
CREATE UNIQUE INDEX user_identities_by_link ON user_identities (app_id, link_id) WHERE link_id IS NOT NULL;
-- Whom a subject names that is not the user's own id: asked of each id that is to be shut out.
CREATE INDEX user_identities_by_alias ON user_identities (app_id, subject) WHERE user_id <> subject;
CREATE INDEX user_identities_by_email ON user_identities (app_id, issuer, email_digest) WHERE email_digest IS NOT NULL;

ALTER TABLE user_identities ENABLE ROW LEVEL SECURITY;
ALTER TABLE user_identities FORCE ROW LEVEL SECURITY;
CREATE POLICY service ON user_identities TO syncbeat_service USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON user_identities TO syncbeat_service;
