from __future__ import annotations

import checkpoint
import pytest
import torch


def test_what_was_saved_is_loaded(tmp_path):
    path = tmp_path / "c.pt"
    assert checkpoint.load(path) is None
    checkpoint.save(path, {"step": 3, "w": torch.arange(4.0), "losses": [(1, 0.5)]})
    state = checkpoint.load(path)
    assert (state["step"], state["w"].tolist(), state["losses"]) == (3, [0, 1, 2, 3], [(1, 0.5)])
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_checkpoint_that_fails_halfway_leaves_the_last_one(tmp_path):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"step": 1})
    with pytest.raises((AttributeError, TypeError)):
        checkpoint.save(path, {"step": 2, "bad": lambda: None})  # cannot be pickled
    assert checkpoint.load(path)["step"] == 1


class _Trap:
    def __reduce__(self):
        return (print, ("executed",))


def test_no_code_in_a_checkpoint_is_executed(tmp_path, capsys):
    torch.save({"format": 1, "trap": _Trap()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"Expected a checkpoint of this example .*--fresh"):
        checkpoint.load(tmp_path / "c.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "c.pt"
    if content is None:
        torch.save({"model": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"Expected a checkpoint of this example in .*c\.pt"):
        checkpoint.load(path)


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    torch.save({"format": 99}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"Expected a checkpoint of format 1 .*got 99"):
        checkpoint.load(tmp_path / "c.pt")


def test_every_difference_is_named():
    then = {"steps": 10, "held_out": 3, "text": None, "old": 1}
    now = {"steps": 20, "held_out": 3, "text": "x", "new": 2}
    assert checkpoint.differences(then, now) == [
        "--new None then, 2 now",
        "--old 1 then, None now",
        "--steps 10 then, 20 now",
        "--text None then, x now",
    ]
    assert checkpoint.differences(then, dict(then)) == []


def test_files_are_moved_aside_under_one_free_number(tmp_path):
    a, b = tmp_path / "a.pt", tmp_path / "b.png"
    a.write_text("first")
    assert checkpoint.move_aside([a, b], beside="watched") == [tmp_path / "a-earlier-1.pt"]
    (tmp_path / "watched-earlier-2").mkdir()
    a.write_text("second")
    b.write_text("picture")
    moved = checkpoint.move_aside([a, b], beside="watched")
    assert moved == [tmp_path / "a-earlier-3.pt", tmp_path / "b-earlier-3.png"]
    assert {p.name: p.read_text() for p in tmp_path.iterdir() if p.is_file()} == {
        "a-earlier-1.pt": "first", "a-earlier-3.pt": "second", "b-earlier-3.png": "picture",
    }  # fmt: skip
    assert checkpoint.move_aside([a, b], beside="watched") == []
