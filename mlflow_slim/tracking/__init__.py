"""Everything said to and read from MLflow Tracking.

A recipe has one run (`runs`), each point of its comparison another (`points`), all of them top-level: MLflow's
chart and compare pages hide nested runs. Texts are scrubbed (`scrub`), runs of dead processes closed
(`reaper`), the experiment's charts set up (`saved_view`).
"""

from .cards import point_card, recipe_card, run_link
from .downloads import download_artifacts
from .points import PointRun
from .reaper import reap
from .runs import DEFAULT_EXPERIMENT, RecipeRun, describe_project_run, explain_unopened_run, open_recipe_run
from .saved_view import install_view
from .scrub import scrub
from .signals import StoppedBySignal
from .store import UiLink, connect, ui_command

__all__ = [
    "DEFAULT_EXPERIMENT",
    "PointRun",
    "RecipeRun",
    "StoppedBySignal",
    "UiLink",
    "connect",
    "describe_project_run",
    "download_artifacts",
    "explain_unopened_run",
    "install_view",
    "open_recipe_run",
    "point_card",
    "reap",
    "recipe_card",
    "run_link",
    "scrub",
    "ui_command",
]
