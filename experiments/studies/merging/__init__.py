"""Four encoders, each tuned on its own task, merged into one."""
