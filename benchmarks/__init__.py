"""What a training step costs: counted, timed, and timed beside another library."""
