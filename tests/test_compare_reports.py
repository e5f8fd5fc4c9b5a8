"""The script that compares two reports of one study."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from made_study import grid, make_study
from retcon.report.page import write_report

_SCRIPT = Path(__file__).parents[1] / "examples" / "compare_reports.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("compare_reports", _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = make_study(
        tmp_path_factory.mktemp("drawn") / "study", grid("methods", {"method": ["memit", "emmet"]})
    )
    write_report(folder)
    return folder


def test_a_report_is_like_itself(main, drawn, capsys):
    assert main(drawn, drawn) == 0
    assert "0 differ" in capsys.readouterr().out


def test_other_numbers_are_told(main, drawn, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(drawn, other)
    table = other / "report" / "differences-from-the-best.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("best", "worst", 1), "utf-8")
    page = other / "report.html"
    text = page.read_text(encoding="utf-8")
    where = text.index('"effect":', text.index('id="specs"')) + len('"effect":')
    page.write_text(text[:where] + "1" + text[where:].lstrip("-"), encoding="utf-8")
    (other / "report" / "costs.csv").unlink()
    assert main(drawn, other) == 1
    said = capsys.readouterr().out
    for name in ("differences-from-the-best.csv:", "chart differences:", "costs.csv: is not"):
        assert name in said
