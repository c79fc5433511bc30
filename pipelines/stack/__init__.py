"""The local stack: its parts as detached processes that are started, found again and stopped one by one.

from pipelines.stack import up, down, status
"""

from pipelines.stack.control import down, status, up
from pipelines.stack.environment import airflow_password, part_environment
from pipelines.stack.parts import PART_NAMES
from pipelines.stack.states import PartStatus, Progress

__all__ = ["PART_NAMES", "PartStatus", "Progress", "airflow_password", "down", "part_environment", "status", "up"]
