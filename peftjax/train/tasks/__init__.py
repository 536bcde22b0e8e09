"""The tasks that a run can learn."""
