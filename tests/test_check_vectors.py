"""`tools/check_vectors`: what passes, what fails, what is not counted, and which case a file belongs to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOLS))
    try:
        import check_vectors

        yield check_vectors
    finally:
        sys.path.remove(str(TOOLS))


def written(folder: Path, outputs: dict[str, torch.Tensor], **facts) -> Path:
    path = folder / "a.some.json"
    path.write_text(json.dumps({"system": "toy", "module": "sum", **facts}))
    save_file({f"outputs/{name}": tensor for name, tensor in outputs.items()}, path.with_suffix(".safetensors"))
    return path


def giving(tool, **values):
    return {"toy/sum": lambda vector: (tool.Got(name, value) for name, value in values.items())}


def test_within_the_tolerance_of_the_file_or_of_its_case(tool, tmp_path) -> None:
    want = {"loud/x": torch.tensor([1.0, 2.0]), "soft/x": torch.tensor([1.0, 2.0])}
    cases = {"loud": {"tolerance": {"atol": 0.5, "rtol": 0.0}}, "soft": {}}
    path = written(tmp_path, want, tolerance={"atol": 0.01, "rtol": 0.0}, cases=cases)
    near = {name: tensor + 0.1 for name, tensor in want.items()}
    assert tool.check(path, giving(tool, **near)) == (1, 1, 0)


@pytest.mark.parametrize("ours", [torch.tensor([1.0, float("nan")]), torch.tensor([[1.0, 2.0]]), None, 3])
def test_what_is_no_number_of_that_shape_fails(tool, tmp_path, ours) -> None:
    path = written(tmp_path, {"x": torch.tensor([1.0, 2.0])}, tolerance=1e9)
    assert tool.check(path, giving(tool, x=ours)) == (0, 1, 0)


def test_whole_numbers_are_equal_or_not(tool, tmp_path) -> None:
    path = written(tmp_path, {"x": torch.tensor([7, 8])}, tolerance=1e9)
    assert tool.check(path, giving(tool, x=torch.tensor([7, 8]))) == (1, 0, 0)
    assert tool.check(path, giving(tool, x=torch.tensor([7, 9]))) == (0, 1, 0)


def test_what_no_case_gives_fails_and_a_defect_counts_as_neither(tool, tmp_path) -> None:
    names = ("x", "forgotten", "tile_quirk", "tile_quirk/embeds")
    path = written(tmp_path, {name: torch.zeros(2) for name in names})
    assert tool.check(path, giving(tool, x=torch.zeros(2), tile_quirk=torch.ones(2))) == (1, 1, 2)


def test_a_file_without_a_case_and_one_that_stops_fail(tool, tmp_path) -> None:
    path = written(tmp_path, {"x": torch.zeros(2)})
    assert tool.check(path, {}) == (0, 1, 0)

    def stops(vector):
        yield tool.Got("x", torch.zeros(2))
        raise RuntimeError("half way")

    assert tool.check(path, {"toy/sum": stops}) == (1, 1, 0)


def test_a_sample_rate_is_a_size_and_no_kind(tool, tmp_path) -> None:
    assert tool.read(written(tmp_path, {"x": torch.zeros(1)}, module="audio_preproc_48k")).kind == "toy/audio_preproc"
    assert tool.read(written(tmp_path, {"x": torch.zeros(1)}, module=None)).kind == "toy"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.some.json", b'["toy"]', "no JSON object"),
        ("a.some.json", b'{"system": "toy", "module": 3}', "no JSON object"),
        ("a.some.json", b'{"system": ', "cannot be read"),
        ("a.some.safetensors", b"\x10\0\0\0\0\0\0\0{}", "a.some.safetensors"),
        ("b.other.safetensors", b"", "no JSON of this name"),
        ("pool_b.npz", b"", "no JSON of this name"),
    ],
)
def test_a_file_that_cannot_be_read_fails_and_the_next_one_runs(
    tool, tmp_path, monkeypatch, capsys, name, content, told
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "good").mkdir()
    written(tmp_path / "bad", {"x": torch.zeros(2)})
    written(tmp_path / "good", {"x": torch.zeros(2)})
    (tmp_path / "bad" / name).write_bytes(content)
    monkeypatch.setattr(tool, "cases", lambda: giving(tool, x=torch.zeros(2)))
    monkeypatch.setattr("sys.argv", ["check_vectors", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    said = capsys.readouterr().out
    assert stopped.value.code == 1
    assert told in said and f"{tmp_path / 'good' / 'a.some.json'} (toy/sum)" in said and " 1 fail" in said


def test_a_readme_is_no_vector(tool, tmp_path, monkeypatch) -> None:
    written(tmp_path, {"x": torch.zeros(2)})
    (tmp_path / "README.md").write_text("what these are")
    monkeypatch.setattr(tool, "cases", lambda: giving(tool, x=torch.zeros(2)))
    monkeypatch.setattr("sys.argv", ["check_vectors", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    assert stopped.value.code == 0
