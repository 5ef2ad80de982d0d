"""Blocks that are meant to be the same in every script are the same, byte for byte."""

import pytest
import sync_shared
from conftest import ROOT, SCRIPTS

SOURCE = (ROOT / "iql.py").read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shared_blocks(path):
    text = path.read_text()
    for start, end in sync_shared.FENCES:
        assert (
            text[sync_shared.block(text, start, end)]
            == SOURCE[sync_shared.block(SOURCE, start, end)]
        )


def test_sync_finds_and_mends_a_drifted_script(tmp_path, monkeypatch, capsys):
    drifted = SOURCE.replace("LOG_EVERY = 500", "LOG_EVERY = 50").replace(
        "batch_size: Annotated[int, 1, 10**6] = 256", "batch_size: Annotated[int, 1, 10**6] = 64"
    )
    assert "= 50  #" in drifted and "= 64  #" in drifted
    drifted = drifted.replace("def mlp(", "def net(")
    (tmp_path / "iql.py").write_text(SOURCE)
    (tmp_path / "child.py").write_text(drifted)
    (tmp_path / "made_by_a_user.py").write_text("print(1)\n")
    monkeypatch.setattr(sync_shared, "ROOT", tmp_path)
    check = sync_shared.Args(check=True)
    assert sync_shared.main(check) == 1
    assert "child.py" in capsys.readouterr().out
    assert (tmp_path / "child.py").read_text() == drifted
    assert sync_shared.main(sync_shared.Args()) == 0
    assert (tmp_path / "child.py").read_text() == SOURCE.replace("def mlp(", "def net(")
    assert (tmp_path / "made_by_a_user.py").read_text() == "print(1)\n"
    assert sync_shared.main(check) == 0
    damaged = drifted.replace(sync_shared.FENCES[-1][0], "")
    (tmp_path / "child.py").write_text(damaged)
    (tmp_path / "before.py").write_text(drifted)
    assert sync_shared.main(sync_shared.Args()) == 1
    assert "child.py: the fence" in capsys.readouterr().out
    assert (tmp_path / "child.py").read_text() == damaged
    assert (tmp_path / "before.py").read_text() == drifted  # nothing half done


def test_a_missing_fence_is_an_error():
    with pytest.raises(ValueError, match="exactly once"):
        sync_shared.synced(SOURCE.replace(sync_shared.FENCES[0][1], ""), SOURCE)
