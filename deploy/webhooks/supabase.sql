-- Sends what happens to auth.users as signed webhooks (Standard Webhooks). Run it once in the SQL editor, after
--   create extension if not exists pg_net;
--   select vault.create_secret('whsec_...', 'syncbeat_webhook_secret');
--   select vault.create_secret('https://.../v1/webhooks/shop/supabase', 'syncbeat_webhook_url');
-- pg_net sends once, after the commit, and does not repeat: what is lost is made up for by the user's next change, and
-- by nothing after a deletion.

create schema if not exists syncbeat_webhooks;

create function syncbeat_webhooks.hmac_sha256(message bytea, key bytea) returns bytea
language plpgsql immutable strict as $$
declare
  padded bytea := case when length(key) > 64 then sha256(key) else key end;
  inner_pad bytea;
  outer_pad bytea;
begin
  padded := padded || decode(repeat('00', 64 - length(padded)), 'hex');
  inner_pad := padded;
  outer_pad := padded;
  for i in 0..63 loop
    inner_pad := set_byte(inner_pad, i, get_byte(padded, i) # 54);
    outer_pad := set_byte(outer_pad, i, get_byte(padded, i) # 92);
  end loop;
  return sha256(outer_pad || sha256(inner_pad || message));
end $$;

create function syncbeat_webhooks.send_user() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  changed record := case when tg_op = 'DELETE' then old else new end;
  secret text := (select decrypted_secret from vault.decrypted_secrets where name = 'syncbeat_webhook_secret');
  url text := (select decrypted_secret from vault.decrypted_secrets where name = 'syncbeat_webhook_url');
  id text := 'msg_' || gen_random_uuid();
  sent_at text := floor(extract(epoch from clock_timestamp()))::bigint;
  body jsonb := jsonb_build_object(
    'type', case tg_op when 'INSERT' then 'user.created' when 'UPDATE' then 'user.updated' else 'user.deleted' end,
    'timestamp', to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'user_id', changed.id,
    'banned', coalesce(changed.banned_until > now(), false),
    'unbanned', tg_op = 'UPDATE' and old.banned_until is distinct from new.banned_until
                and not coalesce(new.banned_until > now(), false)
  );
  signature text := encode(
    syncbeat_webhooks.hmac_sha256(
      convert_to(id || '.' || sent_at || '.' || body::text, 'UTF8'),
      decode(replace(secret, 'whsec_', ''), 'base64')
    ),
    'base64'
  );
begin
  perform net.http_post(
    url := url,
    body := body,
    headers := jsonb_build_object(
      'content-type', 'application/json',
      'webhook-id', id,
      'webhook-timestamp', sent_at,
      'webhook-signature', 'v1,' || signature
    )
  );
  return null;
end $$;

revoke all on schema syncbeat_webhooks from public;
revoke all on all functions in schema syncbeat_webhooks from public;

create trigger syncbeat_user_sent
  after insert or delete or update of banned_until on auth.users
  for each row execute function syncbeat_webhooks.send_user();
