"""Closes runs whose process died without being able to: power cut, ``kill -9``, out of memory."""

from __future__ import annotations

import logging

from mlflow import MlflowClient

from .owner import describe_owner, is_gone

__all__ = ["OWNER_TAG", "reap"]

OWNER_TAG = "slim.owner"

logger = logging.getLogger(__name__)


def reap(experiment_id: str, *, client: MlflowClient | None = None) -> list[str]:
    """Marks as KILLED the RUNNING runs of ours whose process is gone; gives back their ids.

    Runs of other hosts, and runs that aren't ours, are never touched. Never raises: tidying up must not
    stop the work that comes after it.
    """
    client = client or MlflowClient()
    closed: list[str] = []
    try:
        token = None
        found = []
        while True:
            # Only some stores filter on tags that are merely present, so ownership is looked at here.
            page = client.search_runs([experiment_id], "attributes.status = 'RUNNING'", page_token=token)
            found += [run for run in page if OWNER_TAG in run.data.tags]
            token = page.token
            if not token:
                break
        for run in found:
            owner = run.data.tags[OWNER_TAG]
            if not is_gone(owner, run_started_ms=run.info.start_time):
                continue
            run_id = run.info.run_id
            if client.get_run(run_id).info.status != "RUNNING":  # it ended between the search and now
                continue
            client.set_terminated(run_id, "KILLED")
            reason = f"{describe_owner(owner)} ended without closing the run (killed, or out of memory)"
            client.set_tag(run_id, "slim.failure", reason)
            closed.append(run_id)
    except Exception as error:
        logger.warning("Could not look for abandoned runs: %s", error)
    if closed:
        logger.info("Marked %d abandoned run(s) as KILLED: %s", len(closed), ", ".join(closed))
    return closed
