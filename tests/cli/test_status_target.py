"""Tests to whom `syncbeat-server status` shows its token, and over which transport."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest

from syncbeat_server.cli import status
from syncbeat_server.cli.deployment.target import read_target, read_token
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.rpc.deployment import Deployment

pytestmark = pytest.mark.unit

TOKEN = "a-token-to-show"


def target(tmp_path: Path, *arguments: str) -> Deployment:
    """Return the target that these arguments name."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    parser = argparse.ArgumentParser()
    status.add_status(parser.add_subparsers())
    return read_target(parser.parse_args(["status", "--token-file", str(file), *arguments]))


@pytest.mark.parametrize(
    ("address", "options", "tls"),
    [
        ("127.0.0.1:50051", (), False),
        ("[::1]:50051", (), False),
        ("localhost:50051", (), False),
        ("unix:/run/syncbeat.sock", (), False),
        ("syncbeat.example.org:443", (), True),
        ("192.0.2.1:443", (), True),
        ("dns:///localhost:50051", (), True),  # whatever is not known to be this machine
        ("localhost.example.org:50051", (), True),
        ("syncbeat.example.org:443", ("--plaintext",), False),
    ],
)
def test_status_token_goes_to_other_machines_by_tls_alone(
    tmp_path: Path, address: str, options: tuple[str, ...], tls: bool
) -> None:
    found = target(tmp_path, "--target", address, *options)
    assert (found.address, found.token, found.tls) == (address, TOKEN, tls)
    assert TOKEN not in repr(found)


def test_status_trusts_the_authorities_that_are_named(tmp_path: Path) -> None:
    authorities = tmp_path / "ca.pem"
    authorities.write_bytes(b"authorities")
    found = target(tmp_path, "--target", "127.0.0.1:1", "--tls-ca", str(authorities))
    assert (found.tls, found.authorities) == (True, b"authorities")


def test_status_asks_the_server_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNCBEAT_LISTEN", "0.0.0.0:4711")
    assert target(tmp_path).address == "127.0.0.1:4711"
    monkeypatch.setenv("SYNCBEAT_LISTEN", "127.0.0.1:0")
    with pytest.raises(ConfigurationError, match="--target"):
        target(tmp_path)


@pytest.mark.parametrize("content", ["", "\n", "two tokens", "t\x00", "t\x7f", "ünlike", "x" * 9_000])
def test_status_token_file_holds_a_token_and_nothing_else(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match="--token-file"):
        read_token(str(file))


def test_status_token_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--token-file: there is no"):
        read_token(str(tmp_path / "none.txt"))


def test_status_token_is_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\nmore\n"))
    assert read_token("-") == TOKEN
