"""Only regular files are opened, links are not followed out of a folder, and a folder is whole at every instant."""

import errno
import os
import signal
import time

import pytest

from mnv4_rl import sealed_folders
from mnv4_rl.safe_files import DamagedError, cut_file, open_regular, read_file, write_file
from mnv4_rl.sealed_folders import SealedFolder, standing, write_folder

LIMITS = {"a": 100, "b": 100}


def make_pipe(path):
    os.mkfifo(path)


def make_link_to_zero(path):
    path.symlink_to("/dev/zero")


def make_folder(path):
    path.mkdir()


def make_loop(path):
    path.symlink_to(path)


def make_sparse(path):
    path.touch()
    os.truncate(path, 2**40)


@pytest.fixture
def time_bound():
    """A file that makes the reader wait fails the test in place of hanging it."""
    signal.alarm(10)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("make", [make_pipe, make_link_to_zero, make_folder, make_loop, make_sparse])
@pytest.mark.parametrize("below", [False, True])
def test_what_is_no_regular_file_of_a_sane_size_is_refused_at_once(make, below, tmp_path, time_bound):
    make(tmp_path / "file")
    with pytest.raises(DamagedError, match="file"):
        read_file(tmp_path / "file", 1_000, below=tmp_path if below else None)


@pytest.mark.parametrize("mode", ["ab", "r+b"])
@pytest.mark.parametrize("make", [make_pipe, make_link_to_zero, make_folder])
def test_what_is_no_regular_file_is_never_written(make, mode, tmp_path, time_bound):
    make(tmp_path / "file")
    with pytest.raises(DamagedError):
        open_regular(tmp_path / "file", mode)


@pytest.mark.parametrize("mode", ["ab", "r+b", "xb"])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_no_link_leads_a_write_elsewhere(mode, link, tmp_path):
    (tmp_path / "victim").write_text("thesis")
    link(tmp_path / "victim", tmp_path / "file")
    with pytest.raises((DamagedError, FileExistsError)):
        open_regular(tmp_path / "file", mode)
    assert (tmp_path / "victim").read_text() == "thesis"


def test_links_below_a_folder_are_not_followed_and_those_above_it_are(tmp_path):
    inner = tmp_path / "real" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read_file(tmp_path / "link" / "inner" / "file", 100, below=tmp_path / "link") == b"content"
    for below in (tmp_path, inner / ".." / ".."):
        with pytest.raises(ValueError):
            read_file(tmp_path / "link" / "inner" / "file", 100, below=below)
    with pytest.raises(DamagedError, match="leads out"):
        read_file(inner / ".." / "inner" / "file", 100, below=inner)


def test_a_file_is_replaced_past_a_planted_link(tmp_path):
    (tmp_path / "victim").write_text("thesis")
    for name in ("file", "file.partial"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new" and not (tmp_path / "file").is_symlink()
    assert (tmp_path / "victim").read_text() == "thesis"


# Folders


def write(path, a, b=b"b"):
    write_folder(path, {"a": lambda file: file.write(a), "b": lambda file: file.write(b)})


def content(path):
    return SealedFolder(path, LIMITS, ("a",)).read("a")


@pytest.mark.parametrize("failing", range(2))
@pytest.mark.parametrize("stays_broken", [False, True])
def test_a_rename_that_fails_leaves_the_old_folder_readable(failing, stays_broken, tmp_path, monkeypatch):
    write(tmp_path / "agent", b"old")
    calls, rename = [], os.rename

    def fails(*paths):
        calls.append(paths)
        if len(calls) - 1 == failing or (stays_broken and len(calls) > failing):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(*paths)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, "rename", fails)
        write(tmp_path / "agent", b"new")
    assert content(tmp_path / "agent") == b"old"
    write(tmp_path / "agent", b"newer")
    assert content(tmp_path / "agent") == b"newer" and [path.name for path in tmp_path.iterdir()] == ["agent"]


def write_and_be_killed(path, kill_before):
    """For a forked child: dies before the given rename, or, at 2, when the old folder is about to be deleted."""
    calls, rename, remove = [], os.rename, sealed_folders.remove

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(*paths):
        if len(calls) == kill_before:
            die()
        calls.append(paths)
        rename(*paths)

    os.rename = counted
    sealed_folders.remove = lambda path: die() if len(calls) == 2 else remove(path)
    write(path, b"new")


@pytest.mark.parametrize("kill_before", range(3))
def test_a_kill_around_any_rename_leaves_one_of_the_two_folders(kill_before, tmp_path):
    write(tmp_path / "agent", b"old")
    child = os.fork()
    if child == 0:
        write_and_be_killed(tmp_path / "agent", kill_before)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert content(tmp_path / "agent") == (b"new" if kill_before == 2 else b"old")
    if kill_before == 1:
        assert standing(tmp_path / "agent").name == "agent.old.partial"
    write(tmp_path / "agent", b"newer")
    assert content(tmp_path / "agent") == b"newer" and [path.name for path in tmp_path.iterdir()] == ["agent"]


@pytest.mark.parametrize("make", [make_pipe, make_link_to_zero, make_folder, make_sparse])
@pytest.mark.parametrize("name", ["a", "b", "manifest.json"])
def test_a_sealed_folder_with_something_else_in_the_place_of_a_file_is_damaged(make, name, tmp_path, time_bound):
    write(tmp_path / "agent", b"a")
    (tmp_path / "agent" / name).unlink()
    make(tmp_path / "agent" / name)
    started = time.monotonic()
    with pytest.raises(DamagedError, match=name):
        SealedFolder(tmp_path / "agent", LIMITS, ("a",)).verify()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        '{"a": 1}',
        '{"a": {"bytes": "1", "sha256": ""}}',
        '{"a": {"bytes": 1e400, "sha256": "00"}}',
        "[" * 100_000,
        '{"a": {"bytes": -1, "sha256": "' + 64 * "0" + '"}}',
        '{"../a": {"bytes": 1, "sha256": "' + 64 * "0" + '"}}',
        "{}",
    ],
)
def test_a_manifest_of_another_kind_is_damaged(manifest, tmp_path):
    write(tmp_path / "agent", b"a")
    (tmp_path / "agent" / sealed_folders.MANIFEST).write_text(manifest)
    with pytest.raises(DamagedError, match="manifest"):
        SealedFolder(tmp_path / "agent", LIMITS, ("a",))


def test_cutting_never_lengthens_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    cut_file(tmp_path / "file", 10)
    assert (tmp_path / "file").read_bytes() == b"abc"
