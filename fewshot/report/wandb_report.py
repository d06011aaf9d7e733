"""Builds a report in Weights & Biases that compares the runs of a project: python -m fewshot.report.wandb_report

project=fewshot [entity=NAME] [group=TASK_NAME]      needs an account (wandb login) and pip install '.[wandb]'

That the page is made of the right panels is tested; how it looks, and that the service takes it, can be seen with an
account alone.
"""

import sys
from collections.abc import Sequence
from typing import Any

from fewshot.errors import UserError, one_line_errors

_OPTIONS = {"project": "fewshot", "entity": "", "group": ""}


def build_report(project: str, entity: str, group: str) -> Any:
    """The report, not yet saved: curves by algorithm, mean over seeds, and the scores of the tests.

    Args:
        group: only runs of this `task_name`; "": all of the project.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError as error:
        raise UserError("a report in W&B needs wandb-workspaces: pip install '.[wandb]'") from error
    runs = wr.Runset(
        entity=entity,
        project=project,
        name=group or "all runs",
        groupby=["JobType"],
        query=f'"{group}"' if group else "",
    )
    by_algorithm: dict[str, Any] = dict(groupby="JobType", groupby_aggfunc="mean", groupby_rangefunc="stderr")
    axis = "trainer/global_step"
    curves = [
        wr.LinePlot(title=title, x=axis, y=[metric], title_x="outer steps", **by_algorithm)
        for title, metric in (("validation accuracy", "val/acc"), ("training loss", "train/loss"))
    ]
    speed = wr.LinePlot(
        title="validation accuracy against seconds", x="val/seconds", y=["val/acc"], title_x="seconds", **by_algorithm
    )
    scores = wr.BarPlot(title="test accuracy", metrics=["test/acc"], groupby="JobType", groupby_aggfunc="mean")
    return wr.Report(
        project=project,
        entity=entity,
        title=f"fewshot: {group or project}",
        description="Mean over seeds, bands of standard errors over seeds. For intervals: python -m fewshot.report",
        blocks=[
            wr.H1("Scores on the test tasks"),
            wr.PanelGrid(runsets=[runs], panels=[scores]),
            wr.H1("Training"),
            wr.PanelGrid(runsets=[runs], panels=[*curves, speed]),
            wr.H1("Tasks and pictures"),
            wr.PanelGrid(runsets=[runs], panels=[wr.MediaBrowser(media_keys=["plots/episode", "plots/inner_steps"])]),
        ],
        width="fluid",
    )


def main(arguments: Sequence[str]) -> None:
    """project=, entity=, group=."""
    if {"-h", "--help"} & set(arguments):
        print((__doc__ or "").strip())
        return
    options = _OPTIONS | {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    if unknown := options.keys() - _OPTIONS.keys():
        raise UserError(f"{', '.join(sorted(unknown))}: the options are {', '.join(f'{key}=' for key in _OPTIONS)}")
    report = build_report(**options)
    import wandb

    if not wandb.api.api_key:
        raise UserError("W&B knows no account here: wandb login")
    report.save()
    print(f"written: {report.url}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
