"""Words of `make run`: commands that play the product, for two shells, with grpcurl or buf and with Python."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from syncbeat_devtools.demo.readers_settings import ReadersSettings


@dataclass(frozen=True)
class Served:
    """The addresses of a deployment, and the tokens to call it with. Commands that administer it ask its stores."""

    address: str
    fake_fcm: str
    folder: Path
    user_token: str
    service_token: str
    database_url: str
    redis_url: str
    readers: ReadersSettings


def instructions(served: Served) -> str:
    """Return the text to print once it serves."""
    python, buf = _shown("python"), _shown("buf")
    return f"""
Syncbeat serves on {served.address}; its fake FCM on {served.fake_fcm}, what came of pushes on {served.fake_fcm}/control/deliveries
Its log is {served.folder}/server.log, which says why a token was refused. Ctrl-C ends everything.

{_of_settings(served.readers)}

Put these lines into two other shells, in this folder. The second `call` takes the place of the first one; keep the first alone
where grpcurl is installed and you like it better.

export ADDRESS={served.address}
export USER_TOKEN={served.user_token}
export SERVICE_TOKEN={served.service_token}
export SYNCBEAT_DATABASE_URL={shlex.quote(served.database_url)}
export SYNCBEAT_REDIS_URL={shlex.quote(served.redis_url)}
call() {{ grpcurl -plaintext -H "authorization: Bearer $1" -d "$3" "$ADDRESS" "syncbeat.v1.$2"; }}
call() {{ {buf} curl --schema protos --protocol grpc --http2-prior-knowledge -H "authorization: Bearer $1" -d "$3" "http://$ADDRESS/syncbeat.v1.$2"; }}

1. Alice's phone registers, and the backend makes her a member of a chat:

call "$USER_TOKEN" DirectoryService/RegisterDevice '{{"device_id": "phone", "platform": "PLATFORM_ANDROID", "registration_token": "phone-of-alice"}}'
call "$SERVICE_TOKEN" DirectoryService/AddScopeMembers '{{"scope": "chat:7", "members": [{{"user_id": "alice", "role": "ROLE_READER"}}]}}'

2. In one shell the phone watches, until Ctrl-C:

call "$USER_TOKEN" SyncService/WatchHints '{{"device_id": "phone"}}'

3. In the other the backend publishes, and the phone shows it:

call "$SERVICE_TOKEN" SyncService/PublishChanges '{{"changes": [{{"scope": "chat:7", "key": "topic", "merge_patch_json": "{{\\"text\\": \\"hi\\"}}"}}]}}'

4. The same two in Python:

{python} -c '
import asyncio, os
from syncbeat import SyncbeatClient
async def main():
    async with SyncbeatClient(os.environ["ADDRESS"], token=os.environ["USER_TOKEN"], tls=False) as phone:
        async for event in phone.watch("phone"):
            print(event, flush=True)
asyncio.run(main())'

{python} -c '
import os
from syncbeat.blocking import SyncbeatClient
from syncbeat.v1.core_pb2 import NewChange
with SyncbeatClient(os.environ["ADDRESS"], token=os.environ["SERVICE_TOKEN"], tls=False) as backend:
    print(backend.publish(NewChange(scope="chat:7", key="topic", merge_patch_json="{{\\"text\\": \\"hi from Python\\"}}")))'

5. When is the phone to ask again, and why then; a push; a session of our own; docs/quickstart.md goes on from here:

call "$USER_TOKEN" SyncService/GetHint '{{"device_id": "phone", "explain": true}}'
call "$SERVICE_TOKEN" PushService/SendNotification '{{"user_ids": {{"ids": ["alice"]}}, "notification": {{"title": "Hello"}}}}'
call "$SERVICE_TOKEN" AuthService/CreateSession '{{"user_id": "alice"}}'

6. This one comes last: it takes back every token that alice had until then, USER_TOKEN too. CreateSession makes her a new one.

call "$SERVICE_TOKEN" AuthService/RevokeUser '{{"user_id": "alice"}}'
"""


def _of_settings(readers: ReadersSettings) -> str:
    own_issuer = readers.issuer.get("jwt_issuer", "")
    lines = [
        f"Tokens of your own issuer, {own_issuer}, are let in too: put one in the place of USER_TOKEN."
        if own_issuer
        else "For tokens of your own issuer begin with its lines of docs/tokens.md: SYNCBEAT_JWT_PROFILE=... make run"
    ]
    if readers.ops_listen:
        lines.append(f"Metrics are on http://{readers.ops_listen}/metrics.")
    if readers.unused:
        lines.append(f"Not used of your settings, since this has its own in their place: {', '.join(readers.unused)}.")
    return "\n".join(lines)


def _shown(program: str) -> str:
    """Return a program beside this interpreter, as one would type it in this folder."""
    path = Path(sys.executable).with_name(program)
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
