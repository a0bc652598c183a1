"""What a crash left of a save is put in place only where it is of that save."""

import torch

from runner.core import checkpoint


def test_only_what_belongs_to_the_save_takes_its_place(tmp_path):
    old, new = {"step": 1}, {"step": 4}
    state = {"count": 5, "best": {"val": {"step": 4}, "test": {"step": 3}}}
    for name in ("val", "test"):
        checkpoint.save(old, tmp_path / f"best_{name}.pt")
        torch.save(new, tmp_path / f"best_{name}.pt.tmp")  # of test it is another crash's
    checkpoint.save({"count": 4}, tmp_path / "last.pt")
    assert not checkpoint.catch_up(tmp_path, 5)
    (tmp_path / "last.pt.tmp").write_bytes(b"torn")
    assert not checkpoint.catch_up(tmp_path, 5)
    torch.save(state, tmp_path / "last.pt.tmp")
    assert not checkpoint.catch_up(tmp_path, 6)
    assert checkpoint.load(tmp_path / "last.pt") == {"count": 4}
    assert checkpoint.catch_up(tmp_path, 5)
    found = {name: checkpoint.load(tmp_path / f"{name}.pt") for name in ("last", "best_val", "best_test")}
    assert found == {"last": state, "best_val": new, "best_test": old}
    torch.save(state, tmp_path / "last.pt.tmp")
    (tmp_path / "best_val.pt.tmp").write_bytes(b"torn")
    assert checkpoint.catch_up(tmp_path, 5) and checkpoint.load(tmp_path / "best_val.pt") == new
