"""Peers beside ours: their messages, the receiver of streams, and one that cannot be had."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import __main__ as program
from bench.echo_server import STREAM
from bench.peers import centrifugo, figures, tools
from bench.peers.receiver import Receiver
from bench.stage import echo_server

pytestmark = pytest.mark.process


def test_peer_messages_are_protobuf() -> None:
    assert centrifugo.publish_request("room", b"{}") == b"\x0a\x04room\x12\x02{}"
    assert centrifugo.consume_request("room") == b"\x1a\x08\x0a\x04room\x12\x00"


def test_peer_that_cannot_be_had_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "FOLDER", tmp_path / "peers")
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "peers", "--rounds", "1"])
    assert program.main() == 0
    told = {line["name"]: line["absent"] for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert told == dict.fromkeys(figures.FIGURES, "there is no go on the PATH") | {
        "peer_push_per_s": "there is no node on the PATH"
    }


async def test_receiver_notes_arrivals_on_all_streams() -> None:
    with echo_server(20) as echo:
        receiver = Receiver()
        try:
            receiver.expect(b"xxxx", of=7)
            await receiver.open(echo.address, STREAM, [("token", b"")] * 7, per_connection=3)
            assert len(await receiver.arrivals()) == 7
        finally:
            receiver.close()
