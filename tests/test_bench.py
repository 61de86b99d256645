"""The benchmark is consistent; `make bench` runs it."""

import json
import subprocess
import sys

from server import ROOT

# In a process of its own: modules of the benchmark have the names of modules of the tests.
SHOWN = """
import json, report, resume_cost, scenarios, targets
windows = [window for scenario in scenarios.known(10) for window in scenario.windows]
plans = [json.dumps(each.plan()) for each in (*scenarios.known(10), resume_cost.scenario("resumable"))]
rows = {window.name: window.figures for window in windows}
named = [(target.row, target.figure) for target in targets.TARGETS]
named += [(target.row_of, target.figure) for target in targets.TARGETS if target.row_of]
print(json.dumps({"rows": rows, "targets": named, "figures": list(report.FIGURES)}))
"""


def test_every_target_is_of_a_figure_that_the_table_shows() -> None:
    ran = subprocess.run([sys.executable, "-c", SHOWN], cwd=ROOT / "bench", capture_output=True, text=True, check=True)
    shown = json.loads(ran.stdout)
    assert [(row, figure) for row, figure in shown["targets"] if figure not in shown["rows"].get(row, ())] == []
    assert {figure for figures in shown["rows"].values() for figure in figures} == set(shown["figures"])
