"""Records of a study whose runs were never carried out."""

import pytest
import study_worker

from experiments.study import carry_out
from experiments.study.stages import STAGES, plan_stage


@pytest.fixture
def records_up_to():
    """Make up the records of all stages before one."""

    def records_up_to(stage, protocol=study_worker.PROTOCOL):
        records = {}
        for each in STAGES[: STAGES.index(stage)]:
            for setting in protocol.settings:
                for run in plan_stage(protocol, setting, each, records).runs:
                    records[run.key] = study_worker.record_of(run)
        return records

    return records_up_to


@pytest.fixture
def no_measurement(monkeypatch):
    """Leave out what a run that trained nothing can not have."""
    monkeypatch.setattr(carry_out, "_measure", lambda *_: study_worker.CURVATURE)
