"""A workflow goes on when the call that began it does not."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from atoll.ipc.durable import administration
from atoll.ipc.errors import DeadlineExceeded

from .conftest import Here


def test_a_workflow_outlives_the_deadline_of_the_call_that_began_it(tmp_path: Path, label: str) -> None:
    with ExitStack() as stack:
        here = Here(stack, tmp_path)
        with pytest.raises(DeadlineExceeded):
            here.stages.with_(deadline=0.5).wait.now(label)
        (row,) = administration.workflows(here.rows(), ended=False)
        here.stages.release.now(label)
        assert here.stages.wait.result.now(row.id) == label
        here.crash()
        assert here.stages.wait.result.now(row.id) == label
