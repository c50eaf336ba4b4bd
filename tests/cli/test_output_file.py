"""A document goes to a file of its own: what stands at its place before lends it neither mode nor target."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from syncbeat_server.cli.transfer.output import opened_output
from syncbeat_server.errors import ConfigurationError

pytestmark = pytest.mark.unit


def test_output_takes_no_mode_from_a_file_left_behind(tmp_path: Path) -> None:
    path, partial = tmp_path / "ann.json", tmp_path / "ann.json.partial"
    partial.write_text("left by a run that was killed")
    partial.chmod(0o666)
    reader = partial.open(encoding="utf-8")

    with reader, opened_output(path) as write:
        write("secret")
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600

    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("secret", 0o600)
    assert not partial.exists()


def test_output_follows_no_link(tmp_path: Path) -> None:
    path, partial, target = tmp_path / "ann.json", tmp_path / "ann.json.partial", tmp_path / "target"
    target.write_text("of somebody else")
    partial.symlink_to(target)

    with opened_output(path) as write:
        write("secret")

    assert (target.read_text(), path.read_text(), path.is_symlink()) == ("of somebody else", "secret", False)


def test_output_that_cannot_take_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "ann.json.partial").mkdir()

    with pytest.raises(ConfigurationError, match="--output: "), opened_output(tmp_path / "ann.json"):
        pytest.fail("the block is not begun")

    assert (tmp_path / "ann.json.partial").is_dir()
