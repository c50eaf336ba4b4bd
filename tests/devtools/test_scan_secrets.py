"""The scan for secrets finds what is planted in a tree and in its history, and nothing that git ignores or is known."""

from __future__ import annotations

import base64
import json
import random
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from syncbeat_server.auth.sessions.refresh_token_codec import RefreshClaim, RefreshKeys
from syncbeat_server.auth.tokens.keys import new_signing_key

ROOT = Path(__file__).parents[2]
# The first scan of a machine compiles the rules.
pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(300)]

_drawn = random.Random(17)


def drawn(count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    """Random text, the same each time: what these tests plant is not to stand in this file."""
    return "".join(_drawn.choices(alphabet, k=count))


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def service_account() -> str:
    key = pem(rsa.generate_private_key(65_537, 2_048))
    return json.dumps({"type": "service_account", "project_id": "p", "private_key": key, "client_email": "a@p"})


def service_key() -> str:
    parts = [{"alg": "HS256", "typ": "JWT"}, {"iss": "supabase", "role": "service_role", "exp": 2_000_000_000}]
    octets = [*(json.dumps(part).encode() for part in parts), _drawn.randbytes(32)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in octets)


PLANTED = {
    "a private key": pem(ec.generate_private_key(ec.SECP256R1())),
    "a service account": service_account(),
    "a signed token": service_key(),
    "a database's password": f"postgresql://app:{drawn(24)}@db.acme.io:5432/app",
    "a cloud's access key": (
        f"aws_access_key_id = AKIA{drawn(16, string.ascii_uppercase + '234567')}\naws_secret_access_key = {drawn(40)}"
    ),
    "a forge's token": "ghp_" + drawn(36),
    "secrets of tokens": f"SYNCBEAT_JWT_SECRETS=k1={drawn(43)}",
    "secrets in hex": f"SYNCBEAT_SESSION_SECRETS=k1={drawn(64, string.hexdigits[:16])}",
    "session keys": f"SYNCBEAT_SESSION_KEYS='{new_signing_key('s1').decode()}'",
    "a refresh token": RefreshKeys({"k1": b"s" * 32}).encode(RefreshClaim("default", drawn(36), 7)),
}


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a commit")


def scan(folder: Path, known: str = "") -> tuple[int, str]:
    """Scan a folder: the exit status, and what was said."""
    list_of_known = folder.parent / "known.toml"
    list_of_known.write_text(known)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "scan_secrets.py"), str(folder), str(list_of_known)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / ".gitignore").write_text(".env\n")
    (folder / "README").write_text(
        "JWT_SECRETS=k1=0123456789abcdef0123456789abcdef and postgresql://app:secret@db/app\n"
    )
    commit(folder)
    return folder


def plant(folder: Path) -> dict[str, str]:
    """Write each secret into a file of its own; their names, by kind."""
    names = {kind: f"{kind.replace(' ', '-')}.txt" for kind in PLANTED}
    for kind, name in names.items():
        (folder / name).write_text(PLANTED[kind] + "\n")
    return names


def found(text: str) -> set[str]:
    """The files that the scan names."""
    return {line.partition(":")[0] for line in text.splitlines() if "sha256" in line}


def test_secret_scan_finds_each_kind_in_the_working_tree(repository: Path) -> None:
    names = plant(repository)
    code, text = scan(repository)
    assert (code, found(text)) == (1, set(names.values()))
    assert "in the working tree" in text
    for secret in PLANTED.values():
        assert secret[-12:] not in text, "the log of CI is read by many"


def test_secret_scan_finds_a_secret_in_history(repository: Path) -> None:
    names = plant(repository)
    commit(repository)
    for name in names.values():
        (repository / name).unlink()
    commit(repository)
    worktree = repository.parent / "worktree"
    git(repository, "worktree", "add", "--quiet", str(worktree))
    code, text = scan(worktree)
    assert (code, found(text)) == (1, set(names.values()))
    assert "in commit" in text
    assert "in the working tree" not in text


def test_secret_scan_skips_ignored_and_known(repository: Path) -> None:
    (repository / ".env").write_text(PLANTED["secrets of tokens"])
    (repository / "a.txt").write_text(PLANTED["secrets of tokens"] + "  # kingfisher:ignore\n")
    code, text = scan(repository)
    sha256 = re.findall(r"\(sha256 (\w+)\)", text)
    assert (code, found(text), len(sha256)) == (1, {"a.txt"}, 1)
    known = f'[[known]]\nrule = "syncbeat.secrets"\npath = "a.txt"\nsha256 = "{sha256[0]}"\nreason = "a test"\n'
    assert scan(repository, known) == (0, "")
    # Known is this text in this place, and no other.
    (repository / "b.txt").write_text(PLANTED["secrets of tokens"])
    (repository / "a.txt").write_text(PLANTED["secrets in hex"])
    code, text = scan(repository, known)
    assert (code, found(text)) == (1, {"a.txt", "b.txt"})


def test_secret_scan_of_an_unpacked_archive_scans_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "a.txt").write_text(PLANTED["a forge's token"])
    code, text = scan(folder)
    assert (code, found(text)) == (1, {"a.txt"})
