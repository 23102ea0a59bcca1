"""Durable calls: methods whose every call is a workflow, with steps whose results are rows.

See `method.py` for how one is declared, `workflow.py` for what its handler works with.
"""

from .method import DurableMethod, Start, durable
from .queues import Queue
from .workflow import Retry, Workflow, this_step

__all__ = ["DurableMethod", "Queue", "Retry", "Start", "Workflow", "durable", "this_step"]
