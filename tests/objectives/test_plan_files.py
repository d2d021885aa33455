"""A plan as a file: what is written is read back, what people write is understood, and what is wrong is one line."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from objectives.errors import InputError
from objectives.model.finding import find_blocks
from objectives.plan_files import plan_json, plan_of_rows, plan_rows, read_plan
from quant.plan import Plan
from quant.setting import Setting
from tests.objectives import tiny

RECIPE = Setting(method="gw-awq", group_size=64, n_calib=8, full_range=True, range_search="diagonal", rounding="gptq")
BLOCKS = find_blocks(tiny.module(tiny.LAYOUTS["llama"]()))
LINEARS = [(block.index, linear) for block in BLOCKS for linear in block.linears]
NAMES = [linear.name for _, linear in LINEARS]


def mixed() -> Plan:
    """Several bits and groups, two methods, and Linears left in 16 bit."""
    settings = [
        RECIPE,
        replace(RECIPE, group_size=32),
        replace(RECIPE, bits=8, symmetric=False, full_range=False),
        Setting(method="rtn-channel", bits=8),
        replace(RECIPE, bits=16),
    ]
    return Plan(named={name: settings[place % 5] for place, name in enumerate(NAMES)})


def canonical(plan: Plan) -> dict[str, Setting]:
    return {name: plan.setting_for(name).canonical() for name in NAMES}


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def table(plan: Plan) -> pd.DataFrame:
    return pd.DataFrame(plan_rows(plan, LINEARS))


def group(**changes: Any) -> str:
    """A JSON plan of one setting for two Linears."""
    stored = {"method": "rtn", "parameters": {"bits": 4}, "linears": ["a", "b"], **changes}
    return json.dumps({"settings": [stored]})


@pytest.mark.parametrize("plan", [mixed(), Plan.uniform(RECIPE)])
def test_json_is_read_back(plan: Plan, tmp_path: Path) -> None:
    """Each setting once, with its Linears; what it does not read is not in it."""
    text = plan_json(plan, NAMES)
    assert canonical(read_plan(written(tmp_path / "plan.json", text))) == canonical(plan)
    settings = json.loads(text)["settings"]
    assert len(settings) == len(plan.settings)
    assert "beta" not in settings[0]["parameters"]
    assert settings[0]["parameters"]["bits"] == 4


@pytest.mark.parametrize("plan", [mixed(), Plan.uniform(RECIPE)])
def test_a_table_is_read_back(plan: Plan, tmp_path: Path) -> None:
    """As a DataFrame, and as the CSV that it or a spreadsheet writes."""
    frame = table(plan)
    assert list(frame["linear"]) == NAMES
    assert list(frame["role"])[:7] == ["q", "k", "v", "o", "gate", "up", "down"]
    assert canonical(plan_of_rows(frame.to_dict("records"))) == canonical(plan)
    frame.to_csv(tmp_path / "plan.csv", index=False)
    assert canonical(read_plan(tmp_path / "plan.csv")) == canonical(plan)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(frame), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(plan_rows(plan, LINEARS))
    (tmp_path / "sheet.CSV").write_bytes(b"\xef\xbb\xbf" + buffer.getvalue().encode())
    assert canonical(read_plan(tmp_path / "sheet.CSV")) == canonical(plan)


def test_a_table_can_be_edited() -> None:
    """Other bits for one role, and nothing else changes."""
    frame = table(Plan.uniform(RECIPE))
    frame.loc[frame["role"] == "down", "bits"] = 8
    plan = plan_of_rows(frame.to_dict("records"))
    assert {plan.setting_for(name).bits for name in NAMES if name.endswith("down_proj")} == {8}
    assert {plan.setting_for(name) for name in NAMES if not name.endswith("down_proj")} == {RECIPE}


def test_what_people_write_by_hand(tmp_path: Path) -> None:
    """Two columns are enough, recipes have their names, and numbers may look like fractions."""
    text = "linear,method,bits,symmetric\na,gw-awq+range+gptq,8.0,TRUE\nb,rtn,,false\n"
    plan = read_plan(written(tmp_path / "plan.csv", text))
    assert plan.setting_for("a") == Setting(method="gw-awq", range_search="diagonal", rounding="gptq", bits=8)
    assert plan.setting_for("b") == Setting(method="rtn", symmetric=False)
    brief = {"method": "gw-awq+gptq", "parameters": {}, "linears": ["a"]}
    plan = read_plan(written(tmp_path / "plan.json", json.dumps({"settings": [brief], "format": 2})))
    assert plan.setting_for("a") == Setting(method="gw-awq", rounding="gptq")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("plan.json", "{", "is not JSON"),
        ("plan.json", "[" * 100000, "is not JSON"),
        ("plan.json", "[]", 'is no plan: write {"settings"'),
        ("plan.json", "{}", "lacks settings"),
        ("plan.json", '{"settings": []}', "has no settings; it needs one for each Linear"),
        ("plan.json", '{"settings": 4}', "settings is 4, not a list"),
        ("plan.json", group(linears="a"), "settings[0].linears is 'a', not a list"),
        ("plan.json", group(linears=["a", "a"]), "has more than one setting for a; leave one"),
        (
            "plan.json",
            group(method="gptq"),
            "settings[0] cannot be used: method 'gptq' is unknown; choose one of rtn, ",
        ),
        ("plan.json", group(method="rtn+best"), "settings[0]: ingredient 'best' of rtn+best is unknown"),
        ("plan.json", group(parameters={"bits": 9}), "settings[0] cannot be used: bits 9 is none of 2, 3, "),
        ("plan.json", group(parameters={"bits": "4"}), "settings[0]: bits is '4', not a whole number"),
        ("plan.json", group(parameters={"bit": 4}), "settings[0] has the unknown field 'bit'"),
        ("plan.csv", "linear,bits\n", "has no settings"),
        ("plan.csv", "bits\n4\n", "row 1 names no Linear; the column 'linear' has to"),
        ("plan.csv", "linear,bit\na,4\n", "row 1 has the unknown column 'bit'; there are method, "),
        ("plan.csv", "linear,bits\na,4\nb,four\n", "row 2: bits is 'four', not a whole number"),
        ("plan.csv", "linear,bits\na,4.5\n", "row 1: bits is 4.5, not a whole number"),
        ("plan.csv", "linear,symmetric\na,maybe\n", "row 1: symmetric is 'maybe', not true or false"),
        ("plan.csv", "linear,bits\na,4,5\n", "line 2 has more values than there are columns"),
        ("plan.csv", 'linear,bits\n"a', "is not CSV"),
        ("plan.csv", "linear,bits\na,4\na,8\n", "has more than one setting for a"),
    ],
)
def test_what_is_wrong_is_one_line(name: str, text: str, said: str, tmp_path: Path) -> None:
    """It names the file and the place."""
    path = written(tmp_path / name, text)
    with pytest.raises(InputError) as caught:
        read_plan(path)
    message = str(caught.value)
    assert message.startswith(f"plan file {path}")
    assert said in message
    assert "\n" not in message


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """Absent, a directory, or not text."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent.json", tmp_path, tmp_path / "binary"):
        with pytest.raises(InputError, match="cannot be read"):
            read_plan(path)
