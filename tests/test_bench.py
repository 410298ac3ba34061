"""`tools/bench order` measures what it says, on a few texts."""

import re

from mmtune import registry
from tools import bench_order


def test_rows_are_counted_over_an_epoch(monkeypatch, capsys):
    texts = [(f"module.f{number}", "a red square. " * (1 + number * 7 % 9)) for number in range(60)]
    monkeypatch.setattr(bench_order, "docstrings", lambda: iter(texts))
    monkeypatch.setattr(registry, "_allowed", set(registry.allowances()))
    bench_order.order(60, length=320, rows=1, steps=1)
    rows = re.findall(r"^\| (.+?) \| (\d+) \| ([\d.]+) % \| (\d+) \|$", capsys.readouterr().out, re.M)
    assert [row[0] for row in rows] == [*bench_order.ORDERS]
    fill = {name: float(share) for name, _, share, _ in rows}
    assert 50 < fill["one length together"] < fill["length_grouped"] <= 100


def test_docstrings_are_read_and_not_imported():
    found = dict(text for text, _ in zip(bench_order.docstrings(), range(400), strict=False))
    assert len(found) == 400 and "__future__" in found and all(len(text) > 20 for text in found.values())
