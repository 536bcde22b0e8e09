"""Loss functions of tasks."""
