"""A cluster for the tests: each job is a process of its own, and what was asked for it is noted."""

import json
import os
import subprocess
from pathlib import Path

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

ASKED = ("runtime", "mem_mb", "gpu", "_cores")

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=False,
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
)


class Executor(RemoteExecutor):
    """Submits a job as a command for the shell."""

    def run_job(self, job):
        """Start it, and note what it is and what was asked for it."""
        asked = {name: job.resources.get(name) for name in ASKED}
        note = {"rule": job.rule.name, "build": os.environ["KTLIB_BUILD"], **asked}
        with Path("submitted.jsonl").open("a") as stream:
            stream.write(json.dumps(note) + "\n")
        process = subprocess.Popen(["sh", "-c", self.format_job_exec(job)])
        self.report_job_submission(SubmittedJobInfo(job, aux={"process": process}))

    async def check_active_jobs(self, active_jobs):
        """Report those that have ended; yield the others."""
        for info in active_jobs:
            code = info.aux["process"].poll()
            if code is None:
                yield info
            elif code:
                self.report_job_error(info)
            else:
                self.report_job_success(info)

    def cancel_jobs(self, active_jobs):
        """End them."""
        for info in active_jobs:
            info.aux["process"].terminate()
